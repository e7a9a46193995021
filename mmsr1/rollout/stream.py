"""Which finished groups make up the next training step.

Prompts come in a fixed order, and each is rolled out and handed over exactly once. Without options a step is the next
`quota` prompts of the order and waits for all of them. Two options change who waits for whom, not who takes part:

- `extra`: that many more groups are on their way than a step needs, so a step takes those that are ready and leaves
  the slowest (the tail of the latencies) to a later one. They are carried over, not thrown away, so slow, long
  episodes are trained on as often as quick, short ones; `max_staleness` says how many updates late they may come.
- `refill`: a group in which all rewards are equal carries no gradient; it is handed over for the figures, and another
  prompt takes its place (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2), at most `max_refills` times a step.

    places --launch--> running --group finished--> ready, or dropped --take(step)--> training
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmsr1.types import Group


@dataclass(frozen=True, order=True)
class Place:
    """A prompt's place in the order of all prompts: the step it belongs to (0-based), and its index there."""

    step: int
    index: int


@dataclass(frozen=True)
class StreamSpec:
    """Groups a step trains on, and the options above; all of one rank. Raises ValueError if groups carried over could
    come too late, or more of them be due than a step takes."""

    quota: int
    extra: int = 0
    refill: bool = False
    max_refills: int = 0
    max_staleness: int = 0

    def __post_init__(self) -> None:
        if self.extra and self.max_staleness < 1:
            raise ValueError(f"extra: {self.extra} received; groups that are carried over need a max_staleness of 1")
        if not 0 <= self.extra <= self.quota:
            raise ValueError(f"extra: {self.extra} received; give 0 to {self.quota}, what a step takes")


@dataclass(frozen=True)
class StreamState:
    """What is under way between two steps: groups that are ready (with the weights they started at), groups already
    dropped, places to roll out again, and the first place of the order that nobody has taken up."""

    ready: tuple[tuple[int, Place, Group], ...]
    dropped: tuple[Group, ...]
    open: tuple[Place, ...]
    next: Place


class Places:
    """One rank's places in their order: its share of those `left` over, then its share of every step.

    The shares of a step are those of `Ranks.mine`. The order ends before `steps`; None goes on for ever.
    """

    def __init__(
        self,
        per_step: int,
        steps: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        first_step: int = 0,
        left: Sequence[Place] = (),
    ) -> None:
        self.left = deque(left[rank::ranks])
        self.next = Place(first_step, rank)
        self._per_step, self._steps, self._rank, self._ranks = per_step, steps, rank, ranks

    def take(self, count: int) -> list[Place]:
        """The next `count` places, or what there is of them."""
        taken = [self.left.popleft() for _ in range(min(count, len(self.left)))]
        while len(taken) < count and self._rank < self._per_step and self.next.step != self._steps:
            taken.append(self.next)
            index = self.next.index + self._ranks
            self.next = (
                replace(self.next, index=index) if index < self._per_step else self._first_of(self.next.step + 1)
            )
        return taken

    def before(self, step: int) -> list[Place]:
        """The places from `next` up to `step`, which stay where they are."""
        first = range(self.next.index, self._per_step, self._ranks)
        later = range(self._rank, self._per_step, self._ranks)
        steps = range(self.next.step, step)
        return [Place(at, index) for at in steps for index in (first if at == self.next.step else later)]

    def _first_of(self, step: int) -> Place:
        return Place(step, self._rank)


@dataclass(frozen=True)
class _Flight:
    """A group on its way, and the version of the weights when it started."""

    version: int
    place: Place


class RolloutStream:
    """Use it on one event loop. `launch` starts the groups of the given places, a task each, in their order.

    `ready` and `dropped` are what an earlier process left behind (see `StreamState`).
    """

    def __init__(
        self,
        launch: Callable[[Sequence[Place]], Sequence[asyncio.Task[Group]]],
        places: Places,
        spec: StreamSpec,
        ready: Sequence[tuple[int, Place, Group]] = (),
        dropped: Sequence[Group] = (),
    ) -> None:
        self.spec = spec
        self._launch, self._places = launch, places
        self._running: dict[asyncio.Task[Group], _Flight] = {}
        self._ready = [(_Flight(version, place), group) for version, place, group in ready]
        self._dropped = list(dropped)

    async def prepare(self, step: int, version: int) -> None:
        """Launch what `step` lacks, with weights of `version`, and return when it is complete.

        Raises what the rollout of a group raises.
        """
        spec = self.spec
        self._start(spec.quota + spec.extra - len(self._running) - len(self._ready), version)
        refills = spec.max_refills
        while self._running and (len(self._ready) < spec.quota or self._due(step)):
            finished, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(finished, key=lambda task: self._running[task].place):
                flight, group = self._running.pop(task), task.result()
                if not (spec.refill and group.all_equal):
                    self._ready.append((flight, group))
                    continue
                self._dropped.append(group)
                if refills:
                    refills -= 1
                    self._start(1, version)

    def take(self) -> list[Group]:
        """The groups of the step that was prepared, those started with the oldest weights first, then the dropped."""
        self._ready.sort(key=lambda one: (one[0].version, one[0].place))
        taken, self._ready = self._ready[: self.spec.quota], self._ready[self.spec.quota :]
        dropped, self._dropped = self._dropped, []
        return [*(group for _, group in taken), *dropped]

    def state(self) -> StreamState:
        """All that is not handed over yet. What runs will have to be rolled out again by whoever goes on from here."""
        return StreamState(
            tuple((flight.version, flight.place, group) for flight, group in self._ready),
            tuple(self._dropped),
            tuple(sorted([*self._places.left, *(flight.place for flight in self._running.values())])),
            self._places.next,
        )

    def _due(self, step: int) -> bool:
        """Is a group on its way that would be too old for the step after this one?"""
        return any(flight.version <= step - self.spec.max_staleness for flight in self._running.values())

    def _start(self, count: int, version: int) -> None:
        places = self._places.take(max(0, count))
        for place, task in zip(places, self._launch(places) if places else (), strict=True):
            self._running[task] = _Flight(version, place)


def left_over(states: Sequence[StreamState], per_step: int) -> tuple[int, list[Place]]:
    """Where all ranks together stand: the first step that nobody has taken up, and the places before it that are still
    to be rolled out. `states` are in rank order.

    Ranks that refill move at their own pace; this is what lets any other number of ranks go on from here.
    """
    first = max(state.next.step + (state.next.index != rank) for rank, state in enumerate(states))
    open_places = [place for state in states for place in state.open]
    for rank, state in enumerate(states):
        places = Places(per_step, None, rank, len(states))
        places.next = state.next
        open_places += places.before(first)
    return first, sorted(open_places)
