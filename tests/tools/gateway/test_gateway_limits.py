"""Who is let in: the token, the size of a request however it is sent, and how many searches there may be at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from gateway_helpers import TOKEN, Stand, error

from mmsr1.tools.gateway import limits
from mmsr1.tools.gateway.app import Settings
from mmsr1.tools.secrets import Secret

QUERY = {"queries": ["a"]}


@pytest.fixture
def guarded(monkeypatch) -> Stand:
    monkeypatch.setenv("GATEWAY_TEST_TOKEN", TOKEN)
    return Stand(token=Secret("GATEWAY_TEST_TOKEN"))


@pytest.mark.parametrize("given", [None, "", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \u00e4".encode()])
@pytest.mark.parametrize("path", ["/retrieve", "/retrieve_image", "/mcp", "/nothing"])
def test_without_the_token_nothing_is_answered(guarded, path, given) -> None:
    reply = guarded.post(path, QUERY, headers={} if given is None else {"Authorization": given})
    assert error(reply) == (401, "refused") and reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in reply.text and not guarded.text.asked


def test_with_the_token_all_is_answered_and_health_needs_none(guarded) -> None:
    headers = {"Authorization": f"bearer {TOKEN}"}
    assert guarded.post("/retrieve", QUERY, headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200
    assert guarded.get("/metrics").status_code == 401
    assert guarded.get("/healthz").status_code == 200


async def pieces(total: int) -> AsyncIterator[bytes]:
    for _ in range(total // 100):
        yield b" " * 100


def test_a_request_that_is_too_large_is_refused_however_it_is_sent() -> None:
    stand = Stand(max_body=1000)
    headers = {"content-type": "application/json"}
    assert error(stand.post("/retrieve", content=b" " * 1001, headers=headers)) == (413, "invalid")
    assert error(stand.post("/retrieve", content=pieces(2000), headers=headers)) == (413, "invalid")
    lying = {**headers, "content-length": "10"}
    assert error(stand.post("/retrieve", content=pieces(2000), headers=lying)) == (413, "invalid")
    endless = stand.post("/retrieve", content=pieces(10_000), headers=headers)
    assert error(endless) == (413, "invalid") and endless.headers["connection"] == "close"
    assert stand.post("/retrieve", content=b'{"queries": ["a"]}' + b" " * 982, headers=headers).status_code == 200
    assert len(stand.text.asked) == 1


def test_a_request_that_never_comes_to_its_end_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.05)

    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    assert error(Stand().post("/retrieve", content=stuck())) == (408, "transient")


def test_so_many_searches_at_a_time_and_a_batch_of_more_is_answered_all_the_same() -> None:
    stand = Stand(in_flight=8)
    reply = stand.post("/retrieve", {"queries": [f"query {n}" for n in range(20)]})
    assert len(reply.json()["result"]) == 20 and stand.text.most_at_a_time == 3, (
        "the first, and a quarter of the places"
    )


def test_who_finds_no_place_in_time_is_asked_to_come_back_and_then_served() -> None:
    stand = Stand(in_flight=1, wait_s=0.05)

    async def crowd() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        stand.text.gate = asyncio.Event()
        async with stand.client() as client:
            first = asyncio.create_task(client.post("/retrieve", json=QUERY))
            while not stand.text.asked:
                await asyncio.sleep(0)
            second = await client.post("/retrieve", json={"queries": ["b"]})
            stand.text.gate.set()
            return await first, second, await client.post("/retrieve", json={"queries": ["b"]})

    first, second, third = asyncio.run(crowd())
    assert first.status_code == third.status_code == 200
    assert error(second) == (429, "throttled") and int(second.headers["retry-after"]) >= 1
    assert stand.text.asked == ["a", "b"]
    assert "mmsr1_gateway_refused_total 1.0" in stand.get("/metrics").text


def test_more_requests_than_are_worth_waiting_are_refused_before_they_are_read() -> None:
    stand = Stand(in_flight=1, wait_s=30)

    async def crowd() -> list[int]:
        stand.text.gate = asyncio.Event()
        async with stand.client() as client:
            asking = [asyncio.create_task(client.post("/retrieve", json=QUERY)) for _ in range(6)]
            while sum(task.done() for task in asking) < 2:
                await asyncio.sleep(0)
            stand.text.gate.set()
            return sorted([(await task).status_code for task in asking])

    assert asyncio.run(crowd()) == [200] * 4 + [429] * 2


def test_settings_that_let_nobody_in_are_refused() -> None:
    for wrong in ({"in_flight": 0}, {"max_body": 0}, {"wait_s": 0.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=0"):
            Settings(**wrong)


def test_a_large_batch_lets_others_pass() -> None:
    stand = Stand(in_flight=4, wait_s=30)

    async def crowd() -> list[int]:
        ended: list[int] = []

        async def ask(client: httpx.AsyncClient, number: int, queries: list[str]) -> None:
            assert (await client.post("/retrieve", json={"queries": queries})).status_code == 200
            ended.append(number)

        async with httpx.AsyncClient(transport=stand.transport(), base_url="http://gateway") as client:
            batch = asyncio.create_task(ask(client, 0, [f"q{n}" for n in range(400)]))
            while stand.text.most_at_a_time == 0:
                await asyncio.sleep(0)
            await asyncio.gather(*(ask(client, number, ["one"]) for number in range(1, 4)))
            await batch
        return ended

    assert asyncio.run(crowd())[-1] == 0
    assert stand.text.most_at_a_time <= 4


def test_searches_outlive_a_request_that_is_cut_and_no_new_one_begins() -> None:
    """As at the end of the gateway, when the time for what was under way is over."""
    stand = Stand(in_flight=2)

    async def end() -> httpx.Response:
        stand.text.gate = asyncio.Event()
        async with httpx.AsyncClient(transport=stand.transport(), base_url="http://gateway") as client:
            service = stand.app.state.service
            asking = asyncio.create_task(client.post("/retrieve", json={"queries": ["a", "b", "c", "d"]}))
            while stand.text.at_work < 2:
                await asyncio.sleep(0)
            asking.cancel()
            service.end()
            reply = await asking
            assert service.at_work == 2
            stand.text.gate.set()
            while service.at_work:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            return reply

    assert error(asyncio.run(end())) == (503, "transient")
    assert len(stand.text.asked) == 2
