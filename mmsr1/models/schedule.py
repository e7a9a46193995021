"""Learning-rate schedules: a pure function from the step to a multiplier in [0, 1] of the configured rate."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "late_linear", "cosine", "sigmoid"]


def learning_rate(
    step: int,
    total_steps: int,
    schedule: Schedule,
    warmup_steps: int = 0,
    decay_ratio: float = 0.95,
    decay_steps: int = 45,
) -> float:
    """Multiplier for the update made at `step`, counted from 0.

    Warm-up rises linearly, (step + 1) / warmup_steps, so that the first update is not wasted on a rate of 0 and the
    last update of the warm-up has the full rate. Then, with t steps after the warm-up of the n that remain:

    - `constant`: 1;
    - `linear`: 1 - t / n, which reaches 0 at `total_steps`, after the last update;
    - `late_linear`: 1 for the first half, then linearly to 0 at `total_steps`;
    - `cosine`: (1 + cos(pi t / n)) / 2, 0 at the same place;
    - `sigmoid`: low + (1 - low) / (1 + exp((t - decay_steps) / (decay_steps / 10))) with low = 1 - decay_ratio. The
      rate stays high for about `decay_steps`, where it is half-way, and falls by `decay_ratio` in all. This is the
      schedule of MMSearch-R1's released code, whose script sets 0.95 and 45; it does not depend on `total_steps`.

    Raises ValueError for an argument out of range. Past `total_steps` linear and cosine stay at 0.
    """
    _check(step, total_steps, schedule, warmup_steps, decay_ratio, decay_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    elapsed = step - warmup_steps
    progress = min(1.0, elapsed / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "late_linear":
        return min(1.0, 2.0 * (1.0 - progress))
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "sigmoid":
        low = 1.0 - decay_ratio
        # 1 / (1 + exp(x)) written as a tanh, which cannot overflow far past the decay.
        return low + (1.0 - low) * 0.5 * (1.0 - math.tanh(5.0 * (elapsed - decay_steps) / decay_steps))
    return 1.0


def _check(step: int, total_steps: int, schedule: str, warmup_steps: int, decay_ratio: float, decay_steps: int) -> None:
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule: {schedule!r} received; choose one of {', '.join(get_args(Schedule))}")
    if step < 0:
        raise ValueError(f"step: {step} received; count from 0")
    if total_steps < 1:
        raise ValueError(f"total_steps: {total_steps} received; give 1 or more")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: {warmup_steps} received; give 0 to total_steps ({total_steps})")
    if not 0.0 <= decay_ratio <= 1.0:
        raise ValueError(f"decay_ratio: {decay_ratio} received; give the share of the rate to lose, 0 to 1")
    if decay_steps < 1:
        raise ValueError(f"decay_steps: {decay_steps} received; give the step of the half-way point, 1 or more")
