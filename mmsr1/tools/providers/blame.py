"""Whether a service that refuses a request (HTTP 400, 422) blames what was searched for, or anything else.

Only what the query itself did is held against whoever wrote it. An option, a plan or a proxy that is wrong is the
user's to mend, so a message that is not clearly about the query counts as that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from mmsr1.tools.http import Reply

_MESSAGE_CHARACTERS = 500
_DEPTH = 6
_QUERY = re.compile(
    r"\bquery('s length)? (is |was )?(too (long|short)|empty|missing|blank|exceeds|longer than)"
    r"|\bquery (cannot|can't|can not|must not|may not|should not) be (empty|blank|longer)"
    r"|\b(missing|empty|blank) (search )?query( \W?q\W?)?( parameter)?\W*$"
    r"|\b(max(imum)?|min(imum)?) query length",
    re.IGNORECASE,
)
_PICTURE = re.compile(r"\b(image|picture|photo|file)\b", re.IGNORECASE)
_FIELDS = frozenset(("q", "query"))  # of a request, that hold the query


def blames_query(reply: Reply) -> bool:
    """Whether the service says that the text which was searched for is not acceptable.

    Validation errors name the field (`loc`): one that names another as well is not about the query.
    """
    answer = _json(reply)
    fields = list(_fields(answer))
    if fields:
        return all(field in _FIELDS for field in fields)
    return any(_QUERY.search(message) for message in _messages(answer))


def blames_picture(reply: Reply) -> bool:
    """Whether the service speaks of the picture that was searched for."""
    return any(_PICTURE.search(message) for message in _messages(_json(reply)))


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.text)
    except (ValueError, RecursionError):
        return None


def _messages(answer: Any, depth: int = 0) -> Iterator[str]:
    """The texts in an answer, wherever a service puts them."""
    if isinstance(answer, str):
        yield answer[:_MESSAGE_CHARACTERS]
    elif isinstance(answer, dict | list) and depth < _DEPTH:
        for inner in answer.values() if isinstance(answer, dict) else answer:
            yield from _messages(inner, depth + 1)


def _fields(answer: Any, depth: int = 0) -> Iterator[Any]:
    """The last part of each `loc`: the field that was found wrong."""
    if isinstance(answer, dict | list) and depth < _DEPTH:
        if isinstance(answer, dict) and isinstance(answer.get("loc"), list) and answer["loc"]:
            yield str(answer["loc"][-1])
        for inner in answer.values() if isinstance(answer, dict) else answer:
            yield from _fields(inner, depth + 1)
