"""One full GRPO training step, and its peak memory beside what the planner says.

On a CUDA device: Qwen2.5-VL-7B (its real sizes, random weights), 16 recorded episodes of 4,065 tokens with five images
each, in two groups; old log-probs, loss, backward pass and optimiser as `GRPOModule` has them. The planner chooses the
precision of the moments, and whether to offload. Without one: the same step of a model of a few million parameters,
its memory counted by MemTracker, and the passes of the real model on one of eight GPUs, simulated. The environment
variable MMSR1_SIZE=tiny takes the small one on a GPU too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from lightning import Callback  # noqa: E402
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from benchmarks._episodes import Sizes, groups  # noqa: E402
from benchmarks._memory import available_mib  # noqa: E402
from benchmarks._simulation import Peak, Simulated, peak_bytes  # noqa: E402
from benchmarks._training import fit  # noqa: E402
from mmsr1.models.buffer import RolloutBuffer  # noqa: E402
from mmsr1.models.grpo import LossSpec  # noqa: E402
from mmsr1.models.grpo_module import Encoding, GRPOModule  # noqa: E402
from mmsr1.models.images import ImageFeatures  # noqa: E402
from mmsr1.models.memory import GIB, breakdown, choose  # noqa: E402
from mmsr1.models.module import OptimSpec, Sharding  # noqa: E402
from mmsr1.models.packing import flatten, pack  # noqa: E402
from mmsr1.models.plan import SHAPES  # noqa: E402
from mmsr1.models.policy import Policy  # noqa: E402
from mmsr1.models.policy_shape import PolicyShape  # noqa: E402
from mmsr1.models.step_memory import TrainingPlan  # noqa: E402
from mmsr1.models.step_time import H100, Assumptions, training_flops  # noqa: E402
from mmsr1.models.tiny import tiny_image_processor  # noqa: E402
from mmsr1.tools.pictures import decode  # noqa: E402
from mmsr1.types import Group, StepPrompts  # noqa: E402

ROLLOUTS = 8
PATCHES = ImageFeatures(tiny_image_processor(max_tokens=1024), decode)


@dataclass(frozen=True)
class Setting:
    """A size of the benchmark: the model's config.json, its episodes, and how it is trained."""

    config: dict[str, Any]
    sizes: Sizes
    token_budget: int
    chunk: int
    dtype: str

    @property
    def image_token(self) -> int:
        return self.config.get("image_token_id", 151_655)


def measure(size: str | None = None, simulate: bool = True) -> dict[str, Any]:
    """Figures of the step after a first one, which makes the moments. `size` is 7b or tiny."""
    on_gpu = torch.cuda.is_available()
    size = size or os.environ.get("MMSR1_SIZE") or ("7b" if on_gpu else "tiny")
    if size == "7b" and not on_gpu:
        raise RuntimeError("MMSR1_SIZE=7b: needs a CUDA device; leave it out for the small model")
    setting = {"7b": real, "tiny": small}[size]()
    episodes = groups(2, ROLLOUTS, setting.sizes, setting.image_token)
    plan = _plan(setting, episodes)
    if on_gpu:
        room, host = torch.cuda.mem_get_info()[0], 0.9 * available_mib() * 2**20
        state, offload = choose(plan, room, host_bytes=host)
        plan = replace(plan, optimizer_state=state, offload=offload)
    watch = Watch(episodes, on_gpu)
    steps = [StepPrompts(step, ()) for step in range(2)]
    fit(_module(setting, plan, on_gpu), steps, watch, on_gpu)
    planned, count = breakdown(plan), sum(len(group.episodes_G) for group in episodes)
    given = Assumptions(H100, 0, tokens=setting.sizes.tokens, sampled=setting.sizes.sampled)
    given = replace(given, image_tokens=int(plan.image_share * given.tokens))
    flops = count * training_flops(plan, given, on_policy=True)
    figures = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "size": size,
        "episodes": count,
        "tokens": count * setting.sizes.tokens,
        "moments": plan.optimizer_state,
        "offload": plan.offload,
        "seconds": watch.seconds,
        "tokens_per_second": count * setting.sizes.tokens / watch.seconds,
        "mfu": flops / watch.seconds / H100.flops if on_gpu else None,
        "planner_gib": planned.total / GIB,
        "peak_gib": watch.peak / GIB,
        "ratio": watch.peak / planned.total,
        "peak_at": planned.peak,
    }
    return figures | (simulated() if simulate and not on_gpu else {})


