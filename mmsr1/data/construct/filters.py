"""What can be said of a question without asking anybody, and what was there before: in this set, or in a test set."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mmsr1.data.construct.alike import Look, Pictures, Questions
from mmsr1.data.construct.items import No, Question, Source
from mmsr1.data.construct.language import in_script
from mmsr1.data.construct.photos import Shelf
from mmsr1.rewards.answer import exact_match, substring_match
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.types import Example


@dataclass(frozen=True)
class Limits:
    """Lengths, and whether titles may hold answers: `all` drops every answer that a title holds, `facts` keeps those
    that name what the picture shows (an image search is there to find that), `none` keeps all."""

    language: str = "en"
    question_words: int = 40
    question_characters: int = 300
    answer_words: int = 8
    answer_characters: int = 80
    title_leak: str = "facts"
    likeness: float = 0.7


@dataclass
class Against:
    """How much there is in a file of `against`."""

    path: str
    rows: int = 0
    unusable: int = 0


@dataclass
class Others:
    """The pictures and questions of test sets; a name is (file, id) in one text."""

    likeness: float
    files: list[Against] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)

    def __post_init__(self) -> None:
        self.questions = Questions(self.likeness)

    def read(self, path: str, rows: Iterable[object]) -> None:
        """Take in a file; rows that are no examples are counted."""
        file = Against(path)
        self.files.append(file)
        for row in rows:
            if not isinstance(row, Example):
                file.unusable += 1
                continue
            file.rows += 1
            name = f"{len(self.files) - 1} {row.id}"
            self.questions.add(name, row.question, (row.answer, *row.aliases))
            for picture in row.images:
                try:
                    self.pictures.add(name, Look.at(decode(picture)))
                except BadPicture:
                    continue

    def told(self, name: str) -> str:
        """The file and the id, for people; the file comes first."""
        number, _, id = name.partition(" ")
        return f"{self.files[int(number)].path}: {id}"


class NewPictures:
    """The work of the stage `pictures`: at most `per_picture` items for a picture, none with a picture of a test set.

    Items come in their order; `known` is told of those that an earlier process let pass.
    """

    def __init__(self, shelf: Shelf, others: Others, per_picture: int) -> None:
        self._shelf, self._others, self._per_picture = shelf, others, per_picture
        self._seen, self._uses = Pictures(), Counter[str]()

    async def __call__(self, source: Source) -> Source | No:
        return await asyncio.to_thread(self._judge, source)

    def known(self, source: Source) -> None:
        for look in self._looks(source):
            self._use(source, look, self._seen.same(look))

    def _judge(self, source: Source) -> Source | No:
        looks = self._looks(source)
        copies = [self._seen.same(look) for look in looks]
        for look, name in zip(looks, copies, strict=True):
            test = self._others.pictures.same(look)
            if test is not None:
                return No("test_picture", self._others.told(test))
            if name is not None and self._uses[name] >= self._per_picture:
                return No("duplicate_picture", f"as {name}")
        for look, name in zip(looks, copies, strict=True):
            self._use(source, look, name)
        return source

    def _looks(self, source: Source) -> list[Look]:
        return [Look.at(decode(self._shelf.get(picture))) for picture in source.pictures]

    def _use(self, source: Source, look: Look, name: str | None) -> None:
        if name is None:
            self._seen.add(source.id, look)
        self._uses[name or source.id] += 1


class NewQuestions:
    """The work of the stage `filtered`; as `NewPictures`."""

    def __init__(self, limits: Limits, others: Others) -> None:
        self._limits, self._others = limits, others
        self._seen = Questions(limits.likeness)

    async def __call__(self, question: Question) -> Question | No:
        if (why := wrong(question, self._limits)) is not None:
            return why
        test = self._others.questions.same(question.question, question.truths)
        if test is not None:
            return No("test_question", self._others.told(test))
        name = self._seen.same(question.question, question.truths)
        if name is not None:
            return No("duplicate_question", f"as {name}")
        self.known(question)
        return question

    def known(self, question: Question) -> None:
        self._seen.add(question.id, question.question, question.truths)


def wrong(question: Question, limits: Limits) -> No | None:
    """What is wrong with it by its words alone."""
    asked, answer, subject = question.question, question.answer, question.subject
    if len(asked.split()) > limits.question_words or len(asked) > limits.question_characters:
        return No("question_long", f"{len(asked.split())} words, {len(asked)} characters")
    if len(answer.split()) > limits.answer_words or len(answer) > limits.answer_characters:
        return No("answer_long", f"{len(answer.split())} words, {len(answer)} characters")
    if not in_script(asked, limits.language):
        return No("wrong_language", "another script")
    if leak := next((truth for truth in question.truths if substring_match(asked, (truth,))), None):
        return No("answer_in_question", leak[:80])
    # A concept in small letters is a kind of thing: "which breed is this dog?" may name it.
    if subject != subject.lower() and substring_match(asked, (subject,)):
        return No("names_subject", subject)
    names_it = subject != "" and exact_match(subject, question.truths)
    if limits.title_leak == "none" or (limits.title_leak == "facts" and names_it):
        return None
    leaking = next((title for title in question.titles if substring_match(title, question.truths)), None)
    return None if leaking is None else No("answer_in_title", leaking[:120])
