"""The reward against the table of MMSearch-R1 and against numbers worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.rewards.reward import RewardSpec, score, score_turns
from mmsr1.types import Episode, Example, Timings

RIGHT = "<reason>I know.</reason>\n<answer>Kent</answer>"
WRONG = "<reason>I know.</reason>\n<answer>Surrey</answer>"
BAD_FORMAT = "<answer>Kent</answer>"
IMAGE = "<reason>I look.</reason>\n<search><img></search>"
TEXT = "<reason>I read.</reason>\n<text_search>Ightham Mote county</text_search>"
PAPER = RewardSpec()
PER_CALL = RewardSpec(penalty_mode="per_call")


def total(turns: list[str], spec: RewardSpec = PAPER, step: int = 0) -> float:
    return score_turns(turns, "Kent", ("County of Kent",), spec, step).total


@pytest.mark.parametrize(
    ("turns", "spec", "expected"),
    [
        ([RIGHT], PAPER, 1.0),  # 0.9 * 1 * 1 + 0.1
        ([IMAGE, RIGHT], PAPER, 0.91),  # 0.9 * 1 * 0.9 + 0.1 = 0.81 + 0.1
        ([TEXT, RIGHT], PAPER, 0.91),
        ([IMAGE, TEXT, RIGHT], PAPER, 0.91),  # two calls cost as much as one
        ([TEXT, TEXT, RIGHT], PAPER, 0.81),  # illegal order: no format
        ([TEXT, IMAGE, RIGHT], PAPER, 0.81),
        ([BAD_FORMAT], PAPER, 0.90),  # 0.9 * 1 * 1 + 0
        ([WRONG], PAPER, 0.1),
        ([IMAGE, TEXT, WRONG], PAPER, 0.1),
        ([IMAGE, TEXT, RIGHT], PER_CALL, 0.829),  # 0.9 * 0.9^2 + 0.1 = 0.729 + 0.1
        ([IMAGE, RIGHT], PER_CALL, 0.91),
        ([IMAGE, BAD_FORMAT], PAPER, 0.81),
        ([IMAGE, TEXT], PAPER, 0.0),  # unfinished: neither accuracy nor format
        ([RIGHT, IMAGE], PAPER, 0.0),  # the last turn decides, and it is no answer
        ([], PAPER, 0.0),
        (["<answer></answer>"], PAPER, 0.0),
        (["<reason>not <search><img></search></reason><answer>Kent</answer>"], PAPER, 1.0),  # only mentioned
        ([IMAGE, RIGHT], RewardSpec(format_weight=0.25, search_penalty=0.5), 0.625),  # 0.75 * 0.5 + 0.25
        ([IMAGE, RIGHT], RewardSpec(search_penalty=1.0), 0.1),  # a search forfeits the accuracy
        ([IMAGE, RIGHT], RewardSpec(format_weight=0.0), 0.9),
    ],
)
def test_reward_table(turns: list[str], spec: RewardSpec, expected: float) -> None:
    assert total(turns, spec) == pytest.approx(expected, abs=1e-12)


def test_parts_of_a_correct_alias_after_two_searches() -> None:
    answer = "<reason>r</reason><answer>the County of Kent</answer>"
    parts = score_turns([IMAGE, TEXT, answer], "Kent", ("County of Kent",), PER_CALL).parts
    assert parts == {
        "accuracy": 1.0,
        "exact_match": 0.0,
        "alias_match": 1.0,
        "format": 1.0,
        "penalty": pytest.approx(0.81),
        "searches": 2.0,
    }


def test_a_crop_is_charged_as_a_search_only_where_it_is_allowed() -> None:
    turns = ["<reason>r</reason><search><crop>0,0,50,50</crop></search>", RIGHT]
    assert total(turns, RewardSpec(crops=True)) == pytest.approx(0.91)
    # Not carried out, so not charged, but it costs the format: 0.9 * 1 * 1 + 0.
    assert total(turns) == pytest.approx(0.9)


def test_a_wrong_answer_pays_no_penalty() -> None:
    parts = score_turns([IMAGE, WRONG], "Kent", (), PAPER).parts
    assert (parts["accuracy"], parts["penalty"], parts["searches"]) == (0.0, 1.0, 1.0)


def test_without_aliases_only_the_answer_counts() -> None:
    turns = ["<reason>r</reason><answer>County of Kent</answer>"]
    assert total(turns) == pytest.approx(1.0)
    assert total(turns, RewardSpec(aliases=False)) == pytest.approx(0.1)


def test_substring_match_changes_the_accuracy_and_not_the_exact_matches() -> None:
    turns = ["<reason>r</reason><answer>It is in Kent, England</answer>"]
    assert total(turns) == pytest.approx(0.1)
    reward = score_turns(turns, "Kent", (), RewardSpec(match="subem"))
    assert reward.total == pytest.approx(1.0)
    assert (reward.parts["exact_match"], reward.parts["alias_match"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("step", "one_call", "two_calls"),
    [
        (0, 1.0, 1.0),  # penalty 0
        (5, 0.955, 0.91225),  # penalty 0.05: 0.9 * 0.95 + 0.1; per call 0.9 * 0.9025 + 0.1
        (10, 0.91, 0.829),  # full penalty
        (99, 0.91, 0.829),
    ],
)
def test_penalty_warms_up_linearly(step: int, one_call: float, two_calls: float) -> None:
    spec = RewardSpec(penalty_warmup_steps=10)
    assert total([IMAGE, RIGHT], spec, step) == pytest.approx(one_call)
    assert total([IMAGE, TEXT, RIGHT], spec, step) == pytest.approx(one_call)
    assert total([IMAGE, TEXT, RIGHT], replace(spec, penalty_mode="per_call"), step) == pytest.approx(two_calls)


@given(
    turns=st.lists(st.sampled_from([RIGHT, WRONG, BAD_FORMAT, IMAGE, TEXT, "junk"]), max_size=4),
    weight=st.floats(0, 1),
    penalty=st.floats(0, 1),
    mode=st.sampled_from(["per_question", "per_call"]),
)
def test_reward_is_the_formula_of_its_parts(turns: list[str], weight: float, penalty: float, mode: str) -> None:
    reward = score_turns(turns, "Kent", (), RewardSpec(weight, penalty, penalty_mode=mode))
    parts = reward.parts
    expected = (1 - weight) * parts["accuracy"] * parts["penalty"] + weight * parts["format"]
    assert reward.total == pytest.approx(expected)
    assert 0.0 <= reward.total <= 1.0
    assert parts["searches"] == turns.count(IMAGE) + turns.count(TEXT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_weight", -0.1),
        ("format_weight", 1.1),
        ("format_weight", float("nan")),
        ("search_penalty", 2.0),
        ("penalty_warmup_steps", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{key}: {value!r} received; "):
        RewardSpec(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("match", "fuzzy"), ("penalty_mode", "per_token")])
def test_an_unknown_choice_is_refused_by_name(key: str, value: str) -> None:
    # With the jaxtyping import hook on, the type checker refuses the literal before the class does.
    with pytest.raises((ValueError, TypeError), match=key):
        RewardSpec(**{key: value})


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="^step: -1 received; "):
        total([IMAGE, RIGHT], RewardSpec(penalty_warmup_steps=10), step=-1)


def test_score_reads_the_turns_of_the_episode_and_the_truths_of_the_example() -> None:
    example = Example("q1", "Which county?", (), "Kent", ("County of Kent",), "image", "test")
    turns = (IMAGE, "<reason>r</reason><answer>county of kent</answer>")
    episode = Episode("q1", 0, (), turns, (), "answered", 0, Timings(0.0, 0.0, 0.0))
    assert score(example, episode, RewardSpec()) == score_turns(turns, "Kent", ("County of Kent",), RewardSpec())
    assert score(example, episode, RewardSpec()).total == pytest.approx(0.91)
    assert score(example, episode, RewardSpec(penalty_warmup_steps=4), step=2).total == pytest.approx(0.955)
    with pytest.raises(ValueError, match="'q2' received for an episode of 'q1'"):
        score(replace(example, id="q2"), episode, RewardSpec())
