"""What a configuration needs before it runs: memory per GPU, and an estimate of a step's seconds.

    python -m mmsr1.models.plan scale=8xh100 model=qwen2_5_vl_7b

Takes the overrides that train.py takes (data is not looked at). Exits with 2, in one line, for what cannot fit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from mmsr1 import cli
from mmsr1.cli import refuse
from mmsr1.config import (
    HUB_ID,
    AlgorithmConfig,
    Config,
    ConfigError,
    ModelConfig,
    RolloutConfig,
    TrainerConfig,
    check,
)
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.models.memory import GIB, breakdown, by_moment, choose
from mmsr1.models.policy_shape import PolicyShape
from mmsr1.models.step_memory import BYTES, Engine, TrainingPlan
from mmsr1.models.step_time import H100, H200, Assumptions, StepTime, step_time

SHAPES = Path(__file__).parent / "shapes"
STARTING_POLICY = Path(__file__).parent / "starting_policy"
# Not measured: context, libraries and the buffers between GPUs; by how much torch's allocator exceeds what is used.
OVERHEAD, SLACK = 2 * GIB, 0.05
NVLINK, INFINIBAND = 300e9, 40e9  # bytes/s, each way, of a GPU: within a machine, and one 400 Gb/s port between them
UTILIZATION = 0.92  # vLLM's own where the configuration says nothing


def main(arguments: list[str]) -> None:
    """Print the plan of a configuration."""
    parser = argparse.ArgumentParser(prog="python -m mmsr1.models.plan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as train.py takes them, e.g. scale=8xh100")
    try:
        model, rollout, algorithm, trainer = composed(parser.parse_args(arguments).overrides)
        plan = settled(model, rollout, algorithm, trainer)
    except USER_ERRORS as error:
        refuse(explain(error))
    limit, console = gpu_bytes(trainer), Console()
    console.print(memory_table(plan, limit))
    console.print(f"{plan.ranks} processes, moments in {plan.optimizer_state}, offload {str(plan.offload).lower()}")
    if limit is not None:
        given = assumptions(trainer, rollout)
        console.print(time_table(step_time(plan, episodes_of(algorithm), sequences_of(algorithm, rollout), given)))
        console.print("\n".join(listed(plan, given)), markup=False, highlight=False)


def composed(overrides: list[str]) -> tuple[ModelConfig, RolloutConfig, AlgorithmConfig, TrainerConfig]:
    """The parts of train.py's configuration that a plan depends on, checked one by one: data need not be there."""
    raw = cli.composed(overrides)
    parts: Any = [OmegaConf.to_object(raw[name]) for name in ("model", "rollout", "algorithm", "trainer")]
    return tuple(parts)


def settle(config: Config) -> Config:
    """The configuration with `trainer.optimizer_state` and `trainer.offload` chosen; ConfigError if nothing fits.

    Where memory has no limit there is nothing to save, and the model's sizes are not looked at.
    """
    parts = (config.model, config.rollout, config.algorithm, config.trainer)
    state, offload = config.trainer.optimizer_state or "float32", bool(config.trainer.offload)
    if gpu_bytes(config.trainer) is not None:
        plan = settled(*parts)
        state, offload = plan.optimizer_state, plan.offload
    return replace(config, trainer=replace(config.trainer, optimizer_state=state, offload=offload))


def settled(
    model: ModelConfig, rollout: RolloutConfig, algorithm: AlgorithmConfig, trainer: TrainerConfig
) -> TrainingPlan:
    """The plan, with what the configuration leaves to the planner chosen. Raises ConfigError if it cannot fit."""
    plan = plan_of(model, rollout, algorithm, trainer)
    try:
        state, offload = choose(plan, gpu_bytes(trainer), trainer.optimizer_state, trainer.offload)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return replace(plan, optimizer_state=state, offload=offload)


