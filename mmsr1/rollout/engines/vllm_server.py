"""A fleet of vLLM servers behind one coroutine per request: the engine for sampling on other machines.

    generate() --> Courier.prepare --> Fleet.pick --> Courier.ask --> Completion
                                           ^               |
                                           +---------------+ gone, failing, or with other weights: the next one

A server is live while it answers and holds the current weights (`vllm_server_fleet`). One that fails a request is away
at once: its requests go to the others with the same seeds, and a task of its own knocks until it answers, brings it the
current weights unless it proves to hold them, and lets it serve again. Every answer names the weights that sampled it,
so a server that was restarted behind our back is noticed by its first answer, which is thrown away.

Each request is one coroutine that returns one answer, so none is lost or answered twice. A server that was given up
may still compute it; its connection is closed, and vLLM then frees the request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.routing import block_hashes
from mmsr1.rollout.engines.vllm_server_courier import Courier
from mmsr1.rollout.engines.vllm_server_fleet import Fleet
from mmsr1.rollout.engines.vllm_server_http import (
    BYTES_PER_TOKEN,
    SMALL_ANSWER,
    Malformed,
    Refused,
    Server,
    ServerFault,
    check_url,
    http_client,
)
from mmsr1.rollout.engines.vllm_server_inputs import BodyBuilder, Inputs
from mmsr1.rollout.engines.vllm_server_start import check_setup, find, tell
from mmsr1.rollout.engines.vllm_server_weights import FollowedWeights, PushedWeights, Transfer
from mmsr1.rollout.engines.weight_transfer import refusal
from mmsr1.tools.pictures import decode
from mmsr1.types import Picture

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOSSES = 4  # servers that may fail with a request in their hands before it is taken for the cause


class Ended(Exception):
    """The engine was closed, or died, while this was going on."""


class Gate:
    """Requests pass while it is open; a weight sync closes it, waits for those inside, and opens it again."""

    def __init__(self) -> None:
        self._inside = 0
        self._open, self._idle, self._sync = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._open.set()
        self._idle.set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._sync:
            self._open.clear()
            try:
                await self._idle.wait()
                yield
            finally:
                self._open.set()


class VllmServerEngine:
    """The Engine protocol over any number of vLLM servers, each started by `python -m mmsr1.rollout.engines.serve`.

    `urls` are the servers' addresses, which must be trusted: they are sent prompts, pictures and weights, and the
    bearer token of MMSR1_ENGINE_TOKEN if that is set. `model` is the folder or hub name of the model they serve; only
    its processor is used here. `transfer` is the way of new weights: "mmsr1_shm" to servers on this host, "nccl"
    between GPUs. `pushes=False` is for all processes of a trainer but one: it waits for what that one pushes, and says
    nothing on the terminal. `owner` is a name of that trainer, the same in all its processes, that no earlier one had.
    `dtype` and `max_model_len` (expanded tokens, prompt and answer together) must be the servers'.
    `images_per_prompt` bounds the images of a whole conversation, `image_cache_bytes` the processed images that are
    kept. A server is given up for a request after `request_timeout_s`; a request is given up when no server was there
    for `wait_s`. `reset_encoder_cache=False` is for fault tests only: it leaves the vision tower's old outputs in use
    after a weight sync. `pixels` decodes a picture. `transport` replaces the network in tests.

    Call `find_servers` first, and use the rest from one event loop for its whole life. The pushing process holds a
    copy of the weights in host memory.
    Raises ValueError for an address that is none, and what vLLM raises for a model that it cannot serve.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str | Path,
        *,
        transfer: Transfer,
        pushes: bool = True,
        owner: str | None = None,
        dtype: str = "float32",
        max_model_len: int = 4096,
        images_per_prompt: int = 6,
        request_timeout_s: float = 600.0,
        wait_s: float = 600.0,
        image_cache_bytes: int = 2**28,
        reset_encoder_cache: bool = True,
        pixels: Callable[[Picture], Image] = decode,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if owner is None and not pushes:
            raise ValueError("a process that pushes no weights must be told the owner of those that come")
        owner = owner or secrets.token_hex(4)
        addresses = [check_url(url) for url in urls]
        if not addresses or len(set(addresses)) < len(addresses):
            raise ValueError(f"engine servers need at least one address, and each once; got {list(urls)}")
        self._courier = Courier(
            partial(BodyBuilder, str(model), dtype, max_model_len, images_per_prompt, image_cache_bytes, pixels)
        )
        answer_bytes = SMALL_ANSWER + BYTES_PER_TOKEN * max_model_len
        self._connect = partial(http_client, transport, request_timeout_s)
        self._servers = lambda client: [Server(url, client, request_timeout_s, answer_bytes) for url in addresses]
        wanted = {"dtype": dtype, "raw_pixels": self._courier.raw_pixels} | ({"transfer": transfer} if pushes else {})
        self._check = partial(check_setup, max_model_len=max_model_len, images_per_prompt=images_per_prompt, **wanted)
        self._say = tell if pushes else logger.info
        self._client = self._connect()
        self._fleet = Fleet(
            self._servers(self._client),
            PushedWeights(transfer, dtype, reset_encoder_cache, owner) if pushes else FollowedWeights(owner),
            self._check,
            wait_s,
            self._say,
        )
        self._wait_s = wait_s
        self._gate = Gate()
        self._version = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dead: str | None = None
        self._closed = False

    def find_servers(self) -> None:
        """Wait until one of the servers is there; blocks. Raises `NoServer` (see `vllm_server_start.find`)."""

        async def look() -> dict[str, str]:
            async with self._connect() as client:  # its connections belong to this loop
                return await find(self._servers(client), self._check, self._wait_s, self._say)

        self._fleet.missing(asyncio.run(look()))

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """Sample one turn, as `VllmEngine` does, on whichever server. Cancelling the caller frees the request there."""
        if self._dead is not None:
            return EngineFailure(self._dead)
        try:
            return await self._run(self._generate(prompt, sampling))
        except Ended:
            return EngineFailure(self._dead or "cancelled")
        except Exception as error:  # a bug ends its own request
            logger.exception("a request to the engine servers failed")
            return EngineFailure(f"{type(error).__name__}: {error}")

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights of all servers once the requests in flight have finished; later ones wait.

        A server that fails is left behind and gets the weights before it serves again. Raises ValueError if the
        servers refuse the weights, and what reading them raises (the engine is dead then, as after a cancelled sync);
        RuntimeError if no server is left, or was there for `wait_s`, and if the engine was dead already.
        """
        if self._dead is not None:
            raise RuntimeError(self._dead)
        try:
            await self._run(self._load_weights(tensors, version))
        except Ended:
            raise RuntimeError(self._dead or "cancelled") from None

    async def sleep(self) -> None:
        """Does nothing: the servers' memory is not the trainer's."""

    async def close(self) -> None:
        """Fail what is in flight and leave the servers as they are; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        ending = list(self._tasks)
        self._die("the engine is closed")
        await asyncio.gather(*ending, return_exceptions=True)
        await self._fleet.close()
        await self._courier.close()
        await self._client.aclose()

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that ends with the engine as well as with its caller. Raises `Ended` in the first case."""
        self._fleet.start()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._tasks.discard(task)
            task.cancel()
        if task.cancelled():
            raise Ended
        return task.result()

    def _die(self, reason: str) -> None:
        self._dead = self._dead or reason
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    async def _generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        try:
            inputs = await self._courier.prepare(prompt)
        except Exception as error:  # whatever is wrong with one request must not reach the others
            return EngineFailure(f"request refused: {error}")
        images = {place.offset: digest for place, digest in zip(inputs.places, inputs.digests, strict=True)}
        hashes = block_hashes(inputs.token_ids, images)
        async with self._gate.request():
            return await self._serve(inputs, sampling, hashes)

    async def _serve(self, inputs: Inputs, sampling: Sampling, hashes: Sequence[int]) -> Completion | EngineFailure:
        """Ask one server after another."""
        losses, last = 0, ""
        while losses < LOSSES:
            machine = await self._fleet.pick(hashes)
            if machine is None:
                return EngineFailure(f"no engine server for {self._wait_s:g} s: {self._fleet.faults()}")
            try:
                with machine.serving(hashes):
                    answer = await self._courier.ask(machine, inputs, sampling)
                self._fleet.check_answer(machine, answer)
            except Refused as error:
                return EngineFailure(f"request refused: {error}")
            except Malformed as error:
                return EngineFailure(f"malformed answer of {machine.server.url}: {error}")
            except ServerFault as fault:
                self._fleet.lose(machine, fault)
                losses, last = losses + fault.sent, f"{machine.server.url}: {fault}"
            else:
                return Completion(answer.token_ids, answer.logprobs, answer.finish, self._version)
        return EngineFailure(f"{LOSSES} servers failed with this request, the last was {last}")

    async def _load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        async with self._gate.alone():
            self._version = version
            try:
                faults = await self._fleet.sync(tensors, version)
            except TimeoutError:
                raise RuntimeError(f"no engine server for {self._wait_s:g} s: {self._fleet.faults()}") from None
            except (Exception, asyncio.CancelledError) as error:  # what is held of the new weights may be a part
                self._die(f"a weight sync failed: {type(error).__name__}: {error}")
                raise
            for server, fault in faults.items():
                if isinstance(error := refusal(fault), ValueError):
                    reason = f"{server.url}, which must serve the model that is trained: {error}"
                    self._die(f"a weight sync failed: {reason}")
                    raise ValueError(reason)
            if faults:
                raise RuntimeError(f"no engine server is left after a weight sync: {self._fleet.faults()}")
