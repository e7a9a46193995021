"""GRPO as a LightningModule: groups from the buffer become packed micro-batches, old log-probs, losses, updates."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.contract import GapMeter, check_sequence
from mmsr1.models.grpo import LossSpec, MiniBatchSize, policy_loss, size_of
from mmsr1.models.module import OptimSpec, PolicyModule
from mmsr1.models.packing import FlatSequence, PatchSource, by_token_budget, flatten, pack
from mmsr1.models.policy import Policy
from mmsr1.types import Batch, Group, StepPrompts


@dataclass(frozen=True)
class Encoding:
    """What packing must know of the model: patches of a picture, the image token, the control tokens."""

    patches: PatchSource
    image_token: int
    merge: int
    control_ids: Collection[int]


@dataclass(frozen=True)
class Scored:
    """A trained episode laid out for packing."""

    flat: FlatSequence
    advantage: float


class GRPOModule(PolicyModule):
    """Owns policy and loss, nothing else; `training_step` takes the groups of its step from the buffer.

    One step holds `mini_batches` optimiser steps over the groups that carry a gradient, in their order.
    """

    def __init__(
        self,
        policy: Policy,
        buffer: RolloutBuffer,
        encoding: Encoding,
        loss: LossSpec,
        optim: OptimSpec,
        mini_batches: int,
        token_budget: int,
        gap_limit: float | None,
        freeze_vision: bool,
    ) -> None:
        super().__init__(policy, optim, freeze_vision)
        self.buffer, self.encoding, self.loss = buffer, encoding, loss
        self.mini_batches, self.token_budget, self.gap_limit = mini_batches, token_budget, gap_limit
        # The reference stands outside the module tree: it is never trained, sharded or saved.
        self._reference = [copy.deepcopy(policy).requires_grad_(False)] if loss.kl_weight > 0 else []

    def on_fit_start(self) -> None:
        for reference in self._reference:
            reference.to(self.device)

    def training_step(self, prompts: StepPrompts, index: int) -> None:
        groups = self.buffer.take(prompts.step)
        gap = GapMeter()
        minis = [[self._with_old(batch, gap) for batch in mini] for mini in self._mini_batches(groups)]
        gap.check(self.gap_limit)
        sums: dict[str, float] = {}
        norms = []
        for mini in minis:
            size = sum((size_of(b.loss_mask_T, b.sequence_ids_T) for b in mini), MiniBatchSize(0, 0))
            for batch in mini:
                stats = self.policy(batch)
                out = policy_loss(
                    stats.logprobs_T,
                    batch.old_logprobs_T,
                    batch.advantages_T,
                    batch.loss_mask_T,
                    batch.sequence_ids_T,
                    size,
                    self.loss,
                    reference_logprobs_T=self._reference_logprobs(batch),
                    entropy_T=stats.entropy_T,
                )
                self.manual_backward(out.loss)
                for name, value in {"loss": out.loss.item(), **out.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + value / len(minis)
            norms.append(self.apply_gradients())
        self.advance_schedule()
        trained = sum(int(b.loss_mask_T.sum()) for mini in minis for b in mini)
        self.figures = {
            **sums,
            **gap.figures(),
            "grad_norm": sum(norms) / len(norms) if norms else 0.0,
            "tokens_trained": trained,
            "zero_advantage_groups": sum(group.all_equal for group in groups),
        }

    def _mini_batches(self, groups: Sequence[Group]) -> list[list[Batch]]:
        """Packed micro-batches by mini-batch, without the groups and episodes that carry no gradient."""
        useful = [group for group in groups if not group.all_equal]
        count = min(self.mini_batches, len(useful))
        ends = [-(-len(useful) * i // count) for i in range(count + 1)] if count else []
        minis = [useful[start:end] for start, end in pairwise(ends)]
        return [self._pack([scored for group in mini for scored in self._lay_out(group)]) for mini in minis]

    def _lay_out(self, group: Group) -> list[Scored]:
        kept = []
        for episode, advantage, trained in zip(group.episodes_G, group.advantages_G, group.trained_G, strict=True):
            if not trained:
                continue
            flat = flatten(episode.segments, self.encoding.patches, self.encoding.image_token, self.encoding.merge)
            check_sequence(
                episode,
                flat,
                self.encoding.patches,
                self.policy.model.model,
                self.encoding.control_ids,
                self.encoding.merge,
            )
            kept.append(Scored(flat, advantage))
        return kept

    def _pack(self, scored: Sequence[Scored]) -> list[Batch]:
        bins = by_token_budget(scored, lambda one: len(one.flat), self.token_budget)
        return [
            pack([one.flat for one in part], self.encoding.patches, [one.advantage for one in part]).to(self.device)
            for part in bins
        ]

    @torch.no_grad()
    def _with_old(self, batch: Batch, gap: GapMeter) -> Batch:
        """Old log-probs are the trainer's own, before the first update; the engine's only measure the gap."""
        old = self.policy(batch).logprobs_T
        gap.add(batch, old)
        return replace(batch, old_logprobs_T=old)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Any:
        return self._reference[0](batch).logprobs_T if self._reference else None
