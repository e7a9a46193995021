"""New weights for a fleet of servers: who gets them when, and what becomes of a sync when servers fail."""

import asyncio
from functools import partial

import httpx
import pytest
import torch

from mmsr1.rollout.engines import vllm_server_nccl
from mmsr1.rollout.engines.base import EngineFailure
from mmsr1.rollout.engines.vllm_server import VllmServerEngine
from tests.rollout.engines.fake_server import all_live, ask, right, run
from tests.rollout.engines.talks import picture, question, sampling, save_tiny

SYNC = [
    "/pause",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/update_weight_version",
    "/resume",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 3), float(value)), "b": torch.full((4,), value + 0.5), "count": torch.tensor([3])}


def holds(server, value: float) -> bool:
    expected = weights(value)
    return server.weights.keys() == expected.keys() and all(
        torch.equal(server.weights[n], expected[n]) for n in expected
    )


def test_every_server_gets_the_weights_and_forgets_what_it_computed(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        for version in (3, 4):
            await engine.load_weights(weights(version).items(), version)
            assert all(holds(server, version) for server in fleet.servers)
        return await ask(engine, tiny, range(4)), fleet.servers

    answers, servers = play(scenario)
    assert servers[0].label == servers[1].label and servers[0].label.endswith("-4")
    assert right(tiny, answers, range(4), servers[0].label) and {answer.weight_version for answer in answers} == {4}
    for server in servers:
        assert server.events[: 2 * len(SYNC)] == 2 * SYNC


def test_the_first_sync_waits_for_a_server_and_the_others_follow(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.kill()
        sync = asyncio.create_task(engine.load_weights(weights(1).items(), 1))
        await asyncio.sleep(0.15)
        assert not sync.done()
        fleet.servers[1].restart()
        await sync
        fleet.servers[0].restart()
        await all_live(engine)
        return fleet.servers

    for server in play(scenario):
        assert holds(server, 1) and server.events == SYNC


def test_a_copy_of_the_weights_is_pushed_and_not_what_the_trainer_made_of_them(tiny, play):
    async def scenario(engine, fleet):
        tensors = weights(1)
        await engine.load_weights(tensors.items(), 1)
        tensors["a"].fill_(9.0)
        fleet.servers[0].kill()
        fleet.servers[0].restart()
        await ask(engine, tiny, range(4))
        await all_live(engine)
        return fleet.servers

    assert all(holds(server, 1) for server in play(scenario))


def test_weights_are_sent_in_the_servers_type(tiny, play):
    def start_in_bfloat16(fleet):
        fleet.servers[0].setup["model_config"]["dtype"] = "torch.bfloat16"

    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        return {name: tensor.dtype for name, tensor in fleet.servers[0].weights.items()}

    found = play(scenario, size=1, prepare=start_in_bfloat16, dtype="bfloat16")
    assert found == {"a": torch.bfloat16, "b": torch.bfloat16, "count": torch.int64}


def test_a_sync_waits_for_requests_in_flight_and_holds_later_ones_back(tiny, play):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        server.hold = asyncio.Event()
        early = asyncio.create_task(engine.generate(question(tiny, 1), sampling(1)))
        await server.started.wait()
        sync = asyncio.create_task(engine.load_weights(weights(5).items(), 5))
        await asyncio.sleep(0)
        late = asyncio.create_task(engine.generate(question(tiny, 2), sampling(2)))
        await asyncio.sleep(0.05)
        assert server.events == ["generate"]
        server.hold.set()
        await sync
        return await early, await late, server

    early, late, server = play(scenario, size=1)
    assert (early.weight_version, late.weight_version) == (0, 5)
    assert right(tiny, [early], [1]) and right(tiny, [late], [2], server.label)
    assert server.events == ["generate", *SYNC, "generate"]


def test_the_vision_towers_outputs_are_left_alone_for_the_fault_rehearsal(tiny, play):
    async def scenario(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        return fleet.servers[0].events

    assert play(scenario, size=1, reset_encoder_cache=False) == [e for e in SYNC if e != "/reset_encoder_cache"]


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

    play(scenario, size=1)


def test_a_sync_that_no_server_survives_is_an_error(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.fail = {"/update_weights": "die"}
        with pytest.raises(RuntimeError, match="no engine server is left.*s0.*s1"):
            await engine.load_weights(weights(1).items(), 1)

    play(scenario)


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

    assert play(scenario) == [EngineFailure("a weight sync failed: no new weights for 'q'")]


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


def test_two_tensors_of_one_name_are_refused(tiny, play):
    async def scenario(engine, fleet):
        with pytest.raises(ValueError, match="named 'a'"):
            await engine.load_weights([("a", torch.zeros(1)), ("a", torch.zeros(1))], 1)

    play(scenario)


def test_what_a_killed_trainer_left_open_is_closed(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].updating = True
        fleet.servers[0].going.clear()  # and paused
        await engine.load_weights(weights(1).items(), 1)
        return await ask(engine, tiny, [0]), fleet.servers[0]

    answers, server = play(scenario, size=1)
    assert holds(server, 1) and right(tiny, answers, [0], server.label)


def test_weights_of_another_run_are_not_taken_for_ours(tiny, play):
    def left_by_another_run(fleet):
        fleet.servers[0].label = "0a1b2c3d-1"

    async def before(engine, fleet):
        return await ask(engine, tiny, [0])

    (failure,) = play(before, size=1, wait_s=0.2, prepare=left_by_another_run)
    assert isinstance(failure, EngineFailure) and "weights of another run" in failure.reason

    async def after(engine, fleet):
        await engine.load_weights(weights(1).items(), 1)
        return await ask(engine, tiny, [0]), fleet.servers[0]

    answers, server = play(after, size=1, prepare=left_by_another_run)
    assert holds(server, 1) and right(tiny, answers, [0], server.label)


def test_images_are_sent_again_after_a_sync_dropped_them(tiny, play):
    async def scenario(engine, fleet):
        for version in (1, 2):
            await engine.load_weights(weights(version).items(), version)
            for seed in range(2):
                await engine.generate(question(tiny, 0, picture(1)), sampling(seed))
        return [body["features"]["kwargs_data"]["image"][0] is not None for body in fleet.servers[0].bodies]

    assert play(scenario, size=1) == 2 * [True, False, False]


def test_the_other_processes_of_a_trainer_wait_for_what_the_first_one_pushes(tiny, play):
    read = []

    def gathered():
        for name, tensor in weights(7).items():
            read.append(name)
            yield name, tensor

    async def scenario(first, fleet):
        other = VllmServerEngine(
            fleet.urls, tiny.folder, transfer="nccl", pushes=False, max_model_len=512, transport=fleet.transport
        )
        await ask(other, tiny, range(2))
        sync = asyncio.create_task(other.load_weights(gathered(), 7))
        await asyncio.sleep(0.15)
        assert not sync.done() and read == list(weights(7))
        await first.load_weights(weights(7).items(), 7)
        await sync
        answers = await ask(other, tiny, range(4))
        await other.close()
        return answers, fleet.servers

    answers, servers = play(scenario)
    assert right(tiny, answers, range(4), servers[0].label) and {answer.weight_version for answer in answers} == {7}
    assert all(server.events.count("/start_weight_update") == 1 for server in servers)


def test_another_process_begins_with_all_servers_and_not_with_the_first_that_is_ready(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        sync = asyncio.create_task(engine.load_weights(weights(7).items(), 7))
        for server in fleet.servers:
            await asyncio.sleep(0.2)
            assert not sync.done()
            server.label = "0a1b2c3d-7"
        await sync
        return [machine.live for machine in engine._fleet._machines]

    assert play(scenario, pushes=False) == [True, True]


def test_another_process_waits_no_longer_than_it_may(tiny, play):
    async def scenario(engine, fleet):
        with pytest.raises(RuntimeError, match="not been brought weights 7 yet"):
            await engine.load_weights(weights(7).items(), 7)

    play(scenario, pushes=False, wait_s=0.3)


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
        with pytest.raises(RuntimeError, match="no engine server is left.*weight transfer failed"):
            await engine.load_weights(weights(1).items(), 1)
        return fleet.servers[0].events

    events = play(scenario, size=1, prepare=expect_nccl, transfer="nccl")
    assert "/init_weight_transfer_engine" in events and "/shutdown_weight_transfer_engine" in events
