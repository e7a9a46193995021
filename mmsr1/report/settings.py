"""What the report knows of a run's config.yaml, read as text: only entry points see the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class Settings:
    """config.yaml of a run in whatever state it is; what is missing or damaged is None."""

    def __init__(self, text: str) -> None:
        try:
            self._tree: Any = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: something in it looks like a date and is none
            self._tree = None

    def get(self, key: str) -> Any:
        """The value at a dotted key."""
        return self._walk(key)[1]

    def number(self, key: str) -> float | None:
        value = self.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def settled(self) -> dict[str, str]:
        """What the run made of keys that were left null, as `mmsr1.assembly` does (`correction_spec`,
        `max_staleness`); nothing of a run that drew no rollouts to train on."""
        if self.get("algorithm.kind") != "grpo":
            return {}
        overlap, oversample = self.number("rollout.overlap") or 0, (self.number("rollout.oversample") or 0) > 0
        stale = overlap > 0 or oversample or self.get("rollout.keep_running") is True
        made = {
            "algorithm.correction": "token" if stale else "off",
            "rollout.max_staleness": f"{overlap + oversample:.0f}",
        }
        return {key: value for key, value in made.items() if self._walk(key) == (True, None)}

    def _walk(self, key: str) -> tuple[bool, Any]:
        """Whether the dotted key is there, and its value."""
        at = self._tree
        for name in key.split("."):
            if not isinstance(at, Mapping) or name not in at:
                return False, None
            at = at[name]
        return True, at
