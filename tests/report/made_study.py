"""Made-up studies, written through RunDirectory: arms that search more or less, and get more or less right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from synthetic_run import make_episode, make_examples, reward_of

from mmsr1.evaluation.outcome import outcome
from mmsr1.evaluation.scorecard import figures_with_intervals
from mmsr1.files import append_line, json_line
from mmsr1.run_directory import RunDirectory, episode_record

EXAMPLES = [replace(example, images=()) for example in make_examples()[:60]]
COMMIT = "4b990f5"


@dataclass(frozen=True)
class MadeArm:
    """`habit` is P(search) of questions that need none, `skill` that of right answers to those that are searched."""

    name: str
    habit: float
    skill: float = 0.95
    penalty: float = 0.1
    switch: float | None = None
    supervised: bool = False


def write_study(folder: Path, arms: list[MadeArm], seeds: int = 3, steps: int = 30) -> Path:
    for arm in arms:
        for seed in range(seeds):
            write_run(folder / f"{arm.name}__seed{seed}", arm, seed, steps)
    return folder


def write_run(path: Path, arm: MadeArm, seed: int, steps: int = 30) -> RunDirectory:
    directory, rng = begin(path, arm, seed), np.random.default_rng([seed, len(arm.name), int(100 * arm.habit)])
    shift = rng.normal(0, 0.03)
    for step in range(steps):
        done = (step + 1) / steps
        figures: dict[str, Any] = {"loss": 0.1}
        if not arm.supervised:
            free = 0.6 + (arm.habit - 0.6) * done + shift
            figures |= {
                "reward": 0.7 + 0.2 * done - 0.05 * arm.habit + rng.normal(0, 0.02),
                "accuracy": 0.75 + (arm.skill - 0.75) * done + rng.normal(0, 0.02),
                "search_ratio": float(np.clip((free + 0.9) / 2 + rng.normal(0, 0.03), 0, 1)),
                "search_ratio_free": float(np.clip(free + rng.normal(0, 0.04), 0, 1)),
                "calls_per_question": 1.0,
            }
        directory.log_metrics(step, "train", figures)
    records, outcomes = [], []
    for example in EXAMPLES:
        searches = int(rng.random() < (float(np.clip(arm.habit + shift, 0, 1)) if example.is_free else 0.95))
        right = bool(rng.random() < (arm.skill if searches or example.is_free else 0.1))
        episode = make_episode(example, searches, right)
        records.append(episode_record(example, episode, reward_of(episode, right)))
        outcomes.append(outcome(example, episode, reward_of(episode, right)))
    final = figures_with_intervals(outcomes, 2)
    for step in (0, steps):
        directory.log_metrics(step, "val", {key: value for key, value in final.items() if isinstance(value, float)})
    directory.write_episodes("val", steps, records, ())
    if arm.switch is not None:
        for line in graded_lines(rng, arm.switch):
            append_line(path / "counterfactual.jsonl", json_line(line))
    directory.write_summary({"final": final, "steps": steps, "cost_usd": 0.5, "cost_usd_uncached": 2.0})
    directory.finish("finished", 100.0)
    return directory


def begin(path: Path, arm: MadeArm, seed: int) -> RunDirectory:
    config = {
        "name": arm.name,
        "study": path.parent.name,
        "seed": seed,
        "rewards": {"search_penalty": arm.penalty, "penalty_mode": "per_question"},
        "algorithm": {"kind": "sft" if arm.supervised else "grpo", "lr": 0.001},
        "trainer": {"counterfactual_split": "graded"},
        "model": {"path": f"outputs/warm__seed{seed}/policy"},
    }
    directory = RunDirectory(path)
    directory.start("python train.py", seed, yaml.safe_dump(config), {"python": "3.11.7"}, COMMIT)
    return directory


def graded_lines(
    rng: np.random.Generator,
    switch: float,
    slope: float = 12.0,
    places: int = 48,
    each: int = 4,
    rollouts: int = 8,
    falls: float = 0.0,
) -> list[dict[str, Any]]:
    """Questions of places that the policy knows more or less well, which it searches for below `switch`: P(search) is
    logistic in its own p of a right direct answer. The best search, of two calls, is right in 9 of 10, or less by
    `falls` x p."""
    lines = []
    for place, known in enumerate(rng.uniform(-2.5, 2.5, places)):
        for number in range(each):
            p = 1 / (1 + np.exp(-(known + 0.5 * rng.standard_normal())))
            searched = int(rng.binomial(rollouts, 1 / (1 + np.exp(slope * (p - switch)))))
            forced = {"none": int(rng.binomial(rollouts, p)), "image": 0, "text": 0}
            forced["both"] = int(rng.binomial(rollouts, 0.9 - falls * p))
            lines.append({
                "id": f"{place}-{number}", "content": "c", "cluster": f"emblem/{place}", "need": "free", "lost": 0,
                "free": {"none": [0, rollouts - searched], "both": [0, searched]},
                "forced": {branch: [right, rollouts] for branch, right in forced.items()},
            })  # fmt: skip
    return lines
