"""Which prompts each step trains on: a pure function of the examples, the mixture, the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from mmsr1.types import Example, StepPrompts

Mixture = Literal["balanced", "required_only", "natural"]


class PromptSchedule(Dataset[StepPrompts]):
    """A map-style data set with one item a rollout step.

    `balanced` draws half of every step from search-free and half from search-required examples (paper, section 3.1),
    `required_only` the latter alone, `natural` from all as they come. Each pool is shuffled anew for every pass.
    Raises ValueError if a pool the mixture needs is empty.
    """

    def __init__(self, examples: Sequence[Example], mixture: Mixture, per_step: int, steps: int, seed: int) -> None:
        self._steps = steps
        self._seed = seed
        free = [e for e in examples if e.is_free]
        required = [e for e in examples if e.is_free is False]
        half = per_step // 2
        self._pools: list[tuple[Sequence[Example], int]] = {
            "balanced": [(free, half), (required, per_step - half)],
            "required_only": [(required, per_step)],
            "natural": [(examples, per_step)],
        }[mixture]
        if any(not pool for pool, _ in self._pools):
            raise ValueError(
                f"data.mixture={mixture}: of {len(examples)} examples {len(free)} are search-free and {len(required)} "
                "search-required; label them, or use data.mixture=natural"
            )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> StepPrompts:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        return StepPrompts(step, self.prompts(step))

    def prompts(self, step: int) -> tuple[Example, ...]:
        """The examples of any step, also beyond the last: refilled groups are drawn ahead of their time."""
        drawn = [
            self._draw(pool, number, step * share + i)
            for number, (pool, share) in enumerate(self._pools)
            for i in range(share)
        ]
        order = np.random.default_rng([self._seed, 11, step]).permutation(len(drawn))
        return tuple(drawn[i] for i in order)

    def _draw(self, pool: Sequence[Example], number: int, position: int) -> Example:
        epoch, place = divmod(position, len(pool))
        return pool[np.random.default_rng([self._seed, 7, number, epoch]).permutation(len(pool))[place]]
