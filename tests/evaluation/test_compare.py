"""Two runs on the same questions: figures by hand, what is left out is told, hostile text stays text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmsr1.evaluation.compare import compare, config_differences, main, read_run
from mmsr1.evaluation.outcome import Outcome
from mmsr1.evaluation.paired import Comparison
from mmsr1.run_directory import RunDirectory

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e[bold]\ud800"


def one(
    id: str,
    right: float,
    *,
    rollout: int = 0,
    calls: int = 0,
    cost: float = 0.0,
    lost: bool = False,
    question: str = "where?",
    cluster: str | None = None,
    **scores: float,
) -> Outcome:
    return Outcome(
        id=id,
        rollout=rollout,
        question=question,
        said="x",
        truths=("Kent",),
        need="unknown",
        cluster=cluster or id,
        reward=right / 2,
        scores={"accuracy": right, **scores},
        image_calls=0,
        text_calls=calls,
        failed_calls=0,
        stop="answered",
        lost=lost,
        cost_usd=cost,
        paid_usd=0.0,
        tokens=1,
        seconds=1.0,
    )


def row(found: Comparison, name: str):
    return next(line for line in found.differences if line.name == name)


def test_differences_by_hand():
    """B wins two of four questions and loses none; each side's calls and cost by the question."""
    a = [one("q0", 0), one("q1", 0, calls=1, cost=0.01), one("q2", 1), one("q3", 0)]
    b = [one("q0", 1, calls=2, cost=0.02), one("q1", 1, calls=1, cost=0.01), one("q2", 1), one("q3", 0)]
    found = compare(a, b)
    accuracy = row(found, "accuracy")
    assert found.score is accuracy and found.questions == accuracy.questions == 4
    assert (accuracy.a, accuracy.b, accuracy.difference) == (0.25, 0.75, 0.5)
    half = 3.1824 * math.sqrt(1 / 12)  # t of 3 degrees; differences 1, 1, 0, 0
    assert accuracy.interval == pytest.approx((0.5 - half, 0.5 + half), abs=5e-3)
    assert accuracy.p == 1 / 4  # of ++, +-, -+, -- the first and the last are as far from 0, which counts half
    assert row(found, "reward").difference == pytest.approx(0.25)
    assert (row(found, "search ratio").a, row(found, "search ratio").b) == (0.25, 0.5)
    assert row(found, "calls").difference == pytest.approx(0.5)
    assert row(found, "cost, USD").difference == pytest.approx(0.005)
    # Five figures, each with p of 1/4 or 1/2: Holm takes them to 1.
    assert [line.p_holm for line in found.differences] == [1.0] * 5
    assert [(flip.a.id, flip.won) for flip in found.flips] == [("q0", True), ("q1", True)]
    assert found.remarks() == []


def test_questions_of_one_cluster_flip_together():
    a = [one(f"q{i}", 0, cluster="same") for i in range(6)]
    b = [one(f"q{i}", 1, cluster="same") for i in range(6)]
    assert compare(a, b).score.p == 1 / 2
    apart = compare([one(f"q{i}", 0) for i in range(6)], [one(f"q{i}", 1) for i in range(6)])
    assert apart.score.p == 1 / 64


def test_what_is_not_on_both_sides_is_left_out_and_told():
    a = [
        one("q0", 1),
        one("gone", 1),
        one("new", 0),
        one("lost", 1),
        one("half", 1),
        one("half", 0, rollout=1, lost=True),
    ]
    b = [one("q0", 0), one("more", 1), one("new", 1, question="who?"), one("lost", 0, lost=True), one("half", 1)]
    found = compare(a, b)
    assert (found.only_a, found.only_b, found.changed, found.unanswered) == (("gone",), ("more",), ("new",), ("lost",))
    assert (found.questions, found.lost_a, found.lost_b) == (2, 1, 1)
    assert (found.score.a, found.score.b) == (1.0, 0.5)
    said = "\n".join(found.remarks())
    for part in ("not in B: left out (gone)", "not in A: left out (more)", "asked differently", "(new)", "(lost)"):
        assert part in said
    assert "1 of A, 1 of B" in said


