"""Importance weights for tokens that other weights, or another program, sampled.

GRPO's gradient is an expectation under the policy that training starts the step from. The engine samples from a
slightly different one: other kernels, another precision, or, when rollouts run ahead, the weights of an earlier step.
Each term of the loss is then weighted by ratio = p_trainer / p_engine, which makes the expectation right again, cut
off at `cap`, which bounds its variance at the price of a little of the bias (truncated importance sampling: Ionides
2008; for engine mismatch: Yao et al. 2025). `sequence` takes one ratio for the whole conversation, normalised by its
length, exp(mean log ratio) (GSPO, arXiv 2507.18071, eq. 7): coarser, far less noisy on long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmsr1.models.ranks import Ranks

Level = Literal["off", "token", "sequence"]

_MAX_LOG_RATIO = 20.0  # exp(20) is far above any cap, and finite


@dataclass(frozen=True)
class CorrectionSpec:
    """`cap` bounds a weight from above. A token whose log-probs differ by more than `mask_above` nats does not count
    at all, whatever the level; None masks nothing. Raises ValueError for a value out of range."""

    level: Level = "off"
    cap: float = 2.0
    mask_above: float | None = None

    def __post_init__(self) -> None:
        if not self.cap >= 1.0:
            raise ValueError(f"cap: {self.cap!r} received; give a number of 1 or more")
        if self.mask_above is not None and not self.mask_above > 0.0:
            raise ValueError(f"mask_above: {self.mask_above!r} received; give nats above 0, or None")


@dataclass(frozen=True)
class Correction:
    """Weights of the packed tokens, and which of them were cut at the cap or masked."""

    weights_T: Float[Tensor, "T"]
    truncated_T: Bool[Tensor, "T"]
    masked_T: Bool[Tensor, "T"]


def correct(
    trainer_T: Float[Tensor, "T"],
    engine_T: Float[Tensor, "T"],
    mask_T: Bool[Tensor, "T"],
    sequence_ids_T: Int[Tensor, "T"],
    spec: CorrectionSpec,
) -> Correction:
    """Weights from the two log-probs (nats) of every trained token (`mask_T`); 1 elsewhere.

    The loss keeps its denominators: a masked token is one that contributes nothing, not one that was never there.
    """
    log_ratio_T = (trainer_T - engine_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).masked_fill(~mask_T, 0.0)
    masked_T = torch.zeros_like(mask_T)
    if spec.mask_above is not None:
        masked_T = mask_T & ~(log_ratio_T.abs() <= spec.mask_above)  # a NaN is beyond any limit
        log_ratio_T = log_ratio_T.masked_fill(masked_T, 0.0)
    if spec.level == "sequence":
        log_ratio_T = _sequence_mean(log_ratio_T, mask_T & ~masked_T, sequence_ids_T)
    ratio_T = log_ratio_T.exp() if spec.level != "off" else torch.ones_like(log_ratio_T)
    truncated_T = mask_T & ~masked_T & (ratio_T > spec.cap)
    return Correction(ratio_T.clamp(max=spec.cap).masked_fill(masked_T, 0.0), truncated_T, masked_T)


def _sequence_mean(
    values_T: Float[Tensor, "T"], mask_T: Bool[Tensor, "T"], sequence_ids_T: Int[Tensor, "T"]
) -> Float[Tensor, "T"]:
    """The mean over the masked-in tokens of each sequence, at every one of them; 0 elsewhere."""
    count = int(sequence_ids_T.max()) + 1 if len(sequence_ids_T) else 0
    sums = values_T.new_zeros(count).index_add(0, sequence_ids_T[mask_T], values_T[mask_T])
    tokens = torch.bincount(sequence_ids_T[mask_T], minlength=count).clamp(min=1)
    return (sums / tokens)[sequence_ids_T].masked_fill(~mask_T, 0.0)


class CorrectionMeter:
    """Adds up the weights of one step's trained tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys(("tokens", "weight", "truncated", "masked"), 0.0)

    def add(self, correction: Correction, mask_T: Bool[Tensor, "T"]) -> None:
        counted = (mask_T, correction.weights_T * mask_T, correction.truncated_T, correction.masked_T)
        for name, values_T in zip(self._sums, counted, strict=True):
            self._sums[name] += values_T.sum().item()

    def read(self, ranks: Ranks) -> dict[str, float]:
        """Mean weight, share of tokens cut at the cap, number of tokens masked; a collective."""
        sums = ranks.sum(self._sums)
        tokens = max(1.0, sums["tokens"])
        return {
            "importance_weight_mean": sums["weight"] / tokens if sums["tokens"] else 1.0,
            "importance_truncated": sums["truncated"] / tokens,
            "tokens_masked_gap": sums["masked"],
        }
