"""The frontier against a hand count, which runs are found, and that labels do not hide each other."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from mmsr1.report.frontier import main, on_frontier, read_points
from mmsr1.report.labels import place_labels


def write(folder: Path, final: dict[str, Any], **about: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"final": final, **about}))
    return folder


def evaluation(folder: Path, policy: str, workflow: str, accuracy: float, calls: float, usd: float = 0.0) -> Path:
    final = {"accuracy": accuracy, "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1], "score_judge": accuracy / 2}
    final |= {"calls_per_question": calls, "cost_usd_per_question": usd, "questions": 120}
    about = {"benchmark": "fvqa_test", "title": "FVQA-test", "policy": policy, "workflow": workflow}
    return write(folder, final, **about)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    evaluation(runs / "a", "start", "direct", 0.5, 0.0)
    evaluation(runs / "b", "start", "rag", 0.6, 2.0, 0.02)
    evaluation(runs / "deep" / "c", "final", "on_demand", 0.7, 0.75, 0.01)
    evaluation(runs / "deep" / "d", "final", "direct", 0.45, 0.0)
    validation = write(runs / "grpo" / "run-1", {"accuracy": 0.9, "calls_per_question": 0.5})
    (validation / "config.yaml").write_text("data:\n  kind: emblem\n")
    write(runs / "never-validated", {})
    (write(runs / "damaged", {}) / "summary.json").write_text('{"final": ')
    return runs


def test_a_run_is_on_the_frontier_unless_another_beats_it() -> None:
    #        cheap   beaten  equal to the first  dear and best  dearer, no better  cheapest
    costs = [1.0, 1.5, 1.0, 2.0, 3.0, 0.0]
    accuracies = [0.6, 0.5, 0.6, 0.9, 0.9, 0.1]
    assert on_frontier(costs, accuracies) == [True, False, True, True, False, True]
    assert on_frontier([], []) == []


def test_runs_are_found_once_and_what_is_left_out_is_told(folder: Path) -> None:
    points, remarks = read_points([folder, folder / "deep", folder / "a"])
    found = {(p.panel, p.policy, p.workflow): (p.accuracy, p.costs["calls_per_question"]) for p in points}
    asked = "FVQA-test, 120 questions"
    assert len(points) == 5 and found == {
        (asked, "start", "direct"): (0.5, 0.0),
        (asked, "start", "rag"): (0.6, 2.0),
        (asked, "final", "on_demand"): (0.7, 0.75),
        (asked, "final", "direct"): (0.45, 0.0),
        ("Validation of training: emblem", "grpo/run-1", "on_demand"): (0.9, 0.5),
    }
    assert [line.partition(":")[0] for line in remarks] == [f"{folder}/damaged", f"{folder}/never-validated"]
    assert "no accuracy in its final figures" in remarks[1]


def test_runs_are_named_within_the_folder_that_was_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    assert [line.partition(":")[0] for line in read_points([Path("runs")])[1]] == ["damaged", "never-validated"]
    several = read_points([Path("runs/a"), Path("runs")])
    assert [line.partition(":")[0] for line in several[1]] == ["runs/damaged", "runs/never-validated"]
    assert several[0][0].run == "runs/a"
    evaluation(folder / "deep" / "again", "final", "on_demand", 0.7, 0.75)
    assert main(["x.png", "runs"]) == 0
    said = capsys.readouterr().err
    assert "start direct; final on_demand deep/again; final on_demand deep/c\n" in said
    assert str(folder) not in said


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    long = "a/" + "long-name-" * 5
    for seed in (0, 1):
        run = evaluation(tmp_path / f"run{seed}", long, "rag", 0.5, 1.0)
        (run / "config.yaml").write_text(f"policy: x\nseed: {seed}\ntrainer: {{threads: {seed}}}\n")
    policies = [point.policy for point in read_points([tmp_path])[0]]
    assert [policy.partition(" ")[2] for policy in policies] == ["(seed=0)", "(seed=1)"]
    assert policies[0].startswith("...") and len({policy.partition(" ")[0] for policy in policies}) == 1


def test_training_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        write(tmp_path / parent / "grpo" / "run-1", {"accuracy": 0.9, "calls_per_question": 0.5})
    policies = [point.policy for point in read_points([tmp_path])[0]]
    assert policies == [f"grpo/run-1 (policy={parent}/grpo/run-1)" for parent in ("one", "two")]


def test_a_run_that_lost_every_episode_is_a_remark(tmp_path: Path) -> None:
    about = {"benchmark": "fvqa_test", "title": "FVQA-test", "policy": "p", "workflow": "rag"}
    write(tmp_path / "gone", {"failed_share": 1.0, "questions": 0, "episodes": 9}, **about)
    points, (remark,) = read_points([tmp_path])
    assert points == [] and remark.startswith("gone: left out, no episode that counts")


def test_another_score_is_read_by_its_name(folder: Path) -> None:
    points, remarks = read_points([folder], "judge")
    assert [point.accuracy for point in points] == [0.25, 0.3, 0.35, 0.225]
    assert any("run-1: left out, summary.json has no score_judge" in line for line in remarks)


def test_the_command_draws_and_names_the_frontier(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "pictures" / "frontier.png"
    assert main([str(out), str(folder), "--cost"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "FVQA-test, 120 questions: 4 runs, on the frontier: start direct; final on_demand\n" in said.err
    assert "2 runs" not in said.err and said.err.count("left out") == 2
    with Image.open(out) as image:
        assert image.width == 2 * 1024
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours  # three policies


def test_names_are_no_formulas_and_the_same_runs_make_the_same_file(tmp_path: Path) -> None:
    for run in ("a", "b"):
        evaluation(tmp_path / run, "$\\frac{$ <b>\x1b[2J" + run * 60, "$\\frac{$ <b>", 0.5, 1.0)
    for name in ("one.svg", "two.svg"):
        assert main([str(tmp_path / name), str(tmp_path)]) == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    drawn = (tmp_path / "one.svg").read_text()
    assert "<b>" not in drawn and "\x1b" not in drawn and drawn.startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.jpeg", "runs"], "x.jpeg: the name of the picture must end in .png or .svg"),
        (["x.png", "nowhere"], "nowhere: no such folder"),
        (["x.png", "empty"], "no run with figures to draw"),
        (["x.png"], "the following arguments are required: FOLDER"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as left:
        main(arguments)
    shown = [line for line in capsys.readouterr().err.splitlines() if "left out" not in line]
    assert left.value.code == 2 and len(shown) == 1 and said in shown[0]
    assert not Path(arguments[0]).exists()


def test_labels_hide_neither_each_other_nor_points_nor_leave_the_axes() -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 2), ylim=(0, 1))
    spots = [(0.0, 0.5), (0.01, 0.52), (1.0, 0.99), (1.01, 0.99), (1.02, 0.98), (2.0, 0.5), (1.99, 0.5), (1.0, 0.0)]
    figure.draw_without_rendering()
    line = ((1.0, 0.0), (1.0, 1.0))
    place_labels(axes, spots, [f"policy {number}, on_demand" for number in range(8)], ["#000"] * 8, [line])
    renderer = FigureCanvasAgg(figure).get_renderer()
    notes = [child for child in axes.texts if isinstance(child, Annotation) and child.get_text()]
    boxes = [note.get_window_extent(renderer) for note in notes]
    assert len(boxes) == 8
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    frame = axes.get_window_extent(renderer)
    for box in boxes:  # a text is laid out in whole pixels
        assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 and frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1
        assert not any(box.contains(*axes.transData.transform(spot)) for spot in spots)
        x = axes.transData.transform(line[0])[0]
        assert not box.x0 < x < box.x1


def test_a_label_is_nearest_to_its_own_point() -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 2), ylim=(0, 1))
    spots = [(1.9, 0.5), (1.93, 0.5)]  # side by side near the edge: both have room on the left only
    figure.draw_without_rendering()
    place_labels(axes, spots, ["left of the two", "right of the two"], ["#000"] * 2)
    renderer = FigureCanvasAgg(figure).get_renderer()
    at = [axes.transData.transform(spot) for spot in spots]
    for note in axes.texts:
        if isinstance(note, Annotation) and note.get_text():
            box, own = note.get_window_extent(renderer), spots.index(note.xy)
            away = [max(box.x0 - x, 0, x - box.x1) ** 2 + max(box.y0 - y, 0, y - box.y1) ** 2 for x, y in at]
            assert away[own] <= min(away) + 1