def plan_of(
    model: ModelConfig, rollout: RolloutConfig, algorithm: AlgorithmConfig, trainer: TrainerConfig
) -> TrainingPlan:
    """What the configuration says of memory, the planner's own choices left out."""
    shape, limit = shape_of(model), gpu_bytes(trainer)
    return TrainingPlan(
        shape,
        token_budget=algorithm.token_budget,
        episode_tokens=rollout.episode_tokens,
        logprob_chunk=model.logprob_chunk,
        ranks=trainer.devices * trainer.num_nodes,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        lora_rank=model.lora_rank,
        freeze_vision=model.freeze_vision,
        activation_checkpointing=model.activation_checkpointing,
        entropy_gradient=getattr(algorithm, "entropy_weight", 0) > 0,
        reference=getattr(algorithm, "kl_weight", 0) > 0,
        engine=engine_of(shape, model, rollout, limit),
        overhead=0 if limit is None else OVERHEAD,
        slack=0 if limit is None else SLACK,
    )


def shape_of(model: ModelConfig) -> PolicyShape:
    """From the model's config.json: in its folder, in the local Hugging Face cache, or as recorded in `shapes/`."""
    if model.path is None:
        return _tiny_shape(model)
    folder, recorded = Path(model.path, "config.json"), SHAPES / f"{model.path.rpartition('/')[2]}.json"
    cached = try_to_load_from_cache(model.path, "config.json") if re.fullmatch(HUB_ID, model.path) else None
    places = (folder, Path(cached) if isinstance(cached, str) else folder, recorded)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        fetch = f"hf download {model.path} config.json"
        raise ConfigError(f"model.path={model.path}: its sizes are not known here; run {fetch}, or give a folder")
    try:
        return PolicyShape.of(json.loads(found.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"model.path={model.path}: {' '.join(str(error).split())}") from error


def engine_of(shape: PolicyShape, model: ModelConfig, rollout: RolloutConfig, limit: float | None) -> Engine:
    """The engine's part of the memory: for vLLM a cache of kv_cache_gib, or what its share of the GPU leaves for one.

    `rollout=transformers` keeps the keys and values of its `max_batch` rows; servers have machines of their own. Raises
    ConfigError if not one episode of the greatest length would find a place in vLLM's cache.
    """
    vllm, width = rollout.vllm, BYTES[model.dtype]
    if rollout.engine == "vllm_server":
        return Engine()
    weights = width * shape.parameters
    if rollout.engine == "transformers":
        rows = rollout.transformers.max_batch
        cache = rows * shape.cache_bytes(width) * rollout.episode_tokens
        return Engine(weights, cache, 4 * rows * shape.vocabulary, sleeps=rollout.sleep)
    # The widest layer for all tokens of a step, and the logits of every sequence in float32 with their sorted copy.
    layer = width * vllm.max_num_batched_tokens * (4 * shape.hidden + 3 * shape.intermediate)
    workspace = layer + 8 * vllm.max_num_seqs * shape.vocabulary
    least = shape.cache_bytes(width) * vllm.max_model_len
    if vllm.kv_cache_gib is not None:
        key, value, cache = "rollout.vllm.kv_cache_gib", vllm.kv_cache_gib, vllm.kv_cache_gib * GIB
        enough = least / GIB
    elif limit is not None:
        key, value = "rollout.vllm.extra.gpu_memory_utilization", vllm.extra.get("gpu_memory_utilization", UTILIZATION)
        cache, enough = value * limit - weights - workspace, (weights + workspace + least) / limit
    else:
        return Engine(weights, least, workspace, least, rollout.sleep)
    check(cache >= least, key, value, f"one episode of rollout.vllm.max_model_len takes at least {enough:.2f}")
    return Engine(weights, cache, workspace, least, rollout.sleep)


def gpu_bytes(trainer: TrainerConfig) -> float | None:
    """What a GPU has; None says no limit."""
    limit = trainer.gpu_memory_gib
    return None if limit is None or trainer.accelerator != "cuda" else limit * GIB


def _tiny_shape(model: ModelConfig) -> PolicyShape:
    """model.path=null: the shipped policy's architecture (mmsr1.models.tiny) in other sizes."""
    raw = json.loads((STARTING_POLICY / "config.json").read_text(encoding="utf-8"))
    raw["text_config"] |= {"hidden_size": model.hidden, "num_hidden_layers": model.layers}
    raw["text_config"] |= {"intermediate_size": 2 * model.hidden}
    raw["vision_config"] |= {"depth": model.vision_depth, "hidden_size": model.vision_hidden}
    raw["vision_config"] |= {"intermediate_size": 2 * model.vision_hidden}
    return PolicyShape.of(raw)


LABELS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer_states": "optimiser states",
    "reference": "reference policy",
    "micro_batches": "micro-batches of the step",
    "gathered": "gathered layers, their gradients, buffers",
    "activations": "activations at the peak",
    "logits": "one chunk of logits",
    "engine_weights": "engine: weights",
    "kv_cache": "engine: key/value cache",
    "engine_workspace": "engine: forward pass",
    "overhead": "libraries and allocator",
}


