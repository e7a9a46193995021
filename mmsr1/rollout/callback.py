"""The rollout callback: feeds each training step with groups, pushes the weights back, validates, saves.

on_train_start:       a checkpoint's state, or the first validation
on_train_batch_start: prompts -> episodes -> rewards -> groups -> buffer      (training_step takes them)
                      with overlap also: the rollouts of the next step begin
on_train_batch_end:   weights -> engine; metrics, episodes, validation, checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsr1.models import checkpoint
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.ranks import Ranks
from mmsr1.rewards.advantage import Normalise, make_group
from mmsr1.rewards.price import PriceSpec, SearchPrice, charged
from mmsr1.rewards.reward import RewardSpec, score
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.record import RunRecord, ToolRows, refusal, tool_failure
from mmsr1.rollout.supply import GroupSupply, SupplySpec
from mmsr1.rollout.worker import RolloutWorker, first_rollouts
from mmsr1.run_directory import RunDirectory
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import INFRASTRUCTURE_STOPS, Episode, Example, Group

ensure_torchvision()

from lightning import Callback, LightningModule, Trainer  # noqa: E402  (torchmetrics imports torchvision)

PROBES, PROBE_TOKENS = 4, 32  # of each process at a step: enough to see that something is out of step


@dataclass(frozen=True)
class Schedule:
    """When things happen, in training steps; the last step always validates and saves."""

    steps: int
    val_every: int
    checkpoint_every: int
    keep_last: int


@dataclass(frozen=True)
class RolloutPlan:
    """How episodes are drawn and judged. `supply` None leaves only validation and sync (supervised training).

    With `overlap` the rollouts of a step begin before the one before it trains. With `sleep` the engine gives its
    memory to the trainer after the rollouts of a step. `price` is what calls cost in training beside the reward, none
    without; `efficiency` weighs the advantages of fewer calls (see `mmsr1.rewards.advantage.make_group`).
    """

    sampling: Sampling
    rewards: RewardSpec
    normalise: Normalise
    supply: SupplySpec | None
    overlap: bool = False
    sleep: bool = False
    price: PriceSpec | None = None
    efficiency: float = 0.0


class RolloutCallback(Callback):
    """Owns rollout worker and reward. `prompts` are the examples of a step (0-based), `buffer` takes its groups.

    `make_worker` starts engine and tools for a run folder and rank. `tool_rows` reads the tools' figures, `spent` says
    in one line why nothing is left to pay them with, if the run is to end then; what the budget refuses is then not
    trained on. `resume` is the checkpoint to go on from. `at_end` gives further figures of the last weights; all ranks
    call it, and the first keeps what it returns.
    """

    def __init__(
        self,
        make_worker: Callable[[Path, int], RolloutWorker],
        buffer: RolloutBuffer | None,
        prompts: Callable[[int], Sequence[Example]],
        validation: Sequence[Example],
        plan: RolloutPlan,
        schedule: Schedule,
        record: RunRecord,
        tool_rows: Callable[[Mapping[Any, Any]], ToolRows],
        spent: Callable[[Mapping[Any, Any]], str | None] = lambda tools: None,
        resume: Path | None = None,
        at_end: Callable[[RolloutWorker, Ranks], Mapping[str, Any]] | None = None,
    ) -> None:
        self.at_end = at_end
        self.make_worker, self.buffer = make_worker, buffer
        self.prompts, self.validation = prompts, validation
        self.plan, self.schedule = plan, schedule
        self.supply: GroupSupply | None = None
        self.price = None if plan.price is None else SearchPrice(plan.price)
        self.record, self.tool_rows, self.spent, self.resume = record, tool_rows, spent, resume
        self.weights: dict[str, Tensor] = {}
        self._seconds: dict[str, float] = {}
        self._step_start = self._train_start = 0.0
        self._groups: tuple[Group, ...] = ()
        self._price_paid: dict[str, float] = {}

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
            self.supply = self._make_supply(0, [])
            self._validate(0)
            self._mind_budget(trainer, 0)
            return
        state = module.restore(self.resume)
        if self.plan.price is not None:
            self.price = SearchPrice(self.plan.price, **state.get("price", {}))
        self.record.take_up(state["step"], state["record"])
        self._sync(module, version=state["step"])
        self.supply = self._make_supply(state["step"], checkpoint.read_streams(self.resume))

    def _make_supply(self, step: int, saved: Sequence[bytes]) -> GroupSupply | None:
        plan = self.plan
        if plan.supply is None:
            return None
        return GroupSupply(
            self.worker,
            self.prompts,
            self._priced_group,
            plan.sampling,
            plan.supply,
            self.ranks,
            lambda episode: self.record.progress.advance(),
            step,
            saved,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole weights for the export, on the first process only; gathering them takes all."""
        module: Any = pl_module
        self.weights = {name: tensor.cpu() for name, tensor in module.full_weights() if trainer.is_global_zero}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_start = time.perf_counter()
        if self.supply is not None and self.buffer is not None:
            self._groups = self._next_groups(self.supply, batch.step)
            self.buffer.put(batch.step, self._groups, self._probes(batch.step))
            more = batch.step + 1 < self.schedule.steps and self.spent(self.worker.tools) is None
            if self.plan.overlap and more:
                self.supply.begin(batch.step + 1, version=batch.step)
            elif self.plan.sleep:
                self.worker.sleep()
        self.record.progress.begin("update", 1)
        self._train_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, module = batch.step + 1, pl_module
        figures = {**self._seconds, "seconds_train": time.perf_counter() - self._train_start}
        validates = step % self.schedule.val_every == 0 or step == self.schedule.steps
        if self.supply is not None and self.worker.deterministic:  # a sync at some moment would be one at any
            self.supply.settle()
        if self.buffer is not None or validates:
            figures["seconds_sync"] = self._sync(module, step)
        figures["seconds_step"] = time.perf_counter() - self._step_start
        self._log_step(module, step, figures)
        stops = self._mind_budget(trainer, step)
        validates = validates and not stops  # what a policy does that may not search says nothing
        if validates:
            self._validate(step)
            if self.at_end is not None and step == self.schedule.steps:
                self.record.at_end(step, self.at_end(self.worker, self.ranks))
                self.record.count_calls(self.tool_rows(self.worker.tools))
            stops = self._mind_budget(trainer, step)
        self._checkpoint(module, step, validates, stops)

    def _mind_budget(self, trainer: Trainer, step: int) -> bool:
        """Whether the run ends here, because there is nothing left to pay searches with. A collective."""
        told = [line for line in self.ranks.gather(self.spent(self.worker.tools)) if line]
        if not told:
            return False
        self.record.stopped = told[0]
        trainer.should_stop = True
        return True

    def _log_step(self, module: Any, step: int, seconds: Mapping[str, float]) -> None:
        figures = {**module.figures, **seconds, **self._price_paid}
        if self.buffer is not None:  # calls and hits: what a second run over the same cache may change
            counted = self.record.count_calls(self.tool_rows(self.worker.tools))
            figures |= {f"cache_{name}": value for name, value in counted.items()}
        self.record.training(step, self._groups, figures)
        self._seconds = {}

    def _next_groups(self, supply: GroupSupply, step: int) -> tuple[Group, ...]:
        """The groups of a training step; all ranks get all of them."""
        start = time.perf_counter()
        self.record.progress.begin("train rollouts", supply.expected)
        groups, self._seconds["seconds_rollout"] = supply.finish(step, version=step)
        self._seconds["seconds_waited"] = time.perf_counter() - start
        if self.price is not None:  # before the next step's rollouts begin
            self._price_paid = {"search_price": self.price.value}
            self.price.heed(groups)
        return self._checked(groups, "train", step + 1)

    def _probes(self, step: int) -> tuple[Episode, ...]:
        """Short first turns about questions of this step, where its own episodes may all be stale: the engine has the
        trainer's weights now, and has encoded these pictures under earlier ones. They are compared, never trained on.
        """
        supply = self.plan.supply
        if supply is None or not supply.stream.max_staleness:
            return ()
        asked = self.ranks.mine([group.example for group in self._groups])[:PROBES]
        limits = replace(self.worker.limits, turns=1, turn_tokens=min(PROBE_TOKENS, self.worker.limits.turn_tokens))
        rolled = self.worker.rollout(asked, 1, self.plan.sampling, "probe", step + 1, limits=limits)
        return tuple(episode for (episode,) in rolled if episode.stop != "engine_failure" and episode.sampled_tokens)

    def _roll_out(self, examples: Sequence[Example], split: str, step: int) -> tuple[Group, ...]:
        """One episode of each example, judged: each rank its share, and all ranks get all groups."""
        mine = self.ranks.mine(examples)
        self.record.progress.begin(f"{split} rollouts", len(mine))
        rolled = self.worker.rollout(
            mine,
            1,
            self.plan.sampling,
            split,
            step,
            on_episode=lambda episode: self.record.progress.advance(),
            first=self.ranks.mine(first_rollouts(examples, 1)),
        )
        # By the full penalty, or the first and last figures could not be compared.
        full = self.plan.rewards.penalty_warmup_steps
        groups = [self._group(example, episodes, full) for example, episodes in zip(mine, rolled, strict=True)]
        return self._checked(self.ranks.interleave(groups), split, step)

    def _checked(self, groups: Sequence[Group], split: str, step: int) -> tuple[Group, ...]:
        stops = [episode.stop for group in groups for episode in group.episodes_G]
        if stops and all(stop == "engine_failure" for stop in stops):
            raise RuntimeError(f"the engine failed in each of {len(stops)} {split} episodes of step {step}")
        self.record.add_costs(groups)
        refused = [self._refusal(episode) for group in groups for episode in group.episodes_G]
        told = [line for line in refused if line is not None]
        ends = self.spent(self.worker.tools) is not None  # the run, and says why
        self.record.heed(split, step, groups, [] if ends else told)
        return tuple(groups)

    def _group(self, example: Example, episodes: Sequence[Episode], penalty_step: int, price: float = 0.0) -> Group:
        """Judge the rollouts of an example and set them against each other."""
        rewards = [score(example, episode, self.plan.rewards, penalty_step) for episode in episodes]
        if price:
            rewards = [charged(reward, one, price) for reward, one in zip(rewards, episodes, strict=True)]
        trained = [self._counts(episode) for episode in episodes]
        return make_group(example, episodes, rewards, trained, self.plan.normalise, self.plan.efficiency)

    def _priced_group(self, example: Example, episodes: Sequence[Episode], step: int) -> Group:
        """For training; validation charges nothing, so that its rewards can be compared."""
        return self._group(example, episodes, step, 0.0 if self.price is None else self.price.value)

    def _counts(self, episode: Episode) -> bool:
        """Whether the policy may learn from an episode: not where something failed it, or where the run ends for want
        of the money that its search would have cost."""
        if episode.stop in INFRASTRUCTURE_STOPS or tool_failure(episode) is not None:
            return False
        return self._refusal(episode) is None or self.spent(self.worker.tools) is None

    def _refusal(self, episode: Episode) -> str | None:
        limits, tools = self.worker.limits.searches, self.worker.tools
        return refusal(episode, {name: most for name, most in limits.items() if name in tools})

    def _validate(self, step: int) -> None:
        start = time.perf_counter()
        groups = self._roll_out(self.validation, "val", step)
        self.record.validation(step, groups, time.perf_counter() - start)
        self.record.count_calls(self.tool_rows(self.worker.tools))

    def _sync(self, module: Any, version: int) -> float:
        start = time.perf_counter()
        self.worker.load_weights(module.full_weights(), version)
        return time.perf_counter() - start

    def _checkpoint(self, module: Any, step: int, validated: bool, stops: bool = False) -> None:
        """After the sync, so that a resumed run starts from weights that the engine has had."""
        reward = self.record.final["reward"] if validated and self.record.reliable else None
        improved = reward is not None and (self.record.best is None or reward > self.record.best)
        if improved:
            self.record.best = reward
        if improved or stops or step % self.schedule.checkpoint_every == 0 or step == self.schedule.steps:
            folder = self.record.run.path / "checkpoints"
            under_way = self.supply.state() if self.supply is not None else b""
            state = {"reward": reward, "record": self.record.state()}
            if self.price is not None:
                state["price"] = self.price.state()
            module.write_checkpoint(folder, step, state, under_way)
            if self.ranks.rank == 0:
                checkpoint.prune(folder, self.schedule.keep_last)
