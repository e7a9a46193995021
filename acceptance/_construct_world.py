"""Two hundred things that a construction is to ask about, and what is wrong with each of them.

A thing has a name, pictures, pages, and what a language model says of it. Its fate decides which of these is spoilt;
all follows from its number, so that a run that was killed meets the same world again.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from acceptance._fake_pages import HOSTILE

# How many things have which fate; all others are as they should be.
FATES = {
    "same_picture": 10,
    "same_question": 10,
    "title_leak": 10,
    "question_leak": 6,
    "names_itself": 4,
    "text_only": 14,
    "german": 5,
    "japanese": 3,
    "long_answer": 6,
    "unanswerable": 8,
    "ambiguous": 6,
    "refuses": 6,
    "refuses_once": 10,
    "malformed": 4,
    "malformed_once": 16,
    "no_page": 5,
    "no_picture": 5,
    "no_hits": 3,
    "test_picture": 6,
    "test_question": 6,
}
# The reasons that are right for a fate; none for one that is to be kept.
REASONS = {
    "same_picture": ("duplicate_picture",),
    "same_question": ("duplicate_question",),
    "title_leak": ("answer_in_title",),
    "question_leak": ("answer_in_question",),
    "names_itself": ("names_subject",),
    "text_only": ("text_only",),
    "german": ("wrong_language",),
    "japanese": ("wrong_language",),
    "long_answer": ("answer_long",),
    "unanswerable": ("unanswerable",),
    "ambiguous": ("ambiguous",),
    "refuses": ("refused",),
    "malformed": ("malformed",),
    "no_page": ("no_page",),
    "no_picture": ("no_usable_picture",),
    "no_hits": ("no_pictures",),
    "test_picture": ("test_picture",),
    "test_question": ("test_question",),
}
THINGS = 200
SHOWN = 5  # pictures that the search lists for a thing
_FIRST = ("Var", "Mol", "Tes", "Bran", "Cor", "Fel", "Hes", "Jor", "Kal", "Lum", "Nar", "Ost", "Pel", "Quin", "Ros")
_SECOND = ("del", "mar", "vik", "ton", "ric", "bard", "nia", "los", "wen", "gard", "sel", "tha", "rock", "fell")
_KINDS = ("tower", "bridge", "museum", "fountain", "castle", "chapel", "theatre", "lighthouse", "library", "mill")
_LOOKS = ("amber", "slate", "copper", "ivory", "crimson", "mossy", "striped", "gilded", "timbered", "domed", "tiled")
_BESIDE = ("lion", "elm", "clock", "canal", "statue", "arcade", "well", "orchard", "gate", "staircase", "obelisk")
_DEEDS = (("designed", "designer"), ("founded", "founder"), ("financed", "financier"))
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """`twin` is the thing whose picture or question this one repeats."""

    number: int
    fate: str
    twin: int | None = None

    @property
    def name(self) -> str:
        draw = random.Random(f"name-{self.number}")
        return f"{draw.choice(_FIRST)}{draw.choice(_SECOND)} {self.kind.title()} {_roman(self.number)}"

    @property
    def kind(self) -> str:
        return _KINDS[self.asked % len(_KINDS)]

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "_")

    @property
    def asked(self) -> int:
        """The number of the thing whose question is asked."""
        return self.twin if self.twin is not None and self.fate == "same_question" else self.number

    @property
    def answer(self) -> str:
        draw = random.Random(f"answer-{self.asked}")
        first, second = (draw.choice(_FIRST) + draw.choice(_SECOND) for _ in range(2))
        return f"{first.title()} {second.title()}{_roman(self.asked).lower()}"

    @property
    def question(self) -> str:
        look, beside = _LOOKS[self.asked % 11], _BESIDE[self.asked // 11 % 11]
        deed, doer = _DEEDS[self.asked % 3]
        scene = f"{look} {self.kind} beside the {beside} no. {self.asked}"
        if self.fate == "same_question":
            return f"Who was the {doer} of the {scene} in this picture?"
        if self.fate == "question_leak":
            return f"Did {self.answer} or somebody else have the {scene} in this picture {deed}?"
        if self.fate == "names_itself":
            return f"Who {deed} {self.name}, the {scene}?"
        if self.fate == "german":
            return f"Von wem stammt das Bauwerk ({scene}) auf diesem Bild?"
        if self.fate == "japanese":
            return f"この写真に写っている建物を設計したのは誰ですか。番号は{self.asked}です。"
        return f"Who {deed} the {scene} in this picture?"

    @property
    def test_question(self) -> str:
        """Nearly the same, as a test set has it."""
        return f"{self.question.removesuffix('?').replace('in this', 'shown in the')}?"

    @property
    def spoken_answer(self) -> str:
        """What the model gives as the answer."""
        wordy = f"the answer to this is that it was, as the chronicle of the town says at length, {self.answer}"
        return wordy if self.fate == "long_answer" else self.answer

    @property
    def title(self) -> str:
        return f"{self.name}, the work of {self.answer}" if self.fate == "title_leak" else f"{self.name} - a visit"

    @property
    def page(self) -> str:
        draw = random.Random(f"page-{self.number}")
        filler = " ".join(draw.choice(_FILLER) for _ in range(draw.randrange(5, 60)))
        hostile = f"{HOSTILE}\n\n" if self.number % 7 == 3 else ""
        fact = f"{self.name} stands beside the old market. It was the work of {self.answer}, who came from afar."
        return f"{hostile}# {self.name}\n\n{fact}\n\n{filler}"

    @property
    def pages(self) -> tuple[str, str]:
        return f"https://encyclo.example/wiki/{self.slug}", f"https://travel.example.org/{self.slug}?tour=1"


_FILLER = (
    "The square in front of it is a market on Saturdays.",
    "Its walls were mended twice in the last century.",
    "Visitors come by tram, and most of them stay for an hour.",
    "In winter the doors are closed at four.",
    "A plan of the ground floor hangs in the hall.",
)


@lru_cache
def things() -> tuple[Thing, ...]:
    """All things in the order of the concept list. A twin comes after the one whose picture or question it repeats."""
    draw = random.Random("fates")
    numbers = list(range(THINGS))
    draw.shuffle(numbers)
    fates: dict[int, tuple[str, int | None]] = {}
    good = numbers[sum(FATES.values()) :]
    twins = iter(sorted(good))
    for fate, count in FATES.items():
        for _ in range(count):
            number = numbers.pop(0)
            twin = next(twins) if fate in ("same_picture", "same_question") else None
            fates[number] = fate, twin
    listed = [Thing(number, *fates.get(number, ("good", None))) for number in range(THINGS)]
    return tuple(sorted(listed, key=lambda thing: thing.twin is not None))


def picture(thing: Thing, version: int) -> bytes:
    """A JPEG of the thing; versions are what different sites make of one photograph, and so are those of its twin."""
    number = thing.twin if thing.twin is not None and thing.fate == "same_picture" else thing.number
    draw = random.Random(f"version-{thing.number}-{version}")
    image = _photograph(number)
    if version or number != thing.number:
        cut = draw.uniform(0.0, 0.06)
        wide, high = image.size
        image = image.crop((int(wide * cut), int(high * cut / 2), int(wide * (1 - cut / 2)), int(high * (1 - cut))))
        image = ImageEnhance.Brightness(image).enhance(draw.uniform(0.88, 1.12))
        image = image.resize((draw.randrange(240, 420), draw.randrange(200, 300)))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=draw.randrange(60, 92))
    return stream.getvalue()


@cache
def _photograph(number: int) -> Image.Image:
    """Shapes before a sky, soft as a photograph is, and no two alike."""
    draw = random.Random(f"photograph-{number}")

    def colour() -> tuple[int, int, int]:
        return draw.randrange(256), draw.randrange(256), draw.randrange(256)

    image = Image.new("RGB", (400, 300), colour())
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = draw.randrange(-40, 380), draw.randrange(-40, 280)
        wide, high = draw.randrange(20, 220), draw.randrange(20, 200)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape((x, y, x + wide, y + high), fill=colour())
    return image.filter(ImageFilter.GaussianBlur(1.5))


def _roman(number: int) -> str:
    """A number as letters, so that names and answers are all different and none is a number."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
