"""Table 1: the published rows as printed, ours beside them and never mixed with other metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmsr1.evaluation.table import BENCHMARKS, Cell, Row, collect, main, published, table1, write_table


def lines_of(text: str, *starts: str) -> list[list[str]]:
    """Cells of the table lines whose first cells are these."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    return [row for row in rows if row[: len(starts)] == list(starts)]


def test_published_averages_are_those_of_their_rows():
    """To the 0.1 that rounding each benchmark costs; that catches a digit that was copied wrongly."""
    rows, further = published()
    assert [(row.workflow, row.policy) for row in rows] == [
        *(("direct", policy) for policy in ("Qwen2.5-VL-7B", "Qwen2.5-VL-72B", "GPT-4o")),
        *(("rag", policy) for policy in ("Qwen2.5-VL-7B", "Qwen2.5-VL-32B", "Qwen2.5-VL-72B", "GPT-4o")),
        ("on_demand", "MMSearch-R1-7B"),
    ]
    for row in rows:
        assert row.cells.keys() == {"avg", *BENCHMARKS} and row.metric == "judge" and not row.ours
        for of in (lambda cell: cell.accuracy, lambda cell: cell.search_ratio):
            mean = sum(of(row.cells[name]) for name in BENCHMARKS) / 5
            assert of(row.cells["avg"]) == pytest.approx(mean, abs=0.001), row
    assert [row.cells["mmlongbench_doc"].accuracy for row in further] == pytest.approx([0.299, 0.356])


def test_the_published_table():
    text = table1()
    row = ["54.6", "67.1", "58.4", "66.8", "55.1", "61.6", "53.8", "88.5", "57.4", "42.5", "48.4", "76.2"]
    assert lines_of(text, "on_demand", "MMSearch-R1-7B", "judge") == [["on_demand", "MMSearch-R1-7B", "judge", *row]]
    gpt = ["rag", "GPT-4o", "judge", "62.1", "100.0", "66.0", "100.0", "59.1", "100.0", "62.5", "100.0"]
    assert lines_of(text, "rag", "GPT-4o") == [[*gpt, "63.4", "100.0", "59.6", "100.0"]]
    assert len({len(row) for row in lines_of(text.partition("## ")[0]) if len(row) > 1}) == 1
    assert lines_of(text, "SlideVQA") == [["SlideVQA", "on_demand", "MMSearch-R1-7B", "not told", "76.6", "-"]]


def test_ours_stand_beside_them_marked_with_dashes_for_what_is_missing():
    ours = [
        Row("on_demand", "run|1", "em", {"mmsearch": Cell(0.5, 0.25, (0.42, 0.58), 171)}),
        Row("direct", "run|1", "judge", {name: Cell(0.1 * i, 0.0) for i, name in enumerate(BENCHMARKS)}),
        Row("twice", "<b>", "em", {"infoseek": Cell(0.2)}),
    ]
    text = table1(ours)
    rows = [line.split(" | ")[:3] for line in text.partition("## ")[0].splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("| ") for row in rows] == ["direct"] * 4 + ["rag"] * 4 + ["on_demand"] * 2 + ["twice"]
    assert rows[3][1:] == ["**run\\|1** (ours)", "judge"]
    found = lines_of(text, "on_demand", "**run\\|1** (ours)", "em")[0]
    assert found[3:] == ["-"] * 6 + ["50.0 [42.0, 58.0] (171)", "25.0"] + ["-"] * 4
    assert lines_of(text, "direct", "**run\\|1** (ours)")[0][3:5] == ["20.0", "0.0"]  # all five: averaged
    assert "<b>" not in text and "**&lt;b&gt;** (ours)" in text


def evaluation(folder: Path, started: str = "2026-01-01", config: str = "rewards: {match: em}", **changes: Any) -> Path:
    folder.mkdir(parents=True)
    final = {"accuracy": 0.4, "accuracy_ci95": [0.3, 0.5], "calls_per_allowed": 0.6, "questions": 100}
    summary = {"benchmark": "infoseek", "workflow": "rag", "policy": "p", "asked": 100, "answered": 100, "final": final}
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    (folder / "run.json").write_text(json.dumps({"started": started}))
    (folder / "config.yaml").write_text(config)
    return folder


def test_judge_and_exact_match_are_two_rows(tmp_path: Path):
    final = {"accuracy": 0.4, "score_judge": 0.7, "score_judge_ci95": [0.6, 0.8], "calls_per_allowed": 0.5}
    evaluation(tmp_path / "a" / "b", final=final, judge={"model": "m", "prompt_hash": "0123456789abcdef"})
    evaluation(tmp_path / "c", benchmark="mmsearch", config="rewards: {match: subem, aliases: false}")
    rows, remarks = collect(tmp_path)
    assert rows == [
        Row("rag", "p", "em", {"infoseek": Cell(0.4, 0.5)}),
        Row("rag", "p", "judge", {"infoseek": Cell(0.7, 0.5, (0.6, 0.8))}),
        Row("rag", "p", "subem, no aliases", {"mmsearch": Cell(0.4, 0.6, (0.3, 0.5), 100)}),
    ]
    assert remarks == ["a/b: judged by m, prompt 0123456789ab"]


