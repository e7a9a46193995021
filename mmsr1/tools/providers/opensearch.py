"""OpenSearch (and Elasticsearch): passages that `python -m mmsr1.tools.index push --to opensearch` put there."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.http import Reply
from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, entries, searchable, text, web_url
from mmsr1.tools.secrets import Secret
from mmsr1.types import ToolItem

_TOO_LONG = "too_many_clauses"


class OpenSearch(WebProvider[str, tuple[ToolItem, ...]]):
    """The best passages by BM25 over title and text, a title counting `title_weight` times.

    The key, where one is set, is `user:password` or an API key.
    """

    name: ClassVar[str] = "opensearch"
    known: ClassVar[Mapping[str, Any]] = {"index": "mmsr1", "title_weight": 1.0}

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        named("index", self.options["index"])
        if self.options["title_weight"] <= 0:
            raise ValueError(f"options.title_weight={self.options['title_weight']}: must be above 0")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "size": self.results}

    async def fetch(self, query: str) -> Answer[str]:
        fields = [f"title^{self.options['title_weight']:g}", "text"]
        matching = {"query": searchable(query), "fields": fields, "type": "most_fields"}
        body = {"query": {"multi_match": matching}, "size": self.results, "_source": ["title", "text", "url"]}
        url = f"{self._url}/{self.options['index']}/_search"
        headers = {} if self.secret is None else authorization(self.secret)
        return self._answer(await self._http.request("POST", url, headers=headers, json=body))

    def parse(self, raw: str, query: str) -> tuple[ToolItem, ...]:
        """What a part of the shards found is no answer."""
        answer = document(raw)
        shards = answer.get("_shards")
        if answer.get("timed_out") is True or isinstance(shards, dict) and shards.get("failed"):
            raise CallFailed("broken", "a part of the index did not answer")
        found = answer.get("hits")
        if not isinstance(found, dict):
            raise CallFailed("broken", "the answer has no hits")
        return entries(found.get("hits"), "hits", _passage)[: self.results]

    def _blames(self, reply: Reply) -> bool:
        return _TOO_LONG in reply.text or super()._blames(reply)


def _passage(entry: Mapping[str, Any]) -> ToolItem | None:
    about = entry.get("_source")
    return passage(about) if isinstance(about, dict) else None


def passage(about: Mapping[str, Any]) -> ToolItem | None:
    """A passage as an index holds it; without text it is none."""
    body = text(about.get("text"))
    return ToolItem(text(about.get("title"), TITLE_CHARACTERS), body, web_url(about.get("url"))) if body else None


def authorization(secret: Secret) -> dict[str, str]:
    """The header for what stands in the variable: a user and password, or an API key. Raises CallFailed("refused")."""
    key = secret.value
    if ":" in key:
        return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode('ascii')}"}
    return {"Authorization": f"ApiKey {key}"}


def named(option: str, name: str) -> None:
    """Raises ValueError unless the name can stand in an address."""
    if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"options.{option}={name!r}: give letters, digits, - and _")
