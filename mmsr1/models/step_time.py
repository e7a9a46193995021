"""How long a training step takes on GPUs: an estimate from its arithmetic and the bytes it moves, grounds named."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mmsr1.models.policy_shape import PolicyShape
from mmsr1.models.step_memory import BYTES, TrainingPlan

WINDOW = 64  # patches that see each other in most vision blocks: 112 pixels squared, by 14


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it: dense bfloat16 FLOP/s, memory bytes/s."""

    name: str
    flops: float
    bandwidth: float


# NVIDIA's data sheets of the H100 SXM (80 GB) and the H200 SXM (141 GB).
H100 = Device("H100 SXM", 989e12, 3.35e12)
H200 = Device("H200 SXM", 989e12, 4.8e12)


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted.

    `mfu`: share of the peak FLOP/s that forward and backward passes reach; `decoding`: share of the memory's bandwidth
    that sampling reaches; `link`: bytes/s between GPUs, each way, which overlaps with computing. `tokens` (expanded),
    `sampled` and `image_tokens` of a mean episode are those of MMSearch-R1-7B's recorded trajectories (benchmarks/
    packing.py), rounded.
    """

    device: Device
    link: float
    mfu: float = 0.35
    decoding: float = 0.6
    tokens: int = 1000
    sampled: int = 160
    image_tokens: int = 300


@dataclass(frozen=True)
class StepTime:
    """Seconds. Training is the longer of `computing` and `communicating`."""

    sampling: float
    computing: float
    communicating: float

    @property
    def total(self) -> float:
        return self.sampling + max(self.computing, self.communicating)


def step_time(plan: TrainingPlan, episodes: int, sequences: int, given: Assumptions) -> StepTime:
    """One step over `episodes`, sampled `sequences` at a time on each GPU if their cache allows; 0: none is sampled."""
    mine = ceil(episodes / plan.ranks)
    computing = mine * training_flops(plan, given, bool(sequences)) / (given.device.flops * given.mfu)
    passes = mine * given.tokens / plan.token_budget
    sampling = _sampling(plan, mine, sequences, given) if sequences else 0
    return StepTime(sampling, computing, passes * _moved(plan, bool(sequences)) / given.link)


def training_flops(plan: TrainingPlan, given: Assumptions, on_policy: bool) -> float:
    """Of one episode: old log-probs if `on_policy`, reference, forward and backward pass, recomputed activations."""
    language, head, vision = forward_flops(plan.shape, given)
    without = on_policy + plan.reference
    again = int(plan.activation_checkpointing)
    backward = 1 if plan.lora_rank else 2  # by the inputs, and by the weights
    seen = 3 + again if plan.trains_vision else 1
    return language * (without + 1 + again + backward) + head * (without + 2 + backward) + vision * (without + seen)


def forward_flops(shape: PolicyShape, given: Assumptions) -> tuple[float, float, float]:
    """(decoder layers, head, vision tower) of one episode's forward pass; a token attends to those before it."""
    attention = shape.attention * given.tokens  # half of all pairs
    language = 2 * shape.layers * (shape.layer + attention) * given.tokens
    vision = shape.vision
    each = vision.depth * (vision.block + 2 * vision.hidden * WINDOW) + shape.merger / vision.merge
    return language, 2.0 * shape.head * given.sampled, 2 * each * given.image_tokens * vision.merge


def _sampling(plan: TrainingPlan, episodes: int, sequences: int, given: Assumptions) -> float:
    """Prompts at the speed of training; then every token reads all weights, and the cache of all running sequences."""
    shape, width = plan.shape, BYTES[plan.dtype]
    kept = shape.cache_bytes(width) * given.tokens
    running = max(1, min(sequences, episodes, int(plan.engine.cache / kept) if plan.engine.cache else sequences))
    weights = width * (shape.parameters - shape.tower)
    decoding = ceil(episodes / running) * given.sampled * (weights + running * kept)
    prompts = episodes * sum(forward_flops(shape, given))
    return prompts / (given.device.flops * given.mfu) + decoding / (given.device.bandwidth * given.decoding)


def _moved(plan: TrainingPlan, on_policy: bool) -> float:
    """Bytes in and out of a GPU for one micro-batch: weights are gathered for every pass, gradients summed once.

    With offloading this rank's part of the weights also comes from CPU memory each time.
    """
    if not plan.sharded:
        return 0
    others = 1 - 1 / plan.ranks
    width = BYTES[plan.dtype] * others + BYTES[plan.param_dtype] * plan.offload / plan.ranks
    gathers = 2 + on_policy + plan.reference
    return plan.shape.parameters * gathers * width + plan.trained * BYTES[plan.param_dtype] * others
