"""What the vLLM engines have in common, in this process or in one of their own: how they are configured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mmsr1.tools.pictures import decode
from mmsr1.types import Picture


class VllmBase(ABC):
    """A vLLM that this object starts and ends. The defaults suit a small model on a CPU.

    `max_model_len` counts expanded tokens, prompt and answer together. A prompt is never split over two steps (on a
    CPU, vLLM crashes when a seeded request is), so `max_num_batched_tokens` must be at least as large.
    `images_per_prompt` bounds the images of a whole conversation. `kv_cache_bytes` None lets vLLM take what is free
    (for GPUs, with `engine_args={"gpu_memory_utilization": ...}`). `threads` is the engine's share of the cores; the
    trainer's own setting is not touched. `image_cache_bytes` bounds the processed images that are kept.
    `engine_args` go to vLLM's `EngineArgs` and win over everything above. `reset_encoder_cache=False` is for fault
    tests only: it leaves the vision tower's old outputs in use after a weight sync. `sleep` lets `sleep()` free GPU
    memory; a CPU has none to free. `pixels` decodes a picture; where it also brings it to the model's size, as the
    trainer does, no library resizes it in its own way.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        max_model_len: int = 4096,
        max_num_seqs: int = 128,
        max_num_batched_tokens: int = 16384,
        kv_cache_bytes: int | None = 2**28,
        block_size: int | None = 32,
        images_per_prompt: int = 6,
        enforce_eager: bool = True,
        prefix_caching: bool = True,
        threads: int = 1,
        image_cache_bytes: int = 2**28,
        engine_args: Mapping[str, Any] | None = None,
        reset_encoder_cache: bool = True,
        sleep: bool = False,
        pixels: Callable[[Picture], Image] = decode,
    ) -> None:
        self._sleeps = sleep
        arguments = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "kv_cache_memory_bytes": kv_cache_bytes,
            "block_size": block_size,
            "limit_mm_per_prompt": {"image": images_per_prompt, "video": 0},
            "enforce_eager": enforce_eager,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": prefix_caching,
            "mm_processor_cache_gb": 0,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "enable_sleep_mode": sleep,
            **(engine_args or {}),
        }
        self._start(arguments, threads, image_cache_bytes, reset_encoder_cache, pixels)

    @abstractmethod
    def _start(
        self,
        engine_args: Mapping[str, Any],
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
    ) -> None:
        """Start vLLM; `engine_args` are its `EngineArgs`. Raises what vLLM raises for those that it cannot serve."""
