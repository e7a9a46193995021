"""The turn protocol: tags in the model's text become typed actions (MMSearch-R1, section 3.2).

A turn reasons in `<reason>...</reason>` and ends with exactly one action: `<search><img></search>` (search by the
image), `<text_search>query</text_search>`, or `<answer>...</answer>`. A tag merely mentioned inside the reasoning is
not an action. Where `crops` are allowed, `<search><crop>x1,y1,x2,y2</crop></search>` searches by a part of the image.
Pure functions of text: rollouts, rewards and re-scoring of recorded traces all read turns here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

STOP_STRINGS = ("</search>", "</text_search>", "</answer>")
ActionName = Literal["answer", "image_search", "text_search"]
OPENINGS: dict[ActionName, str] = {"answer": "<answer>", "image_search": "<search>", "text_search": "<text_search>"}
TAGS = ("reason", "search", "img", "text_search", "answer", "information", "think", "tool_call")
# Pixels: a smaller part of an image shows nothing.
LEAST_CROP = 8

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Answer:
    text: str


@dataclass(frozen=True)
class ImageSearch:
    """By the whole image, or by the part of it in `box`: left, top, right, bottom in pixels as the model sees it."""

    box: Box | None = None


@dataclass(frozen=True)
class TextSearch:
    query: str


@dataclass(frozen=True)
class Malformed:
    """No usable action: nothing was asked for (`tool` None), or `tool` was, with content it cannot use."""

    detail: str
    tool: Literal["image_search", "text_search"] | None = None


Action = Answer | ImageSearch | TextSearch | Malformed

_REASON = re.compile(r"<reason>.*?</reason>", re.DOTALL)
_ACTION = re.compile(
    r"<answer>(?P<answer>.*?)</answer>"
    r"|<text_search>(?P<query>.*?)</text_search>"
    r"|<search>(?P<image>.*?)</search>",
    re.DOTALL,
)
_WELL_FORMED = re.compile(
    r"\s*<reason>(?P<reason>(?:(?!</?reason>).)*)</reason>"  # one block: no further reason tag may hide in it
    r"\s*(?P<action><(?:answer|text_search|search)>.*)",
    re.DOTALL,
)
_PIXEL = r"\s*(-?[0-9]{1,6})\s*"
_CROP = re.compile(rf"<crop>{_PIXEL},{_PIXEL},{_PIXEL},{_PIXEL}</crop>")
_STRUCTURAL = re.compile(r"</?(?:reason|answer|text_search|search)>")


def parse_turn(text: str, crops: bool = False) -> Action:
    """The first complete action outside the reasoning; what the runner carries out.

    Reasoning that is never closed hides the actions mentioned in it, except one that ends the turn. Without `crops` a
    search by a part of the image is malformed.

    >>> parse_turn("<reason>I could <answer>guess</answer>.</reason><text_search>capital of X</text_search>")
    TextSearch(query='capital of X')
    """
    outside = _REASON.sub("", text)
    before, opened, reasoning = outside.partition("<reason>")
    match = _ACTION.search(before)
    if match is None and opened:
        match = next((m for m in _ACTION.finditer(reasoning) if not reasoning[m.end() :].strip()), None)
    if match is None:
        return Malformed("the turn ends without an action")
    if match["answer"] is not None:
        return Answer(match["answer"].strip())
    if match["query"] is not None:
        query = match["query"].strip()
        return TextSearch(query) if query else Malformed("the text query is empty", "text_search")
    if match["image"].strip() == "<img>":
        return ImageSearch()
    return _crop(match["image"]) if crops else Malformed("an image search takes exactly <img>", "image_search")


def _crop(content: str) -> ImageSearch | Malformed:
    numbers = _CROP.fullmatch(content.strip())
    if numbers is None:
        return Malformed("an image search takes exactly <img> or <crop>x1,y1,x2,y2</crop>", "image_search")
    left, top, right, bottom = (int(number) for number in numbers.groups())
    if min(right - left, bottom - top) < LEAST_CROP:
        return Malformed(f"a crop is at least {LEAST_CROP} pixels wide and high", "image_search")
    return ImageSearch((left, top, right, bottom))


def is_open_reason(text: str) -> bool:
    """True while the reasoning has begun and not ended: an action tag seen now is only a mention."""
    return text.rfind("<reason>") > text.rfind("</reason>")


def well_formed(text: str, crops: bool = False) -> bool:
    """One reason block, then one action, and nothing after it (the format reward's rule for a turn)."""
    match = _WELL_FORMED.fullmatch(text)
    if match is None or not match["reason"].strip() or isinstance(parse_turn(text, crops), Malformed):
        return False
    action = match["action"].rstrip()
    return len(_STRUCTURAL.findall(action)) == 2 and action.endswith(STOP_STRINGS)


def action_name(action: Action) -> str:
    """The short name used in action sequences, metrics and re-scored traces."""
    names = {Answer: "answer", ImageSearch: "image_search", TextSearch: "text_search", Malformed: "malformed"}
    return names[type(action)]


def searches(turns: Sequence[str], crops: bool = False) -> list[str]:
    """Names of the searches that the turns ask for, in order."""
    names = [action_name(parse_turn(turn, crops)) for turn in turns]
    return [name for name in names if name.endswith("_search")]
