"""Which pictures and which questions were there before, or nearly the same ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from mmsr1.rewards.answer import normalise
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.descriptor import DIMENSIONS, describe
from mmsr1.tools.similar import Wording
from mmsr1.tools.text_search.words import passage_grams

CANDIDATES = 8  # pictures that are looked at closely, some 4 ms each
# Similarity of descriptions from which a closer look is worth its time, and likeness from which two pictures are one.
# Photographs cut by up to 20 %, re-encoded, resized, brightened or darkened by 20 %, or two of these at once, agree by
# 0.993 and 0.94 or more; different things by 0.967 and 0.90 at most.
COARSE, COPY = 0.975, 0.93


@dataclass(frozen=True)
class Look:
    """What is kept of a picture to know it again."""

    small: Image.Image
    described: Float[ndarray, "D"]

    @classmethod
    def at(cls, image: Image.Image) -> Look:
        described = describe(np.asarray(image))
        image.thumbnail((4 * fine.SIDE, 4 * fine.SIDE), Image.Resampling.BOX)
        return cls(image, described)


class Pictures:
    """The pictures so far, each with a name."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._described: Float[ndarray, "N D"] = np.empty((64, DIMENSIONS), dtype=np.float32)
        self._kept: UInt8[ndarray, "N 32 32 3"] = np.empty((64, fine.SIDE, fine.SIDE, 3), dtype=np.uint8)

    def same(self, look: Look) -> str | None:
        """The name of the picture that this one is a copy of, None if there is none."""
        count = len(self._names)
        alike = self._described[:count] @ look.described
        near = np.argsort(-alike, kind="stable")[:CANDIDATES]
        near = near[alike[near] >= COARSE]
        if not len(near):
            return None
        scores = fine.likeness(look.small, self._kept[near])
        best = int(scores.argmax())
        return self._names[near[best]] if scores[best] >= COPY else None

    def add(self, name: str, look: Look) -> None:
        count = len(self._names)
        if count == len(self._described):
            self._described = np.concatenate([self._described, np.empty_like(self._described)])
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._described[count], self._kept[count] = look.described, fine.shrink(look.small)
        self._names.append(name)


@dataclass
class Questions:
    """The questions so far by their answers: only those with an answer in common are compared.

    `likeness` is the share of words in common (0 to 1) from which two wordings ask the same.
    """

    likeness: float
    _by_answer: dict[str, list[tuple[str, Wording]]] = field(default_factory=dict)

    def same(self, question: str, truths: tuple[str, ...]) -> str | None:
        """The name of a question that asks the same for the same answer, None if there is none."""
        wording = _wording(question)
        for key in _keys(truths):
            for name, other in self._by_answer.get(key, ()):
                if wording.likeness(other) >= self.likeness:
                    return name
        return None

    def add(self, name: str, question: str, truths: tuple[str, ...]) -> None:
        wording = _wording(question)
        for key in _keys(truths):
            self._by_answer.setdefault(key, []).append((name, wording))


def _wording(question: str) -> Wording:
    """Of a script without spaces its pairs of characters are the words."""
    return Wording.of(f"{question} {grams}" if (grams := passage_grams(question)) else question)


def _keys(truths: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(key for truth in truths if (key := normalise(truth) or truth.strip())))
