"""What the training modules share: the sharded policy, its optimisers and schedule, one packed optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmsr1.models.policy import Policy
from mmsr1.models.schedule import Schedule, learning_rate
from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from lightning import LightningModule  # noqa: E402  (torchmetrics imports torchvision)


@dataclass(frozen=True)
class OptimSpec:
    """Learning rates and schedule. With `muon_lr` the weight matrices are trained by Muon, the rest by AdamW."""

    lr: float
    schedule: Schedule
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    muon_lr: float | None = None


class PolicyModule(LightningModule):
    """Owns the policy and its optimisers; subclasses add the loss. Manual optimisation: one training step may hold
    several optimiser steps, and the learning rate follows training steps."""

    def __init__(self, policy: Policy, optim: OptimSpec, freeze_vision: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy.train()
        self.optim = optim
        if freeze_vision:
            for parameter in policy.parameters_by_part()[0]:
                parameter.requires_grad_(False)
        self.figures: Mapping[str, float] = {}

    def configure_model(self) -> None:
        """FSDP2: vision blocks and decoder layers each, the wrapper last (its forward holds the log-prob head).

        A single process has nothing to shard, and pays for nothing: every collective would wake another thread, which
        on a busy CPU costs ten times the arithmetic of a small model.
        """
        if self.device_mesh is None:
            raise RuntimeError("no device mesh: give the Trainer a ModelParallelStrategy")
        ranks = self.device_mesh["data_parallel"]
        if ranks.size() == 1 or any(isinstance(parameter, DTensor) for parameter in self.policy.parameters()):
            return
        backbone = self.policy.model.model
        for block in (*backbone.visual.blocks, backbone.visual, *backbone.language_model.layers):
            fully_shard(block, mesh=ranks)
        fully_shard(self.policy, mesh=ranks)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        by_muon = [
            p for name, p in trained.items() if self.optim.muon_lr and p.ndim == 2 and "embed_tokens" not in name
        ]
        chosen = {id(p) for p in by_muon}
        rest = [p for p in trained.values() if id(p) not in chosen]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        ]
        if by_muon:
            optimizers.append(torch.optim.Muon(by_muon, lr=self.optim.muon_lr or 0.0, weight_decay=0.0))
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate) for optimizer in optimizers]
        return optimizers, schedules

    def _rate(self, step: int) -> float:
        return learning_rate(
            min(step, self.optim.total_steps), self.optim.total_steps, self.optim.schedule, self.optim.warmup_steps
        )

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

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor), one at a time. A collective: every rank must iterate it to the end."""
        for name, parameter in self.policy.model.named_parameters():
            data = parameter.detach()
            yield name, data.full_tensor() if isinstance(data, DTensor) else data

    @staticmethod
    def _all(found: Any) -> list[Any]:
        return found if isinstance(found, list) else [found]
