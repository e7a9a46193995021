"""The policy, how it is held, and how it is updated."""

from __future__ import annotations

from pathlib import Path

from mmsr1.config import Config, ConfigError, GrpoConfig, SftConfig, TrainerConfig
from mmsr1.data.emblem.tokenizer import build_tokenizer
from mmsr1.data.emblem.warmup import warmup_sentences
from mmsr1.models.correction import CorrectionSpec
from mmsr1.models.grpo import LossSpec
from mmsr1.models.loading import PolicyFiles, load_policy, save_policy
from mmsr1.models.lora import add_adapters
from mmsr1.models.module import OptimSpec, Sharding
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.renderer import Renderer
from mmsr1.tools.pictures import decode


def policy_files(config: Config) -> PolicyFiles:
    """The policy to train, with adapters where the configuration asks for them."""
    files = base_policy(config)
    if config.model.lora_rank:
        add_adapters(files.model, config.model.lora_rank, config.model.lora_alpha)
    return files


def base_policy(config: Config, weights: bool = True) -> PolicyFiles:
    """The policy of `model.path`, or a tiny one from nothing with the emblem world's tokenizer.

    Without `weights` that of a path has none: an engine loads its own, and tokenizer and images need none.
    """
    model = config.model
    if model.path is not None:
        try:
            return load_policy(model.path, model.param_dtype, decode, weights)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    from mmsr1.models.images import ImageFeatures
    from mmsr1.models.tiny import tiny_config, tiny_image_processor, tiny_model

    tokenizer = build_tokenizer(warmup_sentences())
    sizes = tiny_config(tokenizer, model.hidden, model.layers, model.vision_hidden, model.vision_depth)
    processor = tiny_image_processor()
    return PolicyFiles(tiny_model(sizes, config.seed), tokenizer, processor, ImageFeatures(processor, decode))


def starting_weights(config: Config, files: PolicyFiles, scratch: Path) -> Path:
    """The folder that the engine starts from; a policy made from nothing is written into `scratch` first."""
    if config.model.path is not None:
        return Path(config.model.path)
    import torch

    save_policy(scratch, files, None, torch.float32)
    return scratch


def renderer(config: Config, files: PolicyFiles) -> Renderer:
    try:
        prompts = load_prompts(config.rollout.prompts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Renderer(files.tokenizer, prompts, files.patches.tokens, seen_size=files.patches.size)


def sharding(config: Config) -> Sharding:
    import torch

    return Sharding(getattr(torch, config.model.dtype), bool(config.trainer.offload))


def optim_spec(algorithm: GrpoConfig | SftConfig, steps: int, trainer: TrainerConfig) -> OptimSpec:
    return OptimSpec(
        lr=algorithm.lr,
        schedule=algorithm.lr_schedule,  # type: ignore[arg-type]  (checked by the schema)
        total_steps=steps,
        warmup_steps=min(algorithm.lr_warmup_steps, steps),
        weight_decay=getattr(algorithm, "weight_decay", 0.0),
        max_grad_norm=algorithm.max_grad_norm,
        muon_lr=getattr(algorithm, "muon_lr", None),
        moments=trainer.optimizer_state,  # type: ignore[arg-type]  (checked by the schema, settled by the planner)
    )


def correction_spec(config: Config) -> CorrectionSpec:
    """What the configuration says, or tokens weighed where rollouts may be stale."""
    algorithm, rollout = config.algorithm, config.rollout
    stale = rollout.overlap > 0 or rollout.oversample > 0 or rollout.keep_running
    level = algorithm.correction or ("token" if stale else "off")
    return CorrectionSpec(level, algorithm.correction_cap, algorithm.mask_gap_above)


def loss_spec(algorithm: GrpoConfig) -> LossSpec:
    return LossSpec(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        aggregation=algorithm.aggregation,  # type: ignore[arg-type]  (checked by the schema)
        constant_length=algorithm.constant_length,
        kl_weight=algorithm.kl_weight,
        entropy_weight=algorithm.entropy_weight,
    )
