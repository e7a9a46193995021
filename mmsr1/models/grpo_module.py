"""GRPO as a LightningModule: groups from the buffer become packed micro-batches, old log-probs, losses, updates."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmsr1.batch import Batch, LossOutput
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.contract import GapMeter, check_gap, check_sequence, check_staleness
from mmsr1.models.correction import CorrectionMeter, CorrectionSpec, correct
from mmsr1.models.grpo import LossSpec, MiniBatchSize, policy_loss
from mmsr1.models.lora import has_adapters, without_adapters
from mmsr1.models.module import FLOAT32, OptimSpec, PolicyModule, Sharding
from mmsr1.models.packing import FlatSequence, PatchSource, blank_sequence, flatten, pack
from mmsr1.models.plan_step import MiniBatchPlan, plan_step
from mmsr1.models.policy import Policy
from mmsr1.models.ranks import padded
from mmsr1.types import Episode, StepPrompts

ON_POLICY = CorrectionSpec()


@dataclass(frozen=True)
class Encoding:
    """What packing must know of the model: patches of a picture, the image token, the control tokens."""

    patches: PatchSource
    image_token: int
    merge: int
    control_ids: Collection[int]


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
        sharding: Sharding = FLOAT32,
        correction: CorrectionSpec = ON_POLICY,
        max_staleness: int = 0,
        keep_equal: bool = False,
    ) -> None:
        super().__init__(policy, optim, freeze_vision, sharding)
        self.buffer, self.encoding, self.loss = buffer, encoding, loss
        self.mini_batches, self.token_budget, self.gap_limit = mini_batches, token_budget, gap_limit
        self.correction, self.max_staleness, self.keep_equal = correction, max_staleness, keep_equal
        # The reference stands outside the module tree: it is never trained or saved. It is only computed with.
        copied = loss.kl_weight > 0 and not has_adapters(policy.model)
        self._reference = [_reference(policy, sharding.compute_dtype)] if copied else []

    def configure_model(self) -> None:
        for policy in (self.policy, *self._reference):
            self.shard(policy)

    def on_fit_start(self) -> None:
        for reference in self._reference:
            if not self.sharding.offload:
                reference.to(self.device)

    def training_step(self, prompts: StepPrompts, index: int) -> None:
        groups, probes = self.buffer.take(prompts.step)
        plans = plan_step(
            groups,
            self.mini_batches,
            self.token_budget,
            self.ranks.rank,
            self.ranks.size,
            self._expanded_length,
            self.keep_equal,
        )
        ages = check_staleness(groups, prompts.step, self.max_staleness)
        gap, weights = GapMeter(version=prompts.step), CorrectionMeter()
        self._compare(probes, gap)
        minis = [[self._with_old(batch, gap, weights) for batch in self._batches(plan)] for plan in plans]
        gaps = {**ages, **gap.read(self.ranks)}
        check_gap(gaps, self.gap_limit)
        sums: dict[str, float] = {}
        norms = []
        for plan, mini in zip(plans, minis, strict=True):
            for batch in mini:
                out = self._loss(batch.to(self.device), plan.size)
                self.manual_backward(out.loss * self.ranks.size)  # FSDP averages gradients over ranks
                for name, value in {"loss": out.loss.item(), **out.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + value / len(minis)
            norms.append(self.apply_gradients())
        self.advance_schedule()
        self.figures = {
            **self.ranks.sum(sums),
            **gaps,
            **weights.read(self.ranks),
            "grad_norm": sum(norms) / len(norms) if norms else 0.0,
            "tokens_trained": sum(plan.size.tokens for plan in plans),
            "zero_advantage_groups": sum(group.all_equal for group in groups),
        }

    def _loss(self, batch: Batch, size: MiniBatchSize) -> LossOutput:
        stats = self.policy(batch)
        return policy_loss(
            stats.logprobs_T,
            batch.old_logprobs_T,
            batch.advantages_T,
            batch.loss_mask_T,
            batch.sequence_ids_T,
            size,
            self.loss,
            weights_T=batch.weights_T,
            reference_logprobs_T=self._reference_logprobs(batch),
            entropy_T=stats.entropy_T,
        )

    def _batches(self, plan: MiniBatchPlan) -> list[Batch]:
        """This rank's micro-batches of one optimiser step, checked and packed; blank ones where others have more."""
        packed = [
            pack([self._lay_out(one.episode) for one in part], self.encoding.patches, [one.advantage for one in part])
            for part in plan.micro_batches
        ]
        return padded(packed, plan.count, self._blank)

    def _lay_out(self, episode: Episode) -> FlatSequence:
        encoding = self.encoding
        flat = flatten(episode.segments, encoding.patches, encoding.image_token, encoding.merge)
        backbone = self.policy.model.model
        check_sequence(episode, flat, encoding.patches, backbone, encoding.control_ids, encoding.merge)
        return flat

    def _blank(self) -> Batch:
        return pack([blank_sequence()], self.encoding.patches)

    def _expanded_length(self, episode: Episode) -> int:
        images = [picture for segment in episode.segments for picture in segment.images]
        grids = [self.encoding.patches(picture)[1] for picture in images]
        tokens = sum(t * h * w // self.encoding.merge**2 for t, h, w in grids)
        return sum(len(segment.token_ids) for segment in episode.segments) - len(images) + tokens

    @torch.no_grad()
    def _compare(self, probes: Sequence[Episode], gap: GapMeter) -> None:
        """What the engine said of its probes beside what the policy says now. All ranks compute equally often."""
        count = max(self.ranks.gather(len(probes)))
        batches = [pack([self._lay_out(probe)], self.encoding.patches, [0.0]) for probe in probes]
        for batch in padded(batches, count, self._blank):
            here = batch.to(self.device)
            gap.add_probe(here, self.policy(here).logprobs_T)

    @torch.no_grad()
    def _with_old(self, batch: Batch, gap: GapMeter, weights: CorrectionMeter) -> Batch:
        """Old log-probs are the trainer's own, before the first update; the engine's measure the gap, and weigh."""
        here = batch.to(self.device)  # one at a time: the pixels of a whole step are gigabytes
        old = self.policy(here).logprobs_T
        gap.add(here, old)
        found = correct(old, here.engine_logprobs_T, here.loss_mask_T, here.sequence_ids_T, self.correction)
        weights.add(found, here.loss_mask_T)
        home = batch.old_logprobs_T.device
        weighted = (here.weights_T * found.weights_T).to(home)
        return replace(batch, old_logprobs_T=old.to(home), weights_T=weighted)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Any:
        """The policy that training started from; with adapters that is the model below them."""
        if self.loss.kl_weight == 0:
            return None
        if self._reference:
            return self._reference[0](batch).logprobs_T
        with without_adapters(self.policy.model):
            return self.policy(batch).logprobs_T


def _reference(policy: Policy, dtype: torch.dtype) -> Policy:
    """A copy to compute with. Only parameters are cast: rotary frequencies in half precision are wrong far out."""
    copied = copy.deepcopy(policy).requires_grad_(False)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied
