"""The circuit breaker: a back end that is down is left alone for a while instead of being asked by everybody."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mmsr1.tools.base import CallFailed

logger = logging.getLogger(__name__)

LONGER = 10  # times the cool-down, for what does not pass by itself: a spent account, a wrong key


class Breaker:
    """Closed after a success; open after `failures` attempts in a row that failed for reasons of infrastructure.

    When `cool_down_s` are over one attempt is let through; how it ends decides. An attempt that never ends leaves the
    place to another after the same time again. A spent account or a refused key opens at once, and for longer.
    For one event loop, as the guards are that share it.
    """

    def __init__(
        self, failures: int = 8, cool_down_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if failures < 1 or cool_down_s < 0:
            raise ValueError(f"failures={failures}, cool_down_s={cool_down_s}: need failures >= 1 and a time >= 0")
        self._limit, self._cool_down_s, self._clock = failures, cool_down_s, clock
        self._failures = 0
        self._open: tuple[str, str, float, float] | None = None  # cause, what it was, seconds at a time, until when

    def refusal(self) -> str | None:
        """Why no attempt may be made now, beginning with the cause; None if one may."""
        if self._open is None:
            return None
        cause, detail, _, until = self._open
        wait_s = until - self._clock()
        return f"{cause}: left alone for {wait_s:.0f} s more after {detail}" if wait_s > 0 else None

    def admit(self) -> str | None:
        """`refusal`, or None for an attempt that is made now and ends in `succeeded` or `failed`."""
        refusal = self.refusal()
        if refusal is None and self._open is not None:
            cause, detail, hold_s, _ = self._open
            self._open = (cause, detail, hold_s, self._clock() + hold_s)
        return refusal

    def succeeded(self) -> None:
        """The back end has answered."""
        self._failures, self._open = 0, None

    def failed(self, error: CallFailed) -> None:
        """An attempt has failed. A blocked page or a query that is not accepted is an answer of a sound back end."""
        if error.cause in ("blocked", "invalid"):
            return self.succeeded()
        self._failures += 1
        if error.cause in ("exhausted", "refused"):
            self._hold(error.cause, error.detail, LONGER * self._cool_down_s)
        elif self._failures >= self._limit:
            detail = f"{self._failures} failures in a row, the last: {error.detail}"
            self._hold(error.cause, detail, self._cool_down_s)

    def _hold(self, cause: str, detail: str, seconds: float) -> None:
        logger.warning("back end left alone for %.0f s: %s: %s", seconds, cause, detail)
        self._open = (cause, detail, seconds, self._clock() + seconds)
