"""The sequence contract: training uses exactly what was sampled. Checked in every run; cheap enough to stay on.

For each episode: the trained tokens are the sampled ones, byte for byte; image runs match their grids; positions equal
the library's own M-RoPE over the whole conversation; no control token stands in an untrusted span. For each step: the
trainer's log-probs equal the engine's up to a limit, reported by where the token stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmsr1.models.packing import REGIONS, FlatSequence, PatchSource
from mmsr1.types import Batch, Episode


class ContractError(AssertionError):
    """What is about to be trained on is not what was sampled; training must not go on."""


def check_sequence(
    episode: Episode,
    flat: FlatSequence,
    patches: PatchSource,
    backbone: Any,
    control_ids: Collection[int],
    merge: int = 2,
) -> None:
    """Raises ContractError, naming the example and what differs. `backbone` offers the library's `get_rope_index`."""
    who = f"example {episode.example_id}, rollout {episode.rollout}"
    sampled = [token for s in episode.segments if s.sampled is not None for token in s.token_ids]
    if flat.token_ids[flat.loss_mask].tolist() != sampled:
        raise ContractError(f"{who}: the trained tokens are not the sampled tokens")
    grids = [patches(picture)[1] for picture in flat.images]
    runs = [t * h * w // merge**2 for t, h, w in grids]
    if flat.image_mask.sum() != sum(runs):
        raise ContractError(f"{who}: {flat.image_mask.sum()} image tokens for grids that need {sum(runs)}")
    positions, _ = backbone.get_rope_index(
        torch.from_numpy(flat.token_ids)[None],
        torch.from_numpy(flat.image_mask.astype(np.int64))[None],
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    if not np.array_equal(positions[:, 0].numpy(), flat.positions):
        raise ContractError(f"{who}: M-RoPE positions differ from a recomputation of the conversation")
    for segment in episode.segments:
        if not segment.trusted and segment.sampled is None and not set(segment.token_ids).isdisjoint(control_ids):
            raise ContractError(f"{who}: a control token stands in an untrusted {segment.kind} span")


class GapMeter:
    """Collects |trainer - engine| log-prob differences (nats) of one step, by region of the conversation."""

    def __init__(self) -> None:
        self._gaps: list[Float[Tensor, "N"]] = []
        self._regions: list[Tensor] = []

    def add(self, batch: Batch, logprobs_T: Float[Tensor, "T"]) -> None:
        mask = batch.loss_mask_T
        self._gaps.append((logprobs_T - batch.engine_logprobs_T)[mask].abs().float().cpu())
        self._regions.append(batch.region_T[mask].cpu())

    def figures(self) -> Mapping[str, float]:
        """logprob_gap_mean and _max over all tokens, and the maximum by region; empty if nothing was trained."""
        if not self._gaps or not sum(len(gap) for gap in self._gaps):
            return {}
        gap, region = torch.cat(self._gaps), torch.cat(self._regions)
        found = {"logprob_gap_mean": gap.mean().item(), "logprob_gap_max": gap.max().item()}
        for number, name in enumerate(REGIONS):
            if (region == number).any():
                found[f"logprob_gap_max_{name}"] = gap[region == number].max().item()
        return found

    def check(self, limit: float | None) -> None:
        """Raises ContractError if the largest gap exceeds `limit` (nats); None only reports."""
        largest = self.figures().get("logprob_gap_max", 0.0)
        if limit is not None and not largest <= limit:  # NaN too
            raise ContractError(
                f"log-probs of engine and trainer differ by up to {largest:.2g} nats, limit {limit:g} "
                f"({dict(self.figures())}): weights, caches or positions are out of step (algorithm.gap_limit)"
            )
