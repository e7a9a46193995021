"""The fleet engine over two real vLLM servers on this machine, against the Hugging Face model.

The tests are one story, told in order: servers are killed and started again. Starting one takes half a minute.
"""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from mmsr1.rollout.engines.base import Completion, EngineFailure
from mmsr1.rollout.engines.vllm_server import VllmServerEngine
from mmsr1.rollout.engines.vllm_server_http import TOKEN_VARIABLE
from tests.rollout.engines.talks import conversations, picture, question, sampling, save_tiny
from tests.tiny_model import perturb

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif("MMSR1_REAL_SERVERS" not in os.environ, reason="takes minutes: make accept NAME=engines"),
    pytest.mark.timeout(600),
]
TOLERANCE = 1e-4
TOKEN = "a secret of this test"


class RealServer:
    """A vLLM server in processes of its own; whoever starts it must kill it."""

    def __init__(self, model, log) -> None:
        self.model, self.log = model, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        sizes = {"max-model-len": 512, "max-num-seqs": 16, "kv-cache-gib": 0.0625, "cpu-threads": 1, "block-size": 32}
        flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmsr1.rollout.engines.serve", self.model, "--port", str(self.port), *flags],
                env={**os.environ, TOKEN_VARIABLE: TOKEN, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"},
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with the end of its log if it ended instead."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text()[-2000:])
            try:
                if httpx.get(f"{self.url}/health", headers=headers, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("served"), tied=True)


@pytest.fixture(scope="module")
def servers(tiny, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    servers = [RealServer(tiny.folder, logs / f"{i}.log") for i in range(2)]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="module")
def engine(tiny, servers, loop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        engine = VllmServerEngine(
            [server.url for server in servers], tiny.folder, transfer="mmsr1_shm", max_model_len=512, wait_s=120
        )
    loop.run(engine.load_weights(tiny.model.named_parameters(), 0))
    yield engine
    loop.run(engine.close())


def gap(tiny, turns):
    return max(tiny.gap(*turn) for turn in turns)


def test_nothing_is_open_without_the_token(servers):
    for method, path in (("GET", "/health"), ("POST", "/inference/v1/generate"), ("POST", "/update_weights")):
        for headers in ({}, {"Authorization": "Bearer guess"}):
            answer = httpx.request(method, servers[0].url + path, headers=headers, trust_env=False)
            assert answer.status_code == 401


def test_logprobs_equal_the_hf_forward_before_and_after_weight_syncs(tiny, engine, loop):
    for version in (1, 2):
        turns = loop.run(conversations(engine, tiny, 6))
        assert gap(tiny, turns) < TOLERANCE
        assert any(len(prompt.images) > 2 for prompt, _ in turns)
        perturb(tiny.model, seed=version, scale=0.03)
        stale = gap(tiny, turns)
        loop.run(engine.load_weights(tiny.model.named_parameters(), version))
        turns = loop.run(conversations(engine, tiny, 6))
        assert gap(tiny, turns) < TOLERANCE < 1e-2 < stale
        assert {completion.weight_version for _, completion in turns} == {version}
        assert all(machine.images for machine in engine._fleet._machines)  # both took part


def test_a_stop_string_ends_the_turn_and_the_ids_stay_as_sampled(tiny, engine, loop):
    def readable(token):
        text = tiny.text([token])
        return text if len(text) == 1 and text.isascii() and text.isprintable() else ""

    async def main():
        for seed in range(20):  # a random model says anything
            free = await engine.generate(question(tiny, 5), sampling(seed, 20))
            said = list(map(readable, free.token_ids))
            fresh = [i for i in range(5, len(said)) if said[i] and said[i] not in tiny.text(free.token_ids[:i])]
            if fresh:
                stop = ("</never>", said[fresh[0]])
                return free, fresh[0], await engine.generate(question(tiny, 5), sampling(seed, 20, stop=stop))
        pytest.fail("no sample has a readable token that was not said before")

    free, where, stopped = loop.run(main())
    assert stopped.finish == "stop" and stopped.token_ids == free.token_ids[: where + 1]
    assert stopped.logprobs == pytest.approx(free.logprobs[: where + 1], abs=TOLERANCE)


def test_an_image_that_fell_out_of_a_servers_cache_is_sent_again(tiny, engine, servers, loop):
    prompt = question(tiny, 6, picture(600), picture(601))

    async def main():
        first = await engine.generate(prompt, sampling(1))
        for server in servers:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
                (await client.post(f"{server.url}/reset_mm_cache")).raise_for_status()
                (await client.post(f"{server.url}/reset_encoder_cache")).raise_for_status()
                (await client.post(f"{server.url}/reset_prefix_cache")).raise_for_status()
        return first, await engine.generate(prompt, sampling(1))

    first, second = loop.run(main())
    assert first.token_ids == second.token_ids and tiny.gap(prompt, second) < TOLERANCE
    assert all(machine.live for machine in engine._fleet._machines)


def test_a_request_that_cannot_be_served_fails_alone(tiny, engine, loop):
    async def main():
        return await asyncio.gather(
            engine.generate(question(tiny, 1), sampling(0)), engine.generate(tiny.prompt("a" * 600), sampling(0))
        )

    good, failure = loop.run(main())
    assert isinstance(good, Completion) and isinstance(failure, EngineFailure)


def test_a_killed_servers_requests_are_answered_by_the_other(tiny, engine, servers, loop):
    machine = engine._fleet._machines[0]

    async def main():
        prompts = [question(tiny, i, picture(i)) for i in range(16)]
        asking = asyncio.gather(*(engine.generate(prompt, sampling(i, 200)) for i, prompt in enumerate(prompts)))
        while machine.in_flight < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        servers[0].kill()
        return list(zip(prompts, await asking, strict=True))

    turns = loop.run(main())
    assert not machine.live and all(isinstance(answer, Completion) for _, answer in turns)
    assert gap(tiny, turns) < TOLERANCE


def test_a_server_that_was_started_again_serves_with_the_current_weights(tiny, engine, servers, loop):
    machine, other = engine._fleet._machines
    perturb(tiny.model, seed=3, scale=0.03)
    loop.run(engine.load_weights(tiny.model.named_parameters(), 3))
    assert other.live and not machine.live
    servers[0].start()

    async def return_and_answer():
        while not machine.live:
            await asyncio.sleep(0.1)
        servers[1].kill()  # from here on, the one that came back answers all
        return await conversations(engine, tiny, 3)

    turns = loop.run(return_and_answer())
    assert gap(tiny, turns) < TOLERANCE and {completion.weight_version for _, completion in turns} == {3}
