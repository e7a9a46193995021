"""The schema of `conf/algorithm`: what the policy learns by."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from mmsr1.config.checks import at_least, check, one_of, positive


@dataclass
class AlgorithmConfig:
    """What every algorithm's optimiser needs; `token_budget` bounds a packed micro-batch."""

    kind: str = MISSING
    lr: float = MISSING
    lr_schedule: str = MISSING
    lr_warmup_steps: int = MISSING
    max_grad_norm: float = MISSING
    token_budget: int = MISSING

    def __post_init__(self) -> None:
        schedules = ("constant", "linear", "cosine", "sigmoid", "late_linear")
        one_of("algorithm.lr_schedule", self.lr_schedule, *schedules)
        positive("algorithm", self, "lr", "max_grad_norm", "token_budget")
        at_least(0, "algorithm", self, "lr_warmup_steps")


@dataclass
class GrpoConfig(AlgorithmConfig):
    """Group relative policy optimisation. One step samples prompts_per_step x group_size episodes.

    `correction` null weighs tokens where rollouts may be stale, and nothing elsewhere. `all_equal` says what becomes of
    groups without advantages: `refill` replaces up to `max_refills` x prompts_per_step of them a step. With
    `efficiency_weight` right answers also learn from having taken fewer calls than the other right ones of their group.
    """

    kind: str = "grpo"
    prompts_per_step: int = MISSING
    group_size: int = MISSING
    mini_batches: int = MISSING
    weight_decay: float = MISSING
    clip_low: float = MISSING
    clip_high: float = MISSING
    aggregation: str = MISSING
    constant_length: int = MISSING
    advantage: str = MISSING
    kl_weight: float = MISSING
    entropy_weight: float = MISSING
    gap_limit: float | None = MISSING
    correction: str | None = MISSING
    correction_cap: float = MISSING
    mask_gap_above: float | None = MISSING
    all_equal: str = MISSING
    max_refills: float = MISSING
    efficiency_weight: float = 0.0  # here and not in conf: a run of before has none in its config.yaml

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm.kind", self.kind, "grpo")
        if self.correction is not None:
            one_of("algorithm.correction", self.correction, "off", "token", "sequence")
        one_of("algorithm.all_equal", self.all_equal, "keep", "drop", "refill")
        check(self.correction_cap >= 1, "algorithm.correction_cap", self.correction_cap, "must be 1 or more")
        masks = self.mask_gap_above is None or self.mask_gap_above > 0
        check(masks, "algorithm.mask_gap_above", self.mask_gap_above, "must be above 0 (nats), or null")
        at_least(0, "algorithm", self, "max_refills")
        one_of("algorithm.aggregation", self.aggregation, "token_mean", "sequence_mean", "constant_length")
        one_of("algorithm.advantage", self.advantage, "std", "none")
        at_least(2, "algorithm", self, "group_size")
        fits = 1 <= self.mini_batches <= self.prompts_per_step
        check(fits, "algorithm.mini_batches", self.mini_batches, "must be between 1 and algorithm.prompts_per_step")
        check(0 < self.clip_low <= 1, "algorithm.clip_low", self.clip_low, "must be in (0, 1]")
        positive("algorithm", self, "clip_high", "constant_length")
        at_least(0, "algorithm", self, "weight_decay", "kl_weight", "entropy_weight", "efficiency_weight")


@dataclass
class SftConfig(AlgorithmConfig):
    """Supervised training on `source`: the folder `traces`, which `python -m mmsr1.data.traces` made, the emblem
    world's `warmup` demonstrations, or traces of the `teacher` that rollout.teacher names, about `questions` of the
    training questions (0: all), made when the run begins. `muon_lr` trains the matrices by Muon, null all by AdamW."""

    kind: str = "sft"
    batch_size: int = MISSING
    muon_lr: float | None = MISSING
    source: str = "warmup"
    traces: str | None = None
    questions: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm.kind", self.kind, "sft")
        one_of("algorithm.source", self.source, "traces", "warmup", "teacher")
        at_least(0, "algorithm", self, "questions")
        positive("algorithm", self, "batch_size")
