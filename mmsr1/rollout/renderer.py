"""Messages and images to token segments, each piece tokenised exactly once.

Chat format of Qwen2.5-VL. Text that we wrote is trusted and may hold control tokens; questions and tool results are
untrusted: neutralised, tokenised as ordinary text, and checked to hold no control id. Model turns are never
re-tokenised: their sampled ids are spliced in as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from mmsr1.rollout.prompts import Prompts, split_template
from mmsr1.tools.sanitize import break_tokens, neutralise, one_line, unknown_tokens
from mmsr1.types import Example, Picture, Segment, SegmentKind, ToolCall, ToolItem, ToolResult

IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_TURN_END, _ASSISTANT = "<|im_end|>\n", "<|im_start|>assistant\n"


class Renderer:
    """Turns one conversation's parts into segments.

    `tokenizer` is a Hugging Face fast tokenizer; `image_tokens` says how many tokens a picture takes in the model,
    `seen_size` how many pixels wide and high it is there (None: no search by a part of an image).
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Prompts,
        image_tokens: Callable[[Picture], int],
        seen_size: Callable[[Picture], tuple[int, int]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.image_tokens, self.seen_size = image_tokens, seen_size
        self.control_ids = frozenset(tokenizer.added_tokens_decoder)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.end_of_turn = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self._literals: dict[str, tuple[int, ...]] = {}
        self._own_tokens = unknown_tokens(token.content for token in tokenizer.added_tokens_decoder.values())

    def first(self, example: Example) -> list[Segment]:
        """System prompt and the question with its images, up to the point where the model speaks."""
        system = f"<|im_start|>system\n{self.prompts.system}{_TURN_END}" if self.prompts.system else ""
        slots = {"images": _images(example.images), "question": [("question", example.question)]}
        return self._join(
            [("template", f"{system}<|im_start|>user\n"), *_fill(self.prompts.question, slots), *_reply()]
        )

    def results(
        self, call: ToolCall, result: ToolResult, question: str, room: int, turn_open: bool, last: bool
    ) -> list[Segment]:
        """The user turn that carries a tool's answer, trimmed to `room` tokens by dropping whole items from the end.

        `turn_open` says that the model did not end its own turn with `<|im_end|>`; `last` that one turn is left.
        An item goes with its thumbnail, so image tokens and images can never part.
        """
        items = list(result.items)
        while True:
            parts = [*self._result_text(call, result, items, question), *self._last(last)]
            segments = self._join([*_opening(turn_open), *parts, *_reply()])
            if not items or self.length(segments) <= room:
                return segments
            items.pop()

    def cut_notice(self, turn_open: bool) -> list[Segment]:
        """Tells the model that its turn was cut at the length limit, and that it answers now."""
        return self._join([*_opening(turn_open), ("template", self.prompts.turn_cut), *self._last(True), *_reply()])

    def policy_turn(self, text: str) -> Segment:
        """A model turn written by us (demonstrations): tokens of `text` and nothing else."""
        return Segment("template", self._literal(text), trusted=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, without the end-of-turn token."""
        kept = [token for token in token_ids if token != self.end_of_turn]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def length(self, segments: Sequence[Segment]) -> int:
        """Tokens as the model sees them, image placeholders expanded."""
        pads = sum(self.image_tokens(picture) - 1 for segment in segments for picture in segment.images)
        return pads + sum(len(segment.token_ids) for segment in segments)

    def _last(self, last: bool) -> list[tuple[SegmentKind, Any]]:
        return [("template", self.prompts.last_turn)] if last and self.prompts.last_turn else []

    def _result_text(
        self, call: ToolCall, result: ToolResult, items: Sequence[ToolItem], question: str
    ) -> Iterator[tuple[SegmentKind, Any]]:
        prompts = self.prompts
        if result.status != "ok":
            notice = {
                "empty": prompts.no_results,
                "infrastructure_error": prompts.tool_failed,
                "malformed_call": prompts.bad_call,
                "over_budget": prompts.over_budget,
            }[result.status]
            yield "template", notice
            return
        by_image = call.tool == "image_search"
        item_template = prompts.image_item if by_image else prompts.text_item
        rendered = [
            part for index, item in enumerate(items, 1) for part in _fill(item_template, _item_slots(index, item))
        ]
        slots = {"results": rendered, "question": [("question", question)]}
        yield from _fill(prompts.image_results if by_image else prompts.text_results, slots)

    def _join(self, parts: Sequence[tuple[SegmentKind, Any]]) -> list[Segment]:
        """Segments of (kind, content) parts; neighbouring trusted texts become one piece before tokenising."""
        segments: list[Segment] = []
        ended: list[tuple[SegmentKind | Literal["end"], Any]] = [*parts, ("end", "")]
        pending = ""
        for kind, content in ended:
            if kind == "template":
                pending += content
                continue
            if pending:
                segments.append(Segment("template", self._literal(pending), trusted=True))
                pending = ""
            if kind == "image":
                segments.append(Segment("image", self._literal("".join(IMAGE_TOKENS)), True, (content,)))
            elif kind != "end" and content:
                segments.append(self._untrusted(kind, content))
        return segments

    def _literal(self, text: str) -> tuple[int, ...]:
        if text not in self._literals:
            self._literals[text] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._literals[text]

    def _untrusted(self, kind: SegmentKind, text: str) -> Segment:
        safe = break_tokens(neutralise(text), self._own_tokens)
        ids = self.tokenizer(safe, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        forged = self.control_ids.intersection(ids)
        if forged:
            raise AssertionError(f"control tokens {sorted(forged)} survived neutralising in a {kind} span")
        return Segment(kind, tuple(ids), trusted=False)


def _opening(turn_open: bool) -> list[tuple[SegmentKind, str]]:
    # A stop string ends the model's turn before <|im_end|>; where it did sample the end token only "\n" is missing.
    return [("template", f"{_TURN_END if turn_open else chr(10)}<|im_start|>user\n")]


def _reply() -> list[tuple[SegmentKind, str]]:
    return [("template", f"{_TURN_END}{_ASSISTANT}")]


def _images(pictures: Sequence[Picture]) -> list[tuple[SegmentKind, Any]]:
    return [("image", picture) for picture in pictures]


def _item_slots(index: int, item: ToolItem) -> dict[str, list[tuple[SegmentKind, Any]]]:
    return {
        "index": [("template", str(index))],
        "thumbnail": _images([item.thumbnail] if item.thumbnail else []),
        "title": [("tool_result", one_line(item.title))],
        "text": [("tool_result", one_line(item.text))],
        "url": [("tool_result", one_line(item.url))],
    }


def _fill(template: str, slots: dict[str, list[tuple[SegmentKind, Any]]]) -> Iterator[tuple[SegmentKind, Any]]:
    for piece in split_template(template):
        slot = piece[1:-1]
        if piece == f"{{{slot}}}" and slot in slots:
            yield from slots[slot]
        else:
            yield "template", piece
