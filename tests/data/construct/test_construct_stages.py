"""A stage writes each result at once, does none twice, and knows a bad item from a bad service."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from construct_material import seed

from mmsr1.data.construct.items import Dropped, No, Seed, Waiting
from mmsr1.data.construct.journal import Journal
from mmsr1.data.construct.stages import Desk, Stage, run_stage, stage_file

ITEMS = [seed(f"vc-{n}", f"thing {n}") for n in range(30)]


class Work:
    """Does what `fates` say of an id; the rest passes."""

    def __init__(self, **fates: Any) -> None:
        self.fates, self.done = {f"vc-{key[1:]}": fate for key, fate in fates.items()}, Counter[str]()

    async def __call__(self, item: Seed) -> Any:
        await asyncio.sleep(0)
        self.done[item.id] += 1
        fate = self.fates.get(item.id, item)
        return fate(self.done[item.id]) if callable(fate) else fate


def desk(folder: Path, **more: Any) -> Desk:
    return Desk(folder, Journal(folder / "dropped.jsonl", Dropped), **more)


def run(folder: Path, work: Work, at: Desk, concurrent: int = 4) -> list[Seed] | None:
    return asyncio.run(run_stage(Stage("sources", Seed, work, concurrent), 2, ITEMS, at))


def test_results_stand_in_the_order_of_the_items_and_none_is_made_twice(tmp_path: Path) -> None:
    work = Work(_3=No("no_page", "blocked"))
    first = run(tmp_path, work, desk(tmp_path))
    assert first == [item for item in ITEMS if item.id != "vc-3"]
    again = desk(tmp_path)
    assert run(tmp_path, work, again) == first and set(work.done.values()) == {1}
    (row,) = again.drops.rows
    assert (row.id, row.stage, row.reason, row.detail, row.about) == (
        "vc-3",
        "sources",
        "no_page",
        "blocked",
        "thing 3",
    )


def test_an_item_waits_for_a_service_that_comes_back(tmp_path: Path) -> None:
    back = {f"_{n}": (lambda times, n=n: Waiting("transient: down") if times == 1 else ITEMS[n]) for n in range(20)}
    work, at = Work(**back), desk(tmp_path)
    assert run(tmp_path, work, at) == ITEMS and at.drops.rows == []


def test_few_items_that_a_service_always_fails_for_are_dropped(tmp_path: Path) -> None:
    at = desk(tmp_path)
    rows = run(tmp_path, Work(_1=Waiting("broken: no JSON"), _2=Waiting("broken: no JSON")), at)
    assert rows is not None and len(rows) == 28
    assert {(row.id, row.reason, row.detail) for row in at.drops.rows} == {
        ("vc-1", "service_failed", "broken: no JSON"),
        ("vc-2", "service_failed", "broken: no JSON"),
    }


def test_many_are_the_fault_of_the_service_and_are_kept_for_the_next_time(tmp_path: Path) -> None:
    down, at = Work(**{f"_{n}": Waiting("transient: no answer") for n in range(10)}), desk(tmp_path)
    assert run(tmp_path, down, at) is None
    assert at.left == "10 of 30 items wait at the stage sources: transient: no answer" and at.drops.rows == []
    up, again = Work(), desk(tmp_path)
    assert run(tmp_path, up, again) == ITEMS and len(up.done) == 10


@pytest.mark.parametrize("give_up", [False, True])
def test_an_outage_at_the_end_drops_nothing_unless_that_is_asked_for(tmp_path: Path, give_up: bool) -> None:
    """Few are left, but nobody else was served since: the service is down, and not these items' fault."""
    at = desk(tmp_path, give_up=give_up)
    rows = run(tmp_path, Work(_28=Waiting("transient: down"), _29=Waiting("transient: down")), at, concurrent=1)
    assert (rows is None) is not give_up and len(at.drops.rows) == 2 * give_up
    assert run(tmp_path, Work(), desk(tmp_path)) == (ITEMS[:28] if give_up else ITEMS)


def test_an_error_in_the_work_is_raised_as_it_is(tmp_path: Path) -> None:
    def full(times: int) -> Any:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run(tmp_path, Work(_3=full), desk(tmp_path))


@pytest.mark.parametrize("told", ["tools.budget.usd_per_run=1 is reached", None])
def test_a_final_failure_ends_the_stage_at_once(tmp_path: Path, told: str | None) -> None:
    spent: list[str] = []

    def fail(times: int) -> Waiting:
        spent.extend([told] if told else [])
        return Waiting("refused: HTTP 401", final=True)

    work = Work(_5=fail)
    at = desk(tmp_path, stop=lambda: spent[0] if spent else None)
    assert run(tmp_path, work, at, concurrent=2) is None
    assert at.left == (told or "refused: HTTP 401") and len(work.done) < 10
    assert at.drops.rows == [], "nobody is dropped for want of money"


def test_order_is_kept_with_one_at_a_time_and_known_rows_are_told_first(tmp_path: Path) -> None:
    seen: list[str] = []

    class Ordered(Work):
        async def __call__(self, item: Seed) -> Any:
            seen.append(item.id)
            return item

    spent = iter([None] * 10 + ["stop"] * 100)
    stage: Stage[Any, Any] = Stage("pictures", Seed, Ordered(), known=lambda row: seen.append(f"known {row.id}"))
    assert asyncio.run(run_stage(stage, 3, ITEMS, desk(tmp_path, stop=lambda: next(spent)))) is None
    assert seen == [f"vc-{n}" for n in range(10)]
    seen.clear()
    asyncio.run(run_stage(stage, 3, ITEMS, desk(tmp_path)))
    assert seen == [*(f"known vc-{n}" for n in range(10)), *(f"vc-{n}" for n in range(10, 30))]


def test_a_row_that_a_kill_cut_is_made_again_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    run(tmp_path, Work(), desk(tmp_path))
    path = stage_file(tmp_path, 2, "sources")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    work = Work()
    assert run(tmp_path, work, desk(tmp_path)) == ITEMS and sum(work.done.values()) == 1
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"id": "vc-3"}\n', *lines[4:]]))
    with pytest.raises(ValueError, match=r"2_sources.jsonl: line 4 is damaged \(Field required\)"):
        run(tmp_path, work, desk(tmp_path))


def test_rows_can_be_read_by_themselves(tmp_path: Path) -> None:
    run(tmp_path, Work(), desk(tmp_path))
    rows = [json.loads(line) for line in stage_file(tmp_path, 2, "sources").read_text().splitlines()]
    assert {row["subject"] for row in rows} == {item.subject for item in ITEMS}