def test_a_benchmarks_own_figures_stand_apart(tmp_path: Path):
    final = {
        "accuracy": 0.1,
        "score_mmlongbench": 0.3,
        "score_mmlongbench_attempted": 0.9,
        "mmlongbench_accuracy": 0.3,
        "mmlongbench_accuracy_text": 0.4,
        "score_slidevqa_f1": 0.8,
        "score_slidevqa_f1_ci95": [0.7, 0.9],
        "slidevqa_f1": 0.8,
    }
    evaluation(tmp_path / "a", benchmark="mmlongbench_doc", final=final)
    text = write_table(tmp_path).read_text()
    table, _, rest = text.partition("## Further")
    assert "ours" not in table.partition("Table 1")[2].replace("Rows in bold are ours", "")
    ours = [row[3:5] for row in lines_of(rest, "MMLongBench-Doc", "rag", "**p** (ours)")]
    assert ours == [
        ["em", "10.0"],
        ["mmlongbench_accuracy", "30.0"],
        ["mmlongbench_accuracy_text", "40.0"],
        ["slidevqa_f1", "80.0 [70.0, 90.0]"],
    ]


def test_the_last_evaluation_counts_and_others_are_told(tmp_path: Path):
    old, new = ({"accuracy": value, "calls_per_allowed": 0} for value in (0.1, 0.2))
    evaluation(tmp_path / "a", "2026-02-01", final=new)
    evaluation(tmp_path / "b", "2026-01-01", final=old)
    rows, remarks = collect(tmp_path)
    assert [row.cells["infoseek"].accuracy for row in rows] == [0.2]
    assert remarks == ["a: takes the place of an earlier evaluation (em)"]


def settings(seed: int = 0, **others: Any) -> str:
    told = {"seed": seed, "limit": 0, "policy": "p", "rollout": {"temperature": 0.0}, "tools": {"text_index": None}}
    return json.dumps(told | others)


def named(folder: Path, metric: str = "em") -> dict[str, dict[str, float]]:
    """Accuracy by what the policy is called and benchmark."""
    rows, _ = collect(folder)
    return {row.policy: {name: one.accuracy for name, one in row.cells.items()} for row in rows if row.metric == metric}


def test_other_settings_make_another_row_that_says_what_differs(tmp_path: Path):
    figures = iter({"accuracy": value} for value in (0.1, 0.2, 0.3, 0.4, 0.5))
    evaluation(tmp_path / "a", config=settings(0), final=next(figures))
    evaluation(tmp_path / "b", config=settings(1), final=next(figures))
    evaluation(tmp_path / "c", config=settings(1, limit=40), final=next(figures))
    # One that nothing collides with joins the row of its settings.
    evaluation(tmp_path / "d", config=settings(1), benchmark="mmsearch", final=next(figures))
    # Another workflow is another row already.
    evaluation(tmp_path / "e", config=settings(1), workflow="direct", policy="q", final=next(figures))
    _, remarks = collect(tmp_path)
    assert remarks == []
    assert named(tmp_path) == {
        "p (limit=0, seed=0)": {"infoseek": 0.1},
        "p (limit=0, seed=1)": {"infoseek": 0.2, "mmsearch": 0.4},
        "p (limit=40, seed=1)": {"infoseek": 0.3},
        "q": {"infoseek": 0.5},
    }


def test_other_questions_under_the_same_settings_make_another_row(tmp_path: Path):
    """The file of a benchmark was another one, or its rows were changed."""
    for name, asked, right in (("a", "1a", 0.1), ("b", "2b", 0.2)):
        evaluation(tmp_path / name, config=settings(0), questions=asked, final={"accuracy": right})
    evaluation(tmp_path / "c", config=settings(0), benchmark="mmsearch", questions="3c", final={"accuracy": 0.3})
    said = named(tmp_path)
    assert said["p (questions.infoseek=1a)"] == {"infoseek": 0.1}
    assert said["p (questions.infoseek=2b)"] == {"infoseek": 0.2}
    assert said["p"] == {"mmsearch": 0.3} and collect(tmp_path)[1] == []


