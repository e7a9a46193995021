"""Search, pages, summaries: which pages are read, what a call costs, and what failures become."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr1.tools.base import Outcome, Tool
from mmsr1.tools.blocklist import Blocklist
from mmsr1.tools.text_search.web import TEXT_CHARACTERS, WebTextSearch
from mmsr1.tools.web_types import Page, WebHit
from mmsr1.types import ToolItem, ToolResult
from tests.tools.scripted import ScriptedPart, lost, ok, over


def hits(count: int) -> tuple[WebHit, ...]:
    return tuple(WebHit(f"title {n}", f"https://{n}.example/page", f"snippet {n}") for n in range(count))


def number(url: str) -> int:
    return int(url.split("//")[1].split(".")[0])


class Web:
    """A search for `count` hits; pages and summaries fail as `pages` and `summaries` say by rank (default: none)."""

    def __init__(
        self,
        count: int = 10,
        pages: dict[int, Outcome[Any]] | None = None,
        summaries: dict[int, Outcome[Any]] | None = None,
        wait: Callable[[Any], int] = lambda _: 1,
        found: Outcome[Any] | None = None,
        **options: Any,
    ) -> None:
        bad_pages, bad_summaries = pages or {}, summaries or {}
        self.search = ScriptedPart("search", lambda _: found or ok(hits(count), 0.01), 0.01)
        self.reader = ScriptedPart(
            "reader",
            lambda url: bad_pages.get(number(url)) or ok(Page(url, "own title", f"text of page {number(url)}"), 0.002),
            0.002,
            wait,
        )
        self.summarizer = ScriptedPart(
            "summarizer",
            lambda asked: (
                bad_summaries.get(number(asked.page.url)) or ok(f"{asked.query}: {asked.page.text[-1]}", 0.0005)
            ),
            0.0005,
        )
        self.tool = WebTextSearch(self.search, self.reader, self.summarizer, **{"topk": 3, "pages_tried": 6, **options})

    def ask(self, query: str = "q") -> ToolResult:
        return asyncio.run(self.tool(query))

    @property
    def read(self) -> list[int]:
        return [number(url) for url in self.reader.asked]


def ranks(result: ToolResult) -> list[int]:
    return [number(item.url) for item in result.items]


def test_the_first_pages_are_read_at_once_and_summarised_for_the_query() -> None:
    web = Web()
    result = web.ask("height of the tower")
    assert (result.status, result.complete, result.cached) == ("ok", True, False) and result.latency_s > 0
    assert result.items == tuple(
        ToolItem(f"title {n}", f"height of the tower: {n}", f"https://{n}.example/page") for n in range(3)
    )
    assert sorted(web.read) == [0, 1, 2] and web.reader.most_at_a_time == 3
    assert result.cost_usd == result.paid_usd == pytest.approx(0.01 + 3 * 0.0025, abs=1e-15)
    assert web.tool.price_usd == pytest.approx(0.01 + 6 * 0.0025) and isinstance(web.tool, Tool)


@pytest.mark.parametrize(
    "bad", [lost(), Outcome("empty"), Outcome("malformed_call", detail="invalid: no"), ok(Page("", "", " "))]
)
def test_a_page_that_fails_makes_room_for_the_next(bad: Outcome[Any]) -> None:
    web = Web(pages={0: bad, 2: bad, 3: bad})
    result = web.ask()
    assert result.status == "ok" and ranks(result) == [1, 4, 5]
    assert sorted(web.read) == [0, 1, 2, 3, 4, 5] and web.reader.most_at_a_time <= 3
    assert result.complete == (bad.status != "infrastructure_error")


def test_no_more_pages_are_tried_than_allowed_and_what_there_is_is_shown() -> None:
    web = Web(pages={n: Outcome("empty") for n in range(6) if n != 4})
    result = web.ask()
    assert ranks(result) == [4] and result.status == "ok" and result.complete
    assert sorted(web.read) == [0, 1, 2, 3, 4, 5]


def test_a_page_that_says_nothing_on_the_query_is_left_out() -> None:
    web = Web(summaries={0: Outcome("empty", cost_usd=0.0005, paid_usd=0.0005), 1: lost()})
    result = web.ask()
    assert ranks(result) == [2, 3, 4] and not result.complete and "summarizer" in result.detail


@pytest.mark.parametrize(("bad", "status"), [(lost(), "infrastructure_error"), (Outcome("empty"), "empty")])
def test_no_page_at_all_is_a_failure_only_if_infrastructure_failed(bad: Outcome[Any], status: str) -> None:
    result = Web(pages=dict.fromkeys(range(10), bad)).ask()
    assert result.status == status and result.items == ()
    assert Web(summaries=dict.fromkeys(range(10), bad)).ask().status == status


@pytest.mark.parametrize(
    "found", [lost(), over(), Outcome("empty", cost_usd=0.01, paid_usd=0.01), Outcome("malformed_call"), ok(())]
)
def test_what_the_search_says_is_what_the_tool_says(found: Outcome[Any]) -> None:
    web = Web(found=found)
    result = web.ask()
    assert result.status == ("empty" if found.value == () else found.status) and result.items == ()
    assert (result.cost_usd, result.paid_usd) == (found.cost_usd, found.paid_usd) and web.read == []


@pytest.mark.parametrize("part", ["pages", "summaries"])
def test_money_that_runs_out_on_the_way_leaves_what_was_found_and_nothing_more_is_asked(part: str) -> None:
    web = Web(**{part: {1: over()}}, pages_tried=10)
    result = web.ask()
    assert result.status == "ok" and len(result.items) == 2 and "usd_per_run" in result.detail and not result.complete
    nothing = Web(**{part: dict.fromkeys(range(10), over())}, pages_tried=10).ask()
    assert nothing.status == "over_budget" and nothing.items == () and "usd_per_run" in nothing.detail
    assert set(web.read) == {0, 1, 2}, "those under way end, no other begins"
    assert result.paid_usd >= 0.01 + 0.002


def test_failed_calls_cost_too_and_hits_cost_what_a_fresh_call_would() -> None:
    cached = ok(Page("https://1.example/page", "", "text 1"), 0.002, cached=True)
    web = Web(pages={0: lost(0.003), 1: cached})
    result = web.ask()
    assert result.cost_usd == pytest.approx(0.01 + 3 * 0.002 + 3 * 0.0005)
    assert result.paid_usd == pytest.approx(0.01 + 0.003 + 2 * 0.002 + 3 * 0.0005) and not result.cached


def test_all_from_the_cache_is_cached() -> None:
    found = ok(hits(1), 0.01, cached=True)
    page, summary = ok(Page("https://0.example/page", "", "text"), 0.002, True), ok("sum", 0.0005, True)
    result = Web(found=found, pages={0: page}, summaries={0: summary}).ask()
    assert result.cached and result.paid_usd == 0.0 and result.cost_usd == pytest.approx(0.0125)


def test_blocked_hosts_and_repeated_pages_are_not_read() -> None:
    found = (
        WebHit("mirror", "https://data.mirror.example/x", ""),
        WebHit("a", "https://0.example/page", ""),
        WebHit("a again", "https://0.example/page#part", ""),
        WebHit("no page", "javascript:alert(1)", ""),
        WebHit("broken", "https://[::1/", ""),
        WebHit("b", "HTTPS://1.example/page", ""),
    )
    web = Web(found=ok(found), blocklist=Blocklist(["mirror.example"]))
    assert [item.title for item in web.ask().items] == ["a", "b"]
    assert web.reader.asked == ["https://0.example/page", "HTTPS://1.example/page"]
    only_mirrors = Web(found=ok(found[:1]), blocklist=Blocklist(["mirror.example"])).ask()
    assert (only_mirrors.status, only_mirrors.complete) == ("empty", True)


def test_without_a_reader_what_the_search_engine_quotes_is_shown() -> None:
    search = ScriptedPart("search", lambda _: ok(hits(5), 0.01), 0.01)
    result = asyncio.run(WebTextSearch(search, topk=2)("q"))
    assert [item.text for item in result.items] == ["snippet 0", "snippet 1"] and result.cost_usd == 0.01


def test_without_a_summariser_the_beginning_of_the_page_is_shown() -> None:
    reader = ScriptedPart("reader", lambda url: ok(Page(url, "own", "one two\n\n three " + "long " * 9999)))
    search = ScriptedPart("search", lambda _: ok((WebHit("", "https://0.example", ""),)))
    result = asyncio.run(WebTextSearch(search, reader, topk=2, beginning=20)("q"))
    assert result.items == (ToolItem("own", "one two three long ...", "https://0.example"),)


def test_what_a_page_sends_is_bounded_and_without_line_breaks() -> None:
    huge = "x" * 10**6
    search = ScriptedPart("search", lambda _: ok((WebHit(huge, f"https://0.example/{huge}", f"a\nb {huge}"),)))
    (item,) = asyncio.run(WebTextSearch(search)("q")).items
    assert len(item.title) < 310 and len(item.url) < 310 and len(item.text) <= TEXT_CHARACTERS + 4
    assert item.text.startswith("a b x") and item.url.startswith("https://0.example/x")


@settings(max_examples=100, deadline=None)
@given(bad=st.sets(st.integers(0, 9)), topk=st.integers(1, 4), tried=st.integers(1, 10), seed=st.integers(0, 99))
def test_which_pages_are_read_does_not_depend_on_how_fast_they_are(
    bad: set[int], topk: int, tried: int, seed: int
) -> None:
    draw = random.Random(seed)
    web = Web(pages={n: Outcome("empty") for n in bad}, wait=lambda _: draw.randrange(6), topk=topk, pages_tried=tried)
    result = web.ask()
    good = [n for n in range(tried) if n not in bad][:topk]
    assert ranks(result) == good and result.status == ("ok" if good else "empty")
    last = tried if len(good) < topk else good[-1] + 1
    # Pages of a whole answer that were begun beside the last one are read too, never more than fit.
    assert sorted(web.read) == list(range(max(last, min(topk, tried))))
    assert web.reader.most_at_a_time <= topk


def test_a_bug_is_a_status_and_tells_no_query(caplog: pytest.LogCaptureFixture) -> None:
    def bug(url: str) -> Outcome[Any]:
        raise KeyError(f"secret query {url}")

    web = Web()
    web.reader._answer = bug
    with caplog.at_level(logging.DEBUG):
        result = web.ask("secret query")
    assert result.status == "infrastructure_error" and not result.complete and result.paid_usd == 0.01
    assert "secret" not in caplog.text + result.detail and "bug" in result.detail


def test_a_cut_call_leaves_nothing_running() -> None:
    web = Web(wait=lambda _: 10**6)

    async def cut() -> Sequence[Any]:
        task = asyncio.create_task(web.tool("q"))
        while not web.reader.asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [other for other in asyncio.all_tasks() if other is not asyncio.current_task()]

    assert asyncio.run(cut()) == []


def test_the_back_end_tells_everything_that_decides_the_result() -> None:
    told = {Web(**options).tool.backend for options in ({}, {"topk": 2}, {"pages_tried": 7}, {"beginning": 9})}
    told |= {Web(blocklist=Blocklist(["a.example"])).tool.backend, WebTextSearch(Web().search).backend}
    assert len(told) == 6 and all("search:v1" in backend for backend in told)


def test_impossible_settings_are_refused_by_name() -> None:
    search = Web().search
    for options, name in (
        ({"topk": 0}, "topk"),
        ({"pages_tried": 0}, "pages_tried"),
        ({"summarizer": search}, "reader"),
    ):
        with pytest.raises(ValueError, match=name):
            WebTextSearch(search, **options)