def test_rollouts_of_a_question_are_averaged():
    a = [one("q0", right, rollout=i, calls=i) for i, right in enumerate((1, 0, 0, 0))]
    b = [one("q0", right, rollout=i) for i, right in enumerate((0, 1, 1))]
    found = compare([*a, one("q1", 0)], [*b, one("q1", 0)])
    assert found.score.a == pytest.approx((1 / 4 + 0) / 2) and found.score.b == pytest.approx((2 / 3 + 0) / 2)
    assert row(found, "calls").a == pytest.approx(6 / 4 / 2)
    (flip,) = found.flips
    assert (flip.a.rollout, flip.b.rollout, flip.won) == (1, 1, True)  # the first wrong one, the first right one


def test_another_score_decides_and_its_gaps_are_told():
    a = [one("q0", 1, judge=0.0), one("q1", 0, judge=1.0), one("q2", 0)]
    b = [one("q0", 1, judge=1.0), one("q1", 0, judge=1.0), one("q2", 1, judge=1.0)]
    found = compare(a, b, "judge")
    assert (found.score.name, found.score.a, found.score.b, found.score.questions) == ("judge", 0.5, 1.0, 2)
    assert row(found, "accuracy").questions == 3
    assert [flip.a.id for flip in found.flips] == ["q0"]
    assert found.remarks() == ["1 questions have no score 'judge' on one side: not in its line"]
    with pytest.raises(ValueError, match="score: 'f1' received.*accuracy, judge"):
        compare(a, b, "f1")


def test_runs_without_a_common_question_are_refused():
    with pytest.raises(ValueError, match="nothing to compare: 0 of 1 and 1 questions are in both"):
        compare([one("q0", 1)], [one("q1", 1)])
    with pytest.raises(ValueError, match="1 of them asked differently"):
        compare([one("q0", 1)], [one("q0", 1, question="who?")])


# ---- folders


@pytest.mark.parametrize(
    ("lost_a", "lost_b", "told"),
    [
        ((), (0, 1), "every episode of B was lost to tools or engine; .*resume=B$"),
        ((0, 1), (), "every episode of A was lost to tools or engine; .*resume=A$"),
        ((0, 1), (0, 1), "every episode of A and B was lost"),
        ((0,), (1,), "every episode of A .1 questions. or of B .1. was lost .*resume=A, resume=B$"),
    ],
)
def test_a_side_that_lost_every_episode_is_named(lost_a: tuple[int, ...], lost_b: tuple[int, ...], told: str):
    a, b = ([one(f"q{i}", 1, lost=i in lost) for i in range(2)] for lost in (lost_a, lost_b))
    with pytest.raises(ValueError, match=told):
        compare(a, b)


def record(id: str, answer: str, *calls: dict, question: str = "where?", rollout: int = 0) -> dict:
    right = float(answer == "Kent")
    return {
        "example_id": id,
        "question": question,
        "answer": "Kent",
        "aliases": [],
        "search_need": "unknown",
        "source": "web",
        "images": [],
        "rollout": rollout,
        "turns": [f"<reason>r</reason><answer>{answer}</answer>"],
        "calls": list(calls),
        "segments": [],
        "stop": "answered",
        "reward": {"total": right, "parts": {"accuracy": right, "format": 1.0}},
        "trained": True,
        "timings": {"total_s": 1.0},
    }


def call(tool: str, query: str = "", status: str = "ok", box: list[int] | None = None) -> dict:
    return {"turn": 0, "tool": tool, "query": query, "box": box, "status": status, "cost_usd": 0.0, "paid_usd": 0.0}


def run(folder: Path, records: list[dict], split: str = "eval", step: int = 0, config: str = "seed: 0\n") -> Path:
    directory = RunDirectory(folder)
    directory.start("evaluate", 0, config, {}, None)
    directory.write_episodes(split, step, records, ())
    return folder


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_command_shows_figures_configurations_and_flips(tmp_path, capsys):
    asked = [
        call("image_search", "digest"),
        call("text_search", "county of X", "infrastructure_error"),
        call("image_search", "digest", box=[1, 2, 30, 40]),
    ]
    config = "seed: %d\nrollout: {turns: 3, engine: %s}\n%s"
    a = run(tmp_path / "a", [record("q0", "Surrey", *asked), record("q1", "Kent")], config=config % (0, "vllm", ""))
    b = run(tmp_path / "b", [record("q0", "Kent"), record("q1", "Kent")], config=config % (0, "openai", "new: 1"))
    out = command(capsys, a, b)
    assert "keys of the configurations that differ: 2" in out
    assert 'rollout.engine: "vllm" | "openai"' in out and "new: - | 1" in out and "turns" not in out
    gained, _, lost = out.partition("right in A, wrong in B")
    assert "wrong in A, right in B: 1" in gained and "A: Surrey" in gained and "B: Kent  (no search)" in gained
    assert "(image; text: county of X (infrastructure error); image [1, 2, 30, 40])" in " ".join(gained.split())
    assert lost.startswith(": 0")
    # Differences 1 and 0: t of one degree (11.3 by the approximation) times a standard error of 0.5.
    assert out.splitlines()[-1] == "accuracy: B less A +0.500 [-5.150, +6.150], p 0.500, on 2 questions"


