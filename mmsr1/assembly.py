"""Configuration to objects, each made from plain arguments. Entry points import this; components never see a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmsr1.config import Config, ConfigError, GrpoConfig, SftConfig
from mmsr1.data.emblem.store import EmblemStore, open_store
from mmsr1.data.emblem.tokenizer import build_tokenizer
from mmsr1.data.emblem.warmup import Demonstrator, WarmupSpec, warmup_sentences
from mmsr1.data.emblem.world import World, WorldSpec
from mmsr1.data.fvqa import BadRow, load_fvqa
from mmsr1.data.mixtures import PromptSchedule
from mmsr1.evaluation import scorecard
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.grpo import LossSpec
from mmsr1.models.loading import PolicyFiles, load_policy, save_policy
from mmsr1.models.module import OptimSpec
from mmsr1.models.packing import flatten
from mmsr1.models.sft_module import Demonstrations
from mmsr1.rewards.reward import RewardSpec
from mmsr1.rollout.callback import Progress, RolloutCallback, Schedule
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.engines.vllm import VllmEngine
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.protocol import STOP_STRINGS
from mmsr1.rollout.renderer import Renderer
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.run_directory import RunDirectory
from mmsr1.tools.cache import CachedTool
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.pictures import decode
from mmsr1.tools.store import Store
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.types import Example


def world_spec(config: Config) -> WorldSpec:
    try:
        return WorldSpec(**asdict(config.data.world))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def emblem_store(config: Config) -> EmblemStore:
    """The built-in world on disk; with other data it still backs the local search tools."""
    data = config.data
    train_size = data.train_size or 1200
    return open_store(Path(data.root), world_spec(config), train_size, data.val_size, config.tools.thumbnail_edge)


def examples(path: Path, key: str) -> tuple[list[Example], list[BadRow]]:
    """A parquet file's usable and skipped rows. Raises ConfigError naming the key."""
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file; give a parquet file in the FVQA format")
    try:
        return load_fvqa(path)
    except ValueError as error:
        raise ConfigError(f"{key}={error}") from error


def training_examples(config: Config) -> tuple[list[Example], list[Example], list[BadRow]]:
    """(training examples, validation examples, rows skipped). FVQA without data.val_path validates on its own rows."""
    data = config.data
    if data.kind == "emblem":
        store = emblem_store(config)
        train, val = Path(data.train_path or store.split("train")), Path(data.val_path or store.split("heldout"))
    else:
        train, val = Path(data.train_path or ""), Path(data.val_path or data.train_path or "")
    found, bad = examples(train, "data.train_path")
    held_out, bad_val = (found, []) if val == train else examples(val, "data.val_path")
    return found, held_out[: data.val_size], bad + bad_val


def policy_files(config: Config) -> PolicyFiles:
    """The policy of `model.path`, or a tiny one from nothing with the emblem world's tokenizer."""
    model = config.model
    if model.path is not None:
        try:
            return load_policy(model.path, model.dtype, decode)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    from mmsr1.models.images import ImageFeatures
    from mmsr1.models.tiny import tiny_config, tiny_image_processor, tiny_model

    tokenizer = build_tokenizer(warmup_sentences())
    sizes = tiny_config(tokenizer, model.hidden, model.layers, model.vision_hidden, model.vision_depth)
    processor = tiny_image_processor()
    return PolicyFiles(tiny_model(sizes, config.seed), tokenizer, processor, ImageFeatures(processor, decode))


