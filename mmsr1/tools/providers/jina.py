"""Jina Reader: a service that opens a page in a browser and returns its text. It fetches; we touch no foreign host.

It answers HTTP 200 for pages that it could not read, with a warning or with what stood before the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.http import Reply, raise_for
from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, text, web_url
from mmsr1.tools.providers.walls import is_wall
from mmsr1.tools.web_types import Page

USD_PER_TOKEN = 0.05 / 1_000_000
PAGE_SECONDS = 180  # the longest that the service waits for a page
PAGE_CHARACTERS = 400_000
ERROR_BYTES = 4_096  # an answer that is longer is a page
_ABOVE = re.compile(r"(?:(?:Warning|Title|URL Source): [^\n]*\n+)+")
_TARGET = re.compile(r"target url returned error (\d{3})", re.IGNORECASE)


class JinaReader(WebProvider[str, Page]):
    """A page as markdown. It is charged by token, `max_tokens` at most, unless a price for a call is given."""

    name: ClassVar[str] = "jina_reader"
    home: ClassVar[str | None] = "https://r.jina.ai"
    variable: ClassVar[str | None] = "JINA_API_KEY"
    known: ClassVar[Mapping[str, Any]] = {"respond_with": "markdown", "max_tokens": 30_000}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._by_token = access.price_usd is None
        self._patience_s = max(1, min(PAGE_SECONDS, int(access.timeout_s * 0.9)))  # so that the service gives up first

    def _default_price(self) -> float:
        return USD_PER_TOKEN * self.options["max_tokens"]

    async def fetch(self, query: str) -> Answer[str]:
        target = web_url(query)
        if not target:
            raise CallFailed("blocked", "no address of a web page")
        headers = {
            "Accept": "application/json",
            "X-Respond-With": self.options["respond_with"],
            "X-Max-Tokens": str(self.options["max_tokens"]),
            "X-Timeout": str(self._patience_s),
            **self._bearer(),
        }
        reply = await self._http.request("GET", f"{self._url}/{target}", headers=headers)
        self._check(reply)
        answer = document(reply.text)
        gone = _target_status(answer) in (404, 410)
        return Answer(None if gone else reply.text, self._cost(answer))

    def parse(self, raw: str, query: str) -> Page:
        answer = document(raw)
        data = answer.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("content"), str):
            raise CallFailed("broken", "the answer has no content")
        title = data.get("title")
        title = text(title, TITLE_CHARACTERS) if isinstance(title, str) else ""
        content = text(data["content"], PAGE_CHARACTERS)
        if _target_status(answer) is not None:
            raise CallFailed("blocked", "the page answered its reader with an error")
        if "captcha" in _warning(data).lower() or is_wall(title, content):
            raise CallFailed("blocked", "the page wants a CAPTCHA or denies access")
        if not content:
            raise CallFailed("blocked", "the page has no text")
        return Page(query, title, content)

    def _check(self, reply: Reply) -> None:
        """Raises CallFailed unless a page was read. The service's own code, such as 40203 or 45102, says more than the
        HTTP status, which may be 200."""
        status = reply.status
        if status != 200 or len(reply.body) < ERROR_BYTES:
            own = _own_status(reply)
            status = own // 100 if own is not None and 40_000 <= own < 60_000 else status
        if 400 <= status < 500 and status not in (401, 402, 403, 407, 408, 425, 429):
            raise CallFailed("blocked", f"HTTP {status}")  # an address or a page that cannot be read
        raise_for(replace(reply, status=status))

    def _cost(self, answer: Mapping[str, Any]) -> float:
        """By the tokens that the service says it counted, the full price if it says nothing."""
        data = answer.get("data")
        usage = data.get("usage") if isinstance(data, dict) else None
        tokens = usage.get("tokens") if isinstance(usage, dict) else None
        if not self._by_token or not isinstance(tokens, int) or tokens < 0:
            return self.price_usd
        return min(tokens * USD_PER_TOKEN, self.price_usd)


def _own_status(reply: Reply) -> int | None:
    try:
        own = document(reply.text).get("status")
    except CallFailed:
        return None
    return own if isinstance(own, int) else None


def _warning(data: Mapping[str, Any]) -> str:
    """What the service has to say about the page; it stands in a field of its own, or above the text."""
    warning = data.get("warning")
    content = data.get("content")
    above = _ABOVE.match(content) if isinstance(content, str) else None
    return f"{warning if isinstance(warning, str) else ''}\n{above.group() if above else ''}"


def _target_status(answer: Mapping[str, Any]) -> int | None:
    """The HTTP error with which the page answered the reader, None if it did not."""
    data = answer.get("data")
    found = _TARGET.search(_warning(data)) if isinstance(data, dict) else None
    return int(found.group(1)) if found else None
