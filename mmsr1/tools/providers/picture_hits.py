"""Pictures for words: the pages of the web that show something, with the addresses of their pictures.

The other way round than `image_provider`, which finds pages for a picture. Building data needs it; episodes do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, entries, searchable, text, thumbnail_url, web_url
from mmsr1.tools.providers.searxng import SearxngSearch
from mmsr1.tools.providers.serpapi import SerpApi
from mmsr1.tools.providers.serper import Serper
from mmsr1.tools.web_types import ImageHit


@dataclass(frozen=True)
class PictureHit(ImageHit):
    """A page that shows what was searched for. `picture_url` is the picture itself, the thumbnail's address where the
    service does not name it; `licence` is where its licence is told, if that is known.
    """

    picture_url: str
    licence: str = ""


class SerpApiPictures(SerpApi[str, tuple[PictureHit, ...]]):
    """Google's pictures. `licenses` limits them to those of a kind (`cl`: Creative Commons, `f`: free to use)."""

    name: ClassVar[str] = "serpapi_pictures"
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "gl": "us", "licenses": ""}

    async def fetch(self, query: str) -> Answer[str]:
        chosen = {name: value for name, value in self.options.items() if value}
        return await self._search({"engine": "google_images", "q": searchable(query), **chosen})

    def parse(self, raw: str, query: str) -> tuple[PictureHit, ...]:
        read = _hit("link", "original", "thumbnail", "license_details_url")
        return cast(tuple[PictureHit, ...], self._read(raw, "images_results", read))


class SerperPictures(Serper[str, tuple[PictureHit, ...]]):
    """Google's pictures; one credit a search."""

    name: ClassVar[str] = "serper_pictures"
    list_price: ClassVar[float] = 0.001
    known: ClassVar[Mapping[str, Any]] = {"hl": "en", "gl": "us"}

    async def fetch(self, query: str) -> Answer[str]:
        return await self._search("/images", {"q": searchable(query), **self.options})

    def parse(self, raw: str, query: str) -> tuple[PictureHit, ...]:
        return entries(self._block(raw), "images", _hit("link", "imageUrl", "thumbnailUrl", ""))

    def _block(self, raw: str) -> object:
        """The list of pictures. An answer without one is trusted only if it repeats what was searched for."""
        answer = document(raw)
        if "images" in answer:
            return answer["images"]
        if not isinstance(answer.get("searchParameters"), dict):
            raise CallFailed("broken", "the answer has no images")
        return []


class SearxngPictures(WebProvider[str, tuple[PictureHit, ...]]):
    """Pictures of all engines that a metasearch server of one's own asks. Free."""

    name: ClassVar[str] = "searxng_pictures"
    known: ClassVar[Mapping[str, Any]] = {"language": "", "engines": ""}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._search = SearxngSearch(replace(access, options={**self.options, "categories": "images"}))

    async def aclose(self) -> None:
        await self._search.aclose()
        await super().aclose()

    async def fetch(self, query: str) -> Answer[str]:
        return await self._search.fetch(query)

    def parse(self, raw: str, query: str) -> tuple[PictureHit, ...]:
        """No results from engines that did not answer are no answer, as in the search for pages."""
        answer = document(raw)
        hits = entries(answer.get("results"), "results", _hit("url", "img_src", "thumbnail_src", ""))
        if not hits and answer.get("unresponsive_engines"):
            raise CallFailed("broken", "no results, and engines that did not answer")
        return hits


PICTURES: Mapping[str, type[WebProvider[str, tuple[PictureHit, ...]]]] = {
    "serpapi": SerpApiPictures,
    "serper": SerperPictures,
    "searxng": SearxngPictures,
}


def picture_provider(name: str, **access: Any) -> WebProvider[str, tuple[PictureHit, ...]]:
    """A search for pictures by words; keywords are the fields of `Access`. Raises ValueError in one line."""
    if name not in PICTURES:
        raise ValueError(f"provider={name}: no search for pictures; known: {', '.join(sorted(PICTURES))}")
    return PICTURES[name](Access(**access))


def _hit(link: str, picture: str, thumbnail: str, licence: str) -> Any:
    """Reads a hit from the fields of these names; one without a page or without a picture is no hit."""

    def read(entry: Mapping[str, Any]) -> PictureHit | None:
        url, small = web_url(entry.get(link)), thumbnail_url(entry.get(thumbnail))
        shown = web_url(entry.get(picture)) or small
        title, source = (text(entry.get(name), TITLE_CHARACTERS) for name in ("title", "source"))
        if not url or not shown:
            return None
        return PictureHit(title, url, source, small, shown, web_url(entry.get(licence)) if licence else "")

    return read
