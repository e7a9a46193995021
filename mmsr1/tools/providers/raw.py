"""A provider as a back end and as a part: raw answers are kept, and read anew at every use.

    ParsedPart( CachedPart( Paid( Guarded( RawBackend(provider) ) ), RAW ) )

So a parser can be changed, and all that was ever paid for is read by the new one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from time import monotonic
from typing import Any, Generic, TypeVar

from mmsr1.tools.base import Answer, CallFailed, Outcome, Part
from mmsr1.tools.providers.base import Provider
from mmsr1.tools.providers.threads import in_parser

logger = logging.getLogger(__name__)

BLOCKED_S = 600.0
BLOCKED_PAGES = 4_096

Q = TypeVar("Q")
V = TypeVar("V")


class Fresh(str):
    """A raw answer that has just been read, with what was found: the first to use it need not read it again.

    It is the text to whoever keeps it; of a copy or a cached one the text alone is left.
    """

    provider: Any
    query: Any
    value: Any

    @classmethod
    def read(cls, raw: str, provider: Any, query: Any, value: Any) -> Fresh:
        fresh = cls(raw)
        fresh.provider, fresh.query, fresh.value = provider, query, value
        return fresh


class RawBackend(Generic[Q, V]):
    """`Backend[Q, str]`: asks the provider, and reads the answer once as a check, so that only answers are kept."""

    def __init__(self, provider: Provider[Q, V]) -> None:
        self._provider = provider
        self.name, self.price_usd = provider.name, provider.price_usd
        self.backend = _identity(provider)

    async def ask(self, query: Q) -> Answer[str]:
        answer = await self._provider.fetch(query)
        if answer.value is None:
            return answer
        try:
            value = await _parsed(self._provider, answer.value, query)
        except CallFailed as error:
            raise CallFailed(error.cause, error.detail, error.retry_after_s, answer.cost_usd) from None
        return replace(answer, value=Fresh.read(answer.value, self._provider, query, value))


class ParsedPart(Generic[Q, V]):
    """`Part[Q, V]`: what the provider's parser reads in the outcome of `raw`.

    An answer in which nothing was found is `empty`. One that was kept but cannot be read any more is an infrastructure
    error: it stays, for it was paid for, and a better parser may read it. What a page refused is said again for
    `BLOCKED_S` without asking, in this process: search engines name it often.
    """

    def __init__(self, raw: Part[Q, str], provider: Provider[Q, V]) -> None:
        self._raw, self._provider = raw, provider
        self.name, self.price_usd = raw.name, raw.price_usd
        self.backend = f"{raw.backend}:parser={provider.version}"
        self._blocked: dict[str, tuple[str, float]] = {}  # address of a page: what it said, until when it is believed

    async def __call__(self, query: Q) -> Outcome[V]:
        known = self._blocked.get(query) if isinstance(query, str) else None
        if known is not None and monotonic() < known[1]:
            return Outcome("infrastructure_error", cached=True, detail=known[0])
        outcome = await self._asked(query)
        blocked = outcome.status == "infrastructure_error" and outcome.detail.startswith("blocked:")
        if blocked and isinstance(query, str):  # texts are small; pages to summarise are not
            self._remember(query, outcome.detail)
        return outcome

    async def _asked(self, query: Q) -> Outcome[V]:
        raw = await self._raw(query)
        status, value, detail = raw.status, None, raw.detail
        if status == "ok" and raw.value is not None:
            try:
                value = await _parsed(self._provider, raw.value, query)
                status = "empty" if value is None or value in ((), "") else "ok"
            except CallFailed as error:
                status, detail = "infrastructure_error", str(error)
        value = value if status == "ok" else None
        return Outcome(status, value, raw.cost_usd, raw.paid_usd, raw.cached, detail)

    def _remember(self, page: str, detail: str) -> None:
        self._blocked.pop(page, None)
        while len(self._blocked) >= BLOCKED_PAGES:
            del self._blocked[next(iter(self._blocked))]  # the one that was blocked longest ago
        self._blocked[page] = detail, monotonic() + BLOCKED_S


async def _parsed(provider: Provider[Q, V], raw: str, query: Q) -> V:
    """Raises CallFailed, also where the parser has a bug: one answer must not end a run."""
    if isinstance(raw, Fresh) and raw.provider is provider and raw.query == query:
        return raw.value
    try:
        if provider.slow:
            return await in_parser(lambda: provider.parse(raw, query))
        return provider.parse(raw, query)
    except CallFailed:
        raise
    except Exception as error:
        logger.warning("the parser of %s failed", provider.name, exc_info=True)
        raise CallFailed("broken", f"the answer cannot be read ({type(error).__name__})") from None


def _identity(provider: Provider[Any, Any]) -> str:
    """Everything besides the query that decides the raw answer; not the parser, which can be run again."""
    return f"{provider.name}:{json.dumps(provider.settings, sort_keys=True)}"
