"""What only a model can say of a question: can it be answered without the picture, and with it, and in one way only?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmsr1.data.construct import prompts
from mmsr1.data.construct.asking import Model, quoted, texts
from mmsr1.data.construct.items import Labelled, No, Question, Waiting
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.construct.sourcing import excerpt
from mmsr1.rewards.answer import substring_match
from mmsr1.tools.providers.fields import encodable
from mmsr1.types import Evidence


@dataclass(frozen=True)
class _Solved:
    answer: str
    others: tuple[str, ...]
    unambiguous: bool
    language: str


class Checking:
    """The work of the stage `checked`. A question falls if more than `allowed` of `guesses` answers that were given
    without the picture are right; the cheap requests come first, and no more of them than are needed."""

    def __init__(self, model: Model, shelf: Shelf, language: str, guesses: int, allowed: int, words: int) -> None:
        self._model, self._shelf, self._language = model, shelf, language
        self._guesses, self._allowed, self._words = guesses, allowed, words

    async def __call__(self, question: Question) -> Question | No | Waiting:
        fault = await self._guessed(question) or await self._unsolved(question)
        if fault is not None:
            return fault
        kept = tuple(Evidence(page.title, page.url, excerpt(page.text, question.truths)) for page in question.evidence)
        return replace(question, evidence=kept)

    async def _guessed(self, question: Question) -> No | Waiting | None:
        language = prompts.LANGUAGES[self._language]
        system, right = prompts.GUESS.format(language=language, words=self._words), 0
        for seed in range(self._guesses):
            said = await self._model.say(system, quoted("question", question.question), seed=seed)
            if not isinstance(said, str):
                return said
            right += substring_match(said, question.truths)
            if right > self._allowed:
                return No("text_only", f"{right} of {seed + 1} guesses were right")
        return None

    async def _unsolved(self, question: Question) -> No | Waiting | None:
        """What is wrong for somebody who has the picture and the page; None if nothing is."""
        pictures = await asyncio.gather(*(asyncio.to_thread(self._shelf.get, name) for name in question.pictures))
        pages = [quoted("page", f"{page.title}\n\n{page.text}") for page in question.evidence]
        there = {"page": " and a page about what it shows", "read": " and what the page says"}
        none = {"page": "", "read": " and know"}
        system = prompts.SOLVE.format(**(there if pages else none), strangers=prompts.STRANGERS)
        solved = await self._model.read(_solved, system, *pictures, *pages, quoted("question", question.question))
        if not isinstance(solved, _Solved):
            return solved
        if solved.language and solved.language != self._language:
            return No("wrong_language", solved.language[:20])
        # Without a page an existing set vouches for the answer, and what a model knows does not count against it.
        if pages and not _agree(solved.answer, question.truths):
            return No("unanswerable", f"the page gives {solved.answer or 'nothing'}"[:200])
        others = [other for other in solved.others if not _agree(other, question.truths)]
        if not solved.unambiguous or others:
            return No("ambiguous", ", ".join(others)[:200])
        return None


class Labelling:
    """The work of the stage `labelled`. `classes` are names with what belongs to each."""

    def __init__(self, model: Model, classes: Mapping[str, str]) -> None:
        self._model, self._classes = model, classes
        listed = "\n".join(f"- {name}: {what}" for name, what in classes.items())
        self._system = prompts.LABEL.format(classes=listed, strangers=prompts.STRANGERS)

    async def __call__(self, question: Question) -> Labelled | No | Waiting:
        about = f"{question.subject}\n{question.question}\n{question.answer}"
        label = await self._model.read(self._label, self._system, quoted("question", about.strip()))
        if isinstance(label, Waiting):
            return label
        # A question is not lost for want of a class: a reviewer, or nobody, gives it one.
        return Labelled(**vars(question), taxonomy="" if isinstance(label, No) else label)

    def _label(self, found: Mapping[str, Any]) -> str:
        """Raises ValueError for a class that there is not."""
        named = str(found.get("class", "")).strip().casefold()
        for name in self._classes:
            if name.casefold() == named:
                return name
        raise ValueError("no class of the list")


def _solved(found: Mapping[str, Any]) -> _Solved:
    """Raises ValueError for an object that cannot be used."""
    if "answer" not in found or not isinstance(found.get("unambiguous"), bool):
        raise ValueError("answer or unambiguous is missing")
    answer = found["answer"]
    language = found.get("language")
    return _Solved(
        "" if answer is None else " ".join(encodable(str(answer)).split()),
        texts(found, "other_answers"),
        found["unambiguous"],
        language.strip().casefold()[:2] if isinstance(language, str) else "",
    )


def _agree(said: str, truths: tuple[str, ...]) -> bool:
    """Whether one of the two holds the other: "Paris, France" and "Paris" are the same answer."""
    return substring_match(said, truths) or any(substring_match(truth, (said,)) for truth in truths if said)
