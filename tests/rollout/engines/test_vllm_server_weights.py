"""New weights for a fleet of servers: who gets them when, and what they are called."""

import asyncio
from functools import partial

import pytest
import torch

from mmsr1.rollout.engines.base import EngineFailure
from mmsr1.rollout.engines.vllm_server import VllmServerEngine
from tests.rollout.engines.fake_server import SYNC, all_live, ask, holds, right, run, weights
from tests.rollout.engines.talks import picture, question, sampling, save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


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


def test_two_tensors_of_one_name_are_refused(tiny, play):
    async def scenario(engine, fleet):
        with pytest.raises(ValueError, match="named 'a'"):
            await engine.load_weights([("a", torch.zeros(1)), ("a", torch.zeros(1))], 1)

    play(scenario)


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
            fleet.urls,
            tiny.folder,
            transfer="nccl",
            pushes=False,
            owner="trainer",
            max_model_len=512,
            transport=fleet.transport,
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

    answers, servers = play(scenario, owner="trainer")
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

    assert play(scenario, pushes=False, owner="0a1b2c3d") == [True, True]


def test_another_process_waits_no_longer_than_it_may(tiny, play):
    async def scenario(engine, fleet):
        with pytest.raises(RuntimeError, match="not been brought weights 7 yet"):
            await engine.load_weights(weights(7).items(), 7)

    play(scenario, pushes=False, owner="trainer", wait_s=0.3)


def test_another_process_takes_no_weights_of_an_earlier_run_with_the_same_number(tiny, play):
    def left_by_another_run(fleet):
        for server in fleet.servers:
            server.label = "0a1b2c3d-7"

    async def scenario(engine, fleet):
        with pytest.raises(RuntimeError, match="not been brought weights 7 yet"):
            await engine.load_weights(weights(7).items(), 7)

    play(scenario, pushes=False, owner="trainer", wait_s=0.3, prepare=left_by_another_run)


def test_a_process_that_pushes_nothing_must_know_whose_weights_come(tiny):
    with pytest.raises(ValueError, match="owner"):
        VllmServerEngine(["http://s0"], tiny.folder, transfer="nccl", pushes=False)
