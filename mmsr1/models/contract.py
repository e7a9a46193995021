"""The sequence contract: training uses exactly what was sampled. Checked in every run; cheap enough to stay on.

For each episode: the trained tokens are the sampled ones, byte for byte; image runs match their grids; positions equal
the library's own M-RoPE over the whole conversation; no control token stands in an untrusted span. For each step: the
trainer's log-probs equal the engine's up to a limit, reported by where the token stands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmsr1.batch import Batch
from mmsr1.models.packing import REGIONS, FlatSequence, PatchSource
from mmsr1.models.ranks import Ranks
from mmsr1.types import Episode, Group


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


def check_staleness(groups: Sequence[Group], step: int, limit: int) -> dict[str, float]:
    """How many updates lie between the weights that sampled a trained token and those of `step`: mean and largest.

    Raises ContractError if one exceeds `limit` or comes from weights that do not exist yet.
    """
    ages: Counter[int] = Counter()
    for group in groups:
        for episode, trained in zip(group.episodes_G, group.trained_G, strict=True):
            for segment in episode.segments if trained else ():
                if segment.sampled is not None:
                    ages[step - segment.sampled.weight_version] += len(segment.token_ids)
    wrong = [age for age in ages if not 0 <= age <= limit]
    if wrong:
        raise ContractError(
            f"tokens of weights {max(wrong, key=abs)} updates old, limit {limit} (rollout.max_staleness)"
        )
    tokens = sum(ages.values())
    return {
        "staleness_mean": sum(age * count for age, count in ages.items()) / tokens if tokens else 0.0,
        "staleness_max": float(max(ages, default=0)),
    }


class GapMeter:
    """Collects |trainer - engine| log-prob differences (nats) of one step, by region of the conversation.

    `version` names the trainer's weights: tokens that others sampled differ for that reason, too, and no limit on the
    gap can hold for them. None takes all tokens for fresh. Where all rollouts run ahead no trained token is fresh;
    probes, sampled only for this, stand in (`add_probe`).
    """

    def __init__(self, version: int | None = None) -> None:
        self._version = version
        self._probes: list[Float[Tensor, "N"]] = []
        self._gaps: list[Float[Tensor, "N"]] = []
        self._regions: list[Tensor] = []
        self._fresh: list[Tensor] = []

    def add(self, batch: Batch, logprobs_T: Float[Tensor, "T"]) -> None:
        mask = batch.loss_mask_T
        self._gaps.append((logprobs_T - batch.engine_logprobs_T)[mask].abs().float().cpu())
        self._regions.append(batch.region_T[mask].cpu())
        self._fresh.append(self._is_fresh(batch.versions_T[mask].cpu()))

    def add_probe(self, batch: Batch, logprobs_T: Float[Tensor, "T"]) -> None:
        """Fresh tokens that are not trained on: they count among the fresh ones alone."""
        mask = batch.loss_mask_T & self._is_fresh(batch.versions_T)
        self._probes.append((logprobs_T - batch.engine_logprobs_T)[mask].abs().float().cpu())

    def _is_fresh(self, versions: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        return torch.ones_like(versions).bool() if self._version is None else versions == self._version

    def read(self, ranks: Ranks) -> Mapping[str, float]:
        """Mean and maximum over all tokens of all ranks, by region (_before_image, ...), and over those alone that
        the trainer's own weights sampled (_fresh); nothing for what has no token. A collective.
        """
        gap = torch.cat([torch.empty(0), *self._gaps])
        region = torch.cat([torch.empty(0, dtype=torch.int64), *self._regions])
        fresh = torch.cat([torch.empty(0, dtype=torch.bool), *self._fresh])
        parts = ranks.gather((gap, region, fresh, torch.cat([torch.empty(0), *self._probes])))
        gap, region, fresh, probed = (torch.cat([part[i] for part in parts]) for i in range(4))
        kinds = {"": gap, **{f"_{name}": gap[region == number] for number, name in enumerate(REGIONS)}}
        kinds["_fresh"] = torch.cat([gap[fresh], probed])
        found = {}
        for name, values in kinds.items():
            if len(values):
                found |= {
                    f"logprob_gap_mean{name}": values.mean().item(),
                    f"logprob_gap_max{name}": values.max().item(),
                }
        return found


def check_gap(figures: Mapping[str, float], limit: float | None) -> None:
    """Raises ContractError if the largest gap of a fresh token exceeds `limit` (nats), or if any gap, of a stale token
    too, is no number; None only reports."""
    largest = figures.get("logprob_gap_max_fresh", 0.0)
    if not math.isfinite(figures.get("logprob_gap_max", 0.0)):
        largest = math.nan
    if limit is not None and not largest <= limit:  # NaN too
        raise ContractError(
            f"log-probs of engine and trainer differ by up to {largest:.2g} nats, limit {limit:g} "
            f"({dict(figures)}): weights, caches or positions are out of step (algorithm.gap_limit)"
        )
