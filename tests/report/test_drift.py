"""Whether the report says if the engine drifted from the trainer: its sentence, its panels, what null became."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from synthetic_run import start

from mmsr1.assembly import training as assembly
from mmsr1.assembly.rollout import max_staleness
from mmsr1.config import Config, register
from mmsr1.report.curves import draw_panels
from mmsr1.report.drift import agreement, drift_panels, with_masked_share
from mmsr1.report.run import write_report
from mmsr1.report.settings import Settings
from mmsr1.run_directory import RunDirectory

CONF = Path(__file__).parents[2] / "conf"
GAP, FRESH = "logprob_gap_max", "logprob_gap_max_fresh"
AGED = {"staleness_mean": 0.75, "staleness_max": 1.0, "importance_weight_mean": 0.999, "importance_truncated": 4e-4}
AGED |= {"tokens_masked_gap": 3.0, "tokens_trained": 2000}
STALE_TITLES = ("Staleness of trained tokens", "Mean importance weight", "Tokens cut at the cap")


def train_rows(*figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"step": step, "split": "train", **row} for step, row in enumerate(figures, start=1)]


def logged(path: Path, config: str, *figures: Mapping[str, Any]) -> RunDirectory:
    run = RunDirectory(path)
    run.start("train.py", 0, config, {}, None)
    for row in train_rows(*figures):
        run.log_metrics(row.pop("step"), row.pop("split"), row)
    return run


def section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}">')[1].split("</section>")[0]


@pytest.mark.parametrize(
    ("rows", "limit", "error", "said"),
    [
        (
            [{GAP: 2e-6, FRESH: 2e-6}, {GAP: 9.775e-6, FRESH: 9.775e-6}],
            1e-3,
            "",
            "Engine and trainer agreed within 9.8e-06 nats on fresh tokens (limit 0.001) in all 2 steps.",
        ),
        (
            [{GAP: 0.0, FRESH: 0.0}],
            1e-3,
            "",
            "Engine and trainer agreed within 0 nats on fresh tokens (limit 0.001) in the only step.",
        ),
        (
            [{GAP: 1.1, FRESH: 8e-7, "staleness_max": 1.0}, {GAP: 1.1, "staleness_max": 1.0}],
            1e-3,
            "",
            "Engine and trainer agreed within 8e-07 nats on fresh tokens (limit 0.001) "
            "in the 1 of 2 steps that had any. Other tokens differ because the weights had moved on.",
        ),
        (
            [{GAP: 1.1, "staleness_max": 1.0}] * 3,
            1e-3,
            "",
            "No fresh token was compared in 3 steps, so drift was not measured. "
            "Other tokens differ because the weights had moved on.",
        ),
        (
            [{GAP: 0.2, FRESH: 0.2}] * 2,
            None,
            "",
            "Engine and trainer differed by up to 0.2 nats on fresh tokens (no limit set) in all 2 steps.",
        ),
        # A run that was resumed with a tighter limit than its first steps had.
        (
            [{GAP: 0.2, FRESH: 0.2}, {GAP: 1e-6, FRESH: 1e-6}],
            0.1,
            "",
            "Engine and trainer differed by up to 0.2 nats on fresh tokens (limit 0.1) in all 2 steps.",
        ),
        (
            [{GAP: None, FRESH: None}, {GAP: 0.2, FRESH: 0.2}],
            None,
            "",
            "Engine and trainer differed by up to 0.2 nats on fresh tokens (no limit set) in all 2 steps. "
            "In 1 step the gap of a fresh token was not a number.",
        ),
        ([{GAP: None, FRESH: None}], None, "", "In 1 step the gap of a fresh token was not a number."),
        (
            [{GAP: 1e-6, FRESH: 1e-6}] * 2,
            1e-3,
            "ContractError: log-probs differ by up to 3 nats (algorithm.gap_limit)",
            "Engine and trainer agreed within 1e-06 nats on fresh tokens (limit 0.001) in all 2 steps. "
            "The next step broke the limit, which ended the run.",
        ),
        ([], 1e-3, "ContractError: (algorithm.gap_limit)", "The first step broke the limit, which ended the run."),
        ([{"loss": 0.5}], 1e-3, "", None),
        ([], 1e-3, "OSError: disk", None),
    ],
)
def test_the_sentence(rows: list[dict[str, Any]], limit: float | None, error: str, said: str | None) -> None:
    assert agreement(train_rows(*rows), limit, error) == said


def test_the_gap_is_drawn_by_region_with_the_limit_of_fresh_tokens() -> None:
    kinds = ("", "_before_image", "_after_image", "_after_tool_result", "_fresh")
    rows = train_rows(*({f"logprob_gap_{of}{kind}": 1e-6 for of in ("max", "mean") for kind in kinds},) * 2)
    largest, mean = (svg for _, svg in draw_panels(rows, drift_panels(rows), 1e-3))
    for label in ("all tokens", "before an image", "after an image", "after a tool result", "fresh tokens"):
        assert f">{label}</text>" in largest and f">{label}</text>" in mean
    assert "limit 0.001, of fresh tokens" in largest and "limit" not in mean
    assert not any("limit" in svg for _, svg in draw_panels(rows, drift_panels(rows), None))


def test_steps_with_stale_tokens_have_panels_of_their_own(tmp_path: Path) -> None:
    fresh = {GAP: 1e-6, FRESH: 1e-6, "staleness_mean": 0.0, "staleness_max": 0.0, "importance_weight_mean": 1.0}
    config = "algorithm:\n  kind: grpo\n  gap_limit: 0.001\n"
    html = write_report(logged(tmp_path / "stale", config, fresh, fresh | AGED).path).read_text()
    drift = section(html, "drift")
    assert "agreed within 1e-06 nats" in drift and "limit 0.001, of fresh tokens" in drift
    assert all(title in drift for title in STALE_TITLES) and ">masked (share)<" in drift
    html = write_report(logged(tmp_path / "fresh", config, fresh, fresh).path).read_text()
    assert "Largest gap" in section(html, "drift") and not any(title in html for title in STALE_TITLES)


def test_masked_tokens_are_a_share_of_the_trained_ones() -> None:
    assert with_masked_share(AGED)["masked_share"] == pytest.approx(3 / 2000)
    assert "masked_share" not in with_masked_share({"tokens_masked_gap": 0.0, "tokens_trained": 0})


def test_a_run_that_compared_nothing_has_no_such_section(tmp_path: Path) -> None:
    assert 'id="drift"' not in write_report(start(RunDirectory(tmp_path)).path).read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("rollout.overlap=1",),
        ("rollout.oversample=0.5",),
        ("rollout.overlap=1", "rollout.oversample=0.5"),
        ("rollout=vllm_process", "rollout.overlap=1", "rollout.keep_running=true"),
    ],
)
def test_what_null_became_is_what_the_assembly_makes_of_it(overrides: tuple[str, ...]) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", ["+experiment=grpo_balanced", *overrides]))
    assert isinstance(config, Config)
    assert Settings(OmegaConf.to_yaml(config)).settled() == {
        "algorithm.correction": assembly.correction_spec(config).level,
        "rollout.max_staleness": str(max_staleness(config)),
    }


def test_only_what_was_null_is_told(tmp_path: Path) -> None:
    config = "algorithm:\n  kind: grpo\n  correction: sequence\nrollout:\n  overlap: 1\n  max_staleness: null\n"
    told = section(write_report(logged(tmp_path, config).path).read_text(), "configuration")
    assert "<code>rollout.max_staleness: null</code> became <code>1</code>" in told and "correction: null" not in told


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "at: 2026-99-99", "algorithm: sft\nrollout: 3", "algorithm: {}"])
def test_a_damaged_configuration_tells_nothing(text: str) -> None:
    assert Settings(text).settled() == {} and Settings(text).number("algorithm.gap_limit") is None
