"""Tavily: a search engine for language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmsr1.tools.base import Answer
from mmsr1.tools.providers.base import WebProvider
from mmsr1.tools.providers.fields import document, entries, searchable, web_hit
from mmsr1.tools.web_types import WebHit

MOST = 20  # results in one answer
_hit = web_hit("url", "content")


class TavilySearch(WebProvider[str, tuple[WebHit, ...]]):
    """Web results with the passages that fit the query. `search_depth: advanced` costs two credits, else one."""

    name: ClassVar[str] = "tavily"
    home: ClassVar[str | None] = "https://api.tavily.com"
    variable: ClassVar[str | None] = "TAVILY_API_KEY"
    list_price: ClassVar[float] = 0.008
    known: ClassVar[Mapping[str, Any]] = {"search_depth": "basic"}

    def _default_price(self) -> float:
        return self.list_price * (2 if self.options["search_depth"] == "advanced" else 1)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "max_results": min(self.results, MOST)}

    async def fetch(self, query: str) -> Answer[str]:
        body = {"query": searchable(query, 400), "max_results": min(self.results, MOST), **self.options}
        reply = await self._http.request("POST", f"{self._url}/search", headers=self._bearer(), json=body)
        return self._answer(reply, {432: "exhausted", 433: "exhausted"})  # limits of the plan, of pay-as-you-go

    def parse(self, raw: str, query: str) -> tuple[WebHit, ...]:
        return entries(document(raw).get("results"), "results", _hit)
