"""Answer matching: SQuAD normalisation, aliases, and answers of which normalisation leaves nothing."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.rewards.answer import exact_match, grade, normalise, substring_match

MARK = "\u200f"  # right-to-left mark: invisible, common in Wikidata aliases
texts = st.text(alphabet=st.sampled_from("aAbB theTHE.,!?\u2019\u2014+$ \u00e9e\u0301\u200f7"), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("an Apple a day", "apple day"),
        ("Foot-and-mouth", "footandmouth"),  # punctuation goes before articles: "and" is not split into "an d"
        ("Theatre, Athens", "theatre athens"),  # articles are whole words
        ("\u201cPop\u2019s\u201d \u2014 1914\u20131918\u3002", "pops 19141918"),  # curly quotes, dashes, CJK stop
        ("$5 + 3 = 8", "5 3 8"),
        (f"{MARK}papa Giulio{MARK} II", "papa giulio ii"),
        ("Rove\u0300re", "rov\u00e8re"),  # a combining accent and a composed letter are the same text
        ("tab\tand\nline", "tab and line"),
        ("...", ""),
        ("The The", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(texts)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert not set(once) & set(string.punctuation)


@pytest.mark.parametrize(
    ("prediction", "truths", "expected"),
    [
        ("the Kent!", ("Kent",), True),
        ("Kent", ("Surrey", "KENT"), True),
        ("West Kent", ("Kent",), False),
        ("Kent", (), False),
        ("", ("Kent",), False),
        ("Kent", ("",), False),
    ],
)
def test_exact_match(prediction: str, truths: tuple[str, ...], expected: bool) -> None:
    assert exact_match(prediction, truths) is expected


@pytest.mark.parametrize("match", [exact_match, substring_match])
@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("+", "+", True),
        (" + ", "+", True),
        ("+", "-", False),  # reference defect 9: both normalise to "" and used to match
        ("The The", "the the", True),
        ("the", "A", False),
        ("", "", False),
        ("", "+", False),
        (" ", "\t", False),
        (MARK, MARK, False),  # nothing visible is nothing
        ("a dog", "A", False),
        ("+", "plus", False),
    ],
)
def test_answers_that_normalise_to_nothing(match, prediction: str, truth: str, expected: bool) -> None:
    assert match(prediction, (truth,)) is expected


@given(texts, texts)
def test_exact_match_is_symmetric_and_never_matches_emptiness(left: str, right: str) -> None:
    assert exact_match(left, (right,)) == exact_match(right, (left,))
    if exact_match(left, (right,)):
        assert left.strip()
        assert normalise(left) == normalise(right)
        assert substring_match(left, (right,))


@given(texts)
def test_any_visible_text_matches_itself(text: str) -> None:
    assert exact_match(text, (text,)) is bool(text.replace(MARK, "").strip())


@pytest.mark.parametrize(
    ("prediction", "truths", "expected"),
    [
        ("It lies in the county of Kent.", ("Kent",), True),
        ("Kentish Town", ("Kent",), False),  # whole words only
        ("the Newcastle Swing Bridge", ("swing bridge",), True),
        ("bridge that can swing", ("swing bridge",), False),  # in this order
        ("Kent", ("county of Kent",), False),  # the truth in the prediction, not the reverse
        ("answer: B", ("D", "b"), True),
        ("...", ("Kent",), False),
    ],
)
def test_substring_match(prediction: str, truths: tuple[str, ...], expected: bool) -> None:
    assert substring_match(prediction, truths) is expected


@pytest.mark.parametrize(
    ("said", "truths", "worth"),
    [
        ("the Thames", ["Thames"], 1.0),
        ("river Thames", ["Thames"], 0.5 * 2 / 3),  # 1 word in common of 2 and 1
        ("Rhine", ["Thames"], 0.0),
        ("", ["Thames"], 0.0),
        ("Mr John Kent", ["John Kent", "Sir John Kent of Dulmen"], 0.5 * 4 / 5),  # the better of the truths
        ("Thames", [], 0.0),
    ],
)
def test_a_lenient_judge_grades_the_words_in_common(said: str, truths: list[str], worth: float) -> None:
    assert grade(said, truths) == pytest.approx(worth)
