"""transformers' batched `generate` behind one coroutine per request: the engine where vLLM does not run.

It stands on `generate`, because the library's continuous batching (5.19) takes token ids alone: its requests have no
place for images, and it counts their positions in one dimension.

    generate() --> queue --> pump (a task) ==> engine thread: TransformersCore.run, one batch --> answers

The pump takes what waits at the head of the queue as the next batch, so a request that arrives while a batch runs
joins the next one. A request is answered when its own row ends; the rest of its batch goes on without it. A weight
sync is an item of the same queue: what was asked before it is sampled with the old weights, what comes later waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.transformers_core import TransformersCore
from mmsr1.rollout.engines.transformers_sampling import Request, settle
from mmsr1.tools.pictures import decode
from mmsr1.types import Picture

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Errand:
    """Something for the engine thread to do between two batches: a weight sync, going to sleep."""

    name: str
    work: Callable[[], None]
    answer: Future[None] = field(default_factory=Future)

    def fail(self, reason: str) -> None:
        settle(self.answer, RuntimeError(reason))


class TransformersEngine:
    """The Engine protocol over a model of its own, loaded from the folder (or hub id) `model`.

    `dtype` names a torch type, `device` a torch device. `max_model_len` counts expanded tokens, prompt and answer
    together. A batch has at most `max_batch` rows, all padded to its longest prompt; it bounds memory, as nothing is
    kept of a conversation between two turns but its encoded pictures. `images_per_prompt` bounds the images of a
    whole conversation. `threads` is the engine thread's share of the cores. `image_cache_bytes` bounds the patches of
    pictures that are kept, and in the same way the vision tower's outputs. `reset_encoder_cache=False` is for fault
    tests only: it leaves those outputs in use after a weight sync. `pixels` decodes a picture.

    Use it from one event loop at a time. Images must be decodable; one that is not fails its own request. Raises
    ValueError if the folder holds no complete Qwen2.5-VL.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        max_model_len: int = 4096,
        max_batch: int = 32,
        images_per_prompt: int = 6,
        threads: int = 1,
        image_cache_bytes: int = 2**28,
        reset_encoder_cache: bool = True,
        pixels: Callable[[Picture], Image] = decode,
    ) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._core = self._thread.submit(
            TransformersCore,
            str(model),
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            images_per_prompt=images_per_prompt,
            threads=threads,
            image_cache_bytes=image_cache_bytes,
            reset_encoder_cache=reset_encoder_cache,
            pixels=pixels,
        ).result()
        self._max_batch = max_batch
        self._queue: deque[Request | Errand] = deque()
        self._running: list[Request] = []
        self._pump: asyncio.Task[None] | None = None
        self._dead: str | None = None
        self._closed = False

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion | EngineFailure:
        """Sample one turn. A control token that ends the turn is part of the ids and has its log-prob.

        `finish` is "stop" for that token or a stop string, "length" for `max_tokens` or a full context. Vision control
        tokens are never sampled; log-probs are the model's own, before that ban and before temperature.
        Cancelling the caller ends its row at the next token.
        """
        if self._dead is not None:
            return EngineFailure(self._dead)
        request = Request(prompt, sampling)
        return await self._answer_of(request, request.answer)

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace all weights once the requests asked so far are answered; later ones wait for the new weights.

        `tensors` are read on the engine thread and may come from a generator. Raises ValueError if one is missing or
        its name unknown and RuntimeError if its shape differs, after which the engine is dead, and RuntimeError if it
        was dead already.
        """
        await self._between_batches("a weight sync", lambda: self._core.load_weights(tensors, version))

    async def sleep(self) -> None:
        """Free a GPU of the weights until the next `load_weights`; on a CPU, nothing."""
        await self._between_batches("going to sleep", self._core.sleep)

    async def close(self) -> None:
        """Fail what is in flight, end the engine thread and free the model; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._die("the engine is closed")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._core.close)
        if self._pump is not None and not self._pump.done():
            await self._pump
        self._thread.shutdown()

    async def _between_batches(self, name: str, work: Callable[[], None]) -> None:
        if self._dead is not None:
            raise RuntimeError(self._dead)
        errand = Errand(name, work)
        await self._answer_of(errand, errand.answer)

    async def _answer_of(self, item: Request | Errand, answer: Future[T]) -> T:
        self._queue.append(item)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())
        return await asyncio.wrap_future(answer)

    async def _run(self) -> None:
        """The pump: hand out work until there is none."""
        try:
            while self._queue:
                head = self._queue.popleft()
                if isinstance(head, Errand):
                    await self._run_errand(head)
                else:
                    await self._run_batch(head)
        except asyncio.CancelledError:  # the event loop is ending: nobody would answer these any more
            for item in self._queue:
                item.answer.cancel()
            raise
        except Exception as error:
            logger.exception("transformers failed")
            self._die(f"transformers failed: {type(error).__name__}: {error}")

    async def _run_batch(self, first: Request) -> None:
        """Run this request with those that wait behind it, up to the next errand."""
        self._running = [first]
        while self._queue and len(self._running) < self._max_batch and isinstance(item := self._queue[0], Request):
            self._running.append(item)
            self._queue.popleft()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._core.run, self._running)

    async def _run_errand(self, errand: Errand) -> None:
        if errand.answer.done():  # its caller was cancelled before its turn
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, errand.work)
        except Exception as error:
            self._die(f"{errand.name} failed: {type(error).__name__}: {error}")
            settle(errand.answer, error)
        else:
            settle(errand.answer, None)

    def _die(self, reason: str) -> None:
        self._dead = self._dead or reason
        for item in (*self._running, *self._queue):
            item.fail(self._dead)
        self._queue.clear()
