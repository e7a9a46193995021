"""What becomes of a weight sync when servers fail, and of the servers that failed."""

import asyncio
from functools import partial

import httpx
import pytest
import torch

from mmsr1.rollout.engines import vllm_server_nccl
from mmsr1.rollout.engines.base import EngineFailure
from tests.rollout.engines.fake_server import SYNC, all_live, ask, holds, right, run, weights
from tests.rollout.engines.talks import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


def test_a_server_that_returns_gets_the_current_weights_before_it_serves(tiny, play):
    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        first, second = fleet.servers
        first.kill()
        answers = await ask(engine, tiny, range(4))
        await engine.load_weights(weights(2).items(), 2)
        assert holds(second, 2)
        first.events.clear()
        first.restart()
        await all_live(engine)
        more = await ask(engine, tiny, range(4))
        return answers, more, first

    answers, more, first = play(scenario)
    assert {answer.weight_version for answer in answers} == {1} and right(tiny, more, range(4), first.label)
    assert holds(first, 2) and first.events[: len(SYNC)] == SYNC and "generate" in first.events


def test_an_answer_of_a_server_that_was_restarted_unnoticed_is_thrown_away(tiny, play):
    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        (server,) = fleet.servers
        label = server.label
        server.restart()
        return await ask(engine, tiny, range(3)), label, server

    answers, label, server = play(scenario, size=1)
    assert right(tiny, answers, range(3), label) and server.label == label
    assert server.events.count("/start_weight_update") == 2


def test_a_server_that_only_stumbled_keeps_its_weights(tiny, play):
    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        (server,) = fleet.servers
        server.fail = {"/inference/v1/generate": httpx.ReadError("connection reset")}
        asking = asyncio.create_task(ask(engine, tiny, range(3)))
        await asyncio.sleep(0)
        server.fail = {}
        return await asking, server

    answers, server = play(scenario, size=1)
    assert right(tiny, answers, range(3), server.label)
    assert server.events.count("/start_weight_update") == 1


@pytest.mark.parametrize("route", SYNC)
@pytest.mark.parametrize("fault", ["die", 500])
def test_a_server_that_fails_during_a_sync_is_left_behind_until_it_has_the_weights(tiny, play, route, fault):
    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        first, second = fleet.servers
        first.fail = {route: fault}
        await engine.load_weights(weights(2).items(), 2)
        answers = await ask(engine, tiny, range(4))
        assert "generate" not in first.events and right(tiny, answers, range(4), second.label)
        first.fail = {}
        if fault == "die":
            first.restart()
        await all_live(engine)
        return first, second

    for server in play(scenario):
        assert holds(server, 2) and server.going.is_set() and not server.updating


def test_a_prefix_cache_that_is_kept_counts_as_a_failure(tiny, play):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        control = server._control

        async def keep(path, body):
            return httpx.Response(200, json={"success": False}) if "prefix" in path else await control(path, body)

        server._control = keep
        with pytest.raises(RuntimeError, match="kept its prefix cache"):
            await engine.load_weights(weights(1).items(), 1)

    play(scenario, size=1, wait_s=0.3)


