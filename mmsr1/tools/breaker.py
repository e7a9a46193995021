"""The circuit breaker: a back end that is down is left alone for a while instead of being asked by everybody."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mmsr1.tools.base import CallFailed

logger = logging.getLogger(__name__)

LONGER = 10  # times the longest cool-down, for what does not pass by itself: a spent account, a wrong key
RECENT, RECENT_S = 20, 60.0  # the attempts that are judged: so many, and none that ended longer ago
SHARE = 0.75  # of them that have failed; below it, asking again does better than leaving alone
FINAL = ("exhausted", "refused")


@dataclass(frozen=True)
class Refusal:
    """Why no attempt may be made now: `detail` begins with the cause. In `wait_s` seconds the next may be let through;
    `final`: waiting for it is of no use."""

    detail: str
    wait_s: float
    final: bool


@dataclass
class _Open:
    cause: str
    detail: str
    since: float  # when the breaker opened, whatever was tried since then
    hold_s: float
    until: float  # when an attempt may be let through; while one is under way, when it has lost its place
    probing: bool = False

    @property
    def final(self) -> bool:
        return self.cause in FINAL


class Breaker:
    """Open once most of the recent attempts, and no fewer than `failures`, have failed for `lasting_s` seconds.

    So neither many calls that fail in one moment open it nor a short interruption, which retries get over. Then one
    attempt is let through after `cool_down_s`, and as long as these fail, after twice the time, up to `longest_s`. An
    answer closes it. An attempt that never ends leaves its place to another after `longest_s`. A spent account opens
    at once, and for longer; so do two refusals in succession, for one may be about what was asked. A throttled attempt
    never counts, but shows one that was let through that the back end is there. With `failures` beyond `RECENT` only a
    spent account or refusals open it.

    `patience_s` bounds how long a call may wait for an open breaker, in addition to its deadline.
    For one event loop, as the guards are that share it. `name` is that of the back end in the log.
    """

    def __init__(
        self,
        failures: int = 8,
        cool_down_s: float = 2.0,
        longest_s: float = 30.0,
        lasting_s: float = 5.0,
        patience_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        name: str = "back end",
    ) -> None:
        if failures < 1 or min(cool_down_s, lasting_s, patience_s) < 0 or longest_s < cool_down_s:
            times = f"cool_down_s={cool_down_s}, longest_s={longest_s}, lasting_s={lasting_s}, patience_s={patience_s}"
            raise ValueError(f"failures={failures}, {times}: need failures >= 1, times >= 0, longest_s >= cool_down_s")
        self.patience_s, self._name = patience_s, name
        self._least, self._cool_down_s, self._longest_s, self._lasting_s = failures, cool_down_s, longest_s, lasting_s
        self._clock = clock
        self._recent: deque[tuple[float, bool]] = deque(maxlen=RECENT)
        self._failing_since: float | None = None
        self._open: _Open | None = None
        self._refused = False  # whether the attempt that ended last was

    @property
    def open_s(self) -> float:
        """Seconds since it opened, with the attempts that were let through and failed; 0 while it is closed."""
        return 0.0 if self._open is None else self._clock() - self._open.since

    @property
    def final(self) -> str | None:
        """What keeps it open that does not pass by itself, cause first; None if nothing does."""
        return f"{self._open.cause}: {self._open.detail}" if self._open is not None and self._open.final else None

    def refusal(self) -> Refusal | None:
        """Why no attempt may be made now; None if one may."""
        if self._open is None:
            return None
        wait_s = self._open.until - self._clock()
        if wait_s <= 0:
            return None
        detail = f"{self._open.cause}: left alone for {wait_s:.0f} s more after {self._open.detail}"
        return Refusal(detail, wait_s, self._open.final)

    def admit(self) -> Refusal | None:
        """`refusal`, or None for an attempt that is made now and ends in `succeeded`, `failed` or `unsaid`."""
        refusal = self.refusal()
        if refusal is None and self._open is not None:
            self._open.until = self._clock() + self._longest_s
            self._open.probing = True
        return refusal

    def succeeded(self) -> None:
        """The back end has answered."""
        self._refused = False
        if self._open is not None:
            logger.warning("%s answers again after %.0f s", self._name, self.open_s)
            self._open, self._failing_since = None, None
            self._recent.clear()
        self._judge(failed=False)

    def unsaid(self) -> None:
        """An attempt that was let through has ended without telling anything: another may take its place."""
        if self._open is not None and self._open.probing:
            self._open.until, self._open.probing = self._clock(), False

    def failed(self, error: CallFailed) -> None:
        """An attempt has failed. A blocked page or a query that is not accepted is an answer of a sound back end."""
        probing = self._open is not None and self._open.probing
        if error.cause in ("blocked", "invalid") or (error.cause == "throttled" and probing):
            return self.succeeded()
        if error.cause == "throttled":
            return
        again, self._refused = self._refused, error.cause == "refused"
        if error.cause == "exhausted" or (again and self._refused):
            self._hold(error.cause, error.detail, LONGER * self._longest_s)
        elif self._open is None:
            if self._judge(failed=True) >= self._lasting_s:
                failed = sum(failed for _, failed in self._recent)
                detail = f"{failed} of {len(self._recent)} attempts failed, the last: {error.detail}"
                self._hold(error.cause, detail, self._cool_down_s)
        elif self._open.probing and self._open.final:  # of the account or key it tells nothing
            self._hold(self._open.cause, self._open.detail, self._longest_s)
        elif self._open.probing:  # others were under way when it opened, and tell nothing new
            self._hold(error.cause, f"another failure: {error.detail}", min(self._longest_s, 2 * self._open.hold_s))

    def _judge(self, failed: bool) -> float:
        """Count an attempt; for how many seconds most of the recent ones have failed now, -1 if they have not."""
        now = self._clock()
        self._recent.append((now, failed))
        while self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()
        failures = sum(failed for _, failed in self._recent)
        if failures < max(self._least, SHARE * len(self._recent)):
            self._failing_since = None
            return -1.0
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since

    def _hold(self, cause: str, detail: str, seconds: float) -> None:
        if self._open is None or self._open.probing:  # else of those that were under way then, and it has been said
            logger.warning("%s left alone for %.0f s: %s: %s", self._name, seconds, cause, detail)
        now = self._clock()
        since = now if self._open is None else self._open.since
        self._open = _Open(cause, detail, since, seconds, now + seconds)
