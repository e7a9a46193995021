"""Servers that behave as vLLM's routes do, inside the test's own event loop; behind `httpx.MockTransport`.

What a server samples is a function of the prompt, the seed and the weights it holds, so a test can tell from an answer
whether it is the right one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpx
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure
from mmsr1.rollout.engines.vllm_server import VllmServerEngine
from mmsr1.rollout.engines.vllm_server_weights import STARTED
from tests.rollout.engines.talks import Tiny, question, sampling

SETUP = {
    "model_config": {
        "dtype": "torch.float32",
        "max_model_len": 512,
        "logprobs_mode": "raw_logprobs",
        "multimodal_config": {
            "mm_processor_cache_gb": 4.0,
            "mm_processor_cache_type": "lru",
            "mm_device_do_normalize": True,
            "limit_per_prompt": {"image": {"count": 8}, "video": {"count": 0}},
        },
    },
    "parallel_config": {"_api_process_count": 1, "data_parallel_size": 1, "world_size": 1},
    "weight_transfer_config": {"backend": "mmsr1_shm"},
}
SYNC = [  # what a server is asked for at a weight sync
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
Edit = Callable[[dict[str, Any]], Any]
Scenario = Callable[[VllmServerEngine, "FakeFleet"], Awaitable[Any]]


class FakeServer:
    """One server. `events` is what happened to it in order, `bodies` the generate requests that reached it.

    `hold` keeps answers back until it is set. `edit` changes an answer before it is sent. `fail` maps a route to the
    status it answers with, or to an exception. `kill` ends it as SIGKILL would; `restart` brings it back as new.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.setup: dict[str, Any] = json.loads(json.dumps(SETUP))
        self.events: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.fail: dict[str, int | str | Exception] = {}
        self.edit: Edit = lambda answer: answer
        self.hold: asyncio.Event | None = None
        self.freed = 0
        self.up = True
        self.restart()

    def restart(self) -> None:
        self.up, self.label, self.updating = True, STARTED, False
        self.images: set[str] = set()
        self.running, self.started = 0, asyncio.Event()
        self.dead, self.going = asyncio.Event(), asyncio.Event()
        self.going.set()

    def kill(self) -> None:
        self.up = False
        self.dead.set()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """The answer, unless the server dies before."""
        if not self.up:
            raise httpx.ConnectError("connection refused", request=request)
        answer, dead = asyncio.ensure_future(self._answer(request)), asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait([answer, dead], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.freed += 1
            raise
        finally:
            answer.cancel()
            dead.cancel()
        if not answer.done():
            raise httpx.ReadError("connection reset", request=request)
        found = answer.result()
        return httpx.Response(found.status_code, stream=httpx.ByteStream(found.content))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        planned = self.fail.get(path)
        if isinstance(planned, Exception):
            raise planned
        if planned == "die":
            self.kill()
            await asyncio.sleep(60)
        if isinstance(planned, int):
            return _error(planned, f"planned for {path}")
        if isinstance(planned, str):
            return _error(500, planned)
        body = json.loads(request.content) if request.content else {}
        if path == "/inference/v1/generate":
            return await self._generate(body)
        if request.method == "GET":
            found = {"/weight_info": {"weight_version": self.label}, "/server_info": {"vllm_config": self.setup}}
            return httpx.Response(200, json=found[path])
        return await self._control(path, body)

    async def _generate(self, body: dict[str, Any]) -> httpx.Response:
        self.bodies.append(body)
        self.events.append("generate")
        features = body.get("features")
        if features:
            data = dict(zip(features["mm_hashes"]["image"], features["kwargs_data"]["image"], strict=True))
            if any(value is None and digest not in self.images for digest, value in data.items()):
                return _error(500, "Internal server error")
            self.images |= data.keys()
        await self.going.wait()
        label, self.running = self.label, self.running + 1
        self.started.set()
        try:
            await (self.hold.wait() if self.hold else asyncio.sleep(0))
        finally:
            self.running -= 1
        return httpx.Response(200, json=self.edit(completion(body, label)))

    async def _control(self, path: str, body: dict[str, Any]) -> httpx.Response:
        self.events.append(path)
        if path == "/pause":
            self.going.clear()
            while self.running:
                await asyncio.sleep(0)
        elif path == "/resume":
            self.going.set()
        elif path == "/start_weight_update":
            if self.updating:
                return _error(500, "already active")
            self.updating, self.weights = True, {}
        elif path == "/update_weights":
            if not (chunk := body["update_info"]["path"]):
                self.updating = False
                return _error(500, "weights refused: no chunk")
            self.weights |= load_file(chunk)
        elif path == "/finish_weight_update" and not self.weights:
            return _error(500, "weights refused: no new weights")
        elif path == "/finish_weight_update":
            self.updating = False
        elif path == "/update_weight_version":
            self.label = body["new_version"]
        elif path == "/reset_mm_cache":
            self.images.clear()
        return httpx.Response(200, json={"success": True})


class FakeFleet:
    """Servers at http://s0, http://s1, ...; `requests` holds all that were sent to any of them."""

    def __init__(self, size: int) -> None:
        self.servers = [FakeServer(f"http://s{i}") for i in range(size)]
        self.urls = [server.url for server in self.servers]
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self._handle)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self.servers[int(request.url.host[1:])].handle(request)

    def seeds(self) -> Counter[int]:
        """How often each seed was sampled by servers that said so."""
        return Counter(body["sampling_params"]["seed"] for server in self.servers for body in server.bodies)


