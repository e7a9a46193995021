"""The typed schema under the YAML in `conf/`. No torch here: `train.py --help` must stay quick.

Each dataclass is one config group; Hydra refuses unknown keys and wrong types at composition, `__post_init__` refuses
values that make no sense. Defaults live in the YAML files; here are only types and rules (MISSING = the YAML says it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from mmsr1.config.algorithm import AlgorithmConfig, GrpoConfig, SftConfig
from mmsr1.config.checks import HUB_ID, ConfigError, at_least, check, one_of, positive
from mmsr1.config.data import DataConfig, MixConfig, SharesConfig, SourceConfig, WorldConfig
from mmsr1.config.rollout import RolloutConfig, ServerConfig, TransformersConfig, VllmConfig
from mmsr1.config.tools import BudgetConfig, FaultsConfig, PartConfig, ToolsConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
__all__ = [
    "CONF",
    "HUB_ID",
    "AlgorithmConfig",
    "BudgetConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "FaultsConfig",
    "GrpoConfig",
    "LoggerConfig",
    "MixConfig",
    "ModelConfig",
    "PartConfig",
    "RewardsConfig",
    "RolloutConfig",
    "ServerConfig",
    "SftConfig",
    "SharesConfig",
    "SourceConfig",
    "ToolsConfig",
    "TrainerConfig",
    "TransformersConfig",
    "VllmConfig",
    "WorldConfig",
    "check",
    "one_of",
    "register",
]


@dataclass
class ModelConfig:
    """`path` is a Hugging Face folder; null builds a tiny Qwen2.5-VL from nothing with the sizes below.

    `dtype` is what trainer and engine compute in; `param_dtype` is what the trainer holds and updates. `lora_rank` 0
    trains the weights themselves, above 0 adapters of that rank on the language model.
    """

    path: str | None = MISSING
    dtype: str = MISSING
    param_dtype: str = MISSING
    export_dtype: str = MISSING
    freeze_vision: bool = MISSING
    activation_checkpointing: bool = MISSING
    logprob_chunk: int = MISSING
    lora_rank: int = MISSING
    lora_alpha: float = MISSING
    hidden: int = 128
    layers: int = 3
    vision_hidden: int = 64
    vision_depth: int = 2

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, "float32", "bfloat16")
        one_of("model.param_dtype", self.param_dtype, "float32", self.dtype)
        one_of("model.export_dtype", self.export_dtype, "float32", "float16", "bfloat16")
        at_least(0, "model", self, "lora_rank")
        positive("model", self, "lora_alpha")
        positive("model", self, "logprob_chunk", "hidden", "layers", "vision_hidden", "vision_depth")
        check(
            self.hidden % 128 == 0,
            "model.hidden",
            self.hidden,
            "must be a multiple of 128 (4 heads as vLLM takes them)",
        )


@dataclass
class RewardsConfig:
    """MMSearch-R1's outcome reward; see `mmsr1.rewards.rule`. With `target_calls` a controller prices each call so that
    the policy makes that many a question; see `mmsr1.rewards.price` for the gains."""

    format_weight: float = MISSING
    search_penalty: float = MISSING
    penalty_mode: str = MISSING
    penalty_warmup_steps: int = MISSING
    match: str = MISSING
    aliases: bool = MISSING
    target_calls: float | None = None  # here and not in conf: a run of before has none of these in its config.yaml
    price_proportional: float = 1.0
    price_integral: float = 0.1

    def __post_init__(self) -> None:
        check(0 <= self.format_weight <= 1, "rewards.format_weight", self.format_weight, "must be in [0, 1]")
        check(0 <= self.search_penalty < 1, "rewards.search_penalty", self.search_penalty, "must be in [0, 1)")
        at_least(0, "rewards", self, "penalty_warmup_steps")
        one_of("rewards.penalty_mode", self.penalty_mode, "per_question", "per_call")
        one_of("rewards.match", self.match, "em", "subem", "graded")
        at_least(0, "rewards", self, "price_proportional", "price_integral")
        possible = self.target_calls is None or self.target_calls >= 0
        check(possible, "rewards.target_calls", self.target_calls, "must be 0 or more calls a question, or null")


@dataclass
class TrainerConfig:
    """`max_steps` counts rollout steps (optimiser steps for sft). Validation also runs first and last.

    `optimizer_state` (precision of AdamW's moments) and `offload` (parameters, gradients and moments in CPU memory) are
    chosen by the planner where they are null, for GPUs of `gpu_memory_gib`. The last `keep_last` checkpoints stay, and
    the best one. At the end `counterfactual` rollouts (0: none) of each forced way of searching show what searching was
    worth on `counterfactual_questions` of the validation, or, where the data are the emblem world's, of its `graded`
    places, which the starting policy knows more or less well.
    """

    accelerator: str = MISSING
    devices: int = MISSING
    num_nodes: int = MISSING
    threads: int = MISSING
    data_workers: int = MISSING
    max_steps: int = MISSING
    val_every: int = MISSING
    checkpoint_every: int = MISSING
    episodes_every: int = MISSING
    keep_last: int = MISSING
    optimizer_state: str | None = MISSING
    offload: bool | None = MISSING
    gpu_memory_gib: float | None = MISSING
    counterfactual: int = 0  # here and not in conf: a run of before has neither in its config.yaml
    counterfactual_questions: int = 96
    counterfactual_split: str = "validation"

    def __post_init__(self) -> None:
        one_of("trainer.accelerator", self.accelerator, "cpu", "cuda")
        if self.optimizer_state is not None:
            one_of("trainer.optimizer_state", self.optimizer_state, "float32", "bfloat16")
        on_gpu = self.accelerator == "cuda"
        check(on_gpu or not self.offload, "trainer.offload", self.offload, "is for trainer.accelerator=cuda")
        check(
            self.gpu_memory_gib is None or self.gpu_memory_gib > 0,
            "trainer.gpu_memory_gib",
            self.gpu_memory_gib,
            "must be positive",
        )
        at_least(0, "trainer", self, "data_workers", "counterfactual")
        positive("trainer", self, "devices", "num_nodes", "threads")
        positive("trainer", self, "max_steps", "val_every", "checkpoint_every", "episodes_every", "keep_last")
        positive("trainer", self, "counterfactual_questions")
        one_of("trainer.counterfactual_split", self.counterfactual_split, "validation", "graded")


@dataclass
class LoggerConfig:
    """wandb beside the run directory: `mode` online or offline; null project switches it off."""

    project: str | None = MISSING
    mode: str = MISSING

    def __post_init__(self) -> None:
        one_of("logger.mode", self.mode, "online", "offline")


@dataclass
class Config:
    """The whole configuration; only entry points see it. `study` is the study that the run is an arm of, `name` that
    arm. `first` are further overrides of a run that comes before this one and whose policy it starts from."""

    name: str = MISSING
    study: str | None = None
    seed: int = MISSING
    resume: str | None = None
    first: list[str] | None = None
    model: ModelConfig = MISSING
    rollout: RolloutConfig = MISSING
    tools: ToolsConfig = MISSING
    faults: FaultsConfig = MISSING
    rewards: RewardsConfig = MISSING
    data: DataConfig = MISSING
    algorithm: Any = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING

    @property
    def comes_after_another(self) -> bool:
        """Whether a teacher's traces, or another run, must be there before this one begins."""
        return self.first is not None or getattr(self.algorithm, "source", "") == "teacher"

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "must be in [0, 2^32)")
        vllm, shown = self.rollout.vllm, 1 + self.rollout.image_searches * self.tools.thumbnails
        remedy = f"must be at least {shown}: the question's image and the thumbnails of rollout.image_searches searches"
        check(vllm.images_per_prompt >= shown, "rollout.vllm.images_per_prompt", vllm.images_per_prompt, remedy)
        awake = not self.rollout.sleep or self.trainer.accelerator == "cuda"
        check(awake, "rollout.sleep", True, "only with trainer.accelerator=cuda is there memory to give back")
        target, made = self.rewards.target_calls, self.rollout.turns - 1
        remedy = f"must be at most {made}: rollout.turns leaves no room for more"
        check(target is None or target <= made, "rewards.target_calls", target, remedy)
        plain = target is None or getattr(self.algorithm, "advantage", "none") == "none"
        remedy = "goes with algorithm.advantage=none: divided by the spread of a group, any price would weigh the same"
        check(plain, "rewards.target_calls", target, remedy)
        refills = getattr(self.algorithm, "all_equal", "") == "refill"
        remedy = "rollout.deterministic=true takes prompts in their order; give drop"
        check(not (refills and self.rollout.deterministic), "algorithm.all_equal", "refill", remedy)


def register() -> None:
    """Make the schema known to Hydra; each YAML file of a group names its own as the first of its defaults."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    groups = {
        "model": ModelConfig,
        "rollout": RolloutConfig,
        "tools": ToolsConfig,
        "faults": FaultsConfig,
        "rewards": RewardsConfig,
        "data": DataConfig,
        "data/mix": MixConfig,
        "trainer": TrainerConfig,
        "logger": LoggerConfig,
    }
    for group, node in groups.items():
        store.store(group=group, name="schema", node=node)
    store.store(group="algorithm", name="grpo_schema", node=GrpoConfig)
    store.store(group="algorithm", name="sft_schema", node=SftConfig)
