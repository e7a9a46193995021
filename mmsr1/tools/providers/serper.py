"""Serper: Google's text search and Google Lens. Lens takes the address of a picture only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.http import Reply
from mmsr1.tools.providers.base import Access, Q, V, WebProvider
from mmsr1.tools.providers.blame import blames_picture
from mmsr1.tools.providers.fields import document, entries, image_hit, searchable, web_hit
from mmsr1.tools.providers.pictures import PictureAddress, about_picture
from mmsr1.tools.web_types import ImageHit, WebHit
from mmsr1.types import Picture


class Serper(WebProvider[Q, V]):
    """What both searches share. An account without credits is told by HTTP 400."""

    home: ClassVar[str | None] = "https://google.serper.dev"
    variable: ClassVar[str | None] = "SERPER_API_KEY"

    async def _search(self, path: str, body: Mapping[str, str]) -> Answer[str]:
        headers = {"X-API-KEY": self._key}
        reply = await self._http.request("POST", f"{self._url}{path}", headers=headers, json=dict(body))
        if reply.status == 400 and _no_credits(reply):
            raise CallFailed("exhausted", "the account has no credits left")
        return self._answer(reply)

    def _block(self, raw: str) -> object:
        """The list of hits. An answer without one is trusted only if it repeats what was searched for."""
        answer = document(raw)
        if "organic" in answer:
            return answer["organic"]
        if not isinstance(answer.get("searchParameters"), dict):
            raise CallFailed("broken", "the answer has no organic results")
        return []


class SerperSearch(Serper[str, tuple[WebHit, ...]]):
    """Google's organic results; one credit a search (1 USD for 1,000)."""

    name: ClassVar[str] = "serper_search"
    list_price: ClassVar[float] = 0.001
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "gl": "us"}

    async def fetch(self, query: str) -> Answer[str]:
        return await self._search("/search", {"q": searchable(query), **self.options})

    def parse(self, raw: str, query: str) -> tuple[WebHit, ...]:
        return entries(self._block(raw), "organic", web_hit("link", "snippet"))


class SerperLens(Serper[Picture, tuple[ImageHit, ...]]):
    """Pages with pictures like this one; three credits a search."""

    name: ClassVar[str] = "serper_lens"
    list_price: ClassVar[float] = 0.003
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "gl": "us"}

    def __init__(self, access: Access, image_url: str | None = None) -> None:
        super().__init__(access)
        self._address = PictureAddress(self.name, image_url)

    async def fetch(self, query: Picture) -> Answer[str]:
        try:
            return await self._search("/lens", {"url": self._address.of(query), **self.options})
        except CallFailed as error:
            raise about_picture(error) from None

    def parse(self, raw: str, query: Picture) -> tuple[ImageHit, ...]:
        return entries(self._block(raw), "organic", image_hit("thumbnailUrl"))

    def _blames(self, reply: Reply) -> bool:
        return blames_picture(reply)


def _no_credits(reply: Reply) -> bool:
    try:
        message = document(reply.text).get("message")
    except CallFailed:
        return False
    return isinstance(message, str) and "credit" in message.lower()
