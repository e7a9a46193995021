"""`python -m mmsr1.tools.check`: one line for each part, and an exit status that a script can use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from acceptance._fake_web import FakeWeb
from mmsr1 import cli
from mmsr1.config import PartConfig, ToolsConfig
from mmsr1.tools import check
from mmsr1.tools.bundle.format import written
from mmsr1.tools.check import Finding, main, tried
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.image_search.local import ImageEntry, build_image_index
from mmsr1.tools.text_search.local import Passage, build_text_index

KEY = "canary-key-of-the-check"


@pytest.fixture
def web(monkeypatch) -> Iterator[FakeWeb]:
    monkeypatch.setattr(check, "SafeFetch", partial(SafeFetch, allow=lambda address, port: address == "127.0.0.1"))
    for variable in ("SERPAPI_API_KEY", "JINA_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    with FakeWeb(KEY, scale=0.002, steady=True) as served:
        yield served


def tools(url: str, **parts: Any) -> ToolsConfig:
    chosen = {
        "image_search": PartConfig("serpapi", url=url),
        "text_search": PartConfig("serpapi", url=url),
        "reader": PartConfig("jina", url=url),
        "summarizer": PartConfig("openai", url=url, options={"model": "m"}),
    }
    return ToolsConfig(
        image_results=5,
        thumbnails=5,
        thumbnail_edge=56,
        text_results=5,
        cache_dir="unused",
        thumbnail_hosts=["127.0.0.1"],
        **{**chosen, **parts},
    )


def findings(config: ToolsConfig, image_searches: int = 1) -> dict[str, Finding]:
    return {finding.part: finding for finding in asyncio.run(tried(config, image_searches))}


def test_every_part_is_tried_once_past_the_cache(web) -> None:
    found = findings(tools(web.url))
    assert [*found] == ["image_search", "thumbnails", "text_search", "reader", "summarizer"]
    assert not any(finding.wrong for finding in found.values())
    counted = {name: web.counts[name] for name in ("lens", "google", "pages", "summaries", "thumbnails")}
    assert set(counted.values()) == {1}
    assert found["text_search"].cost_usd > 0


def test_each_thing_that_is_wrong_is_told_at_its_part(web, monkeypatch) -> None:
    monkeypatch.delenv("JINA_API_KEY")
    web.searches = 0
    unreachable = PartConfig("openai", url="http://127.0.0.1:9", options={"model": "m"})
    found = findings(tools(web.url, summarizer=unreachable))
    assert found["image_search"].wrong.startswith("no calls or credits left: ")
    assert found["text_search"].wrong.startswith("no calls or credits left: ")
    assert found["reader"].wrong == "key missing: put it into the environment variable JINA_API_KEY"
    assert found["summarizer"].wrong.startswith("not reachable: ")
    assert "thumbnails" not in found  # nothing was found that could be fetched


def test_a_key_that_is_refused_and_a_host_that_is_not_there(web, monkeypatch) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", "some-other-key-of-ours")
    nowhere = PartConfig("jina", url="http://no-such-host.invalid")
    found = findings(tools(web.url, reader=nowhere))
    assert found["image_search"].wrong.startswith("refused (key, address, option, plan or proxy): ")
    assert found["reader"].wrong.startswith("not reachable: ")
    said = " ".join(f"{finding.said} {finding.wrong}" for finding in found.values())
    assert "some-other-key" not in said and KEY not in said


def test_a_page_that_refuses_to_be_read_is_not_the_readers_fault(web) -> None:
    web.steady = False  # of the pages of a search some are behind walls; the first good one counts
    assert findings(tools(web.url))["reader"].provider == "jina_reader"


def test_an_image_search_that_no_episode_may_make_is_not_tried(web) -> None:
    assert [*findings(tools(web.url), image_searches=0)] == ["text_search", "reader", "summarizer"]


def test_the_command_prints_a_table_and_says_by_its_status_whether_all_is_well(web, monkeypatch, capsys) -> None:
    config = tools(web.url)
    monkeypatch.setattr(check, "composed", lambda overrides: (config, 1))
    wide = partial(Console, width=200)
    assert main(["tools=web"], wide) == 0
    assert capsys.readouterr().out.count(" ok ") == 5
    monkeypatch.delenv("JINA_API_KEY")
    assert main(["tools=web"], wide) == 1
    printed = capsys.readouterr().out
    assert "JINA_API_KEY" in printed and "WRONG" in printed and KEY not in printed


def test_a_narrow_terminal_breaks_no_name(capsys, monkeypatch) -> None:
    wrong = "key missing: put it into the environment variable SERPAPI_API_KEY"
    found = [
        Finding("image_search", "serpapi_google_lens", 12.25, 0.015, "not asked", wrong),
        Finding("thumbnails", "search engine's hosts", 0.5, 0.0, "123456 bytes"),
        Finding("summarizer", "openai_summarizer", 10.0, 0.005, "1234 characters"),
    ]

    async def tried(tools: ToolsConfig, image_searches: int) -> list[Finding]:
        return found

    monkeypatch.setattr(check, "tried", tried)
    assert main([], partial(Console, width=80)) == 1
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert f"image_search: {wrong}" in lines
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert all(name in printed for name in ("image_search ", "thumbnails ", "summarizer ", "1234 characters", "WRONG"))
    (total,) = [line.split() for line in lines if "total" in line]
    assert total == ["total", "22.75", "0.0200"]


def test_local_tools_need_nobody_and_a_mistake_is_one_line(capsys) -> None:
    assert main([]) == 0 and "nobody to ask" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["tools=web"])  # without the address of a summariser
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tools.summarizer.url=None") and error.count("\n") == 1


def test_indexes_of_ones_own_are_opened(tmp_path, capsys) -> None:
    build_text_index(tmp_path / "text", [Passage("1", "Tower", "The Eiffel Tower was built in 1889.", "")])
    build_image_index(tmp_path / "image", [ImageEntry("1", "", "", check._picture())])
    wide = partial(Console, width=200)
    both = ["tools=local", f"tools.text_index={tmp_path / 'text'}", f"tools.image_index={tmp_path / 'image'}"]
    assert main(both, wide) == 0
    printed = capsys.readouterr().out
    assert "1 passages" in printed and "1 pictures" in printed and "WRONG" not in printed
    for wrong, said in (("nonexistent", "no search index in"), ("image", "holds a image index")):
        assert main(["tools=local", f"tools.text_index={tmp_path / wrong}"], wide) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("text_search: ") and said in line]


def test_bundles_are_opened(tmp_path) -> None:
    replay = {name: PartConfig("replay") for name in ("image_search", "text_search")}
    none = {name: PartConfig("none") for name in ("reader", "summarizer")}
    config = tools("http://unused", **replay, **none, bundle=str(tmp_path))
    found = findings(config)
    assert [*found] == ["image_search", "text_search"]
    assert all(finding.provider == "bundle" and "no bundle there" in finding.wrong for finding in found.values())
    with written(tmp_path / "bundle", lambda digest: b""):
        pass
    found = findings(replace(config, bundle=str(tmp_path / "bundle")))
    assert [(finding.said, finding.wrong) for finding in found.values()] == [("0 searches", "")] * 2


def test_the_configuration_is_the_one_of_train() -> None:
    assert (cli.CONF / "config.yaml").is_file() and Path(cli.CONF).name == "conf"
