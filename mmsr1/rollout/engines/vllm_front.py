"""The half of the vLLM process engine that lives in the trainer's process: made and used on one event loop only."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, TypeVar, cast

from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_child import child_environment
from mmsr1.rollout.engines.vllm_core import Outcome, outcome, sampling_params, spell_no_logprobs, vision_ban
from mmsr1.rollout.engines.vllm_inputs import PromptBuilder
from mmsr1.rollout.engines.weight_transfer import BACKEND, push, refusal
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

PLUGINS = {"mmsr1_weight_transfer", "mmsr1_signals", "mmsr1_keep_pixels"}
# On a CPU vLLM would start a second process for the worker, to choose its threads; `child_environment` has chosen them.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class Gone(Exception):
    """The engine is dead or closed; the message says why."""


class Front:
    """vLLM's AsyncLLM and what the Engine protocol needs around it.

    Making it blocks until the child is up. Raises RuntimeError if this package's vLLM plugins are not installed, and
    what vLLM raises for a model or arguments that it cannot serve.
    """

    def __init__(
        self,
        engine_args: Mapping[str, Any],
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
        keep_running: bool,
    ) -> None:
        with child_environment(threads, eager=bool(engine_args.get("enforce_eager"))):
            import_vllm()
            self._llm = start_vllm(engine_args)
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[str] = self._loop.create_future()
        self._processes = cast(Any, self._llm.engine_core).resources.engine_manager.processes
        for process in self._processes:
            self._loop.add_reader(process.sentinel, self._on_end, process)
        config = self._llm.model_config.hf_config
        self._bias = vision_ban(config)
        self._prompts = PromptBuilder(
            self._llm.renderer,
            image_token=getattr(config, "image_token_id", None),
            images_per_prompt=engine_args["limit_mm_per_prompt"]["image"],
            cache_bytes=image_cache_bytes,
            pixels=pixels,
        )
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="vllm prompts")
        self._names = map(str, itertools.count())
        self._reset_encoder_cache, self._keep_running = reset_encoder_cache, keep_running
        self._one_at_a_time = asyncio.Lock()
        self._asleep = False

    async def prepare(self) -> None:
        """What has to be asked of the engine process once. Raises RuntimeError if it ends over it."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        try:
            await self._unless_gone(self._llm.init_weight_transfer_engine(WeightTransferInitRequest()))
            await self._unless_gone(self._llm.update_weight_version("0"))
            await self._unless_gone(self._llm.get_supported_tasks())  # kept; asked for by the first request otherwise
        except Gone as gone:
            raise RuntimeError(str(gone)) from None

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Outcome:
        try:
            return await self._unless_gone(self._sample(prompt, sampling))
        except Gone as gone:
            return EngineFailure(str(gone))

    async def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        await self._when_alone("a weight sync", lambda: self._sync(tensors, version))

    async def sleep(self) -> None:
        await self._when_alone("going to sleep", self._go_to_sleep)

    async def stop(self) -> None:
        """End the engine process, and whatever waits for it."""
        self._die("the engine is closed")
        for process in self._processes:
            self._loop.remove_reader(process.sentinel)
        self._llm.shutdown(timeout=10)
        self._preparing.shutdown(wait=False)
        if ending := asyncio.all_tasks() - {cast("asyncio.Task[None]", asyncio.current_task())}:
            await asyncio.wait(ending, timeout=5)
        del self._llm, self._prompts
        gc.collect()

    async def _sample(self, prompt: TokenPrompt, sampling: Sampling) -> Outcome:
        from vllm.v1.engine.exceptions import EngineDeadError

        name = next(self._names)
        try:
            inputs = await self._loop.run_in_executor(self._preparing, self._prompts.build, prompt)
            answer = await self._llm.add_request(name, inputs, sampling_params(sampling, self._bias))
            spell_no_logprobs(self._llm.output_processor, answer.request_id)
        except asyncio.CancelledError:
            await self._llm.abort(name)
            raise
        except EngineDeadError as error:
            raise self._failed(error) from None
        except Exception as error:  # whatever is wrong with one request must not reach the others
            await self._llm.abort(name)
            return EngineFailure(f"request refused: {error}")
        try:
            output = cast("RequestOutput", await answer.get())  # the other kind belongs to pooling models
        except asyncio.CancelledError:
            await self._llm.abort(name)
            raise
        except Exception as error:
            raise self._failed(error) from None
        spans = output.outputs[0].weight_versions or ()  # none if it ended without a token, which is a failure
        (_, version), *switches = [(span.start, int(span.version)) for span in spans] or [(0, 0)]
        return outcome(output, version, tuple(switches))

    async def _sync(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._llm
        if self._asleep:
            await self._ask(llm.wake_up(["weights"]))  # room for them; the old ones were not kept
        else:
            await self._ask(llm.pause_generation(mode="keep" if self._keep_running else "wait", clear_cache=False))
        await self._ask(llm.start_weight_update())
        await push(tensors, lambda chunk: self._ask(llm.update_weights(WeightTransferUpdateRequest(chunk))))
        await self._ask(llm.finish_weight_update(str(version)))
        await self._drop_caches()
        if self._asleep:
            await self._ask(llm.wake_up(["kv_cache"]))  # lets vLLM go on, too
        else:
            await self._ask(llm.resume_generation())
        self._asleep = False

    async def _drop_caches(self) -> None:
        """See `weight_sync.drop_caches`. A request that is kept running gives its blocks back and starts over."""
        if not await self._ask(self._llm.reset_prefix_cache(reset_running_requests=self._keep_running)):
            raise RuntimeError("vLLM kept its prefix cache: a request holds key-value blocks during a weight sync")
        await self._ask(self._llm.reset_mm_cache())
        if self._reset_encoder_cache:
            await self._ask(self._llm.reset_encoder_cache())

    async def _go_to_sleep(self) -> None:
        await self._ask(self._llm.sleep(level=2, mode="wait"))
        self._asleep = True

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        """The answer of the engine process. Raises ValueError if it refused the weights, RuntimeError for the rest."""
        try:
            return await call
        except Exception as error:
            raise refusal(error) from None

    async def _when_alone(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Raises RuntimeError if the engine is gone; what the work raises is the engine's end."""
        async with self._one_at_a_time:
            try:
                await self._unless_gone(work())
            except Gone as gone:
                raise RuntimeError(str(gone)) from None
            except Exception as error:
                self._die(f"{name} failed: {type(error).__name__}: {error}")
                raise

    async def _unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work; raises `Gone` as soon as the engine is, and then does not wait for it."""
        task = self._loop.create_task(work)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # which may be of no more interest
        try:
            await asyncio.wait([task, self._gone], return_when=asyncio.FIRST_COMPLETED)
            if self._gone.done():
                raise Gone(self._gone.result())
            return task.result()
        finally:
            task.cancel()

    def _on_end(self, process: Any) -> None:
        self._loop.remove_reader(process.sentinel)
        deadline = time.monotonic() + 1
        while (code := process.exitcode) is None and time.monotonic() < deadline:
            time.sleep(0.001)  # a thread of vLLM is reading it at this moment
        self._die(f"the engine process ended (exit code {code})")

    def _failed(self, error: Exception) -> Gone:
        """vLLM's front half may notice first that its process ended, and does not say how."""
        ended = connection.wait([process.sentinel for process in self._processes], timeout=0)
        for process in self._processes:
            if process.sentinel in ended:
                self._on_end(process)
        self._die(f"vLLM failed: {type(error).__name__}: {error}")
        return Gone(self._gone.result())

    def _die(self, reason: str) -> None:
        if not self._gone.done():
            self._gone.set_result(reason)


def import_vllm() -> None:
    """Import what starting takes. By itself: errors that vLLM caught at its import keep their callers' variables."""
    ensure_torchvision()
    from vllm.plugins import load_plugins_by_group
    from vllm.v1.engine import async_llm  # noqa: F401

    if absent := PLUGINS - load_plugins_by_group("vllm.general_plugins").keys():
        raise RuntimeError(f"vLLM does not find {sorted(absent)}: install this package again (pip install -e .)")


def start_vllm(engine_args: Mapping[str, Any]) -> AsyncLLM:
    """Start the child and wait until its model is loaded. To be called on the event loop that will use it."""
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    envs.disable_envs_cache()  # an in-process engine would have kept what it found
    executor = {"distributed_executor_backend": ONE_PROCESS} if current_platform.is_cpu() else {}
    arguments = {"weight_transfer_config": {"backend": BACKEND}, **executor, **engine_args}
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
