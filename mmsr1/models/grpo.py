"""The GRPO loss: pure functions, tensors in, a scalar and figures out.

Clipped policy gradient on group-relative advantages (DeepSeekMath, arXiv 2402.03300, eq. 3) with the k3 estimate of
the KL to a reference (eq. 4; Schulman, "Approximating KL divergence", 2020). Clipping may be asymmetric and the mean
may go over tokens (DAPO, arXiv 2503.14476, sections 3.1 and 3.3), over sequences (as in GRPO), or have a constant
length in its denominator (Dr. GRPO, arXiv 2503.20783, section 3.2).

A mini-batch (one optimiser step) is packed into several micro-batches of whole sequences. Every denominator here is
that of the whole mini-batch, so the micro-batch losses, gradients and metrics simply add up to those of the
mini-batch, however it was split. With data parallelism the size is the global one, and since FSDP averages gradients
over ranks the caller multiplies the loss by the number of ranks.

`_T` is the axis of packed tokens; every value is aligned with the token it speaks of (see `mmsr1.batch.Batch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmsr1.batch import LossOutput

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]

# exp(20) = 5e8: far outside any clip range, yet finite, so that 0 * ratio and its gradient are never NaN.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class LossSpec:
    """The constants of the loss.

    The ratio new / old is clipped to [1 - clip_low, 1 + clip_high]. `constant_length` (tokens) is used only by the
    aggregation of that name. Raises ValueError for a value out of range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "token_mean"
    constant_length: int = 8192
    kl_weight: float = 0.0
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.clip_low <= 1.0:
            raise ValueError(f"clip_low: {self.clip_low!r} received; give a number above 0, at most 1")
        if not self.clip_high > 0.0:
            raise ValueError(f"clip_high: {self.clip_high!r} received; give a number above 0")
        if self.aggregation not in get_args(Aggregation):
            choices = ", ".join(get_args(Aggregation))
            raise ValueError(f"aggregation: {self.aggregation!r} received; choose one of {choices}")
        if self.constant_length < 1:
            raise ValueError(f"constant_length: {self.constant_length!r} received; give 1 token or more")
        for key in ("kl_weight", "entropy_weight"):
            if not 0.0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: {getattr(self, key)!r} received; give a finite number, 0 or more")


@dataclass(frozen=True)
class MiniBatchSize:
    """Trained tokens, and sequences with at least one of them, in all micro-batches of one optimiser step."""

    tokens: int
    sequences: int

    def __add__(self, other: MiniBatchSize) -> MiniBatchSize:
        return MiniBatchSize(self.tokens + other.tokens, self.sequences + other.sequences)

    def normaliser(self, spec: LossSpec) -> float:
        """The denominator for `spec.aggregation`; at least 1, for a mini-batch in which nothing is trained."""
        if spec.aggregation == "token_mean":
            return float(max(1, self.tokens))
        length = spec.constant_length if spec.aggregation == "constant_length" else 1
        return float(length * max(1, self.sequences))


def size_of(mask_T: Bool[Tensor, "T"], sequence_ids_T: Int[Tensor, "T"]) -> MiniBatchSize:
    """What one micro-batch adds to the size; the sum over micro-batches is what `policy_loss` takes."""
    trained = sequence_ids_T[mask_T]
    return MiniBatchSize(tokens=trained.numel(), sequences=trained.unique().numel())