def test_the_last_validation_of_a_training_run_is_taken(tmp_path):
    folder = run(tmp_path / "t", [record("q0", "Surrey")], "val", 9)
    run(folder, [record("q0", "Kent")], "val", 10)
    run(folder, [record("q0", "Surrey")], "train", 11)
    found = read_run(folder)
    assert found.what == "validation of step 10" and [one.accuracy for one in found.outcomes] == [1.0]


def test_of_several_lines_of_an_episode_the_last_counts_and_bad_ones_are_told(tmp_path, capsys):
    a = run(tmp_path / "a", [record("q0", "Surrey"), record("q1", "Kent"), record("q0", "Kent")])
    file = a / "episodes" / "eval-0.jsonl"
    no_score = {**record("q2", "Kent"), "reward": {"total": 1.0, "parts": {}}}
    file.write_bytes(b"{broken\n[1]\n" + json.dumps(no_score).encode() + b"\n" + file.read_bytes() + b'{"cut off')
    found = read_run(a)
    assert found.bad == 3
    assert {one.id: one.accuracy for one in found.outcomes} == {"q0": 1.0, "q1": 1.0}
    assert "3 lines could not be read" in command(capsys, a, a)


def test_hostile_text_stays_text_on_the_page_and_in_the_terminal(tmp_path, capsys):
    a = run(
        tmp_path / "a",
        [record("q0", HOSTILE, call("text_search", HOSTILE), question=HOSTILE), record("<i>only", "Kent")],
        config="name: '<script>'\n",
    )
    b = run(tmp_path / "b", [record("q0", "Kent", question=HOSTILE)], config="name: b\n")
    page = tmp_path / "new" / "page.html"
    out = command(capsys, a, b, "--html", page)
    assert "\x1b" not in out and "\u202e" not in out and "[bold]" in out
    html = page.read_text()
    assert "<script" not in html and "<i>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # question, answer, search
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert "http" not in html.replace('http-equiv="Content', "") and "src=" not in html.replace("default-src", "")
    assert out.splitlines()[-1].endswith(f"page: {page}")


def test_the_page_has_every_flip(tmp_path, capsys):
    a = run(tmp_path / "a", [record(f"q{i:02}", "Surrey") for i in range(15)])
    b = run(tmp_path / "b", [record(f"q{i:02}", "Kent") for i in range(15)])
    page = tmp_path / "page.html"
    assert "and 5 more" in command(capsys, a, b, "--html", page)
    assert page.read_text().count("<article>") == 15


def test_configurations_that_differ_in_keys_and_values():
    a, b = {"both": "1", "same": "2", "old": "3"}, {"new": "4", "both": "5", "same": "2"}
    assert config_differences(a, b) == [("both", "1", "5"), ("new", "-", "4"), ("old", "3", "-")]


def test_a_damaged_configuration_is_no_reason_to_stop(tmp_path):
    assert read_run(run(tmp_path / "a", [record("q0", "Kent")], config="a: [")).config == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "required: B"),
        (["a", "no"], "no such folder; give the folder of an evaluation"),
        (["a", "empty"], "no episodes of an evaluation or a validation in it"),
        (["a", "bad"], "none of 1 lines of eval-0.jsonl is a judged episode"),
        (["a", "other"], "nothing to compare"),
        (["a", "a", "--score", "judge"], "score: 'judge' received"),
        (["a", "a", "--html", "a"], "a"),
        (["a", "a", "--no"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "a", [record("q0", "Kent")])
    run(tmp_path / "other", [record("q1", "Kent")])
    run(tmp_path / "bad", [{"example_id": "q0"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and message in error
