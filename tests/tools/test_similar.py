"""Near-duplicate queries of one group share a call; every episode is charged as if it had made its own."""

import asyncio

import pytest

from mmsr1.tools.similar import GROUP, Group, Similar, Wording
from mmsr1.types import ToolItem, ToolResult


class Web:
    name, backend, price_usd = "text_search", "web", 0.01

    def __init__(self, *fail: str) -> None:
        self.asked: list[str] = []
        self._fail = {*fail}

    async def __call__(self, query: str) -> ToolResult:
        self.asked.append(query)
        await asyncio.sleep(0.001)
        if query in self._fail:
            return ToolResult("infrastructure_error", detail="down")
        return ToolResult("ok", (ToolItem(query),), 0.01, paid_usd=0.01)


def asked_together(tool, *groups):
    """The results of each group's queries, all at a time."""

    async def group_of(queries):
        GROUP.set(Group())
        return await asyncio.gather(*(tool(query) for query in queries))

    async def all_of_them():
        return await asyncio.gather(*(asyncio.create_task(group_of(queries)) for queries in groups))

    return asyncio.run(all_of_them())


def test_near_duplicates_of_a_group_share_a_call_and_are_charged_all_the_same():
    web = Web()
    (results,) = asked_together(
        Similar(web, 0.7), ["height of the Eiffel tower", "Eiffel Tower height?", "who built the Eiffel tower"]
    )
    assert web.asked == ["height of the Eiffel tower", "who built the Eiffel tower"]
    first, second, third = results
    assert first.items == second.items != third.items
    assert [result.cost_usd for result in results] == [0.01] * 3 and [r.paid_usd for r in results] == [0.01, 0.0, 0.01]
    assert [result.cached for result in results] == [False, True, False]


def test_groups_share_nothing_with_each_other_nor_with_whoever_is_in_none():
    web = Web()
    tool = Similar(web, 0.7)
    asked_together(tool, ["tower height"], ["height tower"])
    assert len(web.asked) == 2
    for _ in range(2):
        asyncio.run(tool("tower height"))
    assert len(web.asked) == 4


def test_another_number_is_another_question():
    web = Web()
    asked_together(
        Similar(web, 0.5), ["population of Rome in 2019", "population of Rome in 2020", "population of Rome"]
    )
    assert len(web.asked) == 3


def test_a_failure_is_nobody_elses():
    web = Web("tower height")
    (results,) = asked_together(Similar(web, 0.7), ["tower height", "height tower", "the tower height"])
    assert results[0].status == "infrastructure_error" and results[1].status == "ok"
    assert {result.status for result in results[1:]} == {"ok"}


def test_an_episode_that_is_cut_takes_no_answer_from_the_others():
    web = Web()
    tool = Similar(web, 0.7)

    async def calls():
        GROUP.set(Group())
        first = asyncio.create_task(tool("tower height"))
        await asyncio.sleep(0)
        second = asyncio.create_task(tool("height tower"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(calls()).status == "ok" and web.asked == ["tower height"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("The Eiffel-tower", "eiffel TOWER", 1.0),
        ("ＥＩＦＦＥＬ tower", "eiffel tower", 1.0),
        ("w x y z", "x y z v", 0.6),
        ("tour Eiffel", "Louvre", 0.0),
        ("?!", "?!", 0.0),
        ("C 3PO", "C 3PX", 0.0),
    ],
)
def test_likeness(one, other, alike):
    assert Wording.of(one).likeness(Wording.of(other)) == alike == Wording.of(other).likeness(Wording.of(one))


@pytest.mark.parametrize("likeness", [0.0, 1.1, -1.0])
def test_a_likeness_that_is_none_is_refused(likeness):
    with pytest.raises(ValueError, match="likeness"):
        Similar(Web(), likeness)
