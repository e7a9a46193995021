"""The rows of one batch: which token each of them draws, and when it ends.

A row draws from its own random numbers, one a token, by inverting the distribution function of its own logits. So a
seed draws the same tokens whatever else is in the batch, on a CPU or a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.transformers_inputs import Conversation
from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from transformers import LogitsProcessor, StoppingCriteria  # noqa: E402  (the shim must come first)

T = TypeVar("T")


def settle(answer: Future[T], outcome: T | Exception) -> None:
    """Answer, unless the caller has gone or was answered from another thread."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


@dataclass(frozen=True, eq=False)
class Request:
    """One call of `generate`. Its answer is set on the engine thread, or cancelled by the caller on another."""

    prompt: TokenPrompt
    sampling: Sampling
    answer: Future[Completion | EngineFailure] = field(default_factory=Future)

    def fail(self, reason: str) -> None:
        settle(self.answer, EngineFailure(reason))


class Row:
    """A request being sampled after its `conversation`: at most `limit` new tokens, with the weights of `version`.

    It ends at one of the `ends` (token ids), at a stop string, at its limit, or when its request is answered or
    cancelled by someone else.
    """

    def __init__(
        self,
        request: Request,
        conversation: Conversation,
        limit: int,
        version: int,
        ends: frozenset[int],
        tokenizer: Tokenizer,
    ) -> None:
        self.request = request
        self.conversation = conversation
        self.limit = limit
        self._version = version
        self._ends = ends
        self._tokenizer = tokenizer
        self._random = random.Random(request.sampling.seed)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._text = ""
        self._ids: list[int] = []
        self._logprobs: list[float] = []

    @property
    def over(self) -> bool:
        return self.request.answer.done()

    def uniform(self) -> float:
        """The random number of the next token, in [0, 1)."""
        return self._random.random()

    def take(self, token: int, logprob: float) -> None:
        """The next token; the last one answers the request. Does nothing once the row is over."""
        if self.over:
            return
        self._ids.append(token)
        self._logprobs.append(logprob)
        if token in self._ends or self._says_stop(token):
            finish = "stop"
        elif len(self._ids) == self.limit:
            finish = "length"
        else:
            return
        settle(self.request.answer, Completion(tuple(self._ids), tuple(self._logprobs), finish, self._version))

    def _says_stop(self, token: int) -> bool:
        stop = self.request.sampling.stop
        if stop:
            self._text += self._stream.step(self._tokenizer, token) or ""  # nothing while a character is incomplete
        return any(string in self._text for string in stop)


class RowSampler(LogitsProcessor):
    """Draws the next token of every row, and leaves `generate` no other to choose.

    `banned` tokens are never drawn; the log-probs that the rows are given are those of the untouched logits.
    """

    def __init__(self, rows: Sequence[Row], banned: Iterable[int], device: torch.device) -> None:
        sampling = [row.request.sampling for row in rows]
        self._rows = rows
        self._banned = list(banned)
        self._greedy_B = torch.tensor([s.temperature == 0 for s in sampling], device=device)
        self._temperature_B1 = torch.tensor([[s.temperature or 1.0] for s in sampling], device=device)
        self._top_p_B1 = torch.tensor([[s.top_p] for s in sampling], device=device, dtype=torch.float64)
        self._nucleus = any(s.top_p < 1 for s in sampling)

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Logits (float32) of the next token to scores of which only the drawn token's is finite."""
        tokens_B1 = self._draw(scores)[:, None]
        logprobs_B1 = scores.log_softmax(-1).gather(1, tokens_B1)
        for row, token, logprob in zip(self._rows, tokens_B1[:, 0].tolist(), logprobs_B1[:, 0].tolist(), strict=True):
            row.take(token, logprob)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B1, 0.0)

    def _draw(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        allowed = logits.clone()
        allowed[:, self._banned] = -torch.inf
        probs = (allowed / self._temperature_B1).double().softmax(-1)
        if self._nucleus:
            probs = self._within_top_p(probs)
        heights = probs.cumsum(-1)
        points = torch.tensor([[row.uniform()] for row in self._rows], device=logits.device, dtype=torch.float64)
        # The first token whose height is above the point: never one of probability 0.
        drawn = torch.searchsorted(heights, points * heights[:, -1:], right=True)[:, 0]
        return torch.where(self._greedy_B, allowed.argmax(-1), drawn)

    def _within_top_p(self, probs: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Only the likeliest tokens that together reach `top_p`, the one that crosses it included."""
        ordered, order = probs.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= self._top_p_B1
        return probs.masked_fill(beyond.scatter(1, order, beyond), 0.0)


class RowsOver(StoppingCriteria):
    """Tells `generate` which rows are over: it returns once all of them are."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Any, **kwargs: Any) -> Bool[Tensor, "B"]:
        return torch.tensor([row.over for row in self._rows], device=input_ids.device)