def completion(body: dict[str, Any], label: str) -> dict[str, Any]:
    """The route's answer: up to three tokens that depend on prompt, seed and weights."""
    sampling = body["sampling_params"]
    ids = sampled(body["token_ids"], sampling["seed"], label)[: sampling["max_tokens"]]
    content = [{"token_id": token, "logprob": -token / 100, "rank": 1, "top_logprobs": []} for token in ids]
    choice = {
        "index": 0,
        "token_ids": ids,
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "weight_versions": [{"version": label, "start": 0, "end": len(ids)}],
    }
    return {"request_id": "r", "choices": [choice]}


def sampled(prompt: Sequence[int], seed: int, label: str) -> list[int]:
    digest = hashlib.sha256(json.dumps([list(prompt), seed, label]).encode()).digest()
    return [1 + value for value in digest[:3]]


def _error(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "Error", "code": status}})


def run(tiny: Tiny, scenario: Scenario, size: int = 2, prepare: Callable[[FakeFleet], None] | None = None, **arguments):
    """The result of `scenario(engine, fleet)` on a fresh fleet."""
    fleet = FakeFleet(size)
    if prepare is not None:
        prepare(fleet)

    async def main() -> Any:
        engine = VllmServerEngine(
            fleet.urls,
            tiny.folder,
            transport=fleet.transport,
            **{"transfer": "mmsr1_shm", "max_model_len": 512, "wait_s": 5.0, "request_timeout_s": 5.0} | arguments,
        )
        try:
            async with asyncio.timeout(20):
                return await scenario(engine, fleet)
        finally:
            await engine.close()

    return asyncio.run(main())


def weights(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), float(value)), "b": torch.full((4,), value + 0.5), "count": torch.tensor([3])}


def holds(server: FakeServer, value: float) -> bool:
    expected = weights(value)
    same = server.weights.keys() == expected.keys()
    return same and all(torch.equal(server.weights[name], tensor) for name, tensor in expected.items())


async def all_live(engine: VllmServerEngine) -> None:
    """Until every server has been found; a fleet starts with none."""
    engine._fleet.start()
    while not all(machine.live for machine in engine._fleet._machines):
        await asyncio.sleep(0.01)


async def ask(engine: VllmServerEngine, tiny: Tiny, numbers: Iterable[int]) -> list[Completion | EngineFailure]:
    """One first turn for each number, which is its seed as well."""
    return await asyncio.gather(*(engine.generate(question(tiny, n), sampling(n)) for n in numbers))


def right(
    tiny: Tiny, answers: Sequence[Completion | EngineFailure], numbers: Iterable[int], label: str = STARTED
) -> bool:
    """Whether each answer is what a server holding these weights samples for that question."""
    expected = [tuple(sampled(question(tiny, n).token_ids, n, label)) for n in numbers]
    return [answer.token_ids if isinstance(answer, Completion) else answer for answer in answers] == expected
