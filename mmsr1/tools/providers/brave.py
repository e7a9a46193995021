"""Brave's own index of the web."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.http import Reply
from mmsr1.tools.providers.base import WebProvider
from mmsr1.tools.providers.fields import document, entries, searchable, web_hit
from mmsr1.tools.web_types import WebHit

MOST = 20  # results in one answer
_MARK_UP = re.compile(r"</?(?:strong|b|em|i)>")
_hit = web_hit("url", "description")


class BraveSearch(WebProvider[str, tuple[WebHit, ...]]):
    """Web results; 5 USD for 1,000. Queries are cut to what the service takes: 400 characters, 50 words."""

    name: ClassVar[str] = "brave"
    home: ClassVar[str | None] = "https://api.search.brave.com"
    variable: ClassVar[str | None] = "BRAVE_API_KEY"
    list_price: ClassVar[float] = 0.005
    known: ClassVar[Mapping[str, Any]] = {"country": "us", "search_lang": "en"}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "count": min(self.results, MOST)}

    async def fetch(self, query: str) -> Answer[str]:
        reply = await self._http.request(
            "GET",
            f"{self._url}/res/v1/web/search",
            params={"q": searchable(query, 400, 50), "count": str(min(self.results, MOST)), **self.options},
            headers={"X-Subscription-Token": self._key, "Accept": "application/json"},
        )
        if reply.status == 422 and "SUBSCRIPTION_TOKEN_INVALID" in reply.text:
            raise CallFailed("refused", "HTTP 422: the key is not known")
        if reply.status == 429 and _month_is_spent(reply):
            raise CallFailed("exhausted", "no searches are left this month")
        return self._answer(reply)

    def parse(self, raw: str, query: str) -> tuple[WebHit, ...]:
        answer = document(raw)
        web = answer.get("web")
        if web is None and answer.get("type") == "search":
            return ()
        if not isinstance(web, dict):
            raise CallFailed("broken", "the answer has no web results")
        return entries(web.get("results"), "web.results", _plain_hit)


def _plain_hit(entry: Mapping[str, Any]) -> WebHit | None:
    """Brave puts the words that were found into <strong>."""
    hit = _hit(entry)
    return hit and replace(hit, title=_plain(hit.title), snippet=_plain(hit.snippet))


def _plain(marked: str) -> str:
    return html.unescape(_MARK_UP.sub("", marked))


def _month_is_spent(reply: Reply) -> bool:
    """Limits come as one number per window, `second, month`; a limit of 0 is none."""
    try:
        limits, left = (
            [int(number) for number in reply.headers.get(f"x-ratelimit-{name}", "").split(",")]
            for name in ("limit", "remaining")
        )
    except ValueError:
        return False
    return len(limits) == len(left) > 1 and limits[-1] > 0 and left[-1] <= 0
