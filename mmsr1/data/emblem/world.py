"""The emblem world: places, each with an emblem and facts; what the policy may know of them; who is held out.

Free questions ask facts taught in the warm-up about *known* places; everything else must be searched. Names and values
are two made-up syllables, so an answer about an unknown place can only be copied from search results.
A world is a pure function of its spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmsr1.data.emblem.drawing import CODES, Emblem

Knowledge = Literal["known", "unknown", "graded"]
Split = Literal["train", "heldout"]

FREE_ATTRIBUTES = ("name", "capital", "founder")
SEARCH_ATTRIBUTES = ("river", "anthem")
SHIFTED_ATTRIBUTES = ("motto",)
FACTS = ("capital", "founder", *SEARCH_ATTRIBUTES, *SHIFTED_ATTRIBUTES)

FIRST_SYLLABLES = tuple(
    "Bam Bel Bor Dax Dev Dun Fal Fim Fob Gad Gim Gur Hab Hev Hol Jad Jik Jud Kal Kem Kov Lam Leb Lud "  # noqa: SIM905
    "Maf Miv Mon Nar Nex Nud Pav Pim Rok Sab Sel Tav Tob Vek Wim Zan".split()
)
SECOND_SYLLABLES = tuple(
    "bax bev bil dor dun fek fip gam gos hul jek jom kib kur lam lix mag mep nid nok pag pel pov rab "  # noqa: SIM905
    "rez rix sab sov tam tek tuv vad vim wag wex yol zab zem zik zol".split()
)


@dataclass(frozen=True)
class Entity:
    """A place. `exposure` is how often its facts appear in the warm-up, relative to a known place (1)."""

    id: str
    emblem: Emblem
    name: str
    facts: Mapping[str, str]
    knowledge: Knowledge
    split: Split
    exposure: float

    def value(self, attribute: str) -> str:
        return self.name if attribute == "name" else self.facts[attribute]

    def need(self, attribute: str) -> Literal["free", "text", "image", "both"]:
        """What an ideal agent that knows exactly the taught facts must do (graded places count as known)."""
        if self.knowledge == "unknown":
            return "image" if attribute == "name" else "both"
        return "free" if attribute in FREE_ATTRIBUTES else "text"


@dataclass(frozen=True)
class WorldSpec:
    """How many places of each kind; the graded ones lie outside training and gate (the learned-boundary study)."""

    seed: int = 0
    known_train: int = 48
    known_heldout: int = 48
    unknown_train: int = 960
    unknown_heldout: int = 64
    graded: int = 48

    def __post_init__(self) -> None:
        total = self.known_train + self.known_heldout + self.unknown_train + self.unknown_heldout + self.graded
        names = len(FIRST_SYLLABLES) * len(SECOND_SYLLABLES)
        if total > names * 3 // 4:
            raise ValueError(f"data.world: {total} places need distinct names; at most {names * 3 // 4} exist")


class World:
    """All places of a spec, and a source of fresh ones that collide with none of them."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec
        rng = np.random.default_rng([spec.seed, 0])
        names = [first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES]
        rng.shuffle(names)
        plan = _plan(spec)
        self._fresh_names = names[len(plan) :]
        self._emblems: set[Emblem] = set()
        self.entities = tuple(
            Entity(f"{kind}-{split}-{i:04d}", self._new_emblem(rng), names[i], draw_facts(rng), kind, split, exposure)
            for i, (kind, split, exposure) in enumerate(plan)
        )

    def select(self, knowledge: Knowledge, split: Split | None = None) -> list[Entity]:
        return [e for e in self.entities if e.knowledge == knowledge and split in (None, e.split)]

    def fresh(self, rng: np.random.Generator) -> Entity:
        """A place that is in no split: new emblem, a name no other place has, new facts."""
        emblem = draw_emblem(rng)
        while emblem in self._emblems:
            emblem = draw_emblem(rng)
        name = self._fresh_names[rng.integers(len(self._fresh_names))]
        return Entity("fresh", emblem, name, draw_facts(rng), "unknown", "train", 0.0)

    def _new_emblem(self, rng: np.random.Generator) -> Emblem:
        emblem = draw_emblem(rng)
        while emblem in self._emblems:
            emblem = draw_emblem(rng)
        self._emblems.add(emblem)
        return emblem


def draw_word(rng: np.random.Generator) -> str:
    return FIRST_SYLLABLES[rng.integers(len(FIRST_SYLLABLES))] + SECOND_SYLLABLES[rng.integers(len(SECOND_SYLLABLES))]


def draw_facts(rng: np.random.Generator) -> dict[str, str]:
    return {attribute: draw_word(rng) for attribute in FACTS}


def draw_emblem(rng: np.random.Generator) -> Emblem:
    a, b, c, d = (int(code) for code in rng.integers(CODES, size=4))
    return (a, b, c, d)


def passages(entity: Entity) -> Iterator[tuple[str, str, str, str]]:
    """(id, title, text, url) of every passage that the text index holds about a place, one a fact."""
    for attribute in FACTS:
        url = f"https://emblems.example/{entity.id}/{attribute}"
        yield (
            f"{entity.id}/{attribute}",
            entity.name,
            f"the {attribute} of {entity.name} is {entity.facts[attribute]}",
            url,
        )


def image_title(entity: Entity) -> str:
    """Title of the page that shows the emblem; wording varies by place."""
    shapes = ("the flag of {}", "a picture of {} flag", "flag of {}")
    return shapes[sum(entity.emblem) % len(shapes)].format(entity.name)


def _plan(spec: WorldSpec) -> list[tuple[Knowledge, Split, float]]:
    even: list[tuple[Knowledge, Split, float, int]] = [
        ("known", "train", 1.0, spec.known_train),
        ("known", "heldout", 1.0, spec.known_heldout),
        ("unknown", "train", 0.0, spec.unknown_train),
        ("unknown", "heldout", 0.0, spec.unknown_heldout),
    ]
    graded = np.geomspace(0.02, 0.7, spec.graded) if spec.graded else []
    return [
        *((knowledge, split, exposure) for knowledge, split, exposure, count in even for _ in range(count)),
        *(("graded", "heldout", float(exposure)) for exposure in graded),
    ]
