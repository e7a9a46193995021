"""A provider as a back end and as a part: raw answers are kept, and read anew at every use.

    ParsedPart( CachedPart( Paid( Guarded( RawBackend(provider) ) ), RAW ) )

So a parser can be changed, and all that was ever paid for is read by the new one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from mmsr1.tools.base import Answer, CallFailed, Outcome, Part
from mmsr1.tools.providers.base import Provider

logger = logging.getLogger(__name__)

# Threads of their own: a hostile page takes seconds, and the cache writes in the ones that all share.
_PARSERS = ThreadPoolExecutor(2, "parser")

Q = TypeVar("Q")
V = TypeVar("V")


class RawBackend(Generic[Q, V]):
    """`Backend[Q, str]`: asks the provider, and reads the answer once as a check, so that only answers are kept."""

    def __init__(self, provider: Provider[Q, V]) -> None:
        self._provider = provider
        self.name, self.price_usd = provider.name, provider.price_usd
        self.backend = _identity(provider)

    async def ask(self, query: Q) -> Answer[str]:
        answer = await self._provider.fetch(query)
        if answer.value is not None:
            await _parsed(self._provider, answer.value, query)
        return answer


class ParsedPart(Generic[Q, V]):
    """`Part[Q, V]`: what the provider's parser reads in the outcome of `raw`.

    An answer in which nothing was found is `empty`. One that was kept but cannot be read any more is an infrastructure
    error: it stays, for it was paid for, and a better parser may read it.
    """

    def __init__(self, raw: Part[Q, str], provider: Provider[Q, V]) -> None:
        self._raw, self._provider = raw, provider
        self.name, self.price_usd = raw.name, raw.price_usd
        self.backend = f"{raw.backend}:parser={provider.version}"

    async def __call__(self, query: Q) -> Outcome[V]:
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


async def _parsed(provider: Provider[Q, V], raw: str, query: Q) -> V:
    """Raises CallFailed, also where the parser has a bug: one answer must not end a run."""
    try:
        if provider.slow:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_PARSERS, provider.parse, raw, query)
        return provider.parse(raw, query)
    except CallFailed:
        raise
    except Exception as error:
        logger.warning("the parser of %s failed", provider.name, exc_info=True)
        raise CallFailed("broken", f"the answer cannot be read ({type(error).__name__})") from None


def _identity(provider: Provider[Any, Any]) -> str:
    """Everything besides the query that decides the raw answer; not the parser, which can be run again."""
    return f"{provider.name}:{json.dumps(provider.settings, sort_keys=True)}"
