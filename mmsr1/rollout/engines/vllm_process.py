"""vLLM in a process of its own on this machine, so that sampling and training do not share an interpreter.

    generate() ==> the engine's event loop (a thread of this process): Front == sockets ==> vLLM's engine process
                                      new weights: weight_transfer == shared memory ==> its worker

A weight sync pauses vLLM, replaces the weights, drops every cache and lets vLLM go on. vLLM labels every token with
the weights that it was sampled by, in the engine process itself, so what is still on its way when the pause begins
is attributed rightly too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_base import VllmBase
from mmsr1.rollout.engines.vllm_front import Front
from mmsr1.types import Picture

T = TypeVar("T")


class VllmProcessEngine(VllmBase):
    """The Engine protocol over a vLLM in a child process; its arguments are those of `VllmBase`.

    What is running when new weights come finishes with the old ones. With `keep_running` it goes on with the new
    weights instead, after its key-value blocks were computed again, and its `Completion` has `switches`.

    The child never outlives this process. If it dies, every request that waits and every later one is an
    `EngineFailure`. Use it from one event loop at a time; it lives on a loop of its own.
    """

    def __init__(self, model: str | Path, *, keep_running: bool = False, **arguments: Any) -> None:
        self._keep_running = keep_running
        super().__init__(model, **arguments)

    def _start(
        self,
        engine_args: Mapping[str, Any],
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
    ) -> None:
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="vllm front", daemon=True)
        self._thread.start()

        async def start() -> Front:
            front = Front(engine_args, threads, image_cache_bytes, reset_encoder_cache, pixels, self._keep_running)
            try:
                await front.prepare()
            except BaseException:
                await front.stop()
                raise
            return front

        try:
            self._front = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if isinstance(error, Exception):  # else, after a Ctrl-C, the thread may be starting the child for long
                self._thread.join()
            raise

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """As `VllmEngine.generate`."""
        if self._closed:
            return EngineFailure("the engine is closed")
        return await self._there(self._front.generate(prompt, sampling))

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights. Later requests wait for them; for those now running see `keep_running`.

        `tensors` are read on a thread of the engine, and read to the end even if the caller is cancelled. Raises
        ValueError if a tensor is missing, unknown, sent twice or of a wrong shape, and what `tensors` raises; the
        engine is dead afterwards. Raises RuntimeError if it was dead or died over it.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        await asyncio.shield(self._there(self._front.load_weights(tensors, version)))

    async def sleep(self) -> None:
        """Free the memory of weights and key-value blocks until the next `load_weights` (with `sleep=True` only)."""
        if self._sleeps and not self._closed:
            await asyncio.shield(self._there(self._front.sleep()))

    async def close(self) -> None:
        """Fail what is in flight and end the child and the engine's thread; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        await self._there(self._front.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)

    def _there(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """The work's result, done on the engine's loop; cancelling it here cancels it there."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()
