"""What the rollouts of a step cost it: with overlap they run while the step before trains, and a step waits for the
rest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_waiting(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of a step with `seconds_waited`; rows that lack it come from runs that waited for all rollouts."""
    if "seconds_waited" in figures or "seconds_rollout" not in figures:
        return figures
    return {**figures, "seconds_waited": figures["seconds_rollout"]}
