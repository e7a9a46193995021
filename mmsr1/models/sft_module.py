"""Supervised training on demonstrations: weighted negative log-likelihood of the taught tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsr1.models.module import OptimSpec, PolicyModule
from mmsr1.models.packing import FlatSequence, PatchSource, by_token_budget, pack
from mmsr1.models.policy import Policy


@dataclass(frozen=True)
class Demonstrations:
    """Conversations laid out for one optimiser step (0-based), with the loss weight of each token."""

    step: int
    sequences: Sequence[FlatSequence]

    def to(self, *args: Any, **kwargs: Any) -> Demonstrations:
        """Nothing to move yet: packing happens in the training step."""
        return self


class SFTModule(PolicyModule):
    """Loss: sum of weight * -log p over the taught tokens, divided by the sum of the weights of the step."""

    def __init__(
        self, policy: Policy, patches: PatchSource, optim: OptimSpec, token_budget: int, freeze_vision: bool
    ) -> None:
        super().__init__(policy, optim, freeze_vision)
        self.patches, self.token_budget = patches, token_budget

    def training_step(self, batch: Demonstrations, index: int) -> None:
        ordered = sorted(batch.sequences, key=len)
        weight = sum(float(sequence.weights.sum()) for sequence in ordered)
        total = 0.0
        for part in by_token_budget(ordered, len, self.token_budget):
            packed = pack(part, self.patches).to(self.device)
            loss = -(self.policy(packed).logprobs_T * packed.weights_T).sum() / weight
            self.manual_backward(loss)
            total += loss.item()
        norm = self.apply_gradients()
        self.advance_schedule()
        taught = sum(int(sequence.loss_mask.sum()) for sequence in ordered)
        self.figures = {"loss": total, "grad_norm": norm, "tokens_trained": taught}
