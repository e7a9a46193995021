"""What is asked of a language model, and what it says: the types of a chat, and how one is named in the cache.

Text from strangers goes through `sanitize.neutralise` before it becomes part of a message: servers tokenise messages by
a template that knows control tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmsr1.tools.codecs import TEXT, Codec
from mmsr1.types import Picture

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ChatMessage:
    """Texts and pictures in the order in which the model reads them."""

    role: Role
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class ChatQuery:
    """One request. A last message of the assistant is one that it has begun, to be gone on with from its end.

    `seed` tells requests apart that are to be answered anew, and fixes the draw where a service can do that.
    """

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class ChatReply:
    """What the model said, without what it thought; `finish` length: it was cut at `max_tokens`."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


def asked_of_chat(query: ChatQuery) -> Any:
    """All that decides the answer, as JSON; pictures by their content."""
    messages = [
        [m.role, *({"image": part.digest} if isinstance(part, Picture) else part for part in m.parts)]
        for m in query.messages
    ]
    return {
        "messages": messages,
        "max_tokens": query.max_tokens,
        "temperature": query.temperature,
        "top_p": query.top_p,
        "seed": query.seed,
    }


CHAT: Codec[ChatQuery, str] = Codec(asked_of_chat, TEXT.dump, TEXT.load)
