"""The engine that `rollout.engine` names, behind the one interface that everything else knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsr1.config import Config
from mmsr1.models.loading import PolicyFiles
from mmsr1.rollout.engines.base import Engine


def engine(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    """Started with the weights of a folder; the first sync brings those of the trainer. `rank` 0 pushes them where
    ranks share their engines."""
    return _MAKE[config.rollout.engine](config, files, weights, rank)


def _vllm_arguments(config: Config, files: PolicyFiles) -> dict[str, Any]:
    rollout, vllm = config.rollout, config.rollout.vllm
    return {
        "dtype": config.model.dtype,
        "max_model_len": vllm.max_model_len,
        "max_num_seqs": vllm.max_num_seqs,
        "max_num_batched_tokens": vllm.max_num_batched_tokens,
        "kv_cache_bytes": int(vllm.kv_cache_gib * 2**30) if vllm.kv_cache_gib else None,
        "images_per_prompt": vllm.images_per_prompt,
        "enforce_eager": vllm.enforce_eager,
        "engine_args": vllm.extra,
        "reset_encoder_cache": rollout.reset_encoder_cache,
        "sleep": rollout.sleep,
        "pixels": files.patches.fitted,
    }


def _vllm(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    from mmsr1.rollout.engines.vllm import VllmEngine

    return VllmEngine(weights, **_vllm_arguments(config, files))


def _vllm_process(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    from mmsr1.rollout.engines.vllm_process import VllmProcessEngine

    return VllmProcessEngine(weights, **_vllm_arguments(config, files), keep_running=config.rollout.keep_running)


def _vllm_server(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    from mmsr1.rollout.engines.vllm_server import VllmServerEngine

    rollout, server = config.rollout, config.rollout.server
    return VllmServerEngine(
        server.urls,
        weights,
        dtype=config.model.dtype,
        transfer=server.transfer,  # type: ignore[arg-type]  (checked by the schema)
        pushes=rank == 0,
        max_model_len=rollout.vllm.max_model_len,
        images_per_prompt=rollout.vllm.images_per_prompt,
        request_timeout_s=server.timeout_s,
        reset_encoder_cache=rollout.reset_encoder_cache,
        pixels=files.patches.fitted,
    )


def _transformers(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    from mmsr1.rollout.engines.transformers import TransformersEngine

    rollout = config.rollout
    return TransformersEngine(
        weights,
        dtype=config.model.dtype,
        device=rollout.transformers.device,
        max_model_len=rollout.vllm.max_model_len,
        max_batch=rollout.transformers.max_batch,
        images_per_prompt=rollout.vllm.images_per_prompt,
        reset_encoder_cache=rollout.reset_encoder_cache,
        pixels=files.patches.fitted,
    )


_MAKE: dict[str, Callable[[Config, PolicyFiles, Path, int], Engine]] = {
    "vllm": _vllm,
    "vllm_process": _vllm_process,
    "vllm_server": _vllm_server,
    "transformers": _transformers,
}
