"""Weights on their way from the trainer to the servers of a fleet.

A server may come back between two syncs, when the trainer's tensors are half updated or gone. So a sync copies them to
host memory once, and every push reads that copy, to all servers after a sync or to one that came back. The pushing
process alone pays for it: the model once, in the servers' type (15 GB for 7 billion parameters in bfloat16).

Around each transfer a server is paused: it ends what it has begun, keeps new requests waiting, takes the weights,
drops what it computed with the old ones, takes their label, and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, ItemsView, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from mmsr1.rollout.engines import weight_transfer
from mmsr1.rollout.engines.vllm_server_http import Malformed, Refused, Server, ServerFault

Transfer = Literal["nccl", "mmsr1_shm"]
Fault = (ServerFault, Refused, Malformed)
STARTED = "default"  # vLLM's label for the weights that a server was started with


class NobodyLeft(Exception):
    """Every server has dropped out of a push."""


class Crowd:
    """Servers that take a step together. One that fails at it drops out; the others go on."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.left = list(servers)
        self.faults: dict[Server, Exception] = {}

    async def each(self, step: Callable[[Server], Awaitable[Any]]) -> None:
        """Take the step, and wait for the slowest. Raises `NobodyLeft`, and what is not a server's fault."""
        results = await asyncio.gather(*(step(server) for server in self.left), return_exceptions=True)
        for server, result in zip(list(self.left), results, strict=True):
            if isinstance(result, Fault):
                self.left.remove(server)
                self.faults[server] = result
            elif isinstance(result, BaseException):
                raise result
        if not self.left:
            raise NobodyLeft

    async def post(self, path: str, body: dict[str, Any] | None = None) -> None:
        await self.each(lambda server: server.post(path, body))


class PushedWeights:
    """The current weights, what they are called, and the way to the servers. `dtype` is the servers' own.

    A label names the version and `owner`, the trainer that pushed it: a server that an earlier run left at the same
    version is not taken for one of ours.
    """

    def __init__(self, transfer: Transfer, dtype: str, reset_encoder_cache: bool, owner: str) -> None:
        self._transfer = over_nccl if transfer == "nccl" else over_shared_memory
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._reset_encoder_cache = reset_encoder_cache
        self._owner = owner
        self._label = STARTED
        self._tensors: dict[str, Tensor] = {}
        self._mixed: set[Server] = set()

    def held_by(self, server: Server, label: str) -> bool:
        """Whether a server that gives this label to its weights holds the current ones."""
        return label == self._label and server not in self._mixed

    def store(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy them; blocks. Memory of the last copy is used again.

        Raises ValueError if a name comes twice, and what `tensors` raises; what is held is a mixture then.
        """
        old, self._tensors = self._tensors, {}
        for name, tensor in tensors:
            if name in self._tensors:
                raise ValueError(f"two tensors are named {name!r}")
            room = old.pop(name, None)
            if room is None or room.shape != tensor.shape:
                room = torch.empty(tensor.shape, dtype=self._dtype if tensor.is_floating_point() else tensor.dtype)
            self._tensors[name] = room.copy_(tensor.detach())
        self._label = _label(self._owner, version)

    async def push(self, servers: Sequence[Server]) -> dict[Server, Exception]:
        """Bring the weights to the servers. Returns those that failed, which hold a mixture until a later push."""
        if not self._tensors:
            return {server: ServerFault("it holds weights of another run; start it again") for server in servers}
        crowd = Crowd(servers)
        self._mixed.update(servers)
        with suppress(NobodyLeft):
            await crowd.post("/pause?mode=wait&clear_cache=false")
            await self._transfer(crowd, self._tensors.items())
            await crowd.each(self._conclude)
        self._mixed.difference_update(crowd.left)
        return crowd.faults

    async def _conclude(self, server: Server) -> None:
        found = await server.post("/reset_prefix_cache")
        if not isinstance(found, dict) or found.get("success") is not True:
            raise ServerFault("it kept its prefix cache: a request still holds key-value blocks during a weight sync")
        await server.post("/reset_mm_cache")
        if self._reset_encoder_cache:
            await server.post("/reset_encoder_cache")
        await server.post("/update_weight_version", {"new_version": self._label})
        if (reported := await server.weight_version()) != self._label:
            raise Malformed(f"it took weights {self._label} and says {reported[:40]!r}")
        await server.post("/resume")


class FollowedWeights:
    """Weights that another process of the same trainer, `owner`, pushes: this one only knows by their label when a
    server has them."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._version: int | None = None

    def held_by(self, server: Server, label: str) -> bool:
        return label == (STARTED if self._version is None else _label(self._owner, self._version))

    def store(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in tensors:
            pass  # a generator may gather each tensor on several processes: it must be run to its end
        self._version = version

    async def push(self, servers: Sequence[Server]) -> dict[Server, Exception]:
        return {server: ServerFault(f"it has not been brought weights {self._version} yet") for server in servers}


def _label(owner: str, version: int) -> str:
    return f"{owner}-{version}"


async def over_shared_memory(crowd: Crowd, tensors: ItemsView[str, Tensor]) -> None:
    """Servers on this host map one chunk after another (`weight_transfer`); each is written once for all."""
    await crowd.each(_start)
    await weight_transfer.push(tensors, lambda chunk: crowd.post("/update_weights", {"update_info": chunk}))
    await crowd.post("/finish_weight_update")


async def _start(server: Server) -> None:
    try:
        await server.post("/start_weight_update")
    except ServerFault:
        # A trainer that was killed during its push has left it open. Finishing it puts the layers together again and
        # complains of those that are missing; a chunk that is none then makes the worker give the update up.
        for path, body in (("/finish_weight_update", None), ("/update_weights", {"update_info": {"path": ""}})):
            with suppress(ServerFault):
                await server.post(path, body)
        await server.post("/start_weight_update")


async def over_nccl(crowd: Crowd, tensors: ItemsView[str, Tensor]) -> None:
    """Servers on other machines, each over a group of its own (`vllm_server_nccl`)."""
    from mmsr1.rollout.engines.vllm_server_nccl import send

    await crowd.each(lambda server: send(server, tensors))