def test_only_a_repeat_of_the_same_settings_takes_the_place_of_another(tmp_path: Path):
    """Where a run lies, and how fast or through what address it is answered, makes no other evaluation."""
    reached = {"api": {"url": "http://b", "options": {"model": "m"}}, "temperature": 0.0, "vllm": {"max_num_seqs": 8}}
    evaluation(
        tmp_path / "a", "2026-01-01", settings(rollout={**reached, "api": {**reached["api"], "url": "http://a"}})
    )
    repeat = settings(rollout=reached, trainer={"threads": 2}, concurrent=8)
    evaluation(tmp_path / "b", "2026-01-02", repeat, final={"accuracy": 0.9})
    assert named(tmp_path) == {"p": {"infoseek": 0.9}}
    assert collect(tmp_path)[1] == ["b: takes the place of an earlier evaluation (em)"]


def test_settings_that_nobody_thinks_of_are_named_only_to_tell_two_apart(tmp_path: Path):
    evaluation(tmp_path / "a", config=settings(0, rollout={"turns": 2, "turn_tokens": 8}))
    evaluation(tmp_path / "b", config=settings(1, rollout={"turns": 3, "turn_tokens": 9}))
    assert named(tmp_path).keys() == {"p (seed=0)", "p (seed=1)"}
    evaluation(tmp_path / "c", config=settings(1, rollout={"turns": 4, "turn_tokens": 10}))
    assert named(tmp_path).keys() == {f"p (seed={s}, rollout.turn_tokens={n})" for s, n in ((0, 8), (1, 9), (1, 10))}


def test_judges_are_told_apart_by_model_and_prompt(tmp_path: Path):
    for name, model, prompt in (("a", "m", "0123456789abcdef"), ("b", "m", "fedcba9876543210")):
        final = {"accuracy": 0.4, "score_judge": 0.7}
        evaluation(tmp_path / name, config=settings(), final=final, judge={"model": model, "prompt_hash": prompt})
    assert named(tmp_path, "judge").keys() == {"p (judge.prompt=0123456789ab)", "p (judge.prompt=fedcba987654)"}
    evaluation(tmp_path / "c", config=settings(), final={"accuracy": 0.4})
    assert "p (judge.model=none)" in named(tmp_path)


def test_two_policies_of_one_name_never_share_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where nothing collides; the same one stays one, however its path is written."""
    monkeypatch.chdir(tmp_path)
    for parent in ("one", "two"):
        (tmp_path / parent / "x" / "run1").mkdir(parents=True)
    spelt = {"a": "one/x/run1", "b": "./one/x/run1/", "c": str(tmp_path / "one/x/run1"), "d": "two/x/run1"}
    for (run, path), benchmark in zip(spelt.items(), ("infoseek", "mmsearch", "livevqa", "fvqa_test"), strict=True):
        evaluation(tmp_path / "runs" / run, config=settings(policy=path), policy="x/run1", benchmark=benchmark)
    found = named(tmp_path / "runs")
    assert {name: set(cells) for name, cells in found.items()} == {
        "x/run1 (policy=one/x/run1)": {"infoseek", "mmsearch", "livevqa"},
        "x/run1 (policy=two/x/run1)": {"fvqa_test"},
    }


def test_the_starting_policy_is_the_one_of_its_model(tmp_path: Path):
    for name, path in (("a", "models/small"), ("b", "models/large")):
        evaluation(tmp_path / name, config=settings(policy="start", model={"path": path}), policy="start")
    assert named(tmp_path).keys() == {"start (policy=small)", "start (policy=large)"}


def test_an_evaluation_whose_episodes_were_all_lost_is_a_remark(tmp_path: Path):
    evaluation(tmp_path / "gone", final={"questions": 0, "episodes": 9, "failed_share": 1.0})
    rows, (remark,) = collect(tmp_path)
    assert rows == [] and remark.startswith("gone: left out, no episode that counts")


def test_what_cannot_be_used_is_told_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(tmp_path / "good", answered=90)
    (evaluation(tmp_path / "damaged") / "summary.json").write_text('{"benchmark":')
    evaluation(tmp_path / "empty", final={"accuracy": None})
    evaluation(tmp_path / "none", final={})
    evaluation(tmp_path / "unnamed") and (tmp_path / "unnamed" / "summary.json").write_text(
        '{"benchmark": "infoseek", "final": {"accuracy": 1}}'
    )
    (evaluation(tmp_path / "yaml") / "config.yaml").write_text("a: [")
    (evaluation(tmp_path / "training") / "summary.json").write_text('{"final": {"accuracy": 1.0}}')
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'table1.md'}\n"
    told = (tmp_path / "table1.md").read_text().partition("## Remarks")[2].strip().splitlines()
    assert sorted(line.split(":")[0] for line in told) == [
        "- damaged",
        "- empty",
        "- good",
        "- none",
        "- unnamed",
        "- yaml",
    ]
    assert "- good: 90 of 100 questions are answered" in told
    assert len(lines_of((tmp_path / "table1.md").read_text(), "rag", "**p** (ours)")) == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_evaluations_is_refused_in_one_line(tmp_path, capsys, there: bool):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path if there else tmp_path / "no")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert ("no evaluation below it" if there else "no such folder") in error
