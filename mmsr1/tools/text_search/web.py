"""Search by text on the web: search, read the pages, summarise each of them for the query (MMSearch-R1, section 3.1).

    query -> search -> the first pages at once, a further one for each that fails -> a summary each -> items by rank

Which pages are read depends on what they answer, never on how fast: each page that fails makes room for the next in
rank order. So a call repeated over a cache gives the same result. Texts leave as they came, bounded in length;
the renderer neutralises them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from mmsr1.tools.base import Part
from mmsr1.tools.blocklist import Blocklist
from mmsr1.tools.pipeline import TITLE_CHARACTERS, Bill, is_web, settled, shortened
from mmsr1.tools.web_types import Page, SummaryQuery, WebHit
from mmsr1.types import ToolItem, ToolName, ToolResult

VERSION = 1
TEXT_CHARACTERS = 4000


class WebTextSearch:
    """`Tool[str]`: up to `topk` items of title, text and URL, in rank order.

    The text is a summary of the page; without a summariser the first `beginning` characters of the page, without a
    reader what the search engine quotes of it. At most `pages_tried` pages are read, `topk` at a time. Pages that
    cannot be read, or hold nothing or (says the summariser) nothing on the query, are left out; hits that `blocklist`
    blocks are not read.

    Raises ValueError for a number below 1 or a summariser without a reader.
    """

    name: ToolName = "text_search"

    def __init__(
        self,
        search: Part[str, tuple[WebHit, ...]],
        reader: Part[str, Page] | None = None,
        summarizer: Part[SummaryQuery, str] | None = None,
        topk: int = 5,
        pages_tried: int = 10,
        blocklist: Blocklist | None = None,
        beginning: int = 1000,
    ) -> None:
        for key, value in (("topk", topk), ("pages_tried", pages_tried), ("beginning", beginning)):
            if value < 1:
                raise ValueError(f"{key}: {value} received; give 1 or more")
        if summarizer is not None and reader is None:
            raise ValueError("summarizer: it needs pages; give a reader too")
        self._search, self._reader, self._summarizer = search, reader, summarizer
        self._topk, self._tried, self._beginning = topk, pages_tried, beginning
        self._blocklist = blocklist or Blocklist()
        parts = (search, reader, summarizer)
        settings = f"topk={topk}:tried={pages_tried}:beginning={beginning}:blocked={','.join(self._blocklist.hosts)}"
        self.backend = f"web-text:{VERSION}:{settings}:" + "|".join(part.backend if part else "-" for part in parts)
        page_usd = sum(part.price_usd for part in (reader, summarizer) if part)
        self.price_usd = search.price_usd + pages_tried * page_usd

    async def __call__(self, query: str) -> ToolResult:
        return await settled(lambda bill: self._find(query, bill))

    async def _find(self, query: str, bill: Bill) -> ToolResult:
        found = await bill.ask(self._search, query)
        if found.status != "ok" or found.value is None:
            return bill.total(found.status, detail=f"{self._search.name}: {found.detail}")
        hits = list(self._allowed(found.value))
        if self._reader is None:
            return bill.result([_item(hit, hit.title, hit.snippet) for hit in hits[: self._topk]])
        return bill.result(await self._read(query, hits, self._reader, bill))

    def _allowed(self, hits: Iterable[WebHit]) -> Iterator[WebHit]:
        """Each page once, and only those that may be shown."""
        seen: set[str] = set()
        for hit in hits:
            page = hit.url.partition("#")[0]
            if page not in seen and is_web(page) and not self._blocklist.blocks(page):
                seen.add(page)
                yield hit

    async def _read(self, query: str, hits: Sequence[WebHit], reader: Part[str, Page], bill: Bill) -> list[ToolItem]:
        """Items of the first pages that can be used.

        Each of `topk` takers goes down the one list until it has a page: pages that are used and pages that are being
        read are never more than `topk`.
        """
        ranked = iter(enumerate(hits[: self._tried]))
        items: dict[int, ToolItem] = {}

        async def take() -> None:
            for rank, hit in ranked:
                item = await self._page(query, hit, reader, bill)
                if item is not None:
                    items[rank] = item
                if item is not None or bill.over_budget:
                    return

        async with asyncio.TaskGroup() as takers:
            for _ in range(min(self._topk, len(hits))):
                takers.create_task(take())
        return [items[rank] for rank in sorted(items)]

    async def _page(self, query: str, hit: WebHit, reader: Part[str, Page], bill: Bill) -> ToolItem | None:
        """One page as an item, None if it is of no use."""
        page = (await bill.ask(reader, hit.url)).value
        if page is None or not page.text.strip():
            return None
        title = hit.title or page.title
        if self._summarizer is None:
            return _item(hit, title, page.text, self._beginning)
        summary = (await bill.ask(self._summarizer, SummaryQuery(query, page))).value
        return _item(hit, title, summary) if summary else None


def _item(hit: WebHit, title: str, text: str, longest: int = TEXT_CHARACTERS) -> ToolItem:
    return ToolItem(shortened(title, TITLE_CHARACTERS), shortened(text, longest), shortened(hit.url, TITLE_CHARACTERS))
