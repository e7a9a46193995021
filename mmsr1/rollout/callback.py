"""The rollout callback: feeds each training step with groups, pushes the weights back, validates, keeps the record.

on_train_batch_start: prompts -> episodes -> rewards -> groups -> buffer      (training_step takes them)
on_train_batch_end:   weights -> engine; metrics, episodes, validation, checkpoints
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmsr1.models.buffer import RolloutBuffer
from mmsr1.rewards.advantage import Normalise, make_group
from mmsr1.rewards.reward import RewardSpec, score
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.run_directory import RunDirectory
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import INFRASTRUCTURE_STOPS, Episode, Example, Group

ensure_torchvision()

from lightning import Callback, LightningModule, Trainer  # noqa: E402  (torchmetrics imports torchvision)

Figures = Callable[[Sequence[Group]], dict[str, Any]]


@runtime_checkable
class Progress(Protocol):
    """Where the run is, for people (see `report.progress`)."""

    def begin(self, phase: str, total: int) -> None: ...
    def advance(self) -> None: ...
    def show(self, split: str, step: int, figures: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """When things happen, in training steps."""

    val_every: int
    checkpoint_every: int
    episodes_every: int


class RolloutCallback(Callback):
    """Owns rollout worker and reward. `buffer` None (supervised training) leaves only validation and sync.

    `make_worker` starts the engine. `figures` summarises groups for the metrics, `scorecard` does it with intervals
    for the summary.
    """

    def __init__(
        self,
        make_worker: Callable[[], RolloutWorker],
        buffer: RolloutBuffer | None,
        validation: Sequence[Example],
        sampling: Sampling,
        rewards: RewardSpec,
        group_size: int,
        normalise: Normalise,
        schedule: Schedule,
        run: RunDirectory,
        figures: Figures,
        scorecard: Figures,
        progress: Progress,
        tool_counts: Callable[[], Mapping[str, int]],
    ) -> None:
        self.make_worker, self.buffer, self.validation = make_worker, buffer, validation
        self.sampling, self.rewards = sampling, rewards
        self.group_size, self.schedule = group_size, schedule
        self.normalise: Normalise = normalise
        self.run, self.figures, self.scorecard, self.progress = run, figures, scorecard, progress
        self.tool_counts = tool_counts
        self.initial: dict[str, Any] = {}
        self.final: dict[str, Any] = {}
        self.steps_done = 0
        self._best = float("-inf")
        self._pending: dict[str, float] = {}
        self._groups: tuple[Group, ...] = ()
        self._counted: Mapping[str, int] = {}
        self.cost_usd = self.cost_usd_uncached = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not earlier: an engine inside this process joins the process group, which Lightning has to make.
        self.progress.begin("starting the engine", 1)
        self.worker = self.make_worker()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.worker.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "worker"):  # after an error or Ctrl-C Lightning calls no teardown
            self.worker.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sync(pl_module, version=0)
        self.initial = self.final = self._validate(trainer, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.buffer is not None:
            start = time.perf_counter()
            self._groups = self._collect(batch.examples, self.group_size, "train", batch.step + 1)
            self._pending["seconds_rollout"] = time.perf_counter() - start
            self.buffer.put(batch.step, self._groups)
        self.progress.begin("update", 1)
        self._pending["started"] = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.steps_done = batch.step + 1
        seconds = {"seconds_train": time.perf_counter() - self._pending.pop("started")}
        validates = step % self.schedule.val_every == 0 or step == trainer.num_training_batches
        if self.buffer is not None or validates:
            seconds["seconds_sync"] = self._sync(pl_module, step)
        self._log_train(trainer, pl_module, step, {**self._pending, **seconds})
        self._pending = {}
        if validates:
            self.final = self._validate(trainer, step)
        self._checkpoint(trainer, step, validates)

    def _collect(self, examples: Sequence[Example], size: int, split: str, step: int) -> tuple[Group, ...]:
        """Roll out, judge, and set against each other."""
        self.progress.begin(f"{split} rollouts", len(examples) * size)
        rolled = self.worker.rollout(
            examples, size, self.sampling, split, step, on_episode=lambda episode: self.progress.advance()
        )
        if rolled and all(episode.stop == "engine_failure" for episodes in rolled for episode in episodes):
            raise RuntimeError(f"the engine failed in each of {len(rolled) * size} {split} episodes of step {step}")
        for exchange in (call for episodes in rolled for episode in episodes for call in episode.calls):
            self.cost_usd_uncached += exchange.result.cost_usd
            self.cost_usd += 0.0 if exchange.result.cached else exchange.result.cost_usd
        # Validation is judged by the full penalty, or its first and last figures could not be compared.
        penalty_step = step if split == "train" else self.rewards.penalty_warmup_steps
        return tuple(self._group(e, episodes, penalty_step) for e, episodes in zip(examples, rolled, strict=True))

    def _group(self, example: Example, episodes: Sequence[Episode], penalty_step: int) -> Group:
        rewards = [score(example, episode, self.rewards, penalty_step) for episode in episodes]
        trained = [episode.stop not in INFRASTRUCTURE_STOPS and not _tool_failed(episode) for episode in episodes]
        return make_group(example, episodes, rewards, trained, self.normalise)

    def _validate(self, trainer: Trainer, step: int) -> dict[str, Any]:
        start = time.perf_counter()
        groups = self._collect(self.validation, 1, "val", step)
        card = self.scorecard(groups)
        figures = {name: value for name, value in card.items() if not name.endswith("_ci95")}
        figures["seconds_validation"] = time.perf_counter() - start
        self.run.log_metrics(step, "val", figures)
        self.run.write_groups("val", step, groups)
        self.progress.show("val", step, figures)
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"val/{name}": value for name, value in figures.items()}, step)
        return card

    # `module` below is a PolicyModule, but Lightning's hooks promise only a LightningModule.
    def _sync(self, module: Any, version: int) -> float:
        start = time.perf_counter()
        self.worker.load_weights(module.full_weights(), version)
        return time.perf_counter() - start

    def _log_train(self, trainer: Trainer, module: Any, step: int, seconds: Mapping[str, float]) -> None:
        figures: dict[str, Any] = {**module.figures, **seconds}
        if self.buffer is not None:
            figures = {
                **self.figures(self._groups),
                **_rollout_figures(self._groups),
                **figures,
                **self._cache_figures(),
            }
            if step % self.schedule.episodes_every == 0 or step == 1:
                self.run.write_groups("train", step, self._groups)
        self.run.log_metrics(step, "train", figures)
        self.progress.show("train", step, figures)
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"train/{name}": value for name, value in figures.items()}, step)

    def _cache_figures(self) -> dict[str, int]:
        """Calls and hits of this step: what a second run over the same cache may change, so named cache_*."""
        counted = self.tool_counts()
        before, self._counted = self._counted, counted
        return {f"cache_{name}": value - before.get(name, 0) for name, value in counted.items()}

    def _checkpoint(self, trainer: Trainer, step: int, validated: bool) -> None:
        """After the sync, so that a resumed run starts from weights that the engine has had."""
        folder = self.run.path / "checkpoints"
        if step % self.schedule.checkpoint_every == 0 or step == trainer.num_training_batches:
            _save(trainer, folder, "last")
        if validated and self.final["reward"] > self._best:
            self._best = self.final["reward"]
            _save(trainer, folder, "best")


def _save(trainer: Trainer, folder: Path, name: str) -> None:
    """Write beside the old checkpoint, then swap: a kill leaves the old one, the new one, or `.name.old`."""
    fresh, old = folder / f".{name}.new", folder / f".{name}.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    trainer.save_checkpoint(fresh, weights_only=False)
    if (folder / name).exists():
        (folder / name).rename(old)
    fresh.rename(folder / name)
    shutil.rmtree(old, ignore_errors=True)


def _tool_failed(episode: Episode) -> bool:
    return any(exchange.result.status == "infrastructure_error" for exchange in episode.calls)


def _rollout_figures(groups: Sequence[Group]) -> dict[str, int | float]:
    episodes = [episode for group in groups for episode in group.episodes_G]
    kept = [trained for group in groups for trained in group.trained_G]
    return {
        "tokens_sampled": sum(episode.sampled_tokens for episode in episodes),
        "seconds_tools_critical": max((episode.timings.tools_s for episode in episodes), default=0.0),
        "masked_episodes": len(kept) - sum(kept),
        **{
            f"stop_{stop}": sum(episode.stop == stop for episode in episodes) / len(episodes)
            for stop in sorted({episode.stop for episode in episodes})
        },
    }