def clipped_objective(
    logprobs_T: Float[Tensor, "T"],
    old_logprobs_T: Float[Tensor, "T"],
    advantages_T: Float[Tensor, "T"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "T"], Bool[Tensor, "T"]]:
    """min(ratio A, clip(ratio) A) per token, to be maximised, and where the clip is the lesser (no gradient there)."""
    log_ratio_T = (logprobs_T - old_logprobs_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio_T = log_ratio_T.exp()
    free_T = ratio_T * advantages_T
    clipped_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_T
    return torch.minimum(free_T, clipped_T), clipped_T < free_T


def k3(logprobs_T: Float[Tensor, "T"], reference_logprobs_T: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """KL(policy || reference) estimated per token: exp(d) - d - 1 with d = reference - policy; never negative."""
    difference_T = (reference_logprobs_T - logprobs_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return difference_T.exp() - difference_T - 1.0


def aggregate(
    values_T: Float[Tensor, "T"],
    mask_T: Bool[Tensor, "T"],
    sequence_ids_T: Int[Tensor, "T"],
    mode: Aggregation,
    normaliser: float,
) -> Float[Tensor, ""]:
    """One scalar from the trained tokens of a micro-batch: this micro-batch's share of the mini-batch mean.

    `sequence_mean` adds the mean over the trained tokens of each sequence, the other modes add the tokens; the sum is
    divided by `normaliser` (`MiniBatchSize.normaliser`). Without a trained token it is 0 and still has a gradient.
    """
    trained_T = values_T[mask_T]
    if mode == "sequence_mean":
        ids_T = sequence_ids_T[mask_T]
        trained_T = trained_T / torch.bincount(ids_T)[ids_T]
    return trained_T.sum() / normaliser


def policy_loss(
    logprobs_T: Float[Tensor, "T"],
    old_logprobs_T: Float[Tensor, "T"],
    advantages_T: Float[Tensor, "T"],
    mask_T: Bool[Tensor, "T"],
    sequence_ids_T: Int[Tensor, "T"],
    size: MiniBatchSize,
    spec: LossSpec,
    weights_T: Float[Tensor, "T"] | None = None,
    reference_logprobs_T: Float[Tensor, "T"] | None = None,
    entropy_T: Float[Tensor, "T"] | None = None,
) -> LossOutput:
    """The loss of one micro-batch of a mini-batch of `size`; log-probs and entropy in nats.

    A trained token (`mask_T`) adds weight * (-clipped objective + kl_weight * k3 - entropy_weight * entropy);
    `weights_T` (1 where absent; importance weights of off-policy tokens, say) leave the denominators as they are.
    Values at other positions, NaN included, touch neither the loss nor the gradients. Only `logprobs_T` and
    `entropy_T` carry gradients.

    Metrics are means over the trained tokens of the mini-batch, this micro-batch's part: add them up. `kl` is k3
    against the reference, or against the old policy where there is none; `entropy` is the mean of `entropy_T`, or of
    -log p of the sampled tokens; `clip_fraction` is the share of tokens whose gradient the clip removed.

    Raises ValueError if a weight in `spec` lacks its tensor or `size` has fewer tokens than this micro-batch.
    """
    if spec.kl_weight > 0 and reference_logprobs_T is None:
        raise ValueError(f"kl_weight: {spec.kl_weight} received without reference_logprobs_T; pass them or set it to 0")
    if spec.entropy_weight > 0 and entropy_T is None:
        raise ValueError(f"entropy_weight: {spec.entropy_weight} received without entropy_T; pass it or set it to 0")
    new_T, old_T = _only(mask_T, logprobs_T), _only(mask_T, old_logprobs_T)
    gain_T, clipped_T = clipped_objective(new_T, old_T, _only(mask_T, advantages_T), spec.clip_low, spec.clip_high)
    kl_T = k3(new_T, old_T if reference_logprobs_T is None else _only(mask_T, reference_logprobs_T))
    spread_T = -new_T.detach() if entropy_T is None else _only(mask_T, entropy_T)

    loss_T = -gain_T
    if spec.kl_weight > 0:
        loss_T = loss_T + spec.kl_weight * kl_T
    if spec.entropy_weight > 0:
        loss_T = loss_T - spec.entropy_weight * spread_T
    if weights_T is not None:
        loss_T = loss_T * _only(mask_T, weights_T)
    loss = aggregate(loss_T, mask_T, sequence_ids_T, spec.aggregation, size.normaliser(spec))

    # One transfer from the device for all figures.
    sums = torch.stack([x_T[mask_T].detach().double().sum() for x_T in (kl_T, spread_T, clipped_T, mask_T)]).tolist()
    if sums[3] > size.tokens:
        raise ValueError(f"size: {size.tokens} tokens received, {sums[3]:.0f} are trained here; sum the micro-batches")
    names = ("kl", "entropy", "clip_fraction")
    return LossOutput(loss, {name: total / max(1, size.tokens) for name, total in zip(names, sums, strict=False)})


def _only(mask_T: Bool[Tensor, "T"], values_T: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Zeros off the mask. Masking the result instead would let a NaN off the mask reach the gradients (0 * NaN)."""
    return values_T.masked_fill(~mask_T, 0.0)
