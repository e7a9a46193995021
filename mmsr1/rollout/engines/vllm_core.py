"""The half of the vLLM engine that blocks: made, called and closed on one thread only, the engine thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL.Image import Image
from torch import Tensor

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_inputs import PromptBuilder
from mmsr1.rollout.engines.weight_sync import drop_caches, load_weights
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.logprobs import LogprobsOnePosition
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import OutputProcessor

BAN = -100.0  # the strongest bias that vLLM takes


@dataclass(frozen=True)
class Request:
    """One call of `generate`, under the name it has inside vLLM."""

    id: str
    prompt: TokenPrompt
    sampling: Sampling


Outcome = Completion | EngineFailure


class VllmCore:
    """An in-process vLLM: no child process, no event loop. `engine_args` are vLLM's own `EngineArgs`.

    Raises ValueError if VLLM_ENABLE_V1_MULTIPROCESSING was set to anything but 0, and whatever vLLM raises for a
    model or arguments that it cannot serve.
    """

    def __init__(
        self,
        engine_args: Mapping[str, Any],
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
    ) -> None:
        with environment(threads, eager=bool(engine_args.get("enforce_eager"))):
            ensure_torchvision()
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self.engine = LLMEngine.from_engine_args(EngineArgs(**engine_args))
        config = self.engine.model_config.hf_config
        self._bias = vision_ban(config)
        self._version = 0
        self._reset_encoder_cache = reset_encoder_cache
        self._prompts = PromptBuilder(
            self.engine.renderer,
            image_token=getattr(config, "image_token_id", None),
            images_per_prompt=engine_args["limit_mm_per_prompt"]["image"],
            cache_bytes=image_cache_bytes,
            pixels=pixels,
        )
        self._running: set[str] = set()

    def step(
        self, arrivals: Sequence[Request], aborts: Sequence[str], interrupted: Callable[[], bool]
    ) -> list[tuple[str, Outcome]]:
        """Admit and abort, then let vLLM step until a request finishes or `interrupted()` says that more waits.

        A request that cannot be admitted fails alone. Raises whatever vLLM's step raises; it is unusable then.
        """
        if aborts:
            self.engine.abort_request(list(aborts))
            self._running.difference_update(aborts)
        outcomes: list[tuple[str, Outcome]] = [
            (request.id, failure) for request in arrivals if (failure := self._admit(request)) is not None
        ]
        while self._running and not outcomes:
            outputs = cast("list[RequestOutput]", self.engine.step())  # the other kind belongs to pooling models
            outcomes = [(output.request_id, outcome(output, self._version)) for output in outputs if output.finished]
            self._running.difference_update(name for name, _ in outcomes)
            if interrupted():
                break
        return outcomes

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `weight_sync`. Raises RuntimeError if a request is running, and then changes nothing."""
        if self._running:
            raise RuntimeError(f"{len(self._running)} requests are running; a weight sync needs none")
        if asleep := self.engine.is_sleeping():
            self.engine.wake_up(["weights"])  # room for them; the old ones were not kept
        load_weights(self.engine, tensors)
        if asleep:
            self.engine.wake_up(["kv_cache"])
        drop_caches(self.engine, encoder=self._reset_encoder_cache)
        self._version = version

    def sleep(self) -> None:
        """Free weights and key-value blocks; `load_weights` brings both back."""
        self.engine.sleep(level=2)

    def close(self) -> None:
        """Shut vLLM down and give its memory back."""
        self.engine.engine_core.shutdown()
        self.engine.renderer.shutdown()
        del self.engine, self._prompts
        gc.collect()

    def _admit(self, request: Request) -> EngineFailure | None:
        try:
            inputs = self._prompts.build(request.prompt)
            name = self.engine.add_request(request.id, inputs, sampling_params(request.sampling, self._bias))
        except Exception as error:  # whatever is wrong with one request must not reach the others
            self.engine.abort_request([request.id])
            return EngineFailure(f"request refused: {error}")
        spell_no_logprobs(self.engine.output_processor, name)
        self._running.add(request.id)
        return None


def vision_ban(config: Any) -> dict[int, float]:
    """The bias that keeps a model of this Hugging Face configuration from sampling vision control tokens."""
    names = (f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end"))
    tokens = (getattr(config, name, None) for name in names)
    return {token: BAN for token in tokens if token is not None}


def sampling_params(sampling: Sampling, bias: dict[int, float]) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        detokenize=bool(sampling.stop),  # only stop strings need the text
        logprobs=0,
        logit_bias=bias,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def spell_no_logprobs(processor: OutputProcessor, request: str) -> None:
    """Leave out the text of each log-prob's token: nobody reads it, and it takes a quarter of the time of a rollout."""
    if state := processor.request_states.get(request):  # else it has ended already
        state.logprobs_processor.tokenizer = None  # pyright: ignore[reportOptionalMemberAccess]  (of pooling models)


def outcome(output: RequestOutput, version: int, switches: tuple[tuple[int, int], ...] = ()) -> Outcome:
    """What a finished request says; `version` and `switches` as in `Completion`."""
    (sample,) = output.outputs
    if sample.finish_reason not in ("stop", "length"):
        return EngineFailure(f"vLLM ended the request: {sample.finish_reason}")
    ids = tuple(sample.token_ids)
    entries = cast("list[LogprobsOnePosition]", sample.logprobs)  # `sampling_params` asks for them
    logprobs = tuple(entry[token].logprob for token, entry in zip(ids, entries, strict=True))
    return Completion(ids, logprobs, sample.finish_reason, version, switches)


@contextmanager
def environment(threads: int, eager: bool) -> Iterator[None]:
    """What vLLM must find while it is imported and started; a value set by the user stands.

    Raises ValueError if the user's value asks for a child process.
    """
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise ValueError("VLLM_ENABLE_V1_MULTIPROCESSING must be 0 or unset: this engine runs in-process")
    # A helper that vLLM wraps in `torch.compile` when it is imported would compile for 5-17 s at the first log-prob.
    # This variable is read at the wrapping, so taking it back leaves the trainer's own use of `torch.compile` alone.
    interpret = eager and "TORCHDYNAMO_DISABLE" not in os.environ
    if interpret:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    set_num_threads = torch.set_num_threads
    set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker puts a no-op there, for the whole process
        if interpret:
            del os.environ["TORCHDYNAMO_DISABLE"]
