"""A rollout worker over the in-process vLLM, without tools unless they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsr1.models.loading import PolicyFiles
from mmsr1.rollout.engines.base import Engine, Sampling
from mmsr1.rollout.engines.vllm import VllmEngine
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.protocol import STOP_STRINGS
from mmsr1.rollout.renderer import Renderer
from mmsr1.rollout.worker import RolloutWorker

CONTEXT = 1024
# What conf/rollout/vllm.yaml gives the engine.
ENGINE: dict[str, Any] = {
    "max_model_len": CONTEXT,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 16384,
    "images_per_prompt": 8,
}


def make_engine(policy: Path, files: PolicyFiles) -> VllmEngine:
    return VllmEngine(policy, pixels=files.patches.fitted, **ENGINE)


def make_worker(
    policy: Path,
    files: PolicyFiles,
    turn_tokens: int,
    turns: int = 1,
    tools: Any = None,
    wrap: Callable[[Engine], Engine] = lambda engine: engine,
) -> RolloutWorker:
    """`wrap` puts something in front of the engine."""
    engine = make_engine(policy, files)
    limits = Limits(turns, turn_tokens, CONTEXT, {"text_search": turns - 1})
    return RolloutWorker(wrap(engine), tools or {}, make_renderer(files), limits, seed=0)


def make_renderer(files: PolicyFiles) -> Renderer:
    return Renderer(files.tokenizer, load_prompts("emblem"), files.patches.tokens)


def sampling(turn_tokens: int) -> Sampling:
    return Sampling(temperature=1.0, top_p=1.0, max_tokens=turn_tokens, seed=0, stop=STOP_STRINGS)
