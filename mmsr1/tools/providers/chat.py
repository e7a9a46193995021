"""A chat with a language model behind an OpenAI-compatible endpoint (vLLM, SGLang, Ollama, a hosted one)."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.chat import ChatMessage, ChatQuery, ChatReply
from mmsr1.tools.http import Reply
from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.fields import document, encodable
from mmsr1.tools.providers.pictures import as_jpeg
from mmsr1.types import Picture

Finish = Literal["stop", "length"]

GO_ON = "Your last message was cut off. Write only what comes after its last character; repeat nothing of it."
PICTURE_BYTES = 4 * 2**20  # of one picture of a request; a larger one is sent as a smaller JPEG
_KINDS = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class OpenAiChat(WebProvider[ChatQuery, ChatReply]):
    """One message of the model.

    `extra` goes into the request as it is; null there takes a key out that a service refuses (`extra: {seed: null}`).
    `continues`: the server goes on with a message that was begun (vLLM, SGLang: `continue_final_message`); others are
    asked to in words. `usd_per_million` are the prices of prompt and completion tokens; without them a call costs
    `price_usd`, which with them is the most that one may cost.
    """

    name: ClassVar[str] = "openai_chat"
    known: ClassVar[Mapping[str, Any]] = {"model": "", "extra": {}, "continues": False, "usd_per_million": []}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        if not self.options["model"]:
            raise ValueError(f"options.model: {self.name} needs the name of a model")
        prices = self.options["usd_per_million"]
        if prices and not (len(prices) == 2 and all(isinstance(p, int | float) and p >= 0 for p in prices)):
            raise ValueError("options.usd_per_million: give two numbers, of a million prompt and completion tokens")
        self._path = chat_path(self._url)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {name: value for name, value in super().settings.items() if name != "usd_per_million"}

    async def fetch(self, query: ChatQuery) -> Answer[str]:
        body = await asyncio.to_thread(self._body, query)  # pictures may have to be made smaller
        reply = await self._http.request("POST", f"{self._url}{self._path}", headers=self._bearer(), json=body)
        check_credits(reply)
        answer = self._answer(reply, {413: "invalid"})
        return Answer(answer.value, self._cost(answer.value or "")) if self.options["usd_per_million"] else answer

    def parse(self, raw: str, query: ChatQuery) -> ChatReply:
        content, finish, (prompt_tokens, completion_tokens) = first_choice(document(raw))
        return ChatReply(spoken(content), finish, prompt_tokens, completion_tokens)

    def _body(self, query: ChatQuery) -> dict[str, Any]:
        messages = [_message(message) for message in query.messages]
        begun = bool(query.messages) and query.messages[-1].role == "assistant"
        goes_on: dict[str, Any] = {}
        if begun and self.options["continues"]:
            goes_on = {"continue_final_message": True, "add_generation_prompt": False}
        elif begun:
            messages.append({"role": "user", "content": GO_ON})
        body = {
            **goes_on,
            "model": self.options["model"],
            "messages": messages,
            "max_tokens": query.max_tokens,
            "temperature": query.temperature,
            "top_p": query.top_p,
            "seed": query.seed,
            **self.options["extra"],
        }
        return {name: value for name, value in body.items() if value is not None}

    def _cost(self, raw: str) -> float:
        """By the tokens that the answer names; the price of a call where it names none."""
        try:
            tokens = first_choice(document(raw))[2]
        except CallFailed:
            return self.price_usd
        prices = self.options["usd_per_million"]
        return sum(n * price for n, price in zip(tokens, prices, strict=True)) / 1e6 if any(tokens) else self.price_usd


def openai_chat(name: str, **access: Any) -> OpenAiChat:
    """The one provider of chats; keywords are the fields of `Access`. Raises ValueError for any other `name`."""
    if name != "openai":
        raise ValueError(f"provider={name}: no chat; known: openai")
    return OpenAiChat(Access(**access))


def chat_path(url: str) -> str:
    """The route of chats below an address that may end with its version already."""
    return "/chat/completions" if url.endswith("/v1") else "/v1/chat/completions"


def check_credits(reply: Reply) -> None:
    """Raises CallFailed("exhausted") if the account is empty, which some say as they say "too fast"."""
    if reply.status == 429 and "insufficient_quota" in reply.text:
        raise CallFailed("exhausted", "the account has no credits left")


def first_choice(found: Mapping[str, Any]) -> tuple[str, Finish, tuple[int, int]]:
    """(content, why it ended, prompt and completion tokens or zeros) of an answer. Raises CallFailed("broken")."""
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(first, dict) or not isinstance(content, str):
        raise CallFailed("broken", "the answer has no message")
    usage = found.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (_count(counts.get(f"{which}_tokens")) for which in ("prompt", "completion"))
    return content, "length" if first.get("finish_reason") == "length" else "stop", (prompt, completion)


def spoken(content: str) -> str:
    """What a model said, without what it thought; a thought without a beginning, or without an end, is one too.

    >>> spoken("<think>hm</think> Paris.")
    'Paris.'
    """
    said = _THOUGHT.sub("", encodable(content))
    return said.rpartition("</think>")[2].strip()


def json_object(said: str) -> dict[str, Any] | None:
    """The JSON object that a model was asked for, also from within a code fence or between words; None if none is.

    >>> json_object('Here it is: {"answer": "Paris"}.')
    {'answer': 'Paris'}
    """
    decoder = json.JSONDecoder()
    for start in (place for place, character in enumerate(said) if character == "{"):
        try:
            found, _ = decoder.raw_decode(said, start)
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _message(message: ChatMessage) -> dict[str, Any]:
    """Plain text where there is no picture: not every server takes lists."""
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": encodable("".join(map(str, message.parts)))}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": encodable(part)}
    data, kind = part.data, _KINDS.get(part.data[:4], "image/jpeg")
    if len(data) > PICTURE_BYTES:
        data, kind = as_jpeg(part, PICTURE_BYTES), "image/jpeg"
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