def memory_table(plan: TrainingPlan, limit: float | None) -> Table:
    """GiB per GPU at the peak, part by part; the total beside what there is, and at the other moments of a step."""
    need = breakdown(plan)
    table = Table("memory per process" if limit is None else "memory per GPU", "GiB", title=f"the peak is {need.peak}")
    table.columns[1].justify = "right"
    for name, size in need.parts.items():
        table.add_row(LABELS[name], _gib(size))
    table.add_section()
    table.add_row("total", _gib(need.total))
    table.add_row("there is", "no limit" if limit is None else _gib(limit))
    table.add_section()
    for name, size in by_moment(plan).items():
        table.add_row(f"at {name}", _gib(size))
    if need.host:
        table.add_row("in CPU memory, per process", _gib(need.host))
    return table


def time_table(found: StepTime) -> Table:
    """Seconds of a step; communication counts only where it takes longer than the computing it runs beside."""
    table = Table("a step, estimated", "seconds")
    table.columns[1].justify = "right"
    for name in ("sampling", "computing", "communicating"):
        table.add_row(name, f"{getattr(found, name):.1f}")
    table.add_section()
    table.add_row("total", f"{found.total:.1f}")
    return table


def assumptions(trainer: TrainerConfig, rollout: RolloutConfig) -> Assumptions:
    """For this GPU (told by its memory) and these limits."""
    device = H200 if (trainer.gpu_memory_gib or 0) > 100 else H100
    plain = Assumptions(device, NVLINK if trainer.num_nodes == 1 else INFINIBAND)
    sampled = min(plain.sampled, rollout.turns * rollout.turn_tokens)
    return replace(plain, tokens=min(plain.tokens, rollout.episode_tokens), sampled=sampled)


def listed(plan: TrainingPlan, given: Assumptions) -> list[str]:
    """The assumptions, one a line."""
    device, images, trained = given.device, f"{plan.image_share:.0%}", f"{plan.learned_share:.0%}"
    return [
        "assumed, not measured:",
        f"  {device.name}: {device.flops / 1e12:.0f} TFLOP/s in bfloat16, {device.bandwidth / 1e12:.2f} TB/s",
        f"  training at {given.mfu:.0%} of those FLOP/s, sampling at {given.decoding:.0%} of the bandwidth",
        f"  {given.link / 1e9:.0f} GB/s between GPUs, each way, while they compute",
        f"  an episode: {given.tokens} tokens, {given.sampled} of them sampled, {given.image_tokens} in images",
        f"  a micro-batch: {images} of the tokens show distinct images, {trained} are trained",
        f"  libraries on the GPU: {_gib(plan.overhead)} GiB, and {plan.slack:.0%} on what the allocator is asked for",
        "not counted: tools, weight sync, checkpoints, the CPU's AdamW with offloading; Muon counts as AdamW",
    ]


def episodes_of(algorithm: AlgorithmConfig) -> int:
    """Trained in a step."""
    if algorithm.kind == "sft":
        return algorithm.batch_size  # type: ignore[attr-defined]
    return algorithm.prompts_per_step * algorithm.group_size  # type: ignore[attr-defined]


def sequences_of(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> int:
    """Sampled at a time; 0 where demonstrations are trained on."""
    return 0 if algorithm.kind == "sft" else rollout.vllm.max_num_seqs


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB or not size else f"{size / GIB:.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
