"""A model behind a chat API as an engine: the same conversations, asked for as messages.

Episodes speak tokens, an API speaks messages. A prompt's control tokens say where its messages begin and end (text from
strangers holds none, see `renderer`), and what the model answers is tokenised here, cut after the first stop string
that is not in open reasoning. An API tells no log-prob of these tokens: they are NaN, and nothing can be trained by
them but imitation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.protocol import OPENINGS, is_open_reason
from mmsr1.tools.base import Part
from mmsr1.tools.chat import ChatMessage, ChatQuery, ChatReply, Role
from mmsr1.types import Picture

NO_LOGPROB = float("nan")
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class OpenAiEngine:
    """`chat` asks the model, `tokenizer` is that of the renderer. `on_close` is awaited when the engine is closed."""

    def __init__(
        self,
        chat: Part[ChatQuery, ChatReply],
        tokenizer: Any,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._chat, self._tokenizer, self._on_close = chat, tokenizer, on_close
        self._end_of_turn = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        messages = conversation(prompt, self._tokenizer)
        begun = messages[-1].parts[-1] if messages[-1].role == "assistant" else ""
        query = ChatQuery(messages, sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed)
        outcome = await self._chat(query)
        if outcome.value is None:
            return EngineFailure(f"{self._chat.name}: {outcome.detail or outcome.status}")
        reply = outcome.value
        text = until_stop(str(begun), _rest(str(begun), reply), sampling.stop)
        stopped = any(stop in text for stop in sampling.stop)
        # Special tokens that the model spells out are text: it ends its turn by ending its message.
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not stopped and reply.finish == "stop":
            ids = [*ids, self._end_of_turn]
        kept = tuple(ids[: sampling.max_tokens])  # counted by our tokenizer, which may need more than the model's own
        finish = "stop" if len(kept) == len(ids) and (stopped or reply.finish == "stop") else "length"
        return Completion(kept, (NO_LOGPROB,) * len(kept), finish, 0)

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise RuntimeError("a model behind an API takes no weights")

    async def sleep(self) -> None:
        """There is no memory of ours to give back."""

    async def close(self) -> None:
        if self._on_close is not None:
            await self._on_close()


def conversation(prompt: TokenPrompt, tokenizer: Any) -> tuple[ChatMessage, ...]:
    """The messages of a prompt in Qwen's chat format. The last one is the assistant's if it has begun to speak.

    Raises ValueError if the prompt is none, or its images and their places differ in number.
    """
    start, end, image = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|image_pad|>"])
    around = set(tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"]))
    pictures, messages = list(prompt.images), []
    for piece in _split(prompt.token_ids, start)[1:]:
        body = piece[: piece.index(end)] if end in piece else piece
        parts: list[str | Picture] = []
        for kind, ids in groupby((token for token in body if token not in around), lambda token: token == image):
            if kind:
                for _ in ids:
                    if not pictures:
                        raise ValueError("the prompt has more places for images than images")
                    parts.append(pictures.pop(0))
            else:
                parts.append(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        head = parts[0] if parts and isinstance(parts[0], str) else ""
        role, _, said = head.partition("\n")
        if role not in _ROLES:
            raise ValueError(f"a message of {role[:20]!r}: the prompt is not in Qwen's chat format")
        whole = tuple(part for part in (said, *parts[1:]) if part != "")
        if whole or role != "assistant":
            messages.append(ChatMessage(role, whole))  # type: ignore[arg-type]  (one of the roles)
    if pictures or not messages:
        raise ValueError(f"{len(pictures)} images of the prompt have no place in it")
    return tuple(messages)


def until_stop(begun: str, text: str, stops: Sequence[str]) -> str:
    """The text up to the end of the first stop string outside of open reasoning; `begun` is what was said before.

    >>> until_stop("", "<reason>No <answer>.</reason><answer>x</answer> Bye", ["</answer>"])
    '<reason>No <answer>.</reason><answer>x</answer>'
    """
    ends = sorted(end for stop in stops for end in _ends(text, stop))
    return next((text[:end] for end in ends if not is_open_reason(begun + text[:end])), text)


def _ends(text: str, stop: str) -> list[int]:
    places, start = [], text.find(stop)
    while start >= 0:
        places.append(start + len(stop))
        start = text.find(stop, start + 1)
    return places


def _rest(begun: str, reply: ChatReply) -> str:
    """What a reply adds to the message that it was to go on with.

    Where the message ends with an opening tag, that is the tag's content and its end: asked for the rest, some models
    leave out the end, and some say everything again. An image search has one content only.
    """
    tag = next((tag for tag in OPENINGS.values() if begun.endswith(tag)), None)
    text = reply.text.removeprefix(begun.strip())
    if tag is None:
        return text
    closing = f"</{tag[1:]}"
    if tag == OPENINGS["image_search"]:
        return f"<img>{closing}"
    inside, ended, after = text.rpartition(tag)[2].partition(closing)
    if any(opening in inside for opening in ("<reason>", *OPENINGS.values())):
        inside = ""  # it did something else: nothing was said here
    return inside if reply.finish == "length" and not ended else inside + closing + after


def _split(ids: Sequence[int], at: int) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == at:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces
