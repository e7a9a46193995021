"""Qdrant: pictures or passages that `python -m mmsr1.tools.index push --to qdrant` put there, found by their vectors.

The query's vector is made here, by what the index was made with: the weight-free descriptor, or the model that
`options.model` names.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.embedding import Encoder, PictureEncoder, TextEncoder
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.descriptor import describe
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.tools.providers.base import Access, Q, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, entries, searchable, text, web_url
from mmsr1.tools.providers.opensearch import named, passage
from mmsr1.types import Picture, ToolItem


class _Qdrant(WebProvider[Q, tuple[ToolItem, ...]]):
    """What both searches share. A model is loaded when the provider is made; ValueError in one line if it cannot be."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        named("collection", self.options["collection"])

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "limit": self.results}

    async def _ask(self, vector: np.ndarray, limit: int) -> Answer[str]:
        body = {"query": [float(number) for number in vector], "limit": limit, "with_payload": True}
        url = f"{self._url}/collections/{self.options['collection']}/points/query"
        headers = {} if self.secret is None else {"api-key": self._key}
        return self._answer(await self._http.request("POST", url, headers=headers, json=body))

    def _points(self, raw: str) -> object:
        result = document(raw).get("result")
        if not isinstance(result, dict):
            raise CallFailed("broken", "the answer has no result")
        return result.get("points")


class QdrantText(_Qdrant[str]):
    """The passages whose vectors are nearest to the query's; the options are those that the index was built with."""

    name: ClassVar[str] = "qdrant_text"
    known: ClassVar[Mapping[str, Any]] = {
        "collection": "mmsr1",
        "model": "",
        "pooling": "mean",
        "query_prefix": "",
        "digest": "",
    }

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        chosen = self.options
        encoder = Encoder(chosen["model"], chosen["pooling"], chosen["query_prefix"], digest=chosen["digest"])
        self._encode = TextEncoder(encoder) if encoder.model else None

    async def fetch(self, query: str) -> Answer[str]:
        line = searchable(query)
        if self._encode is None:
            raise CallFailed("refused", "options.model is not set: name the model that the index was built with")
        return await self._ask(await asyncio.to_thread(self._vector, line), self.results)

    def _vector(self, line: str) -> np.ndarray:
        assert self._encode is not None
        return self._encode([line], query=True)[0]

    def parse(self, raw: str, query: str) -> tuple[ToolItem, ...]:
        return entries(self._points(raw), "points", _passage)[: self.results]


class QdrantImage(_Qdrant[Picture]):
    """Titled pictures like the one that is asked about. Those of an index with the descriptor `fine` are looked at
    more closely here, as the index itself does it."""

    name: ClassVar[str] = "qdrant_image"
    slow: ClassVar[bool] = True
    known: ClassVar[Mapping[str, Any]] = {"collection": "mmsr1", "model": "", "digest": ""}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        encoder = Encoder(self.options["model"], digest=self.options["digest"])
        self._encode = PictureEncoder(encoder) if encoder.model else None

    async def fetch(self, query: Picture) -> Answer[str]:
        vector = await asyncio.to_thread(self._vector, query)
        learned = self._encode is not None
        return await self._ask(vector, self.results if learned else max(fine.CANDIDATES, self.results))

    def _vector(self, query: Picture) -> np.ndarray:
        try:
            image = decode(query)
        except BadPicture as error:
            raise CallFailed("blocked", f"the picture {error}") from None
        if self._encode is None:
            return describe(np.asarray(image))
        return self._encode([image])[0]

    def parse(self, raw: str, query: Picture) -> tuple[ToolItem, ...]:
        found = entries(self._points(raw), "points", _shown)
        if found and all(close is not None for _, _, close in found):
            kept = np.stack([close for _, _, close in found if close is not None])
            scores = fine.likeness(decode(query), kept)
            order = sorted(range(len(found)), key=lambda at: (-round(float(scores[at]), 4), found[at][0]))
            found = tuple(found[at] for at in order)
        return tuple(item for _, item, _ in found[: self.results])


def _passage(entry: Mapping[str, Any]) -> ToolItem | None:
    about = entry.get("payload")
    return passage(about) if isinstance(about, dict) else None


def _shown(entry: Mapping[str, Any]) -> tuple[str, ToolItem, np.ndarray | None] | None:
    """Id, picture, and what a closer look needs."""
    about = entry.get("payload")
    if not isinstance(about, dict) or not isinstance(about.get("title"), str):
        return None
    item = ToolItem(text(about["title"], TITLE_CHARACTERS), "", web_url(about.get("url")))
    return text(about.get("id")), item, _close(about.get("fine"))


def _close(packed: object) -> np.ndarray | None:
    try:
        found = base64.b64decode(packed, validate=True) if isinstance(packed, str) else b""
    except (binascii.Error, ValueError):
        return None
    return np.frombuffer(found, np.uint8).reshape(fine.SIDE, fine.SIDE, 3) if len(found) == fine.BYTES else None
