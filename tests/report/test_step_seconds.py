"""Seconds of a step and rollouts that run ahead, in the page and at the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from mmsr1.report.curves import draw_panels
from mmsr1.report.progress import RunProgress
from mmsr1.report.waiting import with_waiting

# Rollouts ran beside the step before; an older run knows nothing of waiting.
OVERLAPPED = {"seconds_rollout": 4.0, "seconds_waited": 0.5, "seconds_train": 3.0, "seconds_sync": 0.25}
OLDER = {"seconds_rollout": 4.0, "seconds_train": 3.0, "seconds_sync": 0.25}


@pytest.fixture
def progress() -> RunProgress:
    return RunProgress(3, Console(record=True, width=160, file=io.StringIO()))


@pytest.mark.parametrize(("figures", "total"), [(OVERLAPPED, 3.75), (OLDER, 7.25)])
def test_the_stack_is_what_a_step_took(
    figures: dict[str, float], total: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked: dict[str, list[float]] = {}
    lines: list[str] = []
    fill, plot = Axes.fill_between, Axes.plot

    def filled(axes: Axes, steps: Any, low: Any, top: list[float], **how: Any) -> Any:
        stacked[how["label"]] = top
        return fill(axes, steps, low, top, **how)

    def plotted(axes: Axes, *points: Any, **how: Any) -> Any:
        lines.append(how["label"])
        return plot(axes, *points, **how)

    monkeypatch.setattr(Axes, "fill_between", filled)
    monkeypatch.setattr(Axes, "plot", plotted)
    rows = [with_waiting({"step": step, "split": "train", **figures}) for step in (1, 2)]
    assert [title for title, _ in draw_panels(rows)] == ["Seconds a step, stacked by phase"]
    assert list(stacked) == ["waiting for rollouts", "training", "weight sync"]
    assert stacked["weight sync"] == pytest.approx([total, total])
    assert lines == ["rollouts of this step"]  # a line: with overlap they are no part of the step


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (OVERLAPPED, "[waited 0.5 train 3.0 sync 0.2 s]"),
        (OLDER, "[waited 4.0 train 3.0 sync 0.2 s]"),
        ({"loss": 0.5, "seconds_train": 3.0}, "[train 3.0 s]"),
    ],
)
def test_the_line_of_a_step_says_what_it_waited_for(progress: RunProgress, figures: Any, said: str) -> None:
    progress.show("train", 1, figures)
    assert progress.console.export_text().rstrip().endswith(said)


def told(progress: RunProgress, phase: str, total: int, parts: int) -> str:
    """What the bar shows after that many parts of a phase."""
    progress.begin(phase, total)
    for _ in range(parts):
        progress.advance()
    return progress.where


def test_rollouts_that_run_ahead_count_for_the_step_that_they_belong_to(progress: RunProgress) -> None:
    assert told(progress, "train rollouts", 16, 16) == "train rollouts 16/16"
    assert told(progress, "update", 1, 6) == "update"  # six of the next step's end here
    assert told(progress, "val rollouts", 4, 4 + 3) == "val rollouts 4/4"  # and three more here
    assert told(progress, "train rollouts", 16, 0) == "train rollouts 9/16"
    assert told(progress, "train rollouts", 16, 7) == "train rollouts 7/16"  # counted once


def test_what_a_step_refills_is_not_the_next_ones(progress: RunProgress) -> None:
    assert told(progress, "train rollouts", 16, 20) == "train rollouts 16/16"
    told(progress, "update", 1, 0)
    assert told(progress, "train rollouts", 16, 1) == "train rollouts 1/16"
