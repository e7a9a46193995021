"""Episodes to packed micro-batches: no padding, true M-RoPE positions, each distinct image once.

`flatten` expands the image placeholders of one conversation and lays out everything aligned by token; `pack` puts
several of them one after another. Positions are computed over the whole conversation, as the engine samples with
(the reference's 1-D positions after returned images are what made its log-probs disagree).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mmsr1.batch import Batch
from mmsr1.types import Picture, Segment

Patches = tuple[Float[Tensor, "P D"], tuple[int, int, int]]
PatchSource = Callable[[Picture], Patches]
Item = TypeVar("Item")

REGIONS = ("none", "before_image", "after_image", "after_tool_result")


@dataclass(frozen=True)
class FlatSequence:
    """One conversation of L expanded tokens; every array has length L and speaks of its own token."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]  # [3, L]: time, height, width
    image_mask: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]
    weights: NDArray[np.float32]
    engine_logprobs: NDArray[np.float32]
    region: NDArray[np.int64]
    versions: NDArray[np.int64]
    images: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def flatten(
    segments: Sequence[Segment],
    patches: PatchSource,
    image_token: int,
    merge: int = 2,
    weights: Sequence[Sequence[float] | None] | None = None,
) -> FlatSequence:
    """Lay out a conversation. Learned tokens are the sampled ones, or those given `weights` (demonstrations).

    `weights[i]` holds the loss weight of every token of segment i, or None where nothing is learned.
    Raises ValueError if the placeholders of a segment and its images differ in number.
    """
    runs: list[tuple[NDArray[np.int64], NDArray[np.int64], bool]] = []
    learn, engine, region, versions = [], [], [], []
    position, seen_image, seen_result = 0, False, False
    for index, segment in enumerate(segments):
        given = weights[index] if weights is not None else ([1.0] * len(segment.token_ids) if segment.sampled else None)
        made = list(_runs(segment, patches, image_token, merge))
        for ids, places, is_image in made:
            runs.append((ids, places + position, is_image))
            position += int(places.max()) + 1
        length = sum(len(ids) for ids, _, _ in made)
        learn.append(np.asarray(given, np.float32) if given is not None else np.zeros(length, np.float32))
        engine.append(np.asarray(segment.sampled.logprobs if segment.sampled else np.zeros(length), np.float32))
        where = 0 if given is None else 3 if seen_result else 2 if seen_image else 1
        region.append(np.full(length, where, np.int64))
        versions.append(np.full(length, segment.sampled.weight_version if segment.sampled else -1, np.int64))
        seen_image |= bool(segment.images)
        seen_result |= segment.kind == "tool_result"
    learned = np.concatenate(learn)
    return FlatSequence(
        token_ids=np.concatenate([ids for ids, _, _ in runs]),
        positions=np.concatenate([places for _, places, _ in runs], axis=1),
        image_mask=np.concatenate([np.full(len(ids), is_image) for ids, _, is_image in runs]),
        loss_mask=learned > 0,
        weights=learned,
        engine_logprobs=np.concatenate(engine),
        region=np.concatenate(region),
        versions=np.concatenate(versions),
        images=tuple(picture for segment in segments for picture in segment.images),
    )


def blank_sequence() -> FlatSequence:
    """Two tokens of which none is learned: what a rank computes on when the others have one micro-batch more."""
    zeros = np.zeros(2, dtype=np.int64)
    return FlatSequence(
        token_ids=zeros,
        positions=np.broadcast_to(np.arange(2), (3, 2)),
        image_mask=zeros.astype(np.bool_),
        loss_mask=zeros.astype(np.bool_),
        weights=zeros.astype(np.float32),
        engine_logprobs=zeros.astype(np.float32),
        region=zeros,
        versions=zeros - 1,
        images=(),
    )


def pack(sequences: Sequence[FlatSequence], patches: PatchSource, advantages: Sequence[float] | None = None) -> Batch:
    """One micro-batch. A batch without any image carries one blank patch grid that nothing refers to, so that the
    vision tower takes part in every forward (under FSDP a rank that skips it would hang the others)."""
    distinct = {picture.digest: picture for sequence in sequences for picture in sequence.images}
    order = {digest: index for index, digest in enumerate(distinct)}
    made = [patches(picture) for picture in distinct.values()]
    lengths = [len(sequence) for sequence in sequences]
    text = np.concatenate([np.arange(length) for length in lengths])
    mrope = np.concatenate([sequence.positions for sequence in sequences], axis=1)
    per_sequence = advantages if advantages is not None else [0.0] * len(sequences)
    engine = torch.from_numpy(np.concatenate([s.engine_logprobs for s in sequences]))
    return Batch(
        token_ids=torch.from_numpy(np.concatenate([s.token_ids for s in sequences])),
        position_ids=torch.from_numpy(np.concatenate([text[None], mrope])[:, None]),
        image_mask_T=torch.from_numpy(np.concatenate([s.image_mask for s in sequences])),
        loss_mask_T=torch.from_numpy(np.concatenate([s.loss_mask for s in sequences])),
        weights_T=torch.from_numpy(np.concatenate([s.weights for s in sequences])),
        engine_logprobs_T=engine,
        old_logprobs_T=engine,
        advantages_T=torch.from_numpy(np.repeat(np.array(per_sequence, dtype=np.float32), lengths)),
        region_T=torch.from_numpy(np.concatenate([s.region for s in sequences])),
        versions_T=torch.from_numpy(np.concatenate([s.versions for s in sequences])),
        offsets=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
        pixels=torch.cat([pixels for pixels, _ in made]) if made else _blank_pixels(),
        grids=torch.tensor([grid for _, grid in made] if made else [(1, 2, 2)], dtype=torch.int64),
        image_order=torch.tensor([order[p.digest] for s in sequences for p in s.images], dtype=torch.int64),
    )


def by_token_budget(items: Iterable[Item], cost: Callable[[Item], int], budget: int) -> list[list[Item]]:
    """Greedy micro-batches in the given order, each of at most `budget` tokens (a longer item stands alone)."""
    bins: list[list[Item]] = []
    room = 0
    for item in items:
        if not bins or cost(item) > room:
            bins.append([])
            room = budget
        bins[-1].append(item)
        room -= cost(item)
    return bins


def _runs(
    segment: Segment, patches: PatchSource, image_token: int, merge: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], bool]]:
    """(ids, positions from 0, is image) of the text and image stretches of a segment."""
    ids = np.asarray(segment.token_ids, dtype=np.int64)
    places = np.flatnonzero(ids == image_token)
    if len(places) != len(segment.images):
        raise ValueError(f"a {segment.kind} segment has {len(segment.images)} images and {len(places)} placeholders")
    start = 0
    for place, picture in zip(places, segment.images, strict=True):
        if place > start:
            yield _text_run(ids[start:place])
        t, h, w = patches(picture)[1]
        grid = np.meshgrid(np.arange(t), np.arange(h // merge), np.arange(w // merge), indexing="ij")
        yield np.full(grid[0].size, image_token), np.stack(grid).reshape(3, -1), True
        start = int(place) + 1
    if start < len(ids):
        yield _text_run(ids[start:])


def _text_run(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    return ids, np.broadcast_to(np.arange(len(ids)), (3, len(ids))), False


def _blank_pixels(patch_dim: int = 3 * 2 * 14 * 14) -> Float[Tensor, "P D"]:
    return torch.zeros(4, patch_dim)
