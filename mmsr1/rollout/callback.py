"""The rollout callback: feeds each training step with groups, pushes the weights back, validates, saves.

on_train_start:       a checkpoint's state, or the first validation
on_train_batch_start: prompts -> episodes -> rewards -> groups -> buffer      (training_step takes them)
on_train_batch_end:   weights -> engine; metrics, episodes, validation, checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsr1.models import checkpoint
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.ranks import Ranks
from mmsr1.rewards.advantage import Normalise, make_group
from mmsr1.rewards.reward import RewardSpec, score
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.record import RunRecord
from mmsr1.rollout.worker import RolloutWorker, first_rollouts
from mmsr1.run_directory import RunDirectory
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import INFRASTRUCTURE_STOPS, Episode, Example, Group

ensure_torchvision()

from lightning import Callback, LightningModule, Trainer  # noqa: E402  (torchmetrics imports torchvision)


@dataclass(frozen=True)
class Schedule:
    """When things happen, in training steps; the last step always validates and saves."""

    steps: int
    val_every: int
    checkpoint_every: int
    keep_last: int


class RolloutCallback(Callback):
    """Owns rollout worker and reward. `buffer` None (supervised training) leaves only validation and sync.

    `make_worker` starts engine and tools for a run folder and rank, `tool_counts` reads their counters. `resume` is the
    checkpoint to go on from.
    """

    def __init__(
        self,
        make_worker: Callable[[Path, int], RolloutWorker],
        buffer: RolloutBuffer | None,
        validation: Sequence[Example],
        sampling: Sampling,
        rewards: RewardSpec,
        group_size: int,
        normalise: Normalise,
        schedule: Schedule,
        record: RunRecord,
        tool_counts: Callable[[Mapping[Any, Any]], Mapping[str, int]],
        resume: Path | None = None,
    ) -> None:
        self.make_worker, self.buffer, self.validation = make_worker, buffer, validation
        self.sampling, self.rewards = sampling, rewards
        self.group_size, self.schedule = group_size, schedule
        self.normalise: Normalise = normalise
        self.record, self.tool_counts, self.resume = record, tool_counts, resume
        self.weights: dict[str, Tensor] = {}
        self._pending: dict[str, float] = {}
        self._groups: tuple[Group, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not earlier: an engine inside this process joins the process group, which Lightning has to make.
        self.record.progress.begin("starting the engine", 1)
        self.ranks = Ranks.current()
        run = RunDirectory(Path(self.ranks.gather(str(self.record.run.path))[0]))  # rank 0 alone names it
        self.record.open(run, self.ranks, trainer.loggers)
        self.worker = self.make_worker(run.path, self.ranks.rank)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.worker.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "worker"):  # after an error or Ctrl-C Lightning calls no teardown
            self.worker.close()

    # `module` below is a PolicyModule, but Lightning's hooks promise only a LightningModule.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if self.resume is None:
            self.record.begin()
            self._sync(module, version=0)
            self._validate(0)
            return
        state = module.restore(self.resume)
        self.record.take_up(state["step"], state["record"])
        self._sync(module, version=state["step"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole weights for the export, on the first process only; gathering them takes all."""
        module: Any = pl_module
        self.weights = {name: tensor.cpu() for name, tensor in module.full_weights() if trainer.is_global_zero}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.buffer is not None:
            start = time.perf_counter()
            self._groups = self._collect(batch.examples, self.group_size, "train", batch.step + 1)
            self._pending["seconds_rollout"] = time.perf_counter() - start
            self.buffer.put(batch.step, self._groups)
        self.record.progress.begin("update", 1)
        self._pending["started"] = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, module = batch.step + 1, pl_module
        figures = {"seconds_train": time.perf_counter() - self._pending.pop("started"), **self._pending}
        validates = step % self.schedule.val_every == 0 or step == self.schedule.steps
        if self.buffer is not None or validates:
            figures["seconds_sync"] = self._sync(module, step)
        self._log_step(module, step, figures)
        if validates:
            self._validate(step)
        self._checkpoint(module, step, validates)

    def _log_step(self, module: Any, step: int, seconds: Mapping[str, float]) -> None:
        figures = {**module.figures, **seconds}
        if self.buffer is not None:  # calls and hits: what a second run over the same cache may change
            counted = self.record.count_calls(self.tool_counts(self.worker.tools))
            figures |= {f"cache_{name}": value for name, value in counted.items()}
        self.record.training(step, self._groups, figures)
        self._pending = {}

    def _collect(self, examples: Sequence[Example], size: int, split: str, step: int) -> tuple[Group, ...]:
        """Roll out, judge, and set against each other: each rank its share, and all ranks get all groups."""
        mine = self.ranks.mine(examples)
        self.record.progress.begin(f"{split} rollouts", len(mine) * size)
        rolled = self.worker.rollout(
            mine,
            size,
            self.sampling,
            split,
            step,
            on_episode=lambda episode: self.record.progress.advance(),
            first=self.ranks.mine(first_rollouts(examples, size)),
        )
        # Validation is judged by the full penalty, or its first and last figures could not be compared.
        penalty_step = step if split == "train" else self.rewards.penalty_warmup_steps
        groups = self.ranks.interleave(
            [self._group(e, episodes, penalty_step) for e, episodes in zip(mine, rolled, strict=True)]
        )
        if groups and all(episode.stop == "engine_failure" for group in groups for episode in group.episodes_G):
            raise RuntimeError(f"the engine failed in each of {len(examples) * size} {split} episodes of step {step}")
        self.record.add_costs(groups)
        return tuple(groups)

    def _group(self, example: Example, episodes: Sequence[Episode], penalty_step: int) -> Group:
        rewards = [score(example, episode, self.rewards, penalty_step) for episode in episodes]
        trained = [episode.stop not in INFRASTRUCTURE_STOPS and not _tool_failed(episode) for episode in episodes]
        return make_group(example, episodes, rewards, trained, self.normalise)

    def _validate(self, step: int) -> None:
        start = time.perf_counter()
        groups = self._collect(self.validation, 1, "val", step)
        self.record.validation(step, groups, time.perf_counter() - start)
        self.record.count_calls(self.tool_counts(self.worker.tools))

    def _sync(self, module: Any, version: int) -> float:
        start = time.perf_counter()
        self.worker.load_weights(module.full_weights(), version)
        return time.perf_counter() - start

    def _checkpoint(self, module: Any, step: int, validated: bool) -> None:
        """After the sync, so that a resumed run starts from weights that the engine has had."""
        reward = self.record.final["reward"] if validated else None
        improved = reward is not None and (self.record.best is None or reward > self.record.best)
        if improved:
            self.record.best = reward
        if improved or step % self.schedule.checkpoint_every == 0 or step == self.schedule.steps:
            folder = self.record.run.path / "checkpoints"
            module.write_checkpoint(folder, step, {"reward": reward, "record": self.record.state()})
            if self.ranks.rank == 0:
                checkpoint.prune(folder, self.schedule.keep_last)


def _tool_failed(episode: Episode) -> bool:
    return any(exchange.result.status == "infrastructure_error" for exchange in episode.calls)
