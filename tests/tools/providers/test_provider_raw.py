"""Raw answers: read once where they are fresh; a page that refuses is paid for and asked once."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from adapters import ARTICLE, BY_NAME, PAGE, QUERY
from fake_api import FakeApi, Say
from stack import Shelf, ask

from mmsr1.tools.base import Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.providers import raw as raw_module
from mmsr1.tools.providers import text_provider
from mmsr1.tools.providers.raw import BLOCKED_S, Fresh, ParsedPart, RawBackend

WALL = {"data": {"title": "Just a moment...", "content": "Verify you are human", "usage": {"tokens": 1_000}}}
GOOD = {"data": {"title": "The tower", "content": ARTICLE}}


def test_a_fresh_answer_is_read_once_and_a_kept_one_when_it_is_used(api: FakeApi, shelf: Shelf) -> None:
    adapter, read = BY_NAME["serper_search"], []
    api.reset(everything=Say(adapter.good))

    def make(url: str, **access: Any) -> Any:
        provider = adapter.make(url, **access)
        parse = provider.parse
        provider.parse = lambda raw, query: read.append(query) or parse(raw, query)
        return provider

    counted = replace(adapter, make=make)
    outcomes = [ask(counted, api, shelf) for _ in range(2)]
    assert [outcome.value for outcome in outcomes] == [adapter.value] * 2
    assert [outcome.cached for outcome in outcomes] == [False, True] and read == [QUERY, QUERY]


def test_what_was_read_for_one_query_or_by_one_parser_is_not_taken_for_another() -> None:
    provider, other = text_provider("serper"), text_provider("serper")
    for one in (provider, other):
        one.parse = lambda raw, query: f"{query}: {json.loads(raw)}"

    class Part:
        name, backend, price_usd = "p", "b", 0.0

        async def __call__(self, query: str) -> Outcome[str]:
            return Outcome("ok", Fresh.read("1", provider, "a", "of a"))

    def said(by: Any, query: str) -> Any:
        return asyncio.run(ParsedPart(Part(), by)(query)).value

    assert (said(provider, "a"), said(provider, "b"), said(other, "a")) == ("of a", "b: 1", "a: 1")


def reader(api: FakeApi) -> ParsedPart[Any, Any]:
    """Pages of the reader service, each asked for once."""
    provider = BY_NAME["jina_reader"].make(api.url, timeout_s=5.0)
    once = CallPolicy(attempts=1, timeout_s=5.0, deadline_s=10.0, rate_per_s=1e3, concurrent=4)
    return ParsedPart(Guarded(RawBackend(provider), once, Breaker()), provider)


def outcomes_of(part: ParsedPart[Any, Any], *urls: str) -> list[Outcome[Any]]:
    async def all_of_them() -> list[Outcome[Any]]:
        return [await part(url) for url in urls]

    return asyncio.run(all_of_them())


def test_a_page_that_refuses_is_asked_and_paid_once_and_again_after_some_minutes(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(raw_module, "monotonic", lambda: now)
    part = reader(api)
    api.reset(everything=Say(WALL))
    first, second, other = outcomes_of(part, PAGE.url, PAGE.url, f"{PAGE.url}?other")
    assert {outcome.status for outcome in (first, second, other)} == {"infrastructure_error"}
    assert first.detail == second.detail and first.detail.startswith("blocked: ") and len(api.asked) == 2
    assert (first.paid_usd, second.paid_usd) == (pytest.approx(1_000 * 0.05 / 1e6), 0.0)
    assert second.cached and not first.cached and not other.cached
    api.reset(everything=Say(GOOD))
    now += BLOCKED_S - 1
    assert outcomes_of(part, PAGE.url)[0].status == "infrastructure_error" and api.asked == []
    now += 2
    assert outcomes_of(part, PAGE.url)[0].status == "ok" and len(api.asked) == 1


def test_nothing_else_that_fails_is_remembered(api: FakeApi) -> None:
    api.reset(everything=[Say(b"", 503), Say(b"{", 200), Say(b"", 429), Say(GOOD)])
    found = outcomes_of(reader(api), *[PAGE.url] * 4)
    assert [outcome.detail.partition(":")[0] for outcome in found] == ["transient", "broken", "throttled", ""]
    assert found[-1].status == "ok"


def test_what_is_remembered_is_bounded(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_module, "BLOCKED_PAGES", 2)
    part = reader(api)
    api.reset(everything=Say(WALL))
    outcomes_of(part, *(f"{PAGE.url}?{n}" for n in (1, 2, 3)))
    assert len(api.asked) == 3
    outcomes_of(part, f"{PAGE.url}?3", f"{PAGE.url}?2", f"{PAGE.url}?1")
    assert len(api.asked) == 4, "the first was forgotten"
