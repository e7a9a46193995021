"""vLLM behind one coroutine per request, in this process: the engine of training and evaluation.

    generate() --> arrivals --> pump (a task) ==> engine thread: VllmCore.step --> outcomes --> futures

The pump is the only one to hand work to the engine thread, and exists while there is work. It takes what has
arrived since its last turn, so a request joins the running batch at vLLM's next step. A weight sync is an item of
the same queue: requests already running finish with the old weights, those that arrive meanwhile wait for the new.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_base import VllmBase
from mmsr1.rollout.engines.vllm_core import Outcome, Request, VllmCore
from mmsr1.types import Picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Errand:
    """Something for the engine thread to do while no request runs: a weight sync, going to sleep."""

    name: str
    work: Callable[[], None]
    done: asyncio.Future[None]


class VllmEngine(VllmBase):
    """The Engine protocol over an in-process vLLM; its arguments are those of `VllmBase`.

    Use it from one event loop at a time. Images must be decodable; one that is not fails its own request.
    """

    def _start(
        self,
        engine_args: Mapping[str, Any],
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
    ) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        making = self._thread.submit(VllmCore, engine_args, threads, image_cache_bytes, reset_encoder_cache, pixels)
        self._core = making.result()
        self._names = map(str, itertools.count())
        self._arrivals: dict[str, Request] = {}
        self._running: set[str] = set()
        self._aborts: list[str] = []
        self._errands: list[Errand] = []
        self._answers: dict[str, asyncio.Future[Outcome]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._dead: str | None = None
        self._closed = False

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """Sample one turn. A control token that ends the turn is part of the ids and has its log-prob.

        `finish` is "stop" for that token or a stop string, "length" for `max_tokens` or a full context. Vision control
        tokens are never sampled; log-probs are the model's own, before that ban and before temperature.
        Cancelling the caller frees the request inside vLLM.
        """
        if self._dead is not None:
            return EngineFailure(self._dead)
        request = Request(next(self._names), prompt, sampling)
        answer = self._answers[request.id] = asyncio.get_running_loop().create_future()
        self._arrivals[request.id] = request
        self._wake()
        try:
            return await answer
        finally:
            del self._answers[request.id]
            if self._arrivals.pop(request.id, None) is None and request.id in self._running:
                self._aborts.append(request.id)

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights once the requests now running have finished; later ones wait for the new weights.

        `tensors` are read on the engine thread and may come from a generator. Raises what `weight_sync.load_weights`
        raises, after which the engine is dead, and RuntimeError if it was dead already.
        """
        await self._when_idle("a weight sync", lambda: self._core.load_weights(tensors, version))

    async def sleep(self) -> None:
        """Free the memory of weights and key-value blocks until the next `load_weights` (with `sleep=True` only)."""
        if self._sleeps:
            await self._when_idle("going to sleep", self._core.sleep)

    async def _when_idle(self, name: str, work: Callable[[], None]) -> None:
        if self._dead is not None:
            raise RuntimeError(self._dead)
        errand = Errand(name, work, asyncio.get_running_loop().create_future())
        self._errands.append(errand)
        self._wake()
        try:
            await errand.done
        finally:
            if errand in self._errands:  # cancelled before its turn
                self._errands.remove(errand)

    async def close(self) -> None:
        """Fail what is in flight, end the engine thread and free vLLM's memory; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._die("the engine is closed")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._core.close)
        if self._pump is not None and not self._pump.done():
            await self._pump
        self._thread.shutdown()

    def _wake(self) -> None:
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """The pump: hand out work until there is none."""
        try:
            while self._arrivals or self._running or self._aborts or self._errands:
                if self._errands and not self._running and not self._aborts:
                    await self._run_errand(self._errands.pop(0))
                else:
                    await self._step()
        except asyncio.CancelledError:  # the event loop is ending: nobody would set these futures any more
            for answer in self._answers.values():
                answer.cancel()
            raise
        except Exception as error:
            logger.exception("vLLM failed")
            self._die(f"vLLM failed: {type(error).__name__}: {error}")

    async def _step(self) -> None:
        arrivals, aborts = [], self._aborts
        self._aborts = []
        if not self._errands:
            arrivals, self._arrivals = list(self._arrivals.values()), {}
        self._running.update(request.id for request in arrivals)
        loop = asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._thread, self._core.step, arrivals, aborts, self._interrupted)
        self._running.difference_update(aborts)
        for name, outcome in outcomes:
            self._running.discard(name)
            if name in self._answers and not self._answers[name].done():
                self._answers[name].set_result(outcome)

    def _interrupted(self) -> bool:
        """Read on the engine thread, between two steps of vLLM: is there something to hand over?"""
        return bool(self._dead or self._aborts or (self._arrivals and not self._errands))

    async def _run_errand(self, errand: Errand) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, errand.work)
        except Exception as error:
            self._die(f"{errand.name} failed: {type(error).__name__}: {error}")
            if not errand.done.done():
                errand.done.set_exception(error)
        else:
            if not errand.done.done():
                errand.done.set_result(None)

    def _die(self, reason: str) -> None:
        self._dead = self._dead or reason
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(EngineFailure(self._dead))
        for errand in self._errands:
            if not errand.done.done():
                errand.done.set_exception(RuntimeError(self._dead))
        for waiting in (self._arrivals, self._running, self._aborts, self._errands):
            waiting.clear()
