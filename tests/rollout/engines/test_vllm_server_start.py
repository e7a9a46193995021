"""Whether a fleet's servers are there and were started rightly, and what the user is told of it."""

import asyncio
import threading
import time
from functools import partial

import httpx
import pytest

from mmsr1.rollout.engines import vllm_server_fleet
from mmsr1.rollout.engines.base import EngineFailure
from mmsr1.rollout.engines.vllm_server import VllmServerEngine
from mmsr1.rollout.engines.vllm_server_start import NoServer, listed
from tests.rollout.engines.fake_server import FakeFleet, all_live, ask, right, run
from tests.rollout.engines.talks import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


@pytest.fixture
def look(tiny):
    """Look for the servers of a fleet; afterwards they are as new."""

    def find(fleet, **arguments):
        given = {"transfer": "mmsr1_shm", "max_model_len": 512, "wait_s": 5.0} | arguments
        engine = VllmServerEngine(fleet.urls, tiny.folder, transport=fleet.transport, **given)
        try:
            engine.find_servers()
        finally:
            asyncio.run(engine.close())

    return find


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "engine server" in line]


def test_the_servers_that_are_there_are_counted(look, capsys):
    look(FakeFleet(3))
    assert lines(capsys) == ["3 of 3 engine servers"]


def test_those_that_are_not_there_are_named_and_do_not_hold_up_the_others(look, capsys):
    fleet = FakeFleet(3)
    fleet.servers[1].kill()
    look(fleet)
    (line,) = lines(capsys)
    assert line == "2 of 3 engine servers; not there: http://s1: cannot be reached (ConnectError)"


def test_a_process_that_does_not_push_says_nothing(look, capsys):
    look(FakeFleet(1), pushes=False, owner="trainer")
    assert lines(capsys) == []


def test_a_server_that_is_being_started_is_waited_for(look, capsys):
    fleet = FakeFleet(1)
    fleet.servers[0].up = False
    told: list[str] = []

    def restart_once_told() -> None:  # however long a loaded machine takes to say so
        while not told:
            told.extend(lines(capsys))
            time.sleep(0.01)
        fleet.servers[0].restart()

    start = threading.Thread(target=restart_once_told)
    start.start()
    look(fleet, wait_s=60.0)
    start.join()
    waiting, there = [*told, *lines(capsys)]
    assert waiting.startswith("waiting for engine servers (up to 60 s): http://s0: cannot be reached")
    assert there == "1 of 1 engine servers"


def test_the_wait_has_an_end(look):
    fleet = FakeFleet(2)
    for server in fleet.servers:
        server.kill()
    with pytest.raises(NoServer, match="no engine server for 0.2 s: http://s0: cannot.*http://s1: cannot.*start one"):
        look(fleet, wait_s=0.2)


OTHERWISE = [
    ("model_config", "dtype", "torch.bfloat16", "dtype=bfloat16, not float32; start it with --dtype float32"),
    ("model_config", "max_model_len", 256, "max_model_len=256, not 512 or more; start it with --max-model-len 512"),
    ("model_config", "logprobs_mode", "processed_logprobs", "not raw_logprobs"),
    ("weight_transfer_config", "backend", "nccl", "transfer=nccl, not mmsr1_shm; start it with --transfer mmsr1_shm"),
    (
        "multimodal_config",
        "limit_per_prompt",
        {"image": {"count": 2}},
        "images_per_prompt=2, not 6 or more; start it with --images-per-prompt 6",
    ),
]


def started_otherwise(fleet, section, name, value):
    setup = fleet.servers[0].setup
    (setup["model_config"] if section == "multimodal_config" else setup)[section][name] = value


@pytest.mark.parametrize(("section", "name", "value", "reason"), OTHERWISE)
def test_a_server_that_was_started_otherwise_is_told_at_once(look, section, name, value, reason):
    fleet = FakeFleet(2)
    started_otherwise(fleet, section, name, value)
    with pytest.raises(NoServer, match=f"http://s0: it was started with.*{reason}"):
        look(fleet, wait_s=60)


@pytest.mark.parametrize(("section", "name", "value", "reason"), OTHERWISE)
def test_a_server_that_comes_back_started_otherwise_is_not_used(tiny, play, section, name, value, reason, capsys):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].kill()
        started_otherwise(fleet, section, name, value)
        fleet.servers[0].restart()
        fleet.servers[0].fail = {"/inference/v1/generate": 500}
        return await ask(engine, tiny, [0])

    (failure,) = play(scenario, size=1, wait_s=0.3)
    assert isinstance(failure, EngineFailure) and reason in failure.reason
    assert sum(reason in line and "is away (0 of 1 left)" in line for line in lines(capsys)) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(401, "same MMSR1_ENGINE_TOKEN"), (404, "no server that .*serve started"), (400, "HTTP 400: planned")],
)
def test_what_refuses_is_told_at_once_with_a_remedy(look, answer, reason):
    fleet = FakeFleet(1)
    fleet.servers[0].fail = dict.fromkeys(("/weight_info", "/server_info"), answer)
    with pytest.raises(NoServer, match=reason):
        look(fleet, wait_s=60)


def test_what_is_no_server_of_ours_is_told_at_once(look):
    fleet = FakeFleet(1)
    fleet.transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"<html>")))
    with pytest.raises(NoServer, match="http://s0: no JSON; it is no server"):
        look(fleet, wait_s=60)


def test_who_goes_and_who_comes_is_told_in_one_line_each(tiny, play, capsys):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].kill()
        answers = await ask(engine, tiny, range(6))
        while not engine._fleet._machines[0].told:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # more knocks
        fleet.servers[0].restart()
        await all_live(engine)
        return answers

    assert right(tiny, play(scenario), range(6))
    assert lines(capsys) == [
        "engine server http://s0 is away (1 of 2 left): cannot be reached (ConnectError)",
        "engine server http://s0 is there (2 of 2)",
    ]


def test_a_server_that_only_stumbles_is_not_worth_a_line(tiny, play, capsys):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].fail = {"/inference/v1/generate": 500}
        return await ask(engine, tiny, range(6))

    assert right(tiny, play(scenario), range(6)) and lines(capsys) == []


def test_waiting_for_a_server_is_told_once_however_many_wait(tiny, play, monkeypatch, capsys):
    monkeypatch.setattr(vllm_server_fleet, "PATIENCE_S", 0.2)

    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].kill()
        asking = asyncio.create_task(ask(engine, tiny, range(5)))
        await asyncio.sleep(0.4)
        fleet.servers[0].restart()
        return await asking

    assert right(tiny, play(scenario, size=1), range(5))
    assert sum(line.startswith("waiting for engine servers (up to 5 s): http://s0") for line in lines(capsys)) == 1


def test_a_line_stays_short_with_many_servers():
    faults = {f"http://s{i}": "cannot be reached" for i in range(100)}
    assert listed(faults).endswith("http://s2: cannot be reached; and 97 more")


@pytest.mark.parametrize(
    "url", ["s0", "ftp://s0", "http://", "http://user:secret@s0", "http://s0?token=secret", "http://[::1"]
)
def test_what_is_no_address_is_refused_without_repeating_a_secret(tiny, url):
    with pytest.raises(ValueError, match="engine server") as error:
        VllmServerEngine([url], tiny.folder, transfer="mmsr1_shm")
    assert "secret" not in str(error.value).replace("holds no secret", "")


def test_a_fleet_has_at_least_one_server_and_each_once(tiny):
    for urls in ([], ["http://s0", "http://s0/"]):
        with pytest.raises(ValueError, match="each once"):
            VllmServerEngine(urls, tiny.folder, transfer="mmsr1_shm")
