"""The last stages of the data flow (`mmsr1/types.py`), which hold tensors: Batch -> LossOutput."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch: sequences one after another, no padding.

    Arrays are aligned with the token they speak of: `old_logprobs_T[t]` is log p(token t | tokens before t).
    Row 0 of `position_ids` is the text position, which restarts at each sequence and so separates them;
    rows 1-3 are M-RoPE (time, height, width). Each distinct image is in `pixels` once; `image_order` says,
    for every image run of the packed tokens in order, which of the `grids` it shows.
    `weights_T` is the loss weight of a token (0 where nothing is learned), `advantages_T` its advantage.
    `versions_T` names the weights that sampled a token (-1 where nothing was sampled).
    `region_T`: 0 nothing sampled, 1 before any image, 2 after an image, 3 after a tool result.
    """

    token_ids: Int[Tensor, "T"]
    position_ids: Int[Tensor, "4 1 T"]
    image_mask_T: Bool[Tensor, "T"]
    loss_mask_T: Bool[Tensor, "T"]
    weights_T: Float[Tensor, "T"]
    engine_logprobs_T: Float[Tensor, "T"]
    old_logprobs_T: Float[Tensor, "T"]
    advantages_T: Float[Tensor, "T"]
    region_T: Int[Tensor, "T"]
    versions_T: Int[Tensor, "T"]
    offsets: Int[Tensor, "S1"]
    pixels: Float[Tensor, "P D"]
    grids: Int[Tensor, "N 3"]
    image_order: Int[Tensor, "M"]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """All tensors moved."""
        return replace(self, **{f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self)})

    @property
    def sequence_ids_T(self) -> Int[Tensor, "T"]:
        """Index of the sequence that each packed token belongs to."""
        lengths = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise and figures to log (detached)."""

    loss: Float[Tensor, ""]
    metrics: Mapping[str, float]
