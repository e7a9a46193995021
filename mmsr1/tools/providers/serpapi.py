"""SerpAPI: Google's text search and Google Lens.

The key travels in the query string, so no URL of this service may reach a log or an error text (`http.py` sees to it).
A 429 means too many searches this hour, or none left at all; the account tells which.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.http import Reply, raise_for
from mmsr1.tools.providers.base import Access, Q, V, WebProvider
from mmsr1.tools.providers.blame import blames_picture
from mmsr1.tools.providers.fields import document, entries, image_hit, searchable, web_hit
from mmsr1.tools.providers.pictures import PictureAddress, about_picture, as_jpeg
from mmsr1.tools.web_types import ImageHit, WebHit
from mmsr1.types import Picture

Hit = TypeVar("Hit", WebHit, ImageHit)

UPLOAD_BYTES = 500_000
# Errors come with HTTP 200 too. The first kind is an answer: there is nothing to be found.
_NOTHING = re.compile(r"has(n.t| not) returned any results|no results", re.IGNORECASE)
_SPENT = re.compile(r"run out of searches|searches for the month are exhausted", re.IGNORECASE)


class SerpApi(WebProvider[Q, V]):
    """What both searches share; one search costs one credit (75 USD for 5,000)."""

    home: ClassVar[str | None] = "https://serpapi.com"
    variable: ClassVar[str | None] = "SERPAPI_API_KEY"
    list_price: ClassVar[float] = 0.015

    async def _search(self, parameters: Mapping[str, str]) -> Answer[str]:
        asked = {**parameters, "api_key": self._key}
        return await self._accepted(await self._http.request("GET", f"{self._url}/search.json", params=asked))

    async def _accepted(self, reply: Reply) -> Answer[str]:
        """`_answer`, with a look at the account where a 429 leaves open what it means."""
        if reply.status == 429 and await self._spent():
            raise CallFailed("exhausted", "the account has no searches left")
        return self._answer(reply, {410: "broken"})  # a search or a picture that has expired

    async def _spent(self) -> bool:
        """Whether the account says that no searches are left. Asking is free; not knowing means no."""
        try:
            reply = await self._http.request("GET", f"{self._url}/account.json", params={"api_key": self._key})
            raise_for(reply)
            left = document(reply.text).get("total_searches_left")
        except CallFailed:
            return False
        return isinstance(left, int | float) and left <= 0

    def _read(self, raw: str, block: str, make: Callable[[Mapping[str, Any]], Hit | None]) -> tuple[Hit, ...]:
        """The entries of one block of the answer. An answer without it is trusted only if it says that it succeeded."""
        answer = document(raw)
        error = answer.get("error")
        if isinstance(error, str) and _SPENT.search(error):
            raise CallFailed("exhausted", "the account has no searches left")
        if error is not None and not (isinstance(error, str) and _NOTHING.search(error)):
            raise CallFailed("broken", "an error with HTTP 200")
        found = answer.get(block)
        if found is not None:
            return entries(found, block, make)
        about = answer.get("search_metadata")
        if error is None and not (isinstance(about, dict) and about.get("status") == "Success"):
            raise CallFailed("broken", f"the answer has no {block}")
        return ()


class SerpApiSearch(SerpApi[str, tuple[WebHit, ...]]):
    """Google's organic results: one page of ten at most, since `num` above 10 no longer works."""

    name: ClassVar[str] = "serpapi_search"
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "gl": "us"}

    async def fetch(self, query: str) -> Answer[str]:
        return await self._search({"engine": "google", "q": searchable(query), **self.options})

    def parse(self, raw: str, query: str) -> tuple[WebHit, ...]:
        return self._read(raw, "organic_results", web_hit("link", "snippet"))


class SerpApiLens(SerpApi[Picture, tuple[ImageHit, ...]]):
    """Pages with pictures like this one. It is uploaded (`by: upload`), or its address is sent (`by: url`)."""

    name: ClassVar[str] = "serpapi_lens"
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "country": "us", "type": "visual_matches", "by": "upload"}

    def __init__(self, access: Access, image_url: str | None = None) -> None:
        super().__init__(access)
        by = self.options["by"]
        if by not in ("upload", "url"):
            raise ValueError(f"options.by={by}: {self.name} takes pictures by upload or by url")
        self._address = PictureAddress(self.name, image_url) if by == "url" else None

    async def fetch(self, query: Picture) -> Answer[str]:
        shown = {"image_id": await self._upload(query)} if self._address is None else {"url": self._address.of(query)}
        wanted = {name: self.options[name] for name in ("hl", "country", "type")}
        try:
            return await self._search({"engine": "google_lens", **wanted, **shown})
        except CallFailed as error:
            raise about_picture(error) from None

    def parse(self, raw: str, query: Picture) -> tuple[ImageHit, ...]:
        return self._read(raw, "visual_matches", image_hit("thumbnail"))

    def _blames(self, reply: Reply) -> bool:
        return blames_picture(reply)

    async def _upload(self, picture: Picture) -> str:
        """The id under which the picture can be searched for, for ten minutes."""
        data = await asyncio.to_thread(as_jpeg, picture, UPLOAD_BYTES)
        reply = await self._http.request(
            "POST",
            f"{self._url}/image",
            data={"api_key": self._key},
            files={"image": ("picture.jpg", data, "image/jpeg")},
        )
        try:
            answer = await self._accepted(reply)
        except CallFailed as error:
            raise about_picture(error) from None
        image_id = document(answer.value or "").get("image_id")
        if not isinstance(image_id, str) or not image_id:
            raise CallFailed("broken", "the upload was answered without an image_id")
        return image_id
