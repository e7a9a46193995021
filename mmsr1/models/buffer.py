"""The bounded hand-over from rollouts to training, keyed by rollout step."""

from __future__ import annotations

from typing import NamedTuple

from mmsr1.types import Episode, Group


class Rollouts(NamedTuple):
    """What a training step gets: its groups, and episodes that are only compared (see `contract.GapMeter`)."""

    groups: tuple[Group, ...]
    probes: tuple[Episode, ...] = ()


class RolloutBuffer:
    """Holds the groups of at most `capacity` steps (1: on-policy; 2: the next step is sampled meanwhile).

    A wrong key means that training would use episodes of another step unnoticed, so it raises.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._capacity = capacity
        self._steps: dict[int, Rollouts] = {}

    def put(self, step: int, groups: tuple[Group, ...], probes: tuple[Episode, ...] = ()) -> None:
        """`probes` are this rank's own, sampled by the engine with the weights that the trainer has now."""
        if len(self._steps) >= self._capacity or step in self._steps:
            raise RuntimeError(
                f"rollout buffer holds steps {sorted(self._steps)} of {self._capacity}; cannot add {step}"
            )
        self._steps[step] = Rollouts(groups, probes)

    def take(self, step: int) -> Rollouts:
        if step not in self._steps:
            raise RuntimeError(f"rollout buffer holds steps {sorted(self._steps)}; step {step} was asked for")
        return self._steps.pop(step)
