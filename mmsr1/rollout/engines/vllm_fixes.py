"""Faults of the vLLM version that this project is pinned to, mended in every process that vLLM starts."""

from __future__ import annotations

from typing import Any


def keep_pixels() -> None:
    """Let a worker keep the pixels of every image; a `vllm.general_plugins` entry point.

    vLLM's scheduler does not give a worker the pixels of an image whose key-value blocks are in the prefix cache. If
    the request then starts over, because a weight sync dropped the blocks and the vision tower's output, the worker
    has nothing to compute them from: "Expected number of multimodal embeddings to match number of input items" ends
    the whole engine.
    """
    from vllm.v1.core.sched import output

    if not hasattr(output, "strip_covered_mm_data"):
        raise RuntimeError("vLLM has changed how it strips images: see whether this fix is still needed")

    def unstripped(mm_features: list[Any], num_computed_tokens: int, uses_mrope: bool = False) -> list[Any]:
        return mm_features

    setattr(output, "strip_covered_mm_data", unstripped)  # noqa: B010  (a name that the module imports, not its own)
