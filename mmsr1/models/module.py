"""What the training modules share: the sharded policy, its optimisers and schedule, one packed optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mmsr1.models import checkpoint
from mmsr1.models.adamw import LowMemoryAdamW
from mmsr1.models.lora import whole_weights
from mmsr1.models.policy import Policy
from mmsr1.models.ranks import Ranks
from mmsr1.models.schedule import Schedule, learning_rate
from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from lightning import LightningModule  # noqa: E402  (torchmetrics imports torchvision)

Moments = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class OptimSpec:
    """Learning rates and schedule. With `muon_lr` the weight matrices are trained by Muon, the rest by AdamW, whose
    moments are kept in `moments`."""

    lr: float
    schedule: Schedule
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    muon_lr: float | None = None
    moments: Moments = "float32"


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 holds the policy: what it computes in, and whether parameters, gradients and moments stay in CPU
    memory (a layer at a time is then copied to the GPU)."""

    compute_dtype: torch.dtype = torch.float32
    offload: bool = False


FLOAT32 = Sharding()


class PolicyModule(LightningModule):
    """Owns the policy and its optimisers; subclasses add the loss. Manual optimisation: one training step may hold
    several optimiser steps, and the learning rate follows training steps."""

    def __init__(self, policy: Policy, optim: OptimSpec, freeze_vision: bool, sharding: Sharding = FLOAT32) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.train()
        self.optim, self.sharding = optim, sharding
        if freeze_vision:
            policy.freeze_vision()
        self.figures: Mapping[str, float] = {}
        self.ranks = Ranks()

    def setup(self, stage: str) -> None:
        self.ranks = Ranks.current()  # the process group exists by now

    def configure_model(self) -> None:
        """Shard the policy over the ranks (Lightning calls this once the processes have met)."""
        self.shard(self.policy)

    def shard(self, policy: Policy) -> None:
        """FSDP2: vision blocks and decoder layers each, the wrapper last (its forward holds the log-prob head).

        A single process that computes in the precision it holds has nothing to shard, and pays for nothing: every
        collective would wake another thread, which on a busy CPU costs ten times the arithmetic of a small model.
        """
        if self.device_mesh is None:
            raise RuntimeError("no device mesh: give the Trainer a ModelParallelStrategy")
        ranks, compute = self.device_mesh["data_parallel"], self.sharding.compute_dtype
        mixed = any(parameter.dtype != compute for parameter in policy.parameters())
        alone = ranks.size() == 1 and not mixed and not self.sharding.offload
        if alone or any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
            return
        settings: dict[str, Any] = {"mesh": ranks}
        if mixed:  # gradients are summed over ranks, and kept, in float32
            settings["mp_policy"] = MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
        if self.sharding.offload:
            settings["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        backbone = policy.model.model
        for block in (*backbone.visual.blocks, backbone.visual, *backbone.language_model.layers):
            fully_shard(block, **settings)
        fully_shard(policy, **settings)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        by_muon = [
            p for name, p in trained.items() if self.optim.muon_lr and p.ndim == 2 and "embed_tokens" not in name
        ]
        chosen = {id(p) for p in by_muon}
        rest = [p for p in trained.values() if id(p) not in chosen]
        adamw = {"float32": torch.optim.AdamW, "bfloat16": LowMemoryAdamW}[self.optim.moments]
        optimizers: list[torch.optim.Optimizer] = [adamw(rest, lr=self.optim.lr, weight_decay=self.optim.weight_decay)]
        if by_muon:
            optimizers.append(torch.optim.Muon(by_muon, lr=self.optim.muon_lr or 0.0, weight_decay=0.0))

        def rate(step: int) -> float:  # no method: torch would put a method's attributes into a schedule's state
            total = self.optim.total_steps
            return learning_rate(min(step, total), total, self.optim.schedule, self.optim.warmup_steps)

        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
        return optimizers, schedules

    def apply_gradients(self) -> float:
        """Clip, step every optimiser, clear; returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optim.max_grad_norm)
        for optimizer in self._all(self.optimizers()):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def advance_schedule(self) -> None:
        for schedule in self._all(self.lr_schedulers()):
            schedule.step()

    def write_checkpoint(self, folder: Path, step: int, state: Mapping[str, Any], stream: bytes = b"") -> Path:
        """`state` (JSON values) and `stream` (rollouts in flight) with all that training needs to go on after `step`;
        a collective."""
        schedules = [schedule.state_dict() for schedule in self._all(self.lr_schedulers())]
        optimizers = [one.optimizer for one in self._all(self.optimizers())]
        whole = {**state, "schedules": schedules}
        return checkpoint.write(folder, step, self.policy, optimizers, whole, self.ranks, stream)

    def restore(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint back; returns its state. Raises CheckpointError. A collective.

        Learning rates, schedule and weight decay are those of this run, at the step of the checkpoint.
        """
        optimizers = [one.optimizer for one in self._all(self.optimizers())]
        configured = [[_settings(group) for group in one.param_groups] for one in optimizers]
        state = checkpoint.restore(path, self.policy, optimizers, self.ranks)
        for schedule, settings, saved in zip(
            self._all(self.lr_schedulers()), configured, state["schedules"], strict=True
        ):
            schedule.load_state_dict({**saved, "base_lrs": schedule.base_lrs})
            bases = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            schedule._last_lr = [base * factor(schedule.last_epoch) for base, factor in bases]
            for group, own, rate in zip(schedule.optimizer.param_groups, settings, schedule._last_lr, strict=True):
                group.update({**own, "lr": rate})
        return state

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor), one at a time. A collective: every rank must iterate it to the end."""
        yield from whole_weights(self.policy.model)

    @staticmethod
    def _all(found: Any) -> list[Any]:
        return found if isinstance(found, list) else [found]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
