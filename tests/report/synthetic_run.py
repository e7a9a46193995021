"""A made-up run of the emblem world, written through RunDirectory: 48 taught and 64 unknown places, 7 validations."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from mmsr1.run_directory import RunDirectory, episode_pictures, episode_record
from mmsr1.types import (
    Episode,
    Example,
    Exchange,
    Picture,
    Reward,
    Sampled,
    SearchNeed,
    Segment,
    Timings,
    ToolCall,
    ToolItem,
    ToolResult,
)

STEPS = (0, 5, 10, 15, 20, 25, 30)
TAUGHT, UNKNOWN, QUESTIONS = 48, 64, 480
COLOURS = ((200, 40, 40), (40, 140, 60), (40, 70, 190), (230, 190, 50), (150, 60, 160), (50, 180, 190))


def encode(image: Image.Image, kind: str = "PNG") -> Picture:
    stream = io.BytesIO()
    image.save(stream, kind)
    return Picture(stream.getvalue())


def emblem(seed: int, edge: int = 56) -> Picture:
    rng = np.random.default_rng(seed)
    quadrants = np.array(COLOURS)[rng.integers(len(COLOURS), size=(2, 2))]
    pixels = np.kron(quadrants, np.ones((edge // 2, edge // 2, 1))) + rng.normal(0, 6, (edge, edge, 3))
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def make_examples() -> list[Example]:
    """Half free (three facts of each taught place in turn), half required: text, image, both."""
    required: tuple[SearchNeed, ...] = ("text", "image", "both")
    examples = []
    for index in range(QUESTIONS):
        if index % 2 == 0:
            place, need = index // 2 % TAUGHT, "free"
            source = f"emblem/known-heldout-{place:04d}"
        elif required[index // 2 % 3] == "text":
            place, need = index // 6 % TAUGHT, "text"
            source = f"emblem/known-heldout-{place:04d}"
        else:
            place, need = 100 + index // 2 % UNKNOWN, required[index // 2 % 3]
            source = f"emblem/unknown-heldout-{place - 100:04d}"
        question = ("name ?", "capital of this place ?", "founder of this place ?")[index % 3]
        examples.append(Example(f"val-{index}", question, (emblem(place),), f"Dul{place} men", (), need, source))
    return examples


def make_episode(example: Example, searches: int, right: bool, rollout: int = 0) -> Episode:
    tools = ("image_search", "text_search")[:searches]
    asked = {
        "image_search": "<reason>I do not know this flag</reason><search><img></search>",
        "text_search": "<reason>I read the results</reason><text_search>capital of Tarvik</text_search>",
    }
    hits = (
        ToolItem("the flag of Tarvik", "", "https://emblems.example/tarvik", emblem(7, 28)),
        ToolItem("Gim lam flag picture", "an emblem much like it", "https://emblems.example/gimlam", emblem(8, 28)),
    )
    calls = tuple(
        Exchange(turn, ToolCall(tool, "capital of Tarvik"), ToolResult("ok", hits, 0.001, 0.04, turn == 0))
        for turn, tool in enumerate(tools)
    )
    last = f"<reason>I know this flag</reason><answer>{example.answer if right else 'Gim lam'}</answer>"
    sampled = Segment("sampled", tuple(range(40)), False, sampled=Sampled((-0.123456789,) * 40, 0))
    return Episode(
        example_id=example.id,
        rollout=rollout,
        segments=(Segment("image", (5,), True, example.images), sampled),
        turns=(*(asked[tool] for tool in tools), last),
        calls=calls,
        stop="answered",
        weight_version=0,
        timings=Timings(0.8, 0.6, 0.1),
    )


def reward_of(episode: Episode, right: bool) -> Reward:
    penalty = 0.9 if episode.calls else 1.0
    parts = {"accuracy": float(right), "format": 1.0, "penalty": penalty, "searches": float(len(episode.calls))}
    return Reward(0.9 * right * penalty + 0.1, parts)


def write_validation(directory: RunDirectory, step: int, examples: list[Example], seed: int = 0) -> None:
    """Searching turns from a habit into a choice as `step` goes from 0 to 30."""
    progress, rng = step / 30, np.random.default_rng([seed, step])
    records, pictures = [], []
    for example in examples:
        habit = 0.58 - 0.55 * progress if example.is_free else 0.80 + 0.17 * progress
        searches = 0 if rng.random() > habit else 2 if example.search_need == "both" else 1
        skill = 0.93 + 0.05 * progress if searches or example.is_free else 0.05
        right = bool(rng.random() < skill)
        episode = make_episode(example, searches, right)
        records.append(episode_record(example, episode, reward_of(episode, right)))
        pictures += episode_pictures(example, episode)
    directory.write_episodes("val", step, records, pictures)


def log_step(directory: RunDirectory, step: int) -> None:
    progress, rng = step / 30, np.random.default_rng(step)
    figures = {
        "reward": 0.79 + 0.12 * progress + rng.normal(0, 0.02),
        "accuracy": 0.83 + 0.12 * progress + rng.normal(0, 0.03),
        "format": 0.99,
        "search_ratio_free": 0.58 - 0.55 * progress + rng.normal(0, 0.03),
        "search_ratio_required": 0.80 + 0.15 * progress + rng.normal(0, 0.03),
        "calls_per_question": 1.1 - 0.3 * progress,
        "tool_failure_rate": 0.0,
        "kl": math.nan if step == 3 else 0.01 * progress,
        "entropy": 0.4 - 0.2 * progress + rng.normal(0, 0.01),
        "clip_fraction": 0.02 + abs(rng.normal(0, 0.01)),
        "grad_norm": 0.6 + abs(rng.normal(0, 0.1)),
        "logprob_gap_mean": 0.001,
        "logprob_gap_max": 0.02 + abs(rng.normal(0, 0.02)),
        "zero_advantage_groups": 3 + step // 6,
        "seconds_rollout": 1.1 + rng.normal(0, 0.05),
        "seconds_tools_critical": 0.2,
        "seconds_train": 0.8 + rng.normal(0, 0.05),
        "seconds_sync": 0.05,
    }
    directory.log_metrics(step, "train", figures)


def validation_figures(progress: float) -> dict[str, object]:
    values = {
        "accuracy": 0.83 + 0.117 * progress,
        "reward": 0.788 + 0.12 * progress,
        "format": 0.985,
        "search_ratio": 0.71 - 0.22 * progress,
        "calls_per_question": 0.9 - 0.2 * progress,
        "calls_per_allowed": 0.45 - 0.1 * progress,
        "accuracy_free": 0.94 + 0.03 * progress,
        "search_ratio_free": 0.58 - 0.55 * progress,
        "accuracy_required": 0.72 + 0.2 * progress,
        "search_ratio_required": 0.8 + 0.14 * progress,
    }
    return values | {f"{name}_ci95": [max(value - 0.03, 0.0), min(value + 0.03, 1.0)] for name, value in values.items()}


def start(directory: RunDirectory, command: str = "train.py +experiment=grpo_balanced seed=0") -> RunDirectory:
    config = "experiment: grpo_balanced\nseed: 0\nalgorithm:\n  penalty: 0.1\n"
    directory.start(command, 0, config, {"python": "3.11.7", "torch": "2.13.0", "vllm": None}, "4b990f5-dirty")
    return directory


def write_full_run(path: Path) -> RunDirectory:
    """A finished run of the size that the gate has."""
    directory = start(RunDirectory(path))
    examples = make_examples()
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            write_validation(directory, step, examples)
            figures = validation_figures(step / 30)
            directory.log_metrics(step, "val", {k: v for k, v in figures.items() if isinstance(v, float)})
        if step < STEPS[-1]:
            log_step(directory, step)
    summary = {"initial": validation_figures(0), "final": validation_figures(1), "steps": 30, "wall_seconds": 64.2}
    spent = {"tool_calls": 5123, "cache_hits": 3120, "cost_usd": 0.0, "cost_usd_uncached": 5.12}
    lens = {
        "calls": 3000,
        "hits": 2900,
        "failures": 12,
        "attempts": 107,
        "faults": 7,
        "paid_usd": 1.5,
        "cost_usd": 45.0,
    }
    lens |= {"latency_s": {"mean": 0.051, "p50": 0.0004, "p99": 2.25}}
    unused = {"calls": 0, "latency_s": {"mean": 0.0, "p50": 0.0, "p99": 0.0}}
    directory.write_summary(summary | spent | {"tools": {"image_search": lens, "text_search": unused}})
    directory.finish("finished", 64.2)
    return directory
