"""SearXNG: a metasearch server of one's own. It answers in JSON only if its settings allow that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.providers.base import WebProvider
from mmsr1.tools.providers.fields import document, entries, searchable, web_hit
from mmsr1.tools.web_types import WebHit

_hit = web_hit("url", "content")


class SearxngSearch(WebProvider[str, tuple[WebHit, ...]]):
    """Web results of all engines that the server asks; empty options leave the choice to the server. Free."""

    name: ClassVar[str] = "searxng"
    known: ClassVar[Mapping[str, Any]] = {"language": "", "engines": "", "categories": ""}

    async def fetch(self, query: str) -> Answer[str]:
        chosen = {name: value for name, value in self.options.items() if value}
        asked = {"q": searchable(query), "format": "json", **chosen}
        reply = await self._http.request("GET", f"{self._url}/search", params=asked, headers=self._bearer())
        if reply.status == 403:
            raise CallFailed("refused", "HTTP 403: allow json in search.formats of its settings")
        return self._answer(reply)

    def parse(self, raw: str, query: str) -> tuple[WebHit, ...]:
        """No results from engines that did not answer (CAPTCHA, time-out) are no answer."""
        answer = document(raw)
        hits = entries(answer.get("results"), "results", _hit)
        if not hits and answer.get("unresponsive_engines"):
            raise CallFailed("broken", "no results, and engines that did not answer")
        return hits
