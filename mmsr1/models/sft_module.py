"""Supervised training on demonstrations: weighted negative log-likelihood of the taught tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsr1.models.module import FLOAT32, OptimSpec, PolicyModule, Sharding
from mmsr1.models.packing import FlatSequence, PatchSource, blank_sequence, by_token_budget, pack
from mmsr1.models.policy import Policy
from mmsr1.models.ranks import padded


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
        self,
        policy: Policy,
        patches: PatchSource,
        optim: OptimSpec,
        token_budget: int,
        freeze_vision: bool,
        sharding: Sharding = FLOAT32,
    ) -> None:
        super().__init__(policy, optim, freeze_vision, sharding)
        self.patches, self.token_budget = patches, token_budget

    def training_step(self, batch: Demonstrations, index: int) -> None:
        weight = sum(float(sequence.weights.sum()) for sequence in batch.sequences)
        # All ranks hold the whole step; shares are equal in number, so their micro-batches differ by few if any.
        ordered = sorted(batch.sequences, key=len)
        shares = [
            by_token_budget(ordered[rank :: self.ranks.size], len, self.token_budget) for rank in range(self.ranks.size)
        ]
        count = max(len(share) for share in shares)
        total = 0.0
        for part in padded(shares[self.ranks.rank], count, lambda: []):
            packed = pack(part or [blank_sequence()], self.patches).to(self.device)
            loss = -(self.policy(packed).logprobs_T * packed.weights_T).sum() / weight
            self.manual_backward(loss * self.ranks.size)  # FSDP averages gradients over ranks
            total += loss.item()
        norm = self.apply_gradients()
        self.advance_schedule()
        taught = sum(int(sequence.loss_mask.sum()) for sequence in ordered)
        self.figures = {**self.ranks.sum({"loss": total}), "grad_norm": norm, "tokens_trained": taught}
