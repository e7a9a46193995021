"""Attention over packed sequences: each attends to itself alone, and costs what it would cost alone.

transformers tells packed sequences apart by a mask of all tokens against all tokens, which makes the attention, and the
mask, quadratic in the length of the micro-batch. Here the sequences are taken one by one, without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402  (the shim must come first)
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

NAME = "packed_sdpa"


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T D"],
    attention_mask: Tensor | None,
    offsets: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """Causal attention within each of the sequences that `offsets` bound, [0, ..., T]; plain SDPA without them."""
    if offsets is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    parts = [
        sdpa_attention_forward(module, query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], None, **settings)[0]
        for a, b in pairwise(offsets)
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