def real() -> Setting:
    config = json.loads((SHAPES / "Qwen2.5-VL-7B-Instruct.json").read_text(encoding="utf-8"))
    return Setting(config, Sizes(930, 300, 320, 672, 448), token_budget=16_384, chunk=1024, dtype="bfloat16")


def small() -> Setting:
    """Eight million parameters in the same proportions; a tenth of the tokens."""
    config = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "tie_word_embeddings": False,
        "image_token_id": 8191,
        "vision_config": {
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
    }
    return Setting(config, Sizes(93, 30, 31, 224, 112), token_budget=1600, chunk=256, dtype="float32")


def simulated() -> dict[str, Any]:
    """The passes of one micro-batch of the 7B model, sharded over eight GPUs, beside the planner.

    More words for smaller pictures: every window of attention in a picture is an operation of its own here.
    """
    setting = replace(real(), sizes=Sizes(2018, 300, 320, 448, 224))
    drawn = groups(1, 4, setting.sizes, setting.image_token)
    plan = replace(_plan(setting, drawn), ranks=8, step_tokens=0)
    batch = pack([_flat(setting, episode) for episode in drawn[0].episodes_G], PATCHES, drawn[0].advantages_G)
    how = Simulated(8, setting.dtype, plan.param_dtype, chunk=setting.chunk)
    peak = peak_bytes(library_config(setting.config), batch, how)
    need = breakdown(plan)
    planned = need.total - need.optimizer_states
    return {
        "simulated_gib": peak / GIB,
        "simulated_planner_gib": planned / GIB,
        "simulated_ratio": peak / planned,
    }


class Watch(Callback):
    """Hands each step its groups; time and peak memory (bytes) of the last one."""

    def __init__(self, drawn: tuple[Group, ...], on_gpu: bool) -> None:
        self.drawn, self.on_gpu = drawn, on_gpu
        self.seconds, self.peak = 0.0, 0.0
        self._tracker: Peak | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.buffer.put(batch.step, self.drawn)
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._tracker = Peak()
            self._tracker.track_external(pl_module.policy, pl_module.optimizers().optimizer)
            self._tracker.__enter__()
        self.seconds = -time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        self.seconds += time.perf_counter()
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            self.peak = self._tracker.bytes


def _plan(setting: Setting, drawn: tuple[Group, ...]) -> TrainingPlan:
    """The planner's view of a step of these groups. What is shown in images comes from the largest micro-batch."""
    together = setting.token_budget // setting.sizes.tokens
    shown = {picture for episode in drawn[0].episodes_G[:together] for s in episode.segments for picture in s.images}
    tokens = together * setting.sizes.tokens
    return TrainingPlan(
        PolicyShape.of(setting.config),
        token_budget=tokens,
        episode_tokens=setting.sizes.tokens,
        logprob_chunk=setting.chunk,
        dtype=setting.dtype,
        image_share=sum(map(PATCHES.tokens, shown)) / tokens,
        step_tokens=len(drawn) * ROLLOUTS * setting.sizes.tokens,
        learned_share=setting.sizes.sampled / setting.sizes.tokens,
    )


def _module(setting: Setting, plan: TrainingPlan, on_gpu: bool) -> GRPOModule:
    torch.manual_seed(0)
    with torch.device("cuda" if on_gpu else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            library_config(setting.config), attn_implementation="sdpa", dtype=getattr(torch, plan.param_dtype)
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return GRPOModule(
        Policy(model, setting.chunk),
        RolloutBuffer(),
        Encoding(PATCHES, setting.image_token, 2, frozenset()),
        LossSpec(),
        OptimSpec(1e-6, "constant", 2, moments=plan.optimizer_state),  # type: ignore[arg-type]
        mini_batches=1,
        token_budget=setting.token_budget,
        gap_limit=None,
        freeze_vision=False,
        sharding=Sharding(getattr(torch, plan.dtype), plan.offload),
        max_staleness=1,  # the second step trains on the same episodes
    )


def _flat(setting: Setting, episode: Any) -> Any:
    return flatten(episode.segments, PATCHES, setting.image_token)


def library_config(config: dict[str, Any]) -> Qwen2_5_VLConfig:
    width = config["hidden_size"] // config["num_attention_heads"] // 2
    section = [width - 2 * (width * 3 // 8), width * 3 // 8, width * 3 // 8]
    turning = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    rest = {name: value for name, value in config.items() if name != "model_type"}
    return Qwen2_5_VLConfig(**rest, rope_parameters=turning)  # pyright: ignore[reportCallIssue]
