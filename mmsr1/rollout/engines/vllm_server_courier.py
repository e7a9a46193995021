"""Carries requests to a chosen server, each picture once.

A processed picture has megabytes, and the rollouts of a group ask about the same one at the same time. So a server gets
it ahead of the first request that needs it, with that request's prompt and one token to sample; all of them wait for
that, and then name the picture by its digest. The prompt is not computed twice: they find it in the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from mmsr1.rollout.engines.base import Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_server_fleet import Machine
from mmsr1.rollout.engines.vllm_server_http import Answer, ServerFault
from mmsr1.rollout.engines.vllm_server_inputs import BodyBuilder, Inputs

T = TypeVar("T")


class Courier:
    """`make` makes the builder of bodies, on the thread where it is used from then on; what it raises is raised."""

    def __init__(self, make: Callable[[], BodyBuilder]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self._bodies = self._thread.submit(make).result()
        self._uploads: set[asyncio.Task[None]] = set()
        self.raw_pixels = self._bodies.raw_pixels

    async def prepare(self, prompt: TokenPrompt) -> Inputs:
        """Raises what `BodyBuilder.build` raises."""
        return await self._in_thread(self._bodies.build, prompt)

    async def ask(self, machine: Machine, inputs: Inputs, sampling: Sampling) -> Answer:
        """The server's answer. Raises as `Server` does."""
        if machine.keeps_images:
            await self._hand_over(machine, inputs, sampling)
        return await self._send(machine, inputs, sampling)

    async def close(self) -> None:
        for upload in self._uploads:
            upload.cancel()
        await asyncio.gather(*self._uploads, return_exceptions=True)
        await self._in_thread(self._bodies.close)
        self._thread.shutdown()

    async def _hand_over(self, machine: Machine, inputs: Inputs, sampling: Sampling) -> None:
        """See to it that the server has the prompt's images.

        All who wait for an upload share the server's failure. What is wrong with the request that it goes with is that
        request's own: the others see to their images themselves.
        """
        while missing := [digest for digest in inputs.digests if digest not in machine.images]:
            upload = next((machine.uploads[digest] for digest in missing if digest in machine.uploads), None)
            if mine := upload is None:
                upload = asyncio.get_running_loop().create_task(self._upload(machine, inputs, sampling, missing))
                machine.uploads |= dict.fromkeys(missing, upload)
                self._uploads.add(upload)
                upload.add_done_callback(self._ended)
            try:
                await asyncio.shield(upload)  # it goes on if this caller is cancelled: others wait for it
            except ServerFault:
                raise
            except Exception:
                if mine:
                    raise

    def _ended(self, upload: asyncio.Task[None]) -> None:
        self._uploads.discard(upload)
        if not upload.cancelled():
            upload.exception()  # which may be of no more interest

    async def _upload(self, machine: Machine, inputs: Inputs, sampling: Sampling, missing: Sequence[str]) -> None:
        try:
            await self._send(machine, inputs, replace(sampling, max_tokens=1, stop=()))
        finally:
            for digest in missing:
                machine.uploads.pop(digest, None)

    async def _send(self, machine: Machine, inputs: Inputs, sampling: Sampling) -> Answer:
        """Send a request, without the images that the server should have; with them if it has them no more."""
        kept = machine.images.intersection(inputs.digests) if machine.keeps_images else set[str]()
        try:
            answer = await machine.server.generate(await self._in_thread(self._bodies.body, inputs, sampling, kept))
        except ServerFault as fault:
            if not kept or fault.status != 500:  # vLLM's answer to an image that fell out of its cache
                raise
            machine.images.difference_update(kept)
            answer = await machine.server.generate(await self._in_thread(self._bodies.body, inputs, sampling, ()))
        machine.images.update(inputs.digests)
        return answer

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
