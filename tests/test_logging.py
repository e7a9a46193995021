"""Runs in Weights & Biases: how a study's are grouped, and that no two share a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsr1 import cli
from mmsr1.assembly.logging import wandb_logger
from mmsr1.run_directory import RunDirectory


def logged(folder: Path, *overrides: str) -> dict[str, Any]:
    config: Any = cli.checked(cli.composed(["logger=wandb", "logger.mode=offline", *overrides]))
    if not RunDirectory(folder).read_run():
        RunDirectory(folder).start("test", config.seed, "", {}, None)
    logger = wandb_logger(config, folder)
    assert logger is not None
    return logger._wandb_init  # what wandb.init gets


def test_the_runs_of_a_study_are_a_group_of_which_arms_are_the_job_types(tmp_path: Path) -> None:
    run = tmp_path / "penalty_0.2__seed1"
    asked = logged(run, "+study=search_penalty", "rewards.search_penalty=0.2", "seed=1")
    assert (asked["group"], asked["job_type"], asked["name"]) == ("search_penalty", "penalty_0.2", "penalty_0.2-1")
    again = logged(run, "+study=search_penalty", "rewards.search_penalty=0.2", "seed=1")
    assert again["id"] == asked["id"] and asked["id"].replace("-", "").replace("_", "").isalnum()


def test_a_run_of_no_study_is_in_no_group(tmp_path: Path) -> None:
    asked = logged(tmp_path / "today", "+experiment=grpo_balanced")
    assert asked["group"] is None and asked["id"] == "grpo_balanced-today"
    assert wandb_logger(cli.checked(cli.composed([])), tmp_path) is None  # type: ignore[arg-type]


def test_the_run_before_an_arm_is_none_of_its_kind_and_shares_no_name(tmp_path: Path) -> None:
    arms = [tmp_path / f"sft_then_rl__seed{seed}" / "first" for seed in (0, 1)]
    first, other = (logged(arm, "+study=sft_vs_rl", "+arm=sft_vs_rl/sft_mismatched") for arm in arms)
    assert (first["group"], first["job_type"]) == ("sft_vs_rl", "sft_mismatched-first")
    assert first["id"] != other["id"] and "seed0-first" in first["id"]