def test_a_sync_that_no_server_survives_is_an_error(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.fail = {"/update_weights": "die"}
        with pytest.raises(RuntimeError, match="no engine server for 0.3 s.*s0.*s1"):
            await engine.load_weights(weights(1).items(), 1)

    play(scenario, wait_s=0.3)


def test_a_sync_whose_answers_make_no_sense_is_an_error_at_once(tiny, play):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        control = server._control

        async def keep_label(path, body):
            return httpx.Response(200) if path == "/update_weight_version" else await control(path, body)

        server._control = keep_label
        with pytest.raises(RuntimeError, match="no engine server is left.*it took weights"):
            await engine.load_weights(weights(1).items(), 1)

    play(scenario, size=1)


@pytest.mark.parametrize("fault", ["die", 500, "one refused connection"])
def test_a_sync_waits_for_the_only_server_that_failed_at_it(tiny, play, fault):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        await all_live(engine)
        server.fail = {"/update_weights": httpx.ConnectError("refused") if isinstance(fault, str) else fault}
        if fault == "die":
            server.fail = {"/update_weights": "die"}
        sync = asyncio.create_task(engine.load_weights(weights(1).items(), 1))
        await asyncio.sleep(0.15)
        assert not sync.done()
        server.fail = {}
        if fault == "die":
            server.restart()
        await sync
        return await ask(engine, tiny, [0]), server

    answers, server = play(scenario, size=1)
    assert holds(server, 1) and right(tiny, answers, [0], server.label)


def test_a_sync_without_any_server_ends_in_time(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].kill()
        with pytest.raises(RuntimeError, match="no engine server for 0.2 s: http://s0: cannot be reached"):
            await engine.load_weights(weights(1).items(), 1)

    play(scenario, size=1, wait_s=0.2)


def test_weights_that_the_servers_refuse_are_a_value_error_and_the_end(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.fail = {"/finish_weight_update": "it failed: weights refused: no new weights for 'q'"}
        with pytest.raises(ValueError, match="no new weights for 'q'"):
            await engine.load_weights(weights(1).items(), 1)
        return await ask(engine, tiny, [0])

    (failure,) = play(scenario)
    assert failure.reason.startswith(
        "a weight sync failed: http://s0, which must serve the model that is trained: no new"
    )


def test_tensors_that_cannot_be_read_are_the_end_of_the_engine(tiny, play):
    def broken():
        yield "a", torch.zeros(1)
        raise KeyError("b")

    async def scenario(engine, fleet):
        with pytest.raises(KeyError):
            await engine.load_weights(broken(), 1)
        with pytest.raises(RuntimeError, match="KeyError"):
            await engine.load_weights(weights(1).items(), 2)
        return await ask(engine, tiny, [0]), fleet.servers[0].events

    failures, events = play(scenario)
    assert isinstance(failures[0], EngineFailure) and events == []


def test_a_sync_that_is_cancelled_is_the_end_of_the_engine(tiny, play):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        server.running = 1  # so that it does not get paused
        sync = asyncio.create_task(engine.load_weights(weights(1).items(), 1))
        while "/pause" not in server.events:
            await asyncio.sleep(0.01)
        sync.cancel()
        await asyncio.wait([sync])
        return sync.cancelled(), await ask(engine, tiny, [0])

    cancelled, failures = play(scenario, size=1)
    assert cancelled and failures == [EngineFailure("a weight sync failed: CancelledError: ")]


def test_what_a_killed_trainer_left_open_is_closed(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].updating = True
        fleet.servers[0].going.clear()  # and paused
        await engine.load_weights(weights(1).items(), 1)
        return await ask(engine, tiny, [0]), fleet.servers[0]

    answers, server = play(scenario, size=1)
    assert holds(server, 1) and right(tiny, answers, [0], server.label)


def test_closing_ends_a_sync(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].hold = asyncio.Event()
        asking = asyncio.create_task(ask(engine, tiny, [0]))
        await fleet.servers[0].started.wait()
        sync = asyncio.create_task(engine.load_weights(weights(1).items(), 1))
        await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await sync
        return await asking

    assert play(scenario, size=1) == [EngineFailure("the engine is closed")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would wait for a GPU on the other side")
def test_nccl_without_a_gpu_is_a_failed_push_and_not_a_hang(tiny, play, monkeypatch):
    monkeypatch.setattr(vllm_server_nccl, "_rendezvous", lambda url: ("127.0.0.1", 1))  # s0 is in no name service

    def expect_nccl(fleet):
        fleet.servers[0].setup["weight_transfer_config"]["backend"] = "nccl"

    async def scenario(engine, fleet):
        with pytest.raises(RuntimeError, match="no engine server for 1 s.*weight transfer failed"):
            await engine.load_weights(weights(1).items(), 1)
        return fleet.servers[0].events

    events = play(scenario, size=1, prepare=expect_nccl, transfer="nccl", wait_s=1.0)
    assert "/init_weight_transfer_engine" in events and "/shutdown_weight_transfer_engine" in events
