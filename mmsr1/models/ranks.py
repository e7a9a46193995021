"""The processes of a run and what they tell each other; a single process talks to nobody."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
_NONE = object()  # no item


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size`. `group` carries Python objects, so it is a CPU group also where tensors go
    over NCCL."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @staticmethod
    def current() -> Ranks:
        """The default process group's ranks; made once a process group exists (a collective: call it on all)."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return Ranks()
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return Ranks(dist.get_rank(), dist.get_world_size(), group)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Every `size`-th item, from this rank's on."""
        return items[self.rank :: self.size]

    def gather(self, item: T) -> list[T]:
        """What every rank passed in, in rank order; a collective."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, item, group=self.group)
        return found

    def interleave(self, mine: Sequence[T]) -> list[T]:
        """Undo `mine`: all ranks' items in their original order; a collective.

        Ranks may have different numbers of items; they take turns while they have some.
        """
        parts = self.gather(list(mine))
        turns = itertools.zip_longest(*parts, fillvalue=_NONE)
        return [item for turn in turns for item in turn if item is not _NONE]  # type: ignore[misc]

    def sum(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Key by key over all ranks; a collective."""
        parts = self.gather(dict(figures))
        return {
            key: sum(part.get(key, 0.0) for part in parts) for key in dict.fromkeys(k for part in parts for k in part)
        }


def share_out(costs: Sequence[float], size: int) -> list[list[int]]:
    """Indices of the items by rank, costs balanced: the dearest first, each to the rank with the least so far.

    A pure function, so that every rank finds the same shares. Ties go to the lower index and rank. Within a rank the
    items keep their order.

    >>> share_out([3, 1, 1, 1], 2)
    [[0], [1, 2, 3]]
    """
    loads = [0.0] * size
    shares: list[list[int]] = [[] for _ in range(size)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(size), key=lambda r: (loads[r], r))
        loads[rank] += costs[index]
        shares[rank].append(index)
    return [sorted(share) for share in shares]


def padded(batches: Sequence[T], count: int, blank: Callable[[], T]) -> list[T]:
    """`batches` and as many blank ones as make `count`: under FSDP every rank takes part in every forward."""
    return [*batches, *(blank() for _ in range(count - len(batches)))]
