"""Keys of paid services: known by the name of an environment variable, looked up only when they are used.

The value is never stored, so that no repr, pickle, configuration or traceback can show it. What comes back from a
service may still repeat it: `redact` takes it out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import AnyStr
from urllib.parse import quote, quote_plus

from mmsr1.tools.base import CallFailed

HIDDEN = "***"
# Shorter values are no secrets ("EMPTY", for a server of one's own) and occur in ordinary text.
SHORTEST = 8
_SENDABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Secret:
    """The key in the environment variable `env`."""

    env: str

    @property
    def missing(self) -> bool:
        """Whether the variable is unset or blank."""
        return not os.environ.get(self.env, "").strip()

    @property
    def value(self) -> str:
        """The key, white space around it removed. Raises CallFailed("refused") if there is none that can be sent."""
        value = os.environ.get(self.env, "").strip()
        if not value:
            raise CallFailed("refused", f"the environment variable {self.env} is not set: put the key into it")
        if not _SENDABLE.fullmatch(value):  # a header would refuse it, with the key in the message
            raise CallFailed("refused", f"the environment variable {self.env} holds spaces or characters beyond ASCII")
        return value


def redact(text: AnyStr, secrets: Iterable[Secret]) -> AnyStr:
    """`text` (or bytes) with each key replaced, also as it stands in URLs and in JSON."""
    for form in _forms([os.environ.get(secret.env, "").strip() for secret in secrets]):
        if isinstance(text, bytes):
            text = text.replace(form.encode("utf-8", "replace"), HIDDEN.encode())
        else:
            text = text.replace(form, HIDDEN)
    return text


def _forms(values: Sequence[str]) -> list[str]:
    """Every spelling of the keys, the longest first, so that none is left with its end showing."""
    found: set[str] = set()
    for value in values:
        if len(value) >= SHORTEST:
            escaped = json.dumps(value)[1:-1]
            found |= {value, quote(value, safe=""), quote(value), quote_plus(value), escaped}
            found.add(escaped.replace("/", "\\/"))
    return sorted(found, key=len, reverse=True)
