"""Weights from this process's first GPU to those of one server, by vLLM's own NCCL back end on both sides.

Each server has a group of its own, made for one push: in a group of all, a server that dies would take the others'
transfer with it. The rendezvous is a port of this machine that unpickles what it gets, so it belongs on a network that
is trusted.

Written against the source of vLLM 0.32 and never run, for want of two GPUs. It relies on two things: a broadcast whose
receiver is gone ends when its communicator is aborted, and a server that never comes to the rendezvous is given up
after the store's 300 s.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, ItemsView, Iterator
from contextlib import suppress
from typing import Any

import httpx
from torch import Tensor

from mmsr1.rollout.engines.vllm_server_http import Malformed, Refused, Server, ServerFault


async def send(server: Server, tensors: ItemsView[str, Tensor]) -> None:
    """Send all tensors, in host memory, to a paused server. Raises as `Server` does."""
    calls = Calls(server, asyncio.get_running_loop())
    workers = (await server.setup()).workers
    try:
        await asyncio.to_thread(_send, calls, HostTensors(tensors), server.url, workers)
    except (ServerFault, Refused, Malformed):
        raise
    except Exception as error:  # NCCL and the store raise their own
        raise ServerFault(f"weight transfer failed ({type(error).__name__}: {error})") from error
    finally:
        with suppress(ServerFault, Refused, Malformed):
            await server.post("/shutdown_weight_transfer_engine")


def _send(calls: Calls, source: Any, url: str, workers: int) -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    address, port = _rendezvous(url)
    meeting = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=1 + workers)
    engine = NCCLTrainerWeightTransferEngine.trainer_init(meeting, client=calls, source=source)
    calls.abort = engine.shutdown
    try:
        engine.send_weights()
    finally:
        engine.shutdown()


class Calls:
    """What vLLM's trainer side asks of a server, from its threads: its `VLLMWeightSyncClient`."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self.abort: Callable[[], None] = lambda: None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        try:
            self._post("/update_weights", {"update_info": update_info})
        except Exception:
            self.abort()  # or the broadcast on the other thread would wait for this server for ever
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update")

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        asyncio.run_coroutine_threadsafe(self._server.post(path, body), self._loop).result()


class HostTensors:
    """vLLM's `WeightSource` over tensors in host memory; each is on the GPU for as long as it is sent."""

    def __init__(self, tensors: ItemsView[str, Tensor]) -> None:
        self._tensors = tensors

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.cuda()) for name, tensor in self._tensors)


def _rendezvous(url: str) -> tuple[str, int]:
    """The address by which this machine reaches the server, and a free port on it."""
    target = httpx.URL(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target.host, target.port or 80))  # sends nothing
        address = probe.getsockname()[0]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind((address, 0))
        return address, free.getsockname()[1]
