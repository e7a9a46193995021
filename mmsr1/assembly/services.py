"""What all services of a process share: cache, ledger, budget, meter; and the layers around each of them.

Parsed( Cached( Paid( Guarded( provider ))))
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from mmsr1.config import BudgetConfig, ConfigError, PartConfig
from mmsr1.tools.base import Part
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.budget import Budget, BudgetLimits, Paid
from mmsr1.tools.cache import CachedPart, Codec
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.ledger import Ledger
from mmsr1.tools.meter import Meter, Row
from mmsr1.tools.providers.base import Provider
from mmsr1.tools.providers.raw import ParsedPart, RawBackend
from mmsr1.tools.store import Store

FAILURES = 8  # attempts that make a service look dead
NEVER = 10**9  # of what is fetched from many hosts: one that is down says nothing about the next


class Services:
    """Everything that asks, for one of `ranks` processes of the run in folder `run`.

    Raises ConfigError for a budget that cannot be read.
    """

    def __init__(
        self, cache_dir: Path, limits: BudgetConfig, run: Path, seed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.meter = Meter()
        self.cache = Store(cache_dir)
        self.ledger = Ledger(ledger_folder(run), f"rank{rank}")
        self.budget = run_budget(limits, cache_dir, run)
        self.seed, self.ranks = seed, ranks
        self.closing: list[Callable[[], Awaitable[None]]] = []
        self._stops = limits.when_spent == "stop"
        self._guards: list[tuple[Guarded[Any, Any], str | None]] = []  # with the variables of their keys

    def part(
        self,
        provider: Provider[Any, Any],
        settings: PartConfig,
        codec: Codec[Any, str],
        counted: bool = True,
        many_hosts: bool = False,
    ) -> Part[Any, Any]:
        """A service behind everything that stands around its calls; its raw answers are what is kept.

        `counted`: its hits are put on the meter here. `many_hosts`: one that is down says nothing about the others.
        """
        guarded = Guarded(
            RawBackend(provider),
            policy(settings, self.ranks),
            Breaker(failures=NEVER if many_hosts else FAILURES, name=provider.name),
            self.meter,
            self.seed,
        )
        self._guards.append((guarded, None if provider.secret is None else provider.secret.env))
        paid = Paid(guarded, self.budget, self.ledger)
        return ParsedPart(CachedPart(paid, self.cache, codec, meter=self.meter if counted else None), provider)

    def rows(self) -> Mapping[str, Row]:
        """Figures of every tool and part since they were made."""
        return self.meter.rows()

    def spent(self) -> str | None:
        """Why the run is to end, in one line: its budget, or an account or key of a service. None while there is
        something left, or nothing is to end it."""
        if not self._stops:
            return None
        return self.budget.left or next((told for guard in self._guards if (told := _told(*guard))), None)

    async def aclose(self) -> None:
        """Close all connections; on the event loop that used them."""
        await asyncio.gather(*(close() for close in self.closing), return_exceptions=True)


def _told(guard: Guarded[Any, Any], key_env: str | None) -> str | None:
    """Why a service is of no use any more, and what to do, if it is not."""
    if guard.of_no_use is None:
        return None
    if guard.name.startswith("retrieve"):  # it is another's budget, account or bundle
        return f"{guard.of_no_use}; mend that first, at the server"
    if "refused" in guard.of_no_use:
        key = "the address, options" if key_env is None else f"the key in {key_env}, the address, options"
        return f"{guard.of_no_use}; mend that first: check {key} and plan"
    key = "" if key_env is None else f" or another key in {key_env}"
    return f"{guard.of_no_use}; mend that first: it needs credit{key}"


def ledger_folder(run: Path) -> Path:
    return run / "ledger"


def run_budget(config: BudgetConfig, cache_dir: Path, run: Path) -> Budget:
    """What the run may spend; a day's limits are shared with all that share the cache. Raises ConfigError."""
    limits = {name: value for name, value in vars(config).items() if name != "when_spent"}
    try:
        return Budget(BudgetLimits(**limits), run, cache_dir / "budget")
    except ValueError as error:
        raise ConfigError(f"tools.budget: {' '.join(str(error).split())}") from error


def check_key(name: str, provider: Provider[Any, Any]) -> None:
    """Raises ConfigError if the key of the part under this key of the configuration is not there."""
    secret = provider.secret
    if secret is not None and secret.missing:
        raise ConfigError(f"{name}.key_env={secret.env}: this environment variable is not set; put the key in it")


def provider_of(name: str, part: PartConfig, make: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """The provider under the key `name` of the configuration. Raises ConfigError."""
    access = {"url": part.url, "key_env": part.key_env, "price_usd": part.price_usd}
    try:
        return make(part.provider, **access, timeout_s=part.timeout_s, options=part.options, **settings)
    except ValueError as error:
        raise ConfigError(f"{name}.{error}") from error


def policy(part: PartConfig, ranks: int) -> CallPolicy:
    """How one of `ranks` processes may ask; the rate is that of all together."""
    return CallPolicy(part.attempts, part.timeout_s, part.deadline_s, part.rate_per_s / ranks, part.concurrent)
