"""The engine that `rollout.engine` names, behind the one interface that everything else knows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsr1.assembly.services import Services, check_key, provider_of
from mmsr1.config import Config, ConfigError, check
from mmsr1.models.loading import PolicyFiles
from mmsr1.models.ranks import Ranks
from mmsr1.rollout.engines.base import Engine


def engine(config: Config, files: PolicyFiles, weights: Path, rank: int, services: Services) -> Engine:
    """Started with the weights of a folder; the first sync brings those of the trainer. `rank` 0 pushes them where
    ranks share their engines. An engine that asks a service asks through those of the run."""
    kind = config.rollout.engine
    if kind == "openai":
        return _openai(config, files, services)
    if kind == "emblem_teacher":
        return _emblem_teacher(config, files)
    return _MAKE[kind](config, files, weights, rank)


def _openai(config: Config, files: PolicyFiles, services: Services) -> Engine:
    from mmsr1.rollout.engines.openai import OpenAiEngine
    from mmsr1.tools.chat import CHAT
    from mmsr1.tools.providers.chat import openai_chat

    provider = provider_of("rollout.api", config.rollout.api, openai_chat, {})
    check_key("rollout.api", provider)
    return OpenAiEngine(services.part(provider, config.rollout.api, CHAT), files.tokenizer, provider.aclose)


def _emblem_teacher(config: Config, files: PolicyFiles) -> Engine:
    from mmsr1.assembly.data import training_examples, world_spec
    from mmsr1.data.emblem.teacher import EmblemTeacher
    from mmsr1.data.emblem.world import World

    train, held_out, _ = training_examples(config)
    return EmblemTeacher(
        World(world_spec(config)),
        (examples[i] for examples in (train, held_out) for i in range(len(examples))),
        config.rollout.teacher,  # type: ignore[arg-type]  (checked by the schema)
        files.tokenizer,
    )


def _own_gpu(config: Config) -> int | None:
    """The GPU that Lightning gave this process, as its index here; None without one. Lightning sets it on the main
    thread alone, while an engine works on a thread or in a process of its own, where it would get the first GPU."""
    import torch

    on_gpu = config.trainer.accelerator == "cuda" and torch.cuda.is_available()
    return torch.cuda.current_device() if on_gpu else None


def _vllm_arguments(config: Config, files: PolicyFiles) -> dict[str, Any]:
    rollout, vllm, gpu = config.rollout, config.rollout.vllm, _own_gpu(config)
    # A process that is alone on its machine, or told to take several GPUs, leaves the choice to vLLM.
    shares = gpu is not None and config.trainer.devices > 1 and "tensor_parallel_size" not in vllm.extra
    placed = {"device_ids": [gpu]} if shares else {}
    return {
        "dtype": config.model.dtype,
        "max_model_len": vllm.max_model_len,
        "max_num_seqs": vllm.max_num_seqs,
        "max_num_batched_tokens": vllm.max_num_batched_tokens,
        "kv_cache_bytes": int(vllm.kv_cache_gib * 2**30) if vllm.kv_cache_gib else None,
        "images_per_prompt": vllm.images_per_prompt,
        "enforce_eager": vllm.enforce_eager,
        "engine_args": {**placed, **vllm.extra},
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
    """Once its servers were found. Raises ConfigError if they were not, or were started otherwise than needed."""
    import torch

    from mmsr1.rollout.engines.vllm_server import VllmServerEngine
    from mmsr1.rollout.engines.vllm_server_start import NoServer

    rollout, server = config.rollout, config.rollout.server
    pushable = server.transfer != "nccl" or torch.cuda.is_available()
    check(pushable, "rollout.server.transfer", server.transfer, "the trainer has no GPU to send from; give mmsr1_shm")
    fleet = VllmServerEngine(
        server.urls,
        weights,
        dtype=config.model.dtype,
        transfer=server.transfer,  # type: ignore[arg-type]  (checked by the schema)
        pushes=rank == 0,
        owner=Ranks.current().gather(secrets.token_hex(4))[0],
        max_model_len=rollout.vllm.max_model_len,
        images_per_prompt=rollout.vllm.images_per_prompt,
        request_timeout_s=server.timeout_s,
        wait_s=server.wait_s,
        reset_encoder_cache=rollout.reset_encoder_cache,
        pixels=files.patches.fitted,
    )
    try:
        fleet.find_servers()
    except NoServer as error:
        asyncio.run(fleet.close())
        raise ConfigError(f"rollout.server.urls: {error}") from error
    return fleet


def _transformers(config: Config, files: PolicyFiles, weights: Path, rank: int) -> Engine:
    from mmsr1.rollout.engines.transformers import TransformersEngine

    rollout, device, gpu = config.rollout, config.rollout.transformers.device, _own_gpu(config)
    return TransformersEngine(
        weights,
        dtype=config.model.dtype,
        device=f"cuda:{gpu}" if device == "cuda" and gpu is not None else device,
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
