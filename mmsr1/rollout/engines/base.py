"""The Engine protocol: tokens in, tokens and log-probs out; a failure is a value, not an exception.

Everything that samples stands behind it (vLLM, a script in tests), so the episode loop does not know which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from mmsr1.types import Picture


@dataclass(frozen=True)
class TokenPrompt:
    """The conversation so far: `token_ids` hold one `<|image_pad|>` per image, `images` in the same order."""

    token_ids: tuple[int, ...]
    images: tuple[Picture, ...]


@dataclass(frozen=True)
class Sampling:
    """How to sample one turn. `temperature` 0 is greedy; `seed` fixes the draw of this request alone."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The sampled ids, unedited (the stop string included), and their raw log-probs at temperature 1.

    `weight_version` names the weights that sampled the first token. New weights that came in during the turn are in
    `switches`: (token, version), from that token on.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    weight_version: int
    switches: tuple[tuple[int, int], ...] = ()

    def parts(self) -> Iterator[tuple[tuple[int, ...], tuple[float, ...], int]]:
        """(ids, log-probs, weight version) of each stretch that one set of weights sampled."""
        starts = [(0, self.weight_version), *self.switches]
        ends = [start for start, _ in self.switches] + [len(self.token_ids)]
        for (start, version), end in zip(starts, ends, strict=True):
            yield self.token_ids[start:end], self.logprobs[start:end], version


@dataclass(frozen=True)
class EngineFailure:
    """The engine could not answer this request (too long, engine gone); the episode ends, the step goes on."""

    reason: str


@runtime_checkable
class Engine(Protocol):
    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure: ...

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights (Hugging Face names) and drop every cache computed with the old ones."""
        ...

    async def sleep(self) -> None:
        """Give back the memory that only sampling needs, until the next `load_weights`; nothing may be in flight.

        Does nothing where there is no such memory or the engine was not told to.
        """
        ...

    async def close(self) -> None: ...


def request_seed(*key: object) -> int:
    """A 31-bit seed from (run seed, split, step, example, rollout, turn): the same request always draws the same."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
