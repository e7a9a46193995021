"""One turn of the policy: sampled until it ends, and forced to an action where a branch asks for that.

A forced turn reasons as it likes. Where its action begins, all openings but the wanted one are masked: what was sampled
of another is taken back and the wanted one put in its place, which draws the same as masking the logits there would,
on every engine. The opening is then ours: it is no sampled token and has no log-prob.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from mmsr1.rollout.engines.base import Engine, EngineFailure, Sampling, TokenPrompt, request_seed
from mmsr1.rollout.protocol import OPENINGS, ActionName, is_open_reason
from mmsr1.rollout.renderer import Renderer
from mmsr1.types import Sampled, Segment, Timings

T = TypeVar("T")
_OPENING = re.compile("|".join(OPENINGS.values()))


@dataclass(frozen=True)
class Turn:
    """What the model said in one turn. `cut`: it was stopped by a limit; `ended`: it sampled the end of its turn;
    `failure` if the engine could not go on."""

    segments: tuple[Segment, ...]
    text: str
    cut: bool
    ended: bool
    failure: EngineFailure | None = None


class Clock:
    """Seconds of an episode, in all and spent waiting for engine and tools."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = {"engine": 0.0, "tools": 0.0}

    async def waiting(self, kind: Literal["engine", "tools"], work: Awaitable[T]) -> T:
        start = time.perf_counter()
        try:
            return await work
        finally:
            self._waited[kind] += time.perf_counter() - start

    def read(self) -> Timings:
        return Timings(time.perf_counter() - self._start, self._waited["engine"], self._waited["tools"])


@dataclass
class _Draft:
    """A turn under way, with the tokens that it has left."""

    talk: Sequence[Segment]
    room: int
    said: list[Segment] = field(default_factory=list)
    text: str = ""

    @property
    def ids(self) -> list[int]:
        return [token for segment in self.said for token in segment.token_ids]


async def take_turn(
    engine: Engine,
    renderer: Renderer,
    talk: Sequence[Segment],
    room: int,
    sampling: Sampling,
    seed: tuple[object, ...],
    clock: Clock,
    forced: ActionName | None = None,
) -> Turn:
    """Sample at most `room` tokens after `talk`; `seed` determines every draw."""
    draft = _Draft(talk, room)
    if forced is not None:
        end = await _sample(draft, engine, renderer, replace(sampling, stop=tuple(OPENINGS.values())), seed, clock)
        if not isinstance(end, EngineFailure) and not (end == "length" and is_open_reason(draft.text)):
            _force(draft, renderer, OPENINGS[forced])
    end = await _sample(draft, engine, renderer, sampling, seed, clock)
    failure = end if isinstance(end, EngineFailure) else None
    return Turn(tuple(draft.said), draft.text, cut=end == "length", ended=end == "ended", failure=failure)


async def _sample(
    draft: _Draft,
    engine: Engine,
    renderer: Renderer,
    sampling: Sampling,
    seed: tuple[object, ...],
    clock: Clock,
) -> Literal["stop", "ended", "length"] | EngineFailure:
    """Go on with the draft until a stop string, the end of the turn, or its last token. A stop string inside open
    reasoning is only a mention: the turn goes on after it."""
    while draft.room > 0:
        segments = [*draft.talk, *draft.said]
        ids = tuple(token for segment in segments for token in segment.token_ids)
        prompt = TokenPrompt(ids, tuple(picture for segment in segments for picture in segment.images))
        draw = replace(sampling, max_tokens=draft.room, seed=request_seed(*seed, len(draft.said)))
        completion = await clock.waiting("engine", engine.generate(prompt, draw))
        if isinstance(completion, EngineFailure):
            return completion
        for ids, logprobs, version in completion.parts():
            draft.said.append(Segment("sampled", ids, trusted=False, sampled=Sampled(logprobs, version)))
        draft.room -= len(completion.token_ids)
        draft.text = renderer.decode(draft.ids)
        final = completion.token_ids[-1] if completion.token_ids else None
        if completion.finish == "stop" and (final in renderer.special_ids or not is_open_reason(draft.text)):
            return "ended" if final == renderer.end_of_turn else "stop"
    return "length"


def _force(draft: _Draft, renderer: Renderer, opening: str) -> None:
    """Let the draft end with `opening`: what was sampled of another opening, or of the turn's end, is taken back."""
    found = _OPENING.search(draft.text, draft.text.rfind("</reason>") + 1)
    if found is not None and found[0] == opening:
        return
    text = draft.text[: found.start()] if found is not None else draft.text
    kept = list(draft.ids)
    while kept and (kept[-1] in renderer.special_ids or not text.startswith(renderer.decode(kept))):
        kept.pop()
    # A token can hold the end of the reasoning and the beginning of a tag: the former is written again.
    rest = text[len(renderer.decode(kept)) :]
    draft.said = [*_first(draft.said, len(kept)), renderer.policy_turn(rest + opening)]
    draft.text = renderer.decode(draft.ids)
    draft.room -= len(draft.said[-1].token_ids)


def _first(said: Sequence[Segment], count: int) -> list[Segment]:
    """The first `count` sampled tokens."""
    kept: list[Segment] = []
    for segment in said:
        ids = segment.token_ids[:count]
        count -= len(ids)
        if ids and segment.sampled is not None:
            sampled = replace(segment.sampled, logprobs=segment.sampled.logprobs[: len(ids)])
            kept.append(replace(segment, token_ids=ids, sampled=sampled))
    return kept
