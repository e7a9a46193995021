"""An engine that says what it is told: for tests of everything that stands on an engine, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt

Script = (
    Callable[[TokenPrompt, Sampling], str | EngineFailure]
    | Mapping[int, str | EngineFailure]
    | Sequence[str | EngineFailure]
)


@runtime_checkable
class Tokenizer(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class ScriptedEngine:
    """Answers from a script; an answer's text is tokenised, and cut at `max_tokens` as a real engine would.

    `script` is a function of the call, a mapping from the request's seed (see `base.request_seed`), or a sequence
    that is read in the order of the calls. A text that the script should have and lacks raises KeyError or IndexError.
    `logprob` is what every token gets, or a function of the sampled ids. `latency_s` is the seconds before an answer,
    or a function of the call. `calls` holds what was asked, `versions` the weight versions loaded, in order,
    `naps` how often it was sent to sleep.
    """

    def __init__(
        self,
        script: Script,
        tokenizer: Tokenizer,
        *,
        logprob: float | Callable[[Sequence[int]], Sequence[float]] = -1.0,
        latency_s: float | Callable[[TokenPrompt, Sampling], float] = 0.0,
    ) -> None:
        self.calls: list[tuple[TokenPrompt, Sampling]] = []
        self.versions: list[int] = []
        self.naps = 0
        self.closed = False
        self._script = script
        self._tokenizer = tokenizer
        self._logprob = logprob
        self._latency_s = latency_s

    @property
    def prompts(self) -> list[TokenPrompt]:
        """The prompts it was sent, in order."""
        return [prompt for prompt, _ in self.calls]

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        version = self.versions[-1] if self.versions else 0
        self.calls.append((prompt, sampling))
        answer = self._answer(prompt, sampling, len(self.calls) - 1)
        await asyncio.sleep(self._latency_s(prompt, sampling) if callable(self._latency_s) else self._latency_s)
        if isinstance(answer, EngineFailure):
            return answer
        ids = self._tokenizer.encode(answer, add_special_tokens=False)
        kept = tuple(ids[: sampling.max_tokens])
        logprobs = self._logprob(kept) if callable(self._logprob) else [self._logprob] * len(kept)
        return Completion(kept, tuple(logprobs), "stop" if len(kept) == len(ids) else "length", version)

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in tensors:
            pass  # a generator may gather each tensor on several ranks: it must be run to its end
        self.versions.append(version)

    async def sleep(self) -> None:
        self.naps += 1

    async def close(self) -> None:
        self.closed = True

    def _answer(self, prompt: TokenPrompt, sampling: Sampling, number: int) -> str | EngineFailure:
        if callable(self._script):
            return self._script(prompt, sampling)
        return self._script[sampling.seed] if isinstance(self._script, Mapping) else self._script[number]
