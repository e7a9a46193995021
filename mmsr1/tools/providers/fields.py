"""Reading what a provider sent: JSON that may be truncated, of wrong types, or written to do harm.

One odd entry in a list is dropped, since real answers have them; a list of which nothing can be read is no answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mmsr1.tools.base import CallFailed
from mmsr1.tools.web_types import ImageHit, WebHit

T = TypeVar("T")

TITLE_CHARACTERS = 500
TEXT_CHARACTERS = 20_000
URL_CHARACTERS = 2_048
THUMBNAIL_CHARACTERS = 400_000  # of a data: address, 300 KB
ENTRIES = 100  # of one answer; no provider lists more that anybody would look at


class _Odd(Exception):
    """A field of an entry has the wrong type."""


def document(raw: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises CallFailed("broken")."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CallFailed("broken", f"the answer is no JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise CallFailed("broken", f"the answer is a JSON {type(found).__name__}, not an object")
    return found


def entries(found: object, name: str, make: Callable[[Mapping[str, Any]], T | None]) -> tuple[T, ...]:
    """What `make` reads from each object of a list; it returns None for one to leave out.

    Raises CallFailed("broken") if that is no list, or nothing in it can be read.
    """
    if not isinstance(found, list):
        raise CallFailed("broken", f"{name} is a JSON {type(found).__name__}, not a list")
    made = []
    for entry in found[:ENTRIES]:
        try:
            one = make(entry) if isinstance(entry, dict) else None
        except _Odd:
            one = None
        if one is not None:
            made.append(one)
    if found and not made:
        raise CallFailed("broken", f"none of the {len(found)} entries of {name} can be read")
    return tuple(made)


def text(value: object, characters: int = TEXT_CHARACTERS) -> str:
    """A text field of an entry, cut; null or missing is empty. Any other type makes the entry odd."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Odd
    return encodable(value[:characters]).strip()


def encodable(value: str) -> str:
    """Without lone surrogates, which JSON can spell but neither an address nor a tokenizer can encode."""
    return value.encode("utf-8", "ignore").decode("utf-8")


def web_url(value: object) -> str:
    """The http(s) address in a field, or "" if it holds none that could be asked for."""
    if not isinstance(value, str) or not 0 < len(value) <= URL_CHARACTERS:
        return ""
    address = value.strip()
    try:
        address.encode("utf-8")
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port number, half an IPv6 address, a lone surrogate
        return ""
    return address if usable and not any(c.isspace() or not c.isprintable() for c in address) else ""


def without_password(key: str, url: str) -> None:
    """Raises ValueError for a configured address that holds a user's name or password: it is written down with the
    run, and is not repeated here."""
    beginning = url.replace("\\", "/").partition("//")[2].partition("/")[0]
    if "@" in beginning:
        raise ValueError(
            f"{key}: holds a user name or password; take it out, put it into an environment variable "
            "and the name of that into key_env"
        )


def thumbnail_url(value: object) -> str:
    """Like `web_url`, and data: addresses of pictures too."""
    if isinstance(value, str) and value.startswith("data:image/") and value.isascii():
        return value if len(value) <= THUMBNAIL_CHARACTERS else ""
    return web_url(value)


def web_hit(link: str, snippet: str) -> Callable[[Mapping[str, Any]], WebHit | None]:
    """Reads a hit of a text search from the fields `title`, `link` and `snippet`; one without an address is no hit."""

    def read(entry: Mapping[str, Any]) -> WebHit | None:
        url = web_url(entry.get(link))
        return WebHit(text(entry.get("title"), TITLE_CHARACTERS), url, text(entry.get(snippet))) if url else None

    return read


def image_hit(thumbnail: str) -> Callable[[Mapping[str, Any]], ImageHit | None]:
    """Reads a hit of an image search from `title`, `link`, `source` and the field named `thumbnail`."""

    def read(entry: Mapping[str, Any]) -> ImageHit | None:
        url = web_url(entry.get("link"))
        title, source = (text(entry.get(name), TITLE_CHARACTERS) for name in ("title", "source"))
        return ImageHit(title, url, source, thumbnail_url(entry.get(thumbnail))) if url else None

    return read


def searchable(query: str, characters: int = 2_000, words: int = 300) -> str:
    """The query in one line, cut to what a provider takes. Raises CallFailed("invalid") if nothing is left."""
    line = " ".join(encodable(query).split()[:words])[:characters].strip()
    if not line:
        raise CallFailed("invalid", "the query is empty")
    return line
