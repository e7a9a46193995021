"""What the film follows, and how an outcome is told."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic_run import STEPS, TAUGHT, UNKNOWN

from mmsr1.report.film import LONGEST_TEXT, MAX_CELLS, build_film, read_validation, reply_of
from mmsr1.report.outcomes import ABSENT, DIRECT, DIRECT_WRONG, FAILED, OUTCOMES, SEARCHED, SEARCHED_WRONG, outcome_of
from mmsr1.report.trajectories import choose_samples
from mmsr1.run_directory import RunDirectory


def record(name: str, need: str = "free", source: str = "fvqa", right: bool = True, **other: Any) -> dict[str, Any]:
    base = {
        "example_id": name,
        "question": f"what is {name}?",
        "answer": "Dul men",
        "search_need": need,
        "source": source,
        "images": [],
        "turns": ["<reason>r</reason><answer>Dul men</answer>"],
        "calls": [],
        "stop": "answered",
        "reward": {"total": 1.0, "parts": {"accuracy": float(right)}},
        "timings": {"total_s": 1.0, "engine_s": 1.0, "tools_s": 0.0},
    }
    return base | other


CALL = {"turn": 0, "tool": "text_search", "query": "q", "status": "ok", "items": []}


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (record("a"), DIRECT),
        (record("a", calls=[CALL]), SEARCHED),
        (record("a", calls=[CALL | {"status": "empty"}]), SEARCHED),
        (record("a", calls=[CALL | {"status": "over_budget"}]), DIRECT),
        (record("a", right=False), DIRECT_WRONG),
        (record("a", right=False, calls=[CALL]), SEARCHED_WRONG),
        (record("a", right=False, calls=[CALL], stop="tool_failure"), FAILED),
        (record("a", right=False, stop="engine_failure"), FAILED),
        (record("a", reward={"total": None, "parts": {}}), DIRECT_WRONG),
    ],
)
def test_outcomes(made: dict[str, Any], outcome: object) -> None:
    assert outcome_of(made) is outcome


def test_every_outcome_has_its_own_mark() -> None:
    assert len({outcome.strokes for outcome in OUTCOMES}) == len(OUTCOMES)


def test_one_cell_per_held_out_entity_and_the_same_question_at_every_step(full_run: RunDirectory) -> None:
    validation = read_validation(full_run)
    film = build_film(validation)
    assert film is not None and film.steps == STEPS
    assert (film.unit, film.total, len(film.cells)) == ("entity", TAUGHT + UNKNOWN, TAUGHT + UNKNOWN)
    assert {group: len(cells) for group, cells in film.groups.items()} == {"free": TAUGHT, "required": UNKNOWN}
    cell = film.cells[-1]
    for position, step in enumerate(STEPS):
        (asked,) = [r for r in validation[step] if r["example_id"] == cell.example_id]
        assert cell.outcomes[position] is outcome_of(asked)
        assert cell.replies[position] == reply_of(asked)


def test_tokens_are_not_held_and_one_rollout_stands_for_a_question(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "episodes" / "images").mkdir(parents=True)
    twice = [record("a", segments=[1], rollout=rollout, right=rollout == 0) for rollout in (0, 1)]
    run.write_episodes("val", 0, twice, [])
    run.write_episodes("val", 5, [], [])
    assert read_validation(run) == {0: [{k: v for k, v in twice[0].items() if k != "segments"}]}


def test_no_episodes_no_film() -> None:
    assert build_film({}) is None
    assert choose_samples({}) == []


def test_a_taught_place_is_followed_by_a_question_it_was_taught() -> None:
    mixed = [record("river", "text", "emblem/k1"), record("capital", "free", "emblem/k1")]
    film = build_film({0: mixed})
    assert film is not None
    assert [cell.example_id for cell in film.cells] == ["capital"]


def test_a_question_asked_at_more_steps_is_preferred_and_gaps_are_shown() -> None:
    capital, river = record("capital", "free", "emblem/k1"), record("river", "text", "emblem/k1")
    film = build_film({0: [capital, river], 1: [river], 2: [record("name", "image", "emblem/u1")]})
    assert film is not None
    cells = {cell.example_id: cell.outcomes for cell in film.cells}
    assert cells == {"river": (DIRECT, DIRECT, ABSENT), "name": (ABSENT, ABSENT, DIRECT)}
    assert ABSENT in film.outcomes_met and FAILED not in film.outcomes_met


def test_other_datasets_follow_questions_up_to_a_limit_and_evenly() -> None:
    records = [record(f"r{i}", "required") for i in range(300)] + [record(f"f{i}") for i in range(40)]
    film = build_film({0: records})
    assert film is not None
    assert (film.unit, film.total, len(film.cells)) == ("question", 340, MAX_CELLS)
    assert {group: len(cells) for group, cells in film.groups.items()} == {"free": 40, "required": 80}


def test_replies_are_answers_or_say_why_there_is_none() -> None:
    assert reply_of(record("a")) == "Dul men"
    assert reply_of(record("a", turns=["<reason>hm"], stop="length_limit")) == "(no answer: length limit)"
    assert reply_of(record("a", turns=[], stop="engine_failure")) == "(no answer: engine failure)"
    assert len(reply_of(record("a", turns=[f"<answer>{'x' * 9999}</answer>"]))) == LONGEST_TEXT


def test_samples_prefer_a_question_that_changed_and_pair_it_with_itself() -> None:
    early = [record("same"), record("learned", right=False), record("u", "both")]
    late = [record("same"), record("learned"), record("u", "both")]
    free, both = choose_samples({0: early, 10: [record("same")], 20: late})
    assert free.question == "what is learned?"
    assert [(take.step, take.outcome) for take in free.takes] == [(0, DIRECT_WRONG), (20, DIRECT)]
    assert both.need == "image and text search needed"


def test_one_validation_gives_one_take() -> None:
    (sample,) = choose_samples({5: [record("a")]})
    assert [take.step for take in sample.takes] == [5]
    (turn,) = sample.takes[0].turns
    assert turn.pieces == (
        ("<reason>", True),
        ("r", False),
        ("</reason>", True),
        ("<answer>", True),
        ("Dul men", False),
        ("</answer>", True),
    )
