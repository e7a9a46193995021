"""A reader of our own: fetches the page from here, guarded (`fetch.py`), and takes its main text out of the HTML.

Scripts are not run, so pages that are made by them have no text. Free, but every host that a search engine names is
asked from this machine: the reader service is the safer choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import trafilatura

from mmsr1.tools.base import Answer, CallFailed, Cause
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.http import Reply, decoded
from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, text, web_url
from mmsr1.tools.providers.threads import in_parser
from mmsr1.tools.providers.walls import is_wall
from mmsr1.tools.web_types import Page

MAX_BYTES = 3 * 2**20  # of HTML
MAX_TAGS = 60_000  # opened or closed; what comes after them is cut, for the time to read a page grows with them
PAGE_CHARACTERS = 400_000
HTML = ("text/html", "application/xhtml+xml")
PLAIN = ("text/plain", "text/markdown")
# Most refusals concern the one page, and another may be read.
_ITS_OWN: Mapping[int, Cause] = {status: "blocked" for status in range(400, 500) if status not in (408, 425)}
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]{2,40})", re.IGNORECASE)


class LocalReader(WebProvider[str, Page]):
    """The main text of a page, by trafilatura. `raw` is the HTML with the type and the address where it was found."""

    name: ClassVar[str] = "local_reader"
    slow: ClassVar[bool] = True
    home: ClassVar[str | None] = ""  # it asks the host of each page

    def __init__(self, access: Access, fetch: SafeFetch | None = None) -> None:
        super().__init__(access)
        self._fetch = fetch or SafeFetch(access.timeout_s, transport=access.transport)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"types": [*HTML, *PLAIN], "max_bytes": MAX_BYTES}

    async def aclose(self) -> None:
        await super().aclose()
        await self._fetch.aclose()

    async def fetch(self, query: str) -> Answer[str]:
        target = web_url(query)
        if not target:
            raise CallFailed("blocked", "no address of a web page")
        reply = await self._fetch.get(target, MAX_BYTES, (*HTML, *PLAIN))
        if reply.status in (404, 410):
            return Answer(None, self.price_usd)
        self._answer(reply, _ITS_OWN)
        return Answer(await in_parser(lambda: _kept(reply)), self.price_usd)

    def parse(self, raw: str, query: str) -> Page:
        found = document(raw)
        kind, source = found.get("type"), found.get("text")
        if not isinstance(kind, str) or not isinstance(source, str):
            raise CallFailed("broken", "what was kept of the page is damaged")
        title, content = ("", source) if kind in PLAIN else _main_text(source)
        title, content = text(title, TITLE_CHARACTERS), text(content, PAGE_CHARACTERS)
        if is_wall(title, content):
            raise CallFailed("blocked", "the page wants a CAPTCHA or denies access")
        if not content:
            raise CallFailed("blocked", "the page has no text")
        return Page(query, title, content)


def _kept(reply: Reply) -> str:
    """What is kept of a page, read in the character set that its server names, or else the page itself."""
    named = _CHARSET.search(reply.body[:4_096]) if "charset=" not in reply.headers.get("content-type", "") else None
    source = reply.text if named is None else decoded(reply.body, named.group(1).decode("ascii", "replace"))
    return json.dumps({"type": reply.media_type, "text": source}, ensure_ascii=False)


def _cut(source: str) -> str:
    parts = source.split("<", MAX_TAGS)
    return source if len(parts) <= MAX_TAGS else "<".join(parts[:-1])


def _main_text(source: str) -> tuple[str, str]:
    """Title and text. Raises CallFailed("blocked") if the HTML cannot be read: another page may be."""
    try:
        # Without the address, which it would write into its log.
        found = trafilatura.bare_extraction(
            _cut(source), include_comments=False, include_tables=True, with_metadata=True
        )
    except Exception as error:  # it runs on whatever the web holds
        raise CallFailed("blocked", f"the page cannot be read ({type(error).__name__})") from None
    if found is None:
        return "", ""
    read = found if isinstance(found, dict) else found.as_dict()
    return read.get("title") or "", read.get("text") or ""
