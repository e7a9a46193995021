"""A run's searches, recorded by whatever stack it has, and replayed by `tools=replay`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from test_assembly_tools import PHOTO, asked, composed, configure, keys, web  # noqa: F401  (fixtures)

from mmsr1.assembly.tools import check_tools, frozen_web, search_tools
from mmsr1.config import ConfigError
from mmsr1.tools.base import EndOfRun
from mmsr1.tools.bundle.export import export
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.similar import GROUP, Group
from mmsr1.tools.text_search.local import Passage, build_text_index

QUERY = "Normans in France"


@pytest.fixture
def first(configure: Any, web: Any, tmp_path: Path) -> list[Any]:  # noqa: F811
    """The results of a run with the web's stack, whose bundle is then at `bundle`."""
    results, _ = asked(configure(), tmp_path / "run", PHOTO, QUERY)
    export(tmp_path / "run", tmp_path / "bundle", tmp_path / "cache")
    return results


def replay(tmp_path: Path, *more: str) -> Any:
    return composed(
        "tools=replay", f"tools.bundle={tmp_path / 'bundle'}", f"tools.cache_dir={tmp_path / 'none'}", *more
    )


def test_a_replayed_web_says_what_the_web_said_and_asks_nobody(first: Any, web: Any, tmp_path: Path) -> None:  # noqa: F811
    billed, config = dict(web.counts), replay(tmp_path)
    check_tools(config, tmp_path / "again")
    again, tools = asked(config, tmp_path / "again", PHOTO, f" {QUERY}")
    for before, after in zip(first, again, strict=True):
        assert (after.status, after.items) == ("ok", before.items) and len(after.items) == 5
        assert after.cost_usd == pytest.approx(before.cost_usd) and after.paid_usd == 0.0
    assert dict(web.counts) == billed
    rows = tools.rows()
    assert [rows[f"{name}_bundle"]["hits"] for name in ("image_search", "text_search")] == [1, 1]
    assert not (tmp_path / "again" / "searches").exists(), "a replay is no new record"
    assert frozen_web(config) == {"bundle": Bundle(tmp_path / "bundle").manifest.hash} and frozen_web(composed()) == {}


def test_what_is_not_in_the_bundle_ends_the_run_or_finds_nothing(first: Any, tmp_path: Path) -> None:
    with pytest.raises(EndOfRun, match='no text_search for "Vikings"'):
        asked(replay(tmp_path), tmp_path / "again", "Vikings")
    (missed,), tools = asked(replay(tmp_path, "tools.on_miss=empty"), tmp_path / "again", "Vikings")
    assert missed.status == "empty" and tools.rows()["text_search_bundle"]["failures/not_in_bundle"] == 1


def test_one_tool_alone_can_be_replayed(first: Any, configure: Any, web: Any, tmp_path: Path) -> None:  # noqa: F811
    mixed = configure("tools.image_search.provider=replay", f"tools.bundle={tmp_path / 'bundle'}")
    lens = web.counts["lens"]
    (image, text), _ = asked(mixed, tmp_path / "mixed", PHOTO, "Vikings in England")
    assert image.items == first[0].items and text.status == "ok" and web.counts["lens"] == lens
    lines = (tmp_path / "mixed" / "searches" / "rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["tool"] for line in lines] == ["text_search"]


@pytest.mark.parametrize("wrong", ["missing", "damaged"])
def test_a_bundle_that_cannot_be_used_is_told_before_the_run(first: Any, tmp_path: Path, wrong: str) -> None:
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.unlink() if wrong == "missing" else manifest.write_text(manifest.read_text().replace("rows", "cows"))
    with pytest.raises(ConfigError, match=r"^tools\.bundle=") as caught:
        check_tools(replay(tmp_path), tmp_path / "again")
    assert "\n" not in str(caught.value)


def test_an_index_of_ones_own_is_searched_by_the_local_stack(tmp_path: Path) -> None:
    passages = [Passage("1", "Zeppelin", "An airship with a rigid frame.", "https://a.example/z")]
    build_text_index(tmp_path / "index", passages)
    config = composed(f"tools.text_index={tmp_path / 'index'}", f"tools.cache_dir={tmp_path / 'cache'}")
    check_tools(config, tmp_path / "run")
    (found,), _ = asked(config, tmp_path / "run", "rigid airship")
    assert [item.title for item in found.items] == ["Zeppelin"]
    wrong = composed(f"tools.text_index={tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match=r"^tools\.text_index=.*nowhere: no index there"):
        check_tools(wrong, tmp_path / "run")


def test_near_duplicates_of_a_group_are_paid_once_and_recorded_each(configure: Any, web: Any, tmp_path: Path) -> None:  # noqa: F811
    tools = search_tools(configure("tools.similar=0.8"), tmp_path / "run")

    async def ask() -> list[Any]:
        GROUP.set(Group())
        try:
            return [await tools["text_search"](query) for query in ("the Normans in France", "France: Normans")]
        finally:
            await tools.aclose()

    first, second = asyncio.run(ask())
    assert web.counts["google"] == 1 and first.items == second.items
    assert second.paid_usd == 0.0 and second.cost_usd == pytest.approx(first.cost_usd)
    assert export(tmp_path / "run", tmp_path / "bundle", tmp_path / "cache").manifest.rows == 2
