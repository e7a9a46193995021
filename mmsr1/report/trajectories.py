"""Sample trajectories: one question of each kind, at the first and at the last validation, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr1.report.film import Record, clip
from mmsr1.report.outcomes import Outcome, outcome_of
from mmsr1.rollout.protocol import TAGS

NEEDS = {
    "free": "no search needed",
    "image": "image search needed",
    "text": "text search needed",
    "both": "image and text search needed",
    "required": "some search needed",
    "unknown": "need not labelled",
}
_LONGEST_TURN = 1500
_TAG = re.compile(rf"(</?(?:{'|'.join(TAGS)})>)")


@dataclass(frozen=True)
class Turn:
    """What the model wrote, cut at the protocol's tags (`pieces`: text, is it a tag), and the calls it led to."""

    pieces: tuple[tuple[str, bool], ...]
    calls: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Take:
    """One question answered at one step."""

    step: int
    outcome: Outcome
    stop: str
    turns: tuple[Turn, ...]
    reward: float | None
    parts: Mapping[str, float | None]
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A question with its takes: early and late, or one where there was one validation."""

    need: str
    question: str
    truth: str
    picture: str | None
    takes: tuple[Take, ...]


def choose_samples(validation: Mapping[int, Sequence[Record]]) -> list[Sample]:
    """For each search need, the first question whose outcome changed from first to last step, else the first one."""
    if not validation:
        return []
    steps = sorted({min(validation), max(validation)})
    by_step = [{record["example_id"]: record for record in validation[step]} for step in steps]
    samples = []
    for need, label in NEEDS.items():
        asked = [
            [records[name] for records in by_step]
            for name, record in by_step[0].items()
            if record["search_need"] == need and all(name in records for records in by_step)
        ]
        if asked:
            takes = next((t for t in asked if outcome_of(t[0]) != outcome_of(t[-1])), asked[0])
            samples.append(_sample(label, takes, steps))
    return samples


def sample_pictures(samples: Sequence[Sample]) -> Iterator[str]:
    """Digests of all pictures that the samples show; may repeat."""
    for sample in samples:
        if sample.picture:
            yield sample.picture
        for take in sample.takes:
            items = (item for turn in take.turns for call in turn.calls for item in call["items"])
            yield from (item["thumbnail"] for item in items if item["thumbnail"])


def _sample(need: str, records: Sequence[Record], steps: Sequence[int]) -> Sample:
    first = records[0]
    return Sample(
        need=need,
        question=clip(first["question"], _LONGEST_TURN),
        truth=clip(first["answer"]),
        picture=first["images"][0] if first["images"] else None,
        takes=tuple(_take(record, step) for record, step in zip(records, steps, strict=True)),
    )


def _take(record: Record, step: int) -> Take:
    turns = [
        Turn(_pieces(text), tuple(call for call in record["calls"] if call["turn"] == number))
        for number, text in enumerate(record["turns"])
    ]
    reward = record["reward"]
    return Take(
        step=step,
        outcome=outcome_of(record),
        stop=record["stop"],
        turns=tuple(turns),
        reward=reward["total"],
        parts=reward["parts"],
        seconds=record["timings"]["total_s"],
    )


def _pieces(text: str) -> tuple[tuple[str, bool], ...]:
    pieces = _TAG.split(clip(text, _LONGEST_TURN))
    return tuple((piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece)
