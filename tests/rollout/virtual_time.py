"""An event loop whose clock jumps to the next timer when nothing else is left to do: hours pass in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Does not wait for what it is told to wait for, but says how long that would have been."""

    slept = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.slept += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.slept


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in virtual time. `main` must not wait for anything but timers and other tasks."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
