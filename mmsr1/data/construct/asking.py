"""How the stages ask a language model, and what may come of it besides an answer.

A reply that is none (no JSON, a refusal, a field that is missing) is asked for again under another seed, so each of
these requests has a place of its own in the cache and none of them is ever paid for twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmsr1.data.construct.items import No, Waiting
from mmsr1.tools.base import Outcome, Part
from mmsr1.tools.chat import ChatMessage, ChatQuery, ChatReply
from mmsr1.tools.providers.chat import json_object
from mmsr1.tools.providers.fields import encodable
from mmsr1.tools.sanitize import neutralise
from mmsr1.types import Picture

T = TypeVar("T")

AGAIN_TEMPERATURE = 0.7  # of requests beyond the first: at 0 the model would say the same again
MARK_CHARACTERS = 16
# Causes that no other call will get around either, as the details of outcomes begin with them.
FINAL = ("refused:", "exhausted:")
_REFUSAL = re.compile(r"\b(i('m| am) sorry|i can(no|')t|i am unable|i won't|as an ai)\b", re.IGNORECASE)


class Model:
    """A language model that reads texts and pictures. `tries` bounds how often one thing is asked for."""

    def __init__(self, chat: Part[ChatQuery, ChatReply], tries: int = 3, max_tokens: int = 512) -> None:
        self._chat, self._tries, self._max_tokens = chat, tries, max_tokens

    async def say(self, system: str, *parts: str | Picture, seed: int = 0) -> str | No | Waiting:
        """What it says, perhaps nothing. A seed above 0 draws anew."""
        messages = (ChatMessage("system", (system,)), ChatMessage("user", parts))
        temperature = AGAIN_TEMPERATURE if seed else 0.0
        outcome = await self._chat(ChatQuery(messages, self._max_tokens, temperature, seed=seed))
        if outcome.status == "ok" and outcome.value is not None:
            return outcome.value.text
        return "" if outcome.status == "empty" else failed(outcome)

    async def read(
        self, make: Callable[[Mapping[str, Any]], T | No], system: str, *parts: str | Picture
    ) -> T | No | Waiting:
        """What `make` reads in the JSON object that is asked for; it raises ValueError for one that cannot be used."""
        why = No("malformed", "no reply")
        for seed in range(self._tries):
            said = await self.say(system, *parts, seed=seed)
            if not isinstance(said, str):
                return said
            found = json_object(said)
            if found is None:
                refused = bool(_REFUSAL.search(said))
                why = No("refused" if refused else "malformed", "" if refused else "no JSON object in the reply")
                continue
            try:
                return make(found)
            except ValueError as error:
                why = No("malformed", str(error))
        return why


def failed(outcome: Outcome[Any]) -> No | Waiting:
    """What becomes of an item for which a service gave no answer."""
    if outcome.status == "malformed_call":
        return No("not_taken", outcome.detail)
    return Waiting(outcome.detail, outcome.status == "over_budget" or outcome.detail.startswith(FINAL))


def quoted(name: str, text: str) -> str:
    """Text of strangers for a prompt: neutralised, between two lines with a mark that it cannot know, being a hash of
    itself; so it can neither leave its place nor pretend to end."""
    safe = neutralise(text)
    mark = hashlib.sha256(safe.encode("utf-8", "replace")).hexdigest()[:MARK_CHARACTERS]
    return f"----- {name} {mark} begins -----\n{safe}\n----- {name} {mark} ends -----\n"


def field(found: Mapping[str, Any], name: str) -> str:
    """A text of the object in one line. Raises ValueError if there is none, or nothing in it."""
    value = found.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):  # years and counts, as models like to write them
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is missing")
    return " ".join(encodable(value).split())


def texts(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a list of the object, each once; what is no text is left out."""
    value = found.get(name)
    listed = value if isinstance(value, list) else []
    spelt = (" ".join(encodable(str(one)).split()) for one in listed if isinstance(one, str | int))
    return tuple(dict.fromkeys(text for text in spelt if text))
