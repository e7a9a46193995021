"""Which server a request goes to: the least loaded, unless another one has most of the prompt in its prefix cache.

The turns of a conversation, and the rollouts of one question, begin with the same tokens; the server that has computed
them before need not do so again. An engine's callers name no session, so each server's share of a prompt is estimated
from the prompts that were sent to it: their hashes in blocks, each over all tokens and images before it.

A server that has the whole prompt may have `HEAD_START` requests and a quarter more in flight than the least loaded
one before the request goes there instead; one that has half of it half as many. A system prompt that all
conversations share hardly counts, as it should, and neither does a prompt of few tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

BLOCK = 16  # tokens
SHORT = 16  # blocks; a shorter prompt counts as if it were so long, and the rest unknown
HEAD_START = 8  # requests
REMEMBERED = 2**17  # blocks of a server: 2 million tokens, about what a large key-value cache holds


def block_hashes(token_ids: Sequence[int], images: Mapping[int, str]) -> list[int]:
    """A hash for every whole block of a prompt, over everything up to its end. `images` are digests by the place
    where an image's tokens begin."""
    hashes, before = [], 0
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        places = range(start, start + BLOCK)
        shown = tuple(images[place] for place in places if place in images)
        before = hash((before, tuple(token_ids[start : start + BLOCK]), shown))
        hashes.append(before)
    return hashes


class Prefixes:
    """What one server has seen, as far as it may still have it cached."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()

    def share(self, hashes: Sequence[int]) -> float:
        """The part of a prompt's blocks that it has seen, 0 to 1."""
        known = 0
        while known < len(hashes) and hashes[known] in self._seen:
            known += 1
        return known / max(len(hashes), SHORT)

    def add(self, hashes: Sequence[int]) -> None:
        for value in hashes:
            self._seen[value] = None
            self._seen.move_to_end(value)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        self._seen.clear()


def choose(loads: Sequence[int], shares: Sequence[float]) -> int:
    """The server to send to, from the requests in flight at each and the part of the prompt that each has.

    >>> choose([7, 0], [1.0, 0.0]), choose([9, 0], [1.0, 0.0]), choose([46, 32], [1.0, 0.1])
    (0, 1, 0)
    """
    worth = HEAD_START + min(loads) / 4
    return min(range(len(loads)), key=lambda i: (loads[i] - shares[i] * worth, i))
