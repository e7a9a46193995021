"""The report of a study: figures against hand-computed ones, gaps with their reasons, hostile names, commands."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from hostile_run import MARKUP
from made_study import MadeArm, begin, write_run, write_study

from acceptance._browser import PROGRAM, Browser
from mmsr1.report.study import compared, endings, figures
from mmsr1.report.study.__main__ import main
from mmsr1.report.study.page import boundaries, price_of
from mmsr1.report.study.page import write_study as write_report
from mmsr1.report.study.runs import Study, read_study
from mmsr1.report.study.tables import paragraph, plain
from mmsr1.sweep.plan import Planned, add

ARMS = [MadeArm("none", 0.95, 0.97, 0.0), MadeArm("tenth", 0.1, 0.95, 0.1), MadeArm("dear", 0.02, 0.9, 0.4)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Read only."""
    folder = write_study(tmp_path_factory.mktemp("studies") / "search_penalty", ARMS)
    return read_study(folder, [folder / f"{arm.name}__seed{seed}" for arm in ARMS for seed in range(3)])


@pytest.fixture(scope="module")
def written(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its report."""
    return write_report(study, tmp_path_factory.mktemp("report")).parent


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def finals(study: Study, arm: str, key: str) -> list[float]:
    folders = [study.folder / f"{arm}__seed{seed}" for seed in range(3)]
    return [json.loads((folder / "summary.json").read_text())["final"][key] for folder in folders]


# ---- figures


def test_means_and_intervals_are_over_seeds_and_a_single_run_brings_its_own(study: Study) -> None:
    tenth = study.arms[1]
    assert [arm.name for arm in study.arms] == ["none", "tenth", "dear"] and tenth.jobs == 3
    values = finals(study, "tenth", "search_ratio_free")
    found = compared.estimate(tenth, "search_ratio_free")
    assert found is not None and found.over_seeds and found.value == pytest.approx(np.mean(values))
    half = 4.30265 * np.std(values, ddof=1) / np.sqrt(3)
    assert found.interval == pytest.approx((max(0, np.mean(values) - half), np.mean(values) + half), abs=1e-4)
    single = compared.estimate(replace(tenth, runs=tenth.runs[:1]), "accuracy")
    assert single is not None and not single.over_seeds
    assert single.interval == tuple(tenth.runs[0].final["accuracy_ci95"])
    assert compared.estimate(tenth, "score_judge") is None


def test_arms_are_paired_by_seed_and_question_and_holm_counts_all_tests(study: Study) -> None:
    found, remarks = compared.tests(study, study.arms[0])
    assert [(one.arm, one.figure) for one in found[:5]] == [
        *(("tenth", name) for name in ("reward", "accuracy", "search ratio", "calls")),
        ("dear", "reward"),
    ]
    ratio = found[2]
    apart = np.subtract(finals(study, "tenth", "search_ratio"), finals(study, "none", "search_ratio"))
    assert ratio.difference == pytest.approx(apart.mean()) and (ratio.seeds, ratio.questions) == (3, 60)
    half = 4.30265 * apart.std(ddof=1) / np.sqrt(3)
    assert ratio.interval == pytest.approx((apart.mean() - half, apart.mean() + half), abs=1e-4)
    assert ratio.p < 0.001 and ratio.p_holm >= ratio.p
    smallest = min(found, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(8 * smallest.p)
    assert not remarks


def test_only_seeds_that_both_have_are_compared(study: Study) -> None:
    runs = [run for run in study.runs if (run.arm, run.seed) not in {("none", 0), ("tenth", 2), ("dear", 1)}]
    runs = [run for run in runs if run.arm != "dear" or run.seed == 0]
    fewer = replace(study, runs=tuple(runs))
    found, remarks = compared.tests(fewer, fewer.arms[0])
    assert {(one.arm, one.seeds, one.interval) for one in found} == {("tenth", 1, None)}
    expected = finals(study, "tenth", "accuracy")[1] - finals(study, "none", "accuracy")[1]
    assert found[1].difference == pytest.approx(expected)
    assert remarks == ["dear: no seed with validation episodes in common with none: not compared"]


def test_a_run_without_episodes_is_in_no_test_and_named(study: Study) -> None:
    first, *others = study.runs
    fewer = replace(study, runs=(replace(first, outcomes=()), *others))
    found, remarks = compared.tests(fewer, fewer.arms[0])
    assert {one.seeds for one in found} == {2}
    assert remarks == ["none__seed0: no episodes of a validation; in no test"]


def test_a_key_that_only_the_folder_names_makes_arms_of_its_own(tmp_path: Path) -> None:
    """As docs/studies.md has it for a sweep over more than the arm."""
    folders = [tmp_path / f"tenth__lr{lr}__seed{seed}" for lr in ("0.001", "0.002") for seed in range(2)]
    for folder in folders[:3]:
        write_run(folder, ARMS[1], int(folder.name[-1]), 4)
    found = read_study(tmp_path, folders)
    assert [(arm.name, len(arm.runs), arm.jobs) for arm in found.arms] == [
        ("tenth__lr0.001", 2, 2),
        ("tenth__lr0.002", 1, 2),
    ]


def test_the_folders_of_another_sweep_are_numbered_and_its_arms_have_the_names_of_the_configurations(
    tmp_path: Path,
) -> None:
    for number, seed in enumerate((0, 1)):
        write_run(folder := tmp_path / f"tenth__{number}__seed{seed}", ARMS[1], seed, 4)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"study": None}))
    assert [(arm.name, len(arm.runs)) for arm in read_study(tmp_path, None).arms] == [("tenth", 2)]


def test_arms_of_one_configuration_are_told(study: Study) -> None:
    assert compared.alike(study) == []
    twin = [replace(run, arm="twin") for run in study.runs if run.arm == "dear"]
    (told,) = compared.alike(replace(study, runs=(*study.runs, *twin), order=(*study.order, "twin")))
    assert told.startswith("dear, twin: nothing that decides a figure differs in their configuration")


def test_the_reference_is_named_or_the_first(study: Study) -> None:
    def name(study: Study, given: str | None = None) -> str:
        found = compared.reference_of(study, given)
        assert found is not None
        return found.name

    assert name(study) == "none" and name(study, "dear") == "dear"
    with pytest.raises(ValueError, match="--reference=other: no arm .* none, tenth, dear"):
        compared.reference_of(study, "other")


def test_what_differs_between_arms_is_told_and_what_seeds_share_is_one_value(study: Study) -> None:
    assert compared.differing(study) == [("rewards.search_penalty", ("0.0", "0.1", "0.4"))]
    first, *others = study.runs
    changed = replace(first, config={**first.config, "algorithm.lr": 0.5, "model.path": "elsewhere", "name": "x"})
    rows = dict(compared.differing(replace(study, runs=(changed, *others))))
    assert rows["algorithm.lr"] == ("0.5 / 0.001", "0.001", "0.001")
    told = "none: its runs differ in algorithm.lr (0.5 / 0.001), and are averaged all the same"
    assert told in compared.mixed(replace(study, runs=(changed, *others))) and compared.mixed(study) == []
    assert rows["model.path"] == ("elsewhere / outputs/warm__seed*/policy", *["outputs/warm__seed*/policy"] * 2)


def test_smoothing_is_a_mean_of_neighbours_that_begins_with_the_first_and_ends_with_no_lone_last_one() -> None:
    values = np.array([0.0, 3.0, 6.0, np.nan, 12.0, 0.0])
    assert figures.smoothed(values, 3).tolist() == pytest.approx([0.0, 3.0, 4.5, np.nan, 6.0, 6.0], nan_ok=True)
    assert figures.smoothed(np.arange(9.0), 5).tolist() == [*range(7), 6.5, 7]
    assert [figures.window(steps) for steps in (4, 30, 50, 1000)] == [1, 3, 5, 9]


def test_curves_stand_on_the_steps_that_every_seed_has_and_imitation_shows_its_validations(tmp_path: Path) -> None:
    folder = tmp_path / "sft_vs_rl"
    for seed, steps in ((0, 6), (1, 4)):
        write_run(folder / f"rl__seed{seed}", ARMS[1], seed, steps)
        write_run(folder / f"sft__seed{seed}", MadeArm("sft", 0.3, supervised=True), seed, 4)
    rl, sft = read_study(folder, None).arms
    steps, values, training = figures.dynamics_of(rl.runs, "reward")
    assert steps.tolist() == [0, 1, 2, 3] and values.shape == (2, 4) and training
    assert values[1, 2] == rl.runs[1].metrics[2]["reward"]
    steps, values, training = figures.dynamics_of(sft.runs, "reward")
    assert steps.tolist() == [0, 4] and not training
    assert price_of(rl) is not None and price_of(sft) is None


def test_ten_arms_look_different_in_grey_too() -> None:
    looks = [figures.mark(number) for number in range(11)]
    assert len({one.marker for one in looks}) == 11
    assert len({(one.colour, str(one.line)) for one in looks}) == 11
    # Where curves coincide, none but those of one line hide each other: dots lie on dashes, these on a full line.
    assert looks[2].above > looks[1].above > looks[3].above > looks[0].above == looks[4].above


def test_each_arm_with_forced_ways_has_a_boundary_in_the_order_of_penalties(tmp_path: Path) -> None:
    arms = [MadeArm("dear", 0.1, penalty=0.4, switch=0.5), MadeArm("cheap", 0.1, penalty=0.1, switch=0.8), ARMS[0]]
    found, remarks = boundaries(read_study(write_study(tmp_path / "search_penalty", arms, seeds=2, steps=2), None).arms)
    assert list(found) == ["cheap", "dear"] and not remarks
    assert found["cheap"].learned.value == pytest.approx(0.8, abs=0.08)
    assert found["dear"].learned.value == pytest.approx(0.5, abs=0.08)
    # 0.9 of the best search, which loses 0.1 and 0.4 for it.
    assert [one.predicted and one.predicted.value for one in found.values()] == pytest.approx([0.81, 0.54], abs=0.02)


# ---- what is written


def test_everything_is_written_and_again_the_same(study: Study, written: Path, tmp_path: Path) -> None:
    page = write_report(study, tmp_path)
    names = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    drawn = [f"figures/{n}.{kind}" for n in ("behaviour", "dynamics", "final", "frontier") for kind in ("png", "svg")]
    assert names == ["config.yaml", "dynamics.csv", *drawn, "report.html", "results.csv", "results.md"]
    assert all((tmp_path / name).read_bytes() == (written / name).read_bytes() for name in names)
    text = page.read_text()
    assert text.count('<img src="data:image/svg+xml;base64,') == 4 and "complete" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "<script" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows][:2] == [
        ("none", "0", "finished"),
        ("none", "1", "finished"),
    ]
    assert len(rows) == 9 and float(rows[4]["accuracy"]) == pytest.approx(finals(study, "tenth", "accuracy")[1], 1e-5)
    steps = list(csv.DictReader(io.StringIO((tmp_path / "dynamics.csv").read_text())))
    assert len(steps) == 9 * 32 and steps[0]["split"] == "train" and float(steps[0]["reward"]) > 0.5
    told = (tmp_path / "results.md").read_text()
    assert "9 of 9 runs are whole" in told and "4b990f5 (9 runs)" in told
    mean = np.mean(finals(study, "tenth", "search_ratio_free"))
    assert re.search(rf"\| tenth \| 3 of 3 \|.*\| {100 * mean:.1f} % \[", told)
    assert "Each arm is scored by its own rewards (rewards.search_penalty differ)" in told
    assert "5 min 0 s" in told  # three runs of 100 s


def test_names_of_arms_and_errors_are_text_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for number, name in enumerate((*MARKUP[:3], "_hidden $x_1$ | `b`")):
        directory = write_run(folder / f"arm{number}__seed0", MadeArm("plain", 0.2), 0, 2)
        config = yaml.safe_load((directory.path / "config.yaml").read_text()) | {"name": name, "study": MARKUP[1]}
        (directory.path / "config.yaml").write_text(yaml.safe_dump(config))
    begin(folder / "broken__seed0", ARMS[0], 0).finish("failed", 1.0, f"{MARKUP[0]}\nsecond line")
    page = write_report(read_study(folder, None), folder)
    text, told = page.read_text(), (folder / "results.md").read_text()
    assert "<script>" not in text and "<img src=x" not in text and "<b onmouseover" not in text
    assert not re.search(r"(?<!\\)<(?:script|img|b )", told) and "second line" not in text
    assert paragraph("# x ~y~") == "\\# x \\~y\\~" and paragraph("1. a") == "1\\. a" and paragraph("0.1: a") == "0.1: a"
    assert plain("a | b\nc") == "a \\| b c" and plain("[x](y)") == "[x\\](y)" and plain("penalty_0.1") == "penalty_0.1"
    svg = (folder / "figures" / "final.svg").read_text()
    assert "onerror" not in re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)


@pytest.mark.skipif(PROGRAM is None, reason="needs chromium on the PATH (apt-get install chromium)")
def test_the_page_fits_a_narrow_window_and_shows_all_its_figures(written: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", width=400) as browser:
        tab = browser.tab(f"file://{written}/report.html")
        assert tab.until(
            "document.images.length && [...document.images].every(one => one.complete && one.naturalWidth)"
        )
        assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.errors() == []


@pytest.mark.skipif(PROGRAM is None, reason="needs chromium on the PATH (apt-get install chromium)")
def test_at_the_width_of_the_page_no_table_is_cut_off(written: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", width=1000) as browser:
        tab = browser.tab(f"file://{written}/report.html")
        assert tab.until("document.querySelectorAll('table').length")
        wider = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
        assert tab.run(wider) == 0
        cell = "[...document.querySelectorAll('#final td')].find(one => one.textContent.includes(' ['))"
        lines = f"[...{cell}.children].map(one => one.getClientRects().length).join()"
        assert tab.run(lines) == "1,1", "the figure and its interval are on a line each"


# ---- gaps


def test_runs_that_do_not_count_are_gaps_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    names = ("whole", "summary", "config", "metrics", "episodes", "run", "branches", "unvalidated")
    for name in names:
        write_run(folder / f"{name}__seed0", MadeArm(name, 0.2, switch=0.6 if name == "branches" else None), 0, 2)
    (folder / "summary__seed0" / "summary.json").write_text('{"final": ')
    (folder / "config__seed0" / "config.yaml").write_text("a: [")
    (folder / "run__seed0" / "run.json").write_text("[]")
    edit(folder / "unvalidated__seed0" / "summary.json", final={})
    for file in ("metrics__seed0/metrics.jsonl", "branches__seed0/counterfactual.jsonl"):
        with (folder / file).open("a") as stream:
            stream.write("{broken\n")
    with (folder / "episodes__seed0" / "episodes" / "val-2.jsonl").open("a") as stream:
        stream.write('{"example_id": 3}\n')
    begin(folder / "failed__seed0", ARMS[0], 0).finish("failed", 1.0, "RuntimeError: no room\nmore")
    begin(folder / "stopped__seed0", ARMS[0], 0).finish("interrupted", 1.0)
    begin(folder / "dead__seed0", ARMS[0], 0)
    working = begin(folder / "working__seed0", ARMS[0], 0).path
    planned = [folder / f"{name}__seed{seed}" for name in ("never", "whole") for seed in (0, 1)]
    with FileLock(working / ".lock"):
        found = read_study(folder, planned)
    reasons = {(gap.arm, gap.seed): (gap.status, gap.reason) for gap in found.gaps}
    assert [(run.arm, run.seed) for run in found.runs] == [("whole", 0)]
    assert found.order[:2] == ("never", "whole") and found.beside == 11
    for key in (("never", 0), ("never", 1), ("whole", 1)):
        assert reasons.pop(key) == ("missing", "")
    assert reasons.pop(("failed", 0)) == ("failed", "RuntimeError: no room")
    assert reasons.pop(("stopped", 0)) == ("interrupted", "")
    assert reasons.pop(("dead", 0)) == ("ended without a word", "")
    assert reasons.pop(("working", 0)) == ("running", "a process is at work there")
    assert {status for status, _ in reasons.values()} == {"damaged"}
    said = {arm: reason for (arm, _), (_, reason) in reasons.items()}
    assert said.pop("summary").startswith("summary.json: Expecting value")
    assert said.pop("run") == "run.json: holds no mapping"
    assert said.pop("metrics") == "metrics.jsonl: 1 of 5 lines could not be read"
    assert said.pop("branches") == "counterfactual.jsonl: 1 of 193 lines could not be read"
    assert said.pop("episodes") == "episodes of its last validation: 1 lines could not be read"
    assert said.pop("unvalidated").startswith("summary.json: no accuracy, reward, ")
    assert "parsing a flow" in said.pop("config") and not said
    text = write_report(found, tmp_path / "out").read_text()
    assert "1 of 15 runs are whole" in text and "RuntimeError: no room" in text and "incomplete" in text
    assert "There is no plan.jsonl" not in text


def test_a_study_without_a_whole_run_has_a_page_too(tmp_path: Path) -> None:
    begin(tmp_path / "study" / "a__seed0", ARMS[0], 0).finish("failed", 1.0, "no room")
    page = write_report(read_study(tmp_path / "study", None), tmp_path / "study")
    assert "nothing to show yet" in page.read_text()
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="give "):
            read_study(folder, None)


def plan(folder: Path) -> None:
    """As a sweep leaves it."""
    penalties = ("0.0", "0.1", "0.2")
    add(
        folder,
        [
            Planned(
                (f"rewards.search_penalty={penalty}", "seed=0", "trainer.max_steps=2"), folder / f"p_{penalty}__seed0"
            )
            for penalty in penalties
        ],
    )


def test_missing_prints_a_command_for_each_gap_until_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("made")
    plan(folder)
    begin(folder / "p_0.0__seed0", MadeArm("p_0.0", 0.2), 0).finish("failed", 1.0, "no room")
    write_run(folder / "p_0.1__seed0", MadeArm("p_0.1", 0.2), 0, 2)
    (folder / "p_0.1__seed0" / "summary.json").write_text("{")
    assert main(["made", "--missing"]) == 1
    resumed, damaged, missing = capsys.readouterr().out.splitlines()
    assert resumed == "python train.py resume=made/p_0.0__seed0"
    aside = "mkdir -p made/damaged && mv made/p_0.1__seed0 made/damaged/p_0.1__seed0 && python train.py "
    asked = "rewards.search_penalty={} seed=0 trainer.max_steps=2 hydra.run.dir=made/p_{}__seed0"
    assert damaged == aside + asked.format(0.1, 0.1)
    assert missing == "python train.py " + asked.format(0.2, 0.2)
    assert main(["made"]) == 0
    assert capsys.readouterr().out == "0 of 3 runs; report: made/report.html\n"
    assert "| p_0.0 | 0 | failed | no room |" in (folder / "results.md").read_text()
    (folder / "damaged").mkdir()
    (folder / "p_0.1__seed0").rename(folder / "damaged" / "p_0.1__seed0")
    for penalty in (0.0, 0.1, 0.2):
        write_run(folder / f"p_{penalty}__seed0", MadeArm(f"p_{penalty}", 0.2), 0, 2)
    assert main(["made", "--missing"]) == 0 and capsys.readouterr().out == ""


def test_the_report_goes_where_it_is_asked_to(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study.folder), "--out", str(tmp_path / "elsewhere"), "--reference", "dear"]) == 0
    assert capsys.readouterr().out == f"9 of 9 runs; report: {tmp_path}/elsewhere/report.html\n"
    assert "Every arm less dear" in (tmp_path / "elsewhere" / "results.md").read_text()
    assert not (study.folder / "report.html").exists()


def test_another_study_is_drawn_beside_and_moves_no_frontier(study: Study, tmp_path: Path) -> None:
    asked = [MadeArm("calls_0.3", 0.0, 0.6), MadeArm("calls_1.2", 0.9)]
    other = write_study(tmp_path / "target_calls", asked, seeds=2, steps=4)
    arms = read_study(other, None).arms
    alone, together = (endings.draw_frontier(arms, figures.marks_of(arms), some) for some in ((), study.arms))
    names = [{text.get_text() for text in figure.axes[0].texts} for figure in (alone, together)]
    assert names == [{arm.name for arm in arms}, {arm.name for arm in (*arms, *study.arms)}]
    steps = [figure.axes[0].lines[0].get_ydata() for figure in (alone, together)]
    np.testing.assert_array_equal(steps[0], steps[1])
    assert main([str(other), "--beside", str(study.folder)]) == 0
    told = (other / "results.md").read_text()
    assert "Grey: the arms of search_penalty, with the same intervals; the line does not heed them." in told
    assert "different questions" not in told
    fewer = replace(study, runs=tuple(replace(run, outcomes=run.outcomes[:5]) for run in study.runs))
    assert "different questions" in tables_of(other, fewer)


def tables_of(folder: Path, beside: Study) -> str:
    write_report(read_study(folder, None), folder, beside=beside)
    return (folder / "results.md").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["made", "--reference=x"], "--reference=x: no arm"),
        (["made", "--out=made/a__seed0/run.json"], "--out=made/a__seed0/run.json: is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("made/a__seed0"), ARMS[0], 0, 2)
    with pytest.raises(SystemExit) as end:
        main(given)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith(f"error: {said}") and told.count("\n") == 1
