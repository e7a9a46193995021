"""A policy that only answers: what balancing and traces have in common.

Many questions go through the episode loop that training uses, in portions; what became of each is one line of a file,
so that a command that was killed goes on with the questions that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmsr1.assembly.policy import base_policy, starting_weights
from mmsr1.assembly.rollout import reward_spec, rollout_worker, sampling
from mmsr1.assembly.settings import settle
from mmsr1.assembly.tools import check_tools
from mmsr1.config import Config, ConfigError
from mmsr1.evaluation.scorecard import Scored
from mmsr1.models.loading import PolicyFiles
from mmsr1.rewards.reward import score
from mmsr1.rollout.protocol import ActionName
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.run_directory import append_line, json_line, read_lines
from mmsr1.types import Example

IN_FLIGHT = 512  # episodes of a portion
SETTINGS = "config.yaml"
# What may differ when a command goes on: it decides how fast answers come, and what they may cost, not which.
_FREE = ("tools.budget", "tools.cache_dir", "data.cache_dir", "trainer", "logger", "rollout.vllm", "rollout.server")


class Answering:
    """A worker, and how its episodes are drawn and scored."""

    def __init__(self, config: Config, files: PolicyFiles, worker: RolloutWorker) -> None:
        self.config, self.files, self.worker = config, files, worker
        self._sampling, self._reward = sampling(config), reward_spec(config)

    def episodes(
        self,
        examples: Sequence[Example],
        each: int,
        split: str,
        actions: tuple[ActionName, ...] = (),
        on_episode: Callable[[], None] = lambda: None,
    ) -> list[list[Scored]]:
        """`each` scored episodes of every example, in order; `split` and the seed decide every draw."""
        limits = replace(self.worker.limits, actions=actions)
        found = self.worker.rollout(
            examples, each, self._sampling, split, 0, lambda episode: on_episode(), limits=limits
        )
        return [
            [Scored(example, episode, score(example, episode, self._reward)) for episode in episodes]
            for example, episodes in zip(examples, found, strict=True)
        ]

    def spent(self) -> str | None:
        """Why it is of no use to ask on: a budget or an account is spent."""
        return self.worker.tools.spent()  # type: ignore[attr-defined]  (the tools of a configuration)

    def rows(self) -> Any:
        """Figures of the search tools, and of the model if it is a service."""
        return self.worker.tools.rows()  # type: ignore[attr-defined]


@contextmanager
def answering(config: Config, run: Path) -> Iterator[Answering]:
    """Engine and tools of the configuration, closed in the end. Raises ConfigError."""
    check_tools(config, run)
    files = base_policy(config, weights=False)
    with TemporaryDirectory() as scratch:
        worker = rollout_worker(config, files, starting_weights(config, files, Path(scratch)), run, 0)
        try:
            yield Answering(config, files, worker)
        finally:
            worker.close()


class Answered:
    """One line for each finished question, in `<folder>/<name>.jsonl`, made under one configuration.

    `options` are those of the command that decide what a line holds.

    Raises ConfigError if the folder holds those of another, or another process is at work there.
    """

    def __init__(self, folder: Path, name: str, config: Config, options: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"--out={folder}: another process is at work there") from error
        try:
            asked: Any = OmegaConf.to_container(OmegaConf.structured(config))
            asked["command"] = {"name": name, **options}
            settle(folder / SETTINGS, asked, lambda key: key.startswith(_FREE))
        except BaseException:
            self._lock.release()
            raise
        self.done = {row["id"] for row in read_lines(self.path)}

    def append(self, row: dict[str, Any]) -> None:
        append_line(self.path, json_line(row))
        self.done.add(row["id"])

    def rows(self) -> list[dict[str, Any]]:
        return read_lines(self.path)

    def close(self) -> None:
        self._lock.release()


def drawn(total: int, limit: int, seed: int) -> list[int]:
    """The places of `limit` questions of all, ascending (0: all): files are often sorted, so they are drawn."""
    if not 0 < limit < total:
        return list(range(total))
    return sorted(np.random.default_rng([seed, 23]).permutation(total)[:limit].tolist())


def portions(
    left: Sequence[int], examples: Sequence[Example], size: int, what: str, episodes: int
) -> Iterator[tuple[list[Example], Callable[[], None]]]:
    """The examples at the places `left`, `size` at a time, with what to call for each of their `episodes`; a bar shows
    how far it is."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=len(left) * episodes)
        for start in range(0, len(left), size):
            yield [examples[i] for i in left[start : start + size]], lambda: bar.advance(task)
            if not console.is_terminal:
                console.print(f"{what}: {min(start + size, len(left))} of {len(left)} questions", highlight=False)
