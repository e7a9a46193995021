"""The bounded hand-over from rollouts to training, keyed by rollout step."""

from __future__ import annotations

from mmsr1.types import Group


class RolloutBuffer:
    """Holds the groups of at most `capacity` steps (1: on-policy; 2: the next step is sampled meanwhile).

    A wrong key means that training would use episodes of another step unnoticed, so it raises.
    """

    def __init__(self, capacity: int = 1) -> None:
        self._capacity = capacity
        self._steps: dict[int, tuple[Group, ...]] = {}

    def put(self, step: int, groups: tuple[Group, ...]) -> None:
        if len(self._steps) >= self._capacity or step in self._steps:
            raise RuntimeError(
                f"rollout buffer holds steps {sorted(self._steps)} of {self._capacity}; cannot add {step}"
            )
        self._steps[step] = groups

    def take(self, step: int) -> tuple[Group, ...]:
        if step not in self._steps:
            raise RuntimeError(f"rollout buffer holds steps {sorted(self._steps)}; step {step} was asked for")
        return self._steps.pop(step)