def renderer(config: Config, files: PolicyFiles) -> Renderer:
    try:
        prompts = load_prompts(config.rollout.prompts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Renderer(files.tokenizer, prompts, files.patches.tokens)


def search_tools(config: Config) -> dict[Any, CachedTool[Any]]:
    """Local image and text search behind the disk cache."""
    store, tools = emblem_store(config), config.tools
    cache = Store(Path(tools.cache_dir))
    found = (
        LocalImageSearch(store.image_index, tools.image_results, tools.thumbnails),
        LocalTextSearch(store.text_index, tools.text_results),
    )
    return {tool.name: CachedTool(tool, cache) for tool in found}


def tool_counts(tools: Mapping[Any, CachedTool[Any]]) -> dict[str, int]:
    """Totals over all tools since they were made."""
    counters = [tool.counters for tool in tools.values()]
    return {name: sum(getattr(c, name) for c in counters) for name in ("calls", "hits", "backend_calls")}


def rollout_worker(config: Config, files: PolicyFiles, tools: Mapping[Any, Any], weights: Path) -> RolloutWorker:
    """Engine, tools and renderer on their own thread. The engine starts from the folder `weights`."""
    rollout = config.rollout
    vllm = rollout.vllm
    engine = VllmEngine(
        weights,
        dtype=config.model.dtype,
        max_model_len=vllm.max_model_len,
        max_num_seqs=vllm.max_num_seqs,
        max_num_batched_tokens=vllm.max_num_batched_tokens,
        kv_cache_bytes=int(vllm.kv_cache_gib * 2**30) if vllm.kv_cache_gib else None,
        images_per_prompt=vllm.images_per_prompt,
        enforce_eager=vllm.enforce_eager,
        engine_args=vllm.extra,
        reset_encoder_cache=rollout.reset_encoder_cache,
        pixels=files.patches.fitted,
    )
    limits = Limits(
        turns=rollout.turns,
        turn_tokens=rollout.turn_tokens,
        episode_tokens=rollout.episode_tokens,
        searches={"image_search": rollout.image_searches, "text_search": rollout.text_searches},
        on_tool_failure=rollout.on_tool_failure,  # type: ignore[arg-type]  (checked by the schema)
    )
    return RolloutWorker(
        engine, tools, renderer(config, files), limits, seed=config.seed, deterministic=rollout.deterministic
    )


def sampling(config: Config) -> Sampling:
    rollout = config.rollout
    return Sampling(rollout.temperature, rollout.top_p, max_tokens=rollout.turn_tokens, seed=0, stop=STOP_STRINGS)


def reward_spec(config: Config) -> RewardSpec:
    return RewardSpec(**asdict(config.rewards))  # type: ignore[arg-type]


def loss_spec(algorithm: GrpoConfig) -> LossSpec:
    return LossSpec(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        aggregation=algorithm.aggregation,  # type: ignore[arg-type]  (checked by the schema)
        constant_length=algorithm.constant_length,
        kl_weight=algorithm.kl_weight,
        entropy_weight=algorithm.entropy_weight,
    )


def optim_spec(algorithm: GrpoConfig | SftConfig, steps: int) -> OptimSpec:
    return OptimSpec(
        lr=algorithm.lr,
        schedule=algorithm.lr_schedule,  # type: ignore[arg-type]  (checked by the schema)
        total_steps=steps,
        warmup_steps=min(algorithm.lr_warmup_steps, steps),
        weight_decay=getattr(algorithm, "weight_decay", 0.0),
        max_grad_norm=algorithm.max_grad_norm,
        muon_lr=getattr(algorithm, "muon_lr", None),
    )


class WarmupData(Dataset[Demonstrations]):
    """Demonstrations for each step, drawn afresh: a pure function of the seed and the step.

    Holds no model, so that a worker process can draw them while the trainer computes.
    """

    def __init__(self, config: Config, files: PolicyFiles) -> None:
        tools = config.tools
        self._patches, self._image_token, self._merge = files.patches, files.image_token, files.merge
        self._seed, self._batch, self._steps = config.seed, config.algorithm.batch_size, config.trainer.max_steps
        self._draw = Demonstrator(
            World(world_spec(config)),
            renderer(config, files),
            WarmupSpec(),
            image_items=tools.image_results,
            thumbnails=tools.thumbnails,
            text_items=tools.text_results,
            edge=tools.thumbnail_edge,
        )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Demonstrations:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        rng = np.random.default_rng([self._seed, 13, step])
        shown = [self._draw.one(rng) for _ in range(self._batch)]
        laid_out = [flatten(d.segments, self._patches, self._image_token, self._merge, d.weights) for d in shown]
        return Demonstrations(step, laid_out)


def starting_weights(config: Config, files: PolicyFiles, run: Path) -> Path:
    """The folder that the engine starts from; a policy made from nothing is written into the run first."""
    if config.model.path is not None:
        return Path(config.model.path)
    import torch

    save_policy(run / "start", files, None, torch.float32)
    return run / "start"


def remarks(config: Config, found: Sequence[Example]) -> Iterator[str]:
    """What a user should know of this configuration before its run."""
    data = config.data
    if data.kind == "fvqa":
        yield "tools: both searches look into the built-in emblem world, which knows nothing of other data"
        if mixture(config, found) != data.mixture:
            yield f"data.mixture={data.mixture}: no row says whether it needs a search, so rows are drawn as they come"
        if not data.val_path:
            yield "data.val_path is not given: validation asks the training questions, so nothing is held out"


def skipped_rows(bad: Sequence[BadRow]) -> Iterator[str]:
    """One line for people about each of the first ten skipped rows, and a count."""
    for row in bad[:10]:
        yield f"skipped row {row.row} ({row.id}): {row.cause}"
    if bad:
        yield f"{len(bad)} rows skipped in all"


def mixture(config: Config, found: Sequence[Example]) -> str:
    """The mixture to draw by: rows of which none is labelled cannot be balanced, and are drawn as they come."""
    unlabelled = all(example.is_free is None for example in found)
    return "natural" if config.data.mixture == "balanced" and unlabelled else config.data.mixture


def prompt_schedule(config: Config, found: Sequence[Example]) -> PromptSchedule:
    try:
        return PromptSchedule(
            found,
            mixture(config, found),  # type: ignore[arg-type]  (checked by the schema)
            config.algorithm.prompts_per_step,
            config.trainer.max_steps,
            config.seed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def rollout_callback(
    config: Config,
    make_worker: Callable[[], RolloutWorker],
    buffer: RolloutBuffer | None,
    validation: Sequence[Example],
    tools: Mapping[Any, CachedTool[Any]],
    run: RunDirectory,
    progress: Progress,
) -> RolloutCallback:
    """The callback with the scorecard and the schedule of this configuration."""
    allowed = config.rollout.turns - 1
    algorithm, trainer = config.algorithm, config.trainer
    return RolloutCallback(
        make_worker,
        buffer,
        validation,
        sampling(config),
        reward_spec(config),
        group_size=getattr(algorithm, "group_size", 1),
        normalise=getattr(algorithm, "advantage", "std"),
        schedule=Schedule(trainer.val_every, trainer.checkpoint_every, trainer.episodes_every),
        run=run,
        figures=lambda groups: scorecard.figures(scorecard.scored(groups), allowed),
        scorecard=lambda groups: scorecard.figures_with_intervals(scorecard.scored(groups), allowed, config.seed),
        progress=progress,
        tool_counts=lambda: tool_counts(tools),
    )
