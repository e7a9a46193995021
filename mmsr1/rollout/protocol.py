"""The turn protocol: tags in the model's text become typed actions (MMSearch-R1, section 3.2).

A turn reasons in `<reason>...</reason>` and ends with exactly one action: `<search><img></search>` (search by the
image), `<text_search>query</text_search>`, or `<answer>...</answer>`. A tag merely mentioned inside the reasoning is
not an action. Pure functions of text: rollouts, rewards and re-scoring of recorded traces all read turns here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

STOP_STRINGS = ("</search>", "</text_search>", "</answer>")
TAGS = ("reason", "search", "img", "text_search", "answer", "information", "think", "tool_call")


@dataclass(frozen=True)
class Answer:
    text: str


@dataclass(frozen=True)
class ImageSearch:
    pass


@dataclass(frozen=True)
class TextSearch:
    query: str


@dataclass(frozen=True)
class Malformed:
    """No usable action: `no_action` (nothing asked for), `bad_call` (a tool tag with unusable content)."""

    cause: str
    detail: str


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
_STRUCTURAL = re.compile(r"</?(?:reason|answer|text_search|search)>")


def parse_turn(text: str) -> Action:
    """The first complete action outside the reasoning; what the runner carries out.

    >>> parse_turn("<reason>I could <answer>guess</answer>.</reason><text_search>capital of X</text_search>")
    TextSearch(query='capital of X')
    """
    outside = _REASON.sub("", text)
    open_reason = outside.find("<reason>")
    if open_reason >= 0:
        outside = outside[:open_reason]
    match = _ACTION.search(outside)
    if match is None:
        return Malformed("no_action", "the turn ends without an action")
    if match["answer"] is not None:
        return Answer(match["answer"].strip())
    if match["query"] is not None:
        query = match["query"].strip()
        return TextSearch(query) if query else Malformed("bad_call", "the text query is empty")
    if match["image"].strip() == "<img>":
        return ImageSearch()
    return Malformed("bad_call", "an image search takes exactly <img>")


def is_open_reason(text: str) -> bool:
    """True while the reasoning has begun and not ended: an action tag seen now is only a mention."""
    return text.rfind("<reason>") > text.rfind("</reason>")


def well_formed(text: str) -> bool:
    """One reason block, then one action, and nothing after it (the format reward's rule for a turn)."""
    match = _WELL_FORMED.fullmatch(text)
    if match is None or not match["reason"].strip() or isinstance(parse_turn(text), Malformed):
        return False
    action = match["action"].rstrip()
    return len(_STRUCTURAL.findall(action)) == 2 and action.endswith(STOP_STRINGS)


def action_name(action: Action) -> str:
    """The short name used in action sequences, metrics and re-scored traces."""
    names = {Answer: "answer", ImageSearch: "image_search", TextSearch: "text_search", Malformed: "malformed"}
    return names[type(action)]


def searches(turns: Sequence[str]) -> list[str]:
    """Names of the searches that the turns ask for, in order."""
    names = [action_name(parse_turn(turn)) for turn in turns]
    return [name for name in names if name.endswith("_search")]
