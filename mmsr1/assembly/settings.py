"""The configuration that a folder of results belongs to: a command that goes on there must not decide otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmsr1.config import check
from mmsr1.files import write_whole

# How a service is reached and paid: of every part of a configuration that asks one.
_TOOLS = ("tools.image_search", "tools.text_search", "tools.reader", "tools.summarizer")
SERVICES = ("llm", "pictures", "rollout.api", "judge.api", *_TOOLS)
REACHED_BY = ("url", "key_env", "price_usd", "rate_per_s", "concurrent", "attempts", "timeout_s", "deadline_s")
# What may differ when a command goes on: it decides how fast answers come, and what they may cost, not which.
_FREE = ("tools.budget", "tools.cache_dir", "data.cache_dir", "logger", "rollout.vllm", "rollout.server")
FREE = (*_FREE, "trainer")
# Where the policy learns, most of the trainer's keys decide what it becomes.
_PACE = ("threads", "data_workers", "checkpoint_every", "episodes_every", "keep_last", "gpu_memory_gib")
FREE_IN_TRAINING = (*_FREE, *(f"trainer.{name}" for name in _PACE))


def decides_nothing(key: str, others: tuple[str, ...]) -> bool:
    """Whether another value changes speed or price alone: keys below `others`, and how services are reached."""
    part, _, name = key.rpartition(".")
    prices = key.endswith(".options.usd_per_million")
    return key.startswith(others) or prices or (part in SERVICES and name in REACHED_BY)


def settle(file: Path, settings: Any, is_free: Callable[[str], bool]) -> None:
    """Write `settings` (a configuration, or a mapping) into `file`, or compare them with those that are there.

    `is_free` says which keys may differ: those that decide how fast results come, and at what price, not which. Raises
    ConfigError that names another one that differs.
    """
    now = OmegaConf.to_yaml(OmegaConf.create(settings))
    if not file.is_file():
        write_whole(file, now.encode())
        return
    was, is_now = (flat(OmegaConf.create(text)) for text in (file.read_text(), now))
    compare(was, is_now, is_free, file.parent)


def compare(
    was: Mapping[str, Any], now: Mapping[str, Any], is_free: Callable[[str], bool], folder: Path, how: str = ""
) -> None:
    """Raises ConfigError that names the first key in which `now` differs from what `folder` was begun with. `how` says
    which key names the folder, where that is not plain."""
    for key in sorted(key for key in was.keys() | now.keys() if not is_free(key)):
        remedy = f"{folder} was begun with {was.get(key)}; give that, or another folder{f' ({how})' if how else ''}"
        check(was.get(key) == now.get(key), key, now.get(key), remedy)


def flat(settings: Any) -> dict[str, Any]:
    """The values of an OmegaConf configuration by their full keys."""
    found: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        else:
            found[key] = node

    walk(OmegaConf.to_container(settings), "")
    return found
