"""Questions, written by a language model: about a page (auto-vc), or from a question of an existing set (auto-txt)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmsr1.data.construct import prompts
from mmsr1.data.construct.asking import Model, field, quoted, texts
from mmsr1.data.construct.items import Given, No, Question, Source, Waiting
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.construct.sourcing import Web, page_with
from mmsr1.rewards.answer import exact_match
from mmsr1.tools.sanitize import neutralise, one_line
from mmsr1.types import Evidence, Picture

ALIASES = 40


class Writing:
    """The work of the stage `questions`. `language` is an ISO 639-1 code."""

    def __init__(self, model: Model, web: Web, shelf: Shelf, language: str) -> None:
        self._model, self._web, self._shelf = model, web, shelf
        self._language = prompts.LANGUAGES[language]

    async def __call__(self, source: Source) -> Question | No | Waiting:
        pictures = await asyncio.gather(*(asyncio.to_thread(self._shelf.get, name) for name in source.pictures))
        return await (self._write(source, pictures) if source.given is None else self._rewrite(source, pictures))

    async def _write(self, source: Source, pictures: list[Picture]) -> Question | No | Waiting:
        page = source.evidence[0]
        subject = one_line(neutralise(source.subject))
        system = prompts.WRITE.format(subject=subject, language=self._language, strangers=prompts.STRANGERS)
        shown = [quoted("titles", "\n".join(source.titles)), quoted("page", page.text)]
        return await self._model.read(lambda found: _question(source, found), system, *pictures, *shown)

    async def _rewrite(self, source: Source, pictures: list[Picture]) -> Question | No | Waiting:
        given = source.given
        assert given is not None
        system = prompts.REWRITE.format(language=self._language, strangers=prompts.STRANGERS)
        asked = quoted("question and answer", f"{given.question}\n{given.answer}")
        written = await self._model.read(lambda found: _rewritten(source, given, found), system, *pictures, asked)
        if not isinstance(written, tuple):
            return written
        question, query = written
        if source.evidence or not query:
            return question
        page = await page_with(self._web, query, question.truths)
        if isinstance(page, Waiting):
            return page
        if page is None:  # an existing set vouches for the answer; the page would only help the reviewer
            return question
        return replace(question, evidence=(Evidence(page.title, page.url, page.text[: self._web.page_characters]),))


def _question(source: Source, found: Mapping[str, Any]) -> Question | No:
    """Raises ValueError for an object that cannot be used."""
    if "question" in found and found["question"] is None:
        return No("no_question")
    question, answer = field(found, "question"), field(found, "answer")
    aliases = tuple(alias for alias in texts(found, "aliases") if alias != answer)
    return Question(**vars(source), question=question, answer=answer, aliases=aliases[:ALIASES])


def _rewritten(source: Source, given: Given, found: Mapping[str, Any]) -> tuple[Question, str] | No:
    """The question with the answer that it had, all its aliases, and what to search for. Raises ValueError."""
    written = _question(source, found)
    if isinstance(written, No):
        return written
    if not exact_match(written.answer, (given.answer, *given.aliases)):
        return No("answer_changed", f"{given.answer} became {written.answer}"[:200])
    aliases = dict.fromkeys((*given.aliases, *written.aliases, written.answer))
    aliases.pop(given.answer, None)
    query = found.get("query")
    kept = tuple(aliases)[: max(ALIASES, len(given.aliases))]
    return replace(written, answer=given.answer, aliases=kept), query.strip() if isinstance(query, str) else ""
