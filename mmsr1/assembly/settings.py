"""The configuration that a folder of results belongs to: a command that goes on there must not decide otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmsr1.config import check
from mmsr1.run_directory import write_whole


def settle(file: Path, settings: Any, is_free: Callable[[str], bool]) -> None:
    """Write `settings` (a configuration, or a mapping) into `file`, or compare them with those that are there.

    `is_free` says which keys may differ: those that decide how fast results come, and at what price, not which. Raises
    ConfigError that names another one that differs.
    """
    now = OmegaConf.to_yaml(OmegaConf.create(settings))
    if not file.is_file():
        write_whole(file, now.encode())
        return
    was, is_now = (_flat(OmegaConf.create(text)) for text in (file.read_text(), now))
    for key in sorted(key for key in was.keys() | is_now.keys() if not is_free(key)):
        remedy = f"{file.parent} was begun with {was.get(key)}; give that, or another folder"
        check(was.get(key) == is_now.get(key), key, is_now.get(key), remedy)


def _flat(settings: Any) -> dict[str, Any]:
    """Values by their full keys."""
    found: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        else:
            found[key] = node

    walk(OmegaConf.to_container(settings), "")
    return found
