"""What passes from stage to stage: seed -> source -> question -> class. Each type holds all that came before it.

Every row of a stage's file is one of these as JSON, readable by itself. All texts are untrusted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from mmsr1.types import Evidence

Origin = Literal["auto-vc", "auto-txt"]


@dataclass(frozen=True)
class Given:
    """A question of an existing set, with its answer."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What a question is to be made of: a concept (auto-vc), or a question of an existing set (auto-txt).

    `subject` is the concept, empty where nobody says what is shown. `pictures` are files below the output folder.
    """

    id: str
    origin: Origin
    subject: str
    source: str
    given: Given | None = None
    pictures: tuple[str, ...] = ()
    licence: str = ""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source(Seed):
    """A seed with its picture, the titles that stand beside that on the web, and the page as far as it is read."""

    titles: tuple[str, ...] = ()
    picture_url: str = ""


@dataclass(frozen=True, kw_only=True)
class Question(Source):
    """A source with what is asked about it."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()

    @property
    def truths(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)


@dataclass(frozen=True, kw_only=True)
class Labelled(Question):
    """A question with its class; empty if the model named none of those there are."""

    taxonomy: str


@dataclass(frozen=True)
class No:
    """Why an item is dropped: one of `REASONS`, and what is to be said of this one."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Waiting:
    """Why an item cannot be gone on with now: a service failed. `final`: nor can any other, until somebody mends it."""

    detail: str
    final: bool = False


@dataclass(frozen=True)
class Dropped:
    """A line of dropped.jsonl."""

    id: str
    stage: str
    reason: str
    detail: str
    about: str = ""


In = TypeVar("In", bound=Seed)
Out = TypeVar("Out", bound=Seed)
Work = Callable[[In], Awaitable[Out | No | Waiting]]

# In words for people, by what dropped.jsonl says.
REASONS = {
    "bad_line": "a line of the concept list that holds no concept",
    "bad_row": "a row of an existing set that cannot be used",
    "duplicate_concept": "a concept that was there before",
    "no_pictures": "the search found no picture",
    "no_usable_picture": "no picture could be fetched, decoded, or was large enough",
    "no_page": "no page on the concept could be read",
    "duplicate_picture": "the same or nearly the same picture was there before",
    "test_picture": "the same or nearly the same picture is in a file of `against`",
    "refused": "the model would not write",
    "malformed": "the model never wrote what was asked for",
    "no_question": "the model found nothing to ask",
    "answer_changed": "the model changed the answer of an existing question",
    "not_taken": "a service does not take the request",
    "question_long": "the question is too long",
    "answer_long": "the answer is too long",
    "wrong_language": "the question is in another language",
    "names_subject": "the question names what the picture shows",
    "answer_in_question": "the question holds its answer",
    "answer_in_title": "the title of the page or picture holds the answer",
    "duplicate_question": "nearly the same question with the same answer was there before",
    "test_question": "nearly the same question with the same answer is in a file of `against`",
    "text_only": "answered without the picture",
    "unanswerable": "the page and the picture do not give the answer",
    "ambiguous": "more than one answer is right",
    "service_failed": "a service failed for this item alone, again and again",
}
