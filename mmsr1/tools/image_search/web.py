"""Search by image on the web: pages that show a similar picture, by title, the first of them with a thumbnail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice

from mmsr1.tools.base import Part
from mmsr1.tools.blocklist import Blocklist
from mmsr1.tools.pipeline import TITLE_CHARACTERS, Bill, settled, shortened
from mmsr1.tools.web_types import ImageHit
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

VERSION = 1


class WebImageSearch:
    """`Tool[Picture]`: the first `topk` hits that `blocklist` lets through, in rank order.

    The first `with_thumbnail` of them are shown with their thumbnail where there is one. A hit whose thumbnail cannot
    be had stays, with its title alone. Raises ValueError for numbers out of range or thumbnails that nobody fetches.
    """

    name: ToolName = "image_search"

    def __init__(
        self,
        search: Part[Picture, tuple[ImageHit, ...]],
        thumbnails: Part[str, Picture] | None = None,
        topk: int = 5,
        with_thumbnail: int = 5,
        blocklist: Blocklist | None = None,
    ) -> None:
        if topk < 1 or not 0 <= with_thumbnail <= topk:
            raise ValueError(
                f"topk={topk}, with_thumbnail={with_thumbnail}: need topk >= 1, 0 <= with_thumbnail <= topk"
            )
        if with_thumbnail and thumbnails is None:
            raise ValueError(
                f"with_thumbnail: {with_thumbnail} received; give a part that fetches thumbnails too, or 0"
            )
        self._search, self._thumbnails = search, thumbnails
        self._topk, self._shown = topk, with_thumbnail
        self._blocklist = blocklist or Blocklist()
        settings = f"topk={topk}:thumbnails={with_thumbnail}:blocked={','.join(self._blocklist.hosts)}"
        drawn = thumbnails.backend if thumbnails is not None and with_thumbnail else "-"
        self.backend = f"web-image:{VERSION}:{settings}:{search.backend}|{drawn}"
        self.price_usd = search.price_usd + (thumbnails.price_usd * with_thumbnail if thumbnails is not None else 0.0)

    async def __call__(self, query: Picture) -> ToolResult:
        return await settled(lambda bill: self._find(query, bill))

    async def _find(self, query: Picture, bill: Bill) -> ToolResult:
        found = await bill.ask(self._search, query)
        if found.status != "ok" or found.value is None:
            return bill.total(found.status, detail=f"{self._search.name}: {found.detail}")
        hits = self._allowed(found.value)
        async with asyncio.TaskGroup() as fetches:
            shown = [fetches.create_task(self._thumbnail(hit, bill)) for hit in hits[: self._shown]]
        pictures = [*(fetch.result() for fetch in shown), *(None for _ in hits[self._shown :])]
        return bill.result([_item(hit, picture) for hit, picture in zip(hits, pictures, strict=True)])

    def _allowed(self, hits: Iterable[ImageHit]) -> Sequence[ImageHit]:
        blocks = self._blocklist.blocks
        return list(islice((hit for hit in hits if not blocks(hit.url) and not blocks(hit.thumbnail_url)), self._topk))

    async def _thumbnail(self, hit: ImageHit, bill: Bill) -> Picture | None:
        if self._thumbnails is None or not hit.thumbnail_url:
            return None
        return (await bill.ask(self._thumbnails, hit.thumbnail_url)).value


def _item(hit: ImageHit, thumbnail: Picture | None) -> ToolItem:
    title = shortened(hit.title or hit.source, TITLE_CHARACTERS)
    return ToolItem(title, url=shortened(hit.url, TITLE_CHARACTERS), thumbnail=thumbnail)
