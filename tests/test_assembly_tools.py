"""The stacks that a configuration selects, put together and asked: the web's against a local server that plays it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from acceptance._fake_web import FakeWeb
from mmsr1.assembly import tools as assembled
from mmsr1.assembly.services import policy
from mmsr1.assembly.tools import SearchTools, check_tools, fault_spec, part_providers, search_tools
from mmsr1.config import Config, ConfigError, PartConfig, register
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.types import ToolResult

CONF = Path(__file__).parents[1] / "conf"
KEY = "canary-key-of-the-tests"
PHOTO = encode_png(Image.new("RGB", (120, 90), "orchid"))


@cache
def groups(*options: str) -> Any:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", [*options, "tools.summarizer.url=http://localhost:1"])
    OmegaConf.set_struct(raw, False)
    return raw


def composed(*overrides: str) -> Config:
    """Options of groups are composed, once each; single values are put in, which is quicker."""
    values = [override for override in overrides if "." in override.partition("=")[0]]
    raw = groups(*(override for override in overrides if override not in values))
    config: Any = OmegaConf.to_object(OmegaConf.merge(raw, OmegaConf.from_dotlist(values)))
    return config


@pytest.fixture(autouse=True)
def keys(monkeypatch) -> None:
    for variable in ("SERPAPI_API_KEY", "JINA_API_KEY"):
        monkeypatch.setenv(variable, KEY)


@pytest.fixture
def web(monkeypatch) -> Iterator[FakeWeb]:
    """The whole web of these tests, on this machine, where thumbnails may then be fetched."""
    opened = partial(SafeFetch, allow=lambda address, port: address == "127.0.0.1")
    monkeypatch.setattr(assembled, "SafeFetch", opened)
    with FakeWeb(KEY, scale=0.002, steady=True) as served:
        yield served


@pytest.fixture
def configure(web, tmp_path) -> Any:
    def make(*overrides: str) -> Config:
        parts = ("image_search", "text_search", "reader", "summarizer")
        return composed(
            "tools=web",
            *(f"tools.{part}.url={web.url}" for part in parts),
            *(f"tools.{part}.rate_per_s=1000" for part in parts),
            "tools.reader.price_usd=0.002",
            "tools.summarizer.price_usd=0.0005",
            "tools.thumbnail_hosts=[127.0.0.1]",
            f"tools.cache_dir={tmp_path / 'cache'}",
            *overrides,
        )

    return make


def asked(config: Config, run: Path, *queries: Any, rank: int = 0) -> tuple[list[ToolResult], SearchTools]:
    """The results of these queries, one after the other, by the tools of a new process so to speak."""
    tools = search_tools(config, run, rank)

    async def ask() -> list[ToolResult]:
        try:
            return [await tools["text_search" if isinstance(q, str) else "image_search"](q) for q in queries]
        finally:
            await tools.aclose()

    return asyncio.run(ask()), tools


def test_the_web_stack_finds_pictures_and_summaries_and_knows_what_they_cost(configure, web, tmp_path) -> None:
    (images, pages), tools = asked(configure(), tmp_path / "run", PHOTO, "Normans in France")
    assert images.status == pages.status == "ok" and images.complete and pages.complete
    assert len(images.items) == len(pages.items) == 5
    for item in images.items:
        assert item.title and item.thumbnail is not None and max(decode(item.thumbnail).size) <= 280
    assert all(item.text and item.url.startswith("https://") and item.thumbnail is None for item in pages.items)
    assert not any("huggingface.co" in item.url for item in (*images.items, *pages.items))
    assert images.cost_usd == images.paid_usd == pytest.approx(0.015)
    read = web.counts["pages"]
    assert pages.cost_usd == pages.paid_usd == pytest.approx(0.015 + read * 0.002 + web.counts["summaries"] * 0.0005)
    rows = tools.rows()
    assert [*rows][:2] == ["image_search", "text_search"]
    assert rows["jina_reader"]["calls"] == rows["openai_summarizer"]["calls"] == read
    assert sum(rows[name]["paid_usd"] for name in rows if name not in tools) == pytest.approx(
        images.paid_usd + pages.paid_usd
    )


def test_what_was_paid_for_is_never_paid_again_and_costs_episodes_the_same(configure, web, tmp_path) -> None:
    first, _ = asked(configure(), tmp_path / "one", PHOTO, "Normans in France")
    billed = dict(web.counts)
    again, tools = asked(configure(), tmp_path / "two", PHOTO, "Normans in  France")
    assert dict(web.counts) == billed
    for before, after in zip(first, again, strict=True):
        assert after.items == before.items and after.cached and after.paid_usd == 0.0
        assert after.cost_usd == pytest.approx(before.cost_usd)
    assert {name: row["hits"] for name, row in tools.rows().items() if name in tools} == {
        "image_search": 1,
        "text_search": 1,
    }


def test_a_spent_budget_answers_from_the_cache_only_and_says_so(configure, web, tmp_path) -> None:
    known, _ = asked(configure(), tmp_path / "before", PHOTO)
    limited = configure("tools.budget.usd_per_run=0.001")
    (hit, miss), tools = asked(limited, tmp_path / "run", PHOTO, "Normans in France")
    assert hit.items == known[0].items and hit.cached
    assert (miss.status, miss.items, miss.paid_usd) == ("over_budget", (), 0.0)
    told = tools.spent()
    assert told is not None and told.startswith("tools.budget.usd_per_run=0.001") and "\n" not in told
    telling = configure("tools.budget.usd_per_run=0.001", "tools.budget.when_spent=tell")
    (miss,), tools = asked(telling, tmp_path / "telling", "Normans in France")
    assert miss.status == "over_budget" and tools.spent() is None


def test_an_account_without_searches_ends_the_run_as_a_spent_budget_does(configure, web, tmp_path) -> None:
    web.searches = 1
    try:
        (found, spent, unasked), tools = asked(configure(), tmp_path / "run", PHOTO, "Normans in France", "Paris")
        assert (found.status, spent.status, unasked.status) == ("ok", "infrastructure_error", "infrastructure_error")
        told = tools.spent()
        spent = "serpapi_search: exhausted: the account has no searches left"
        assert told == f"{spent}; mend that first: it needs credit or another key in SERPAPI_API_KEY"
        _, tools = asked(configure("tools.budget.when_spent=tell"), tmp_path / "telling", "Normans in France")
        assert tools.spent() is None
    finally:
        web.searches = None


def test_a_key_that_is_refused_ends_the_run_too(configure, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", "revoked")
    _, tools = asked(configure(), tmp_path / "run", "Normans in France")
    assert tools.spent() is None  # it may have been about the query
    _, tools = asked(configure(), tmp_path / "run", "Normans in France", "Paris")
    told = tools.spent()
    assert told is not None and told.startswith("serpapi_search: refused: HTTP 401") and "revoked" not in told


def test_a_run_with_nothing_left_is_refused_before_it_begins(configure, tmp_path) -> None:
    limited = configure("tools.budget.calls_per_run=1")
    check_tools(limited, tmp_path / "run")
    asked(limited, tmp_path / "run", PHOTO)
    with pytest.raises(ConfigError, match=r"^tools\.budget\.calls_per_run=1 is reached"):
        check_tools(limited, tmp_path / "run")
    check_tools(configure("tools.budget.calls_per_run=1", "tools.budget.when_spent=tell"), tmp_path / "run")
    check_tools(limited, tmp_path / "another")


def test_a_missing_key_is_told_by_the_name_of_its_variable(configure, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("JINA_API_KEY")
    with pytest.raises(ConfigError) as caught:
        check_tools(configure(), tmp_path)
    assert str(caught.value).startswith("tools.reader.key_env=JINA_API_KEY: ") and "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    check_tools(configure("tools.reader.provider=none", "tools.summarizer.provider=none"), tmp_path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tools.text_search.options.lang=en", "tools.text_search.options.lang: "),
        ("tools.image_search.options.by=fax", "tools.image_search.options.by=fax: "),
        ("tools.summarizer.options.model=''", "tools.summarizer.options.model: "),
        ("tools.blocklist=['https://mirror.example/x']", "tools.blocklist: "),
    ],
)
def test_what_a_provider_does_not_take_is_told_under_its_key(configure, tmp_path, override, told) -> None:
    with pytest.raises(ConfigError) as caught:
        check_tools(configure(override), tmp_path)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_an_outage_is_outermost_and_nobody_is_asked(configure, web, tmp_path) -> None:
    (images, pages), tools = asked(configure("faults=outage"), tmp_path / "run", PHOTO, "Normans in France")
    assert images.status == "infrastructure_error" and not images.items and pages.status == "ok"
    assert web.counts["lens"] == 0 and tools.rows()["image_search"]["failures"] == 1
    assert tools.rows()["image_search_rehearsal"]["retries"] == 3


def test_faults_wrap_what_the_cache_knows(configure, web, tmp_path) -> None:
    """Under faults an answer is paid for once, however often it is lost on the way."""
    faulty = configure("faults=rehearsal", "faults.timeout_s=0.001", "faults.latency_s=0.001", "faults.share=0.6")
    results, tools = asked(faulty, tmp_path / "run", *[PHOTO] * 20)
    assert tools.rows()["image_search_rehearsal"]["retries"] > 10
    assert {result.status for result in results} <= {"ok", "infrastructure_error"}
    assert web.counts["lens"] == 1 and sum(result.paid_usd for result in results) <= 0.015 + 1e-9


def test_rates_are_those_of_all_processes_together() -> None:
    part = PartConfig("serpapi", rate_per_s=8.0, attempts=3, timeout_s=7.0, deadline_s=9.0, concurrent=5)
    found = policy(part, 4)
    assert (found.rate_per_s, found.attempts, found.timeout_s, found.deadline_s) == (2.0, 3, 7.0, 9.0)


def test_single_parts_are_swapped_by_name(configure, monkeypatch) -> None:
    for variable in ("BRAVE_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    names = dict(part_providers(configure("tools.text_search.provider=brave").tools))
    assert [provider.name for provider in names.values()][1].startswith("brave")
    fewer = dict(part_providers(configure("tools.summarizer.provider=none", "tools.reader.provider=none").tools))
    assert [*fewer] == ["image_search", "text_search"]
    assert [*part_providers(composed().tools)] == []


def test_a_retrieve_server_is_a_stack_of_its_own(httpserver, tmp_path) -> None:
    passage = {"document": {"id": "7", "contents": '"Normans"\nThey came from the north.'}, "score": 0.5}
    httpserver.expect_request("/retrieve").respond_with_json({"result": [[passage]]})
    config = composed(
        "tools=retrieve", f"tools.text_search.url={httpserver.url_for('')}", f"tools.cache_dir={tmp_path / 'cache'}"
    )
    (found, again), tools = asked(config, tmp_path / "run", "who were they", "who were they")
    assert found.status == "ok" and found.items[0].title == "Normans" and "north" in found.items[0].text
    assert again.cached and len(httpserver.log) == 1
    assert json.loads(httpserver.log[0][0].get_data())["topk"] == config.tools.text_results
    assert tools.rows()["retrieve_text"]["backend_calls"] == 1


def test_the_faults_of_a_tool_are_its_own() -> None:
    faults = composed("faults=outage").faults
    assert fault_spec(faults, "image_search").outage and not fault_spec(faults, "text_search").any
