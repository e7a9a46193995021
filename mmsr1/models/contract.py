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
from mmsr1.models.ranks import Ranks
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

    def read(self, ranks: Ranks) -> Mapping[str, float]:
        """logprob_gap_mean and _max over all tokens of all ranks, and the maximum by region; empty if there was none.

        A collective.
        """
        gap = torch.cat([torch.empty(0), *self._gaps])
        region = torch.cat([torch.empty(0, dtype=torch.int64), *self._regions])
        parts = ranks.gather([gap[region == number] for number in range(len(REGIONS))])
        by_region = [torch.cat([part[number] for part in parts]) for number in range(len(REGIONS))]
        everything = torch.cat(by_region)
        if not len(everything):
            return {}
        found = {"logprob_gap_mean": everything.mean().item(), "logprob_gap_max": everything.max().item()}
        named = {
            f"logprob_gap_max_{name}": values.max().item()
            for name, values in zip(REGIONS, by_region, strict=True)
            if len(values)
        }
        return {**found, **named}


def check_gap(figures: Mapping[str, float], limit: float | None) -> None:
    """Raises ContractError if the largest gap exceeds `limit` (nats); None only reports."""
    largest = figures.get("logprob_gap_max", 0.0)
    if limit is not None and not largest <= limit:  # NaN too
        raise ContractError(
            f"log-probs of engine and trainer differ by up to {largest:.2g} nats, limit {limit:g} "
            f"({dict(figures)}): weights, caches or positions are out of step (algorithm.gap_limit)"
        )
