"""A provider behind everything that stands around it in a run, except the budget."""

import asyncio
from dataclasses import dataclass
from typing import Any

from adapters import CANARY, Adapter, network
from cache_helpers import rows
from fake_api import FakeApi

from mmsr1.tools.base import Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.cache import CachedPart
from mmsr1.tools.codecs import TEXT, Codec
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.providers.raw import ParsedPart, RawBackend
from mmsr1.tools.store import Store
from mmsr1.tools.web_codecs import SUMMARY


@dataclass(frozen=True)
class Shelf:
    """A test's own keys in a store that many tests share: making one takes half a second on a busy disk."""

    store: Store
    label: str

    @property
    def rows(self) -> int:
        """How many entries there are."""
        return len(rows(self.store.directory))

    @property
    def shows_the_key(self) -> bool:
        files = [path for path in self.store.directory.rglob("*") if path.is_file()]
        return any(CANARY.encode() in path.read_bytes() for path in files)

    def codec(self, provider: Any) -> Codec[Any, str]:
        codec: Any = SUMMARY if provider.name == "openai_summarizer" else TEXT
        return Codec(lambda query: [self.label, codec.asked(query)], codec.dump, codec.load)


def part(provider: Any, shelf: Shelf, attempts: int = 1) -> ParsedPart[Any, Any]:
    policy = CallPolicy(attempts, timeout_s=10.0, deadline_s=5.0, rate_per_s=1e4, concurrent=8, backoff_s=0.0)
    guarded = Guarded(RawBackend(provider), policy, Breaker())
    return ParsedPart(CachedPart(guarded, shelf.store, shelf.codec(provider)), provider)


def ask(
    adapter: Adapter, api: FakeApi, shelf: Shelf, *, url: str = "", attempts: int = 1, query: Any = None, **access: Any
) -> Outcome:
    """One call by a provider made afresh; only the cache lives on."""

    async def once() -> Outcome:
        provider = adapter.make(url or api.url, **network(**access))
        try:
            return await part(provider, shelf, attempts)(adapter.ask_for(api.url) if query is None else query)
        finally:
            await provider.aclose()

    return asyncio.run(once())
