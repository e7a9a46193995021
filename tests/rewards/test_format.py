"""The format reward: every legal order of actions scores 1, every other order and every malformed turn 0."""

from itertools import product

import pytest

from mmsr1.rewards.format import format_score

ANSWER = "<reason>I know.</reason>\n<answer>Kent</answer>"
IMAGE = "<reason>I look.</reason>\n<search><img></search>"
TEXT = "<reason>I read.</reason>\n<text_search>Ightham Mote county</text_search>"
LEGAL = {(ANSWER,), (IMAGE, ANSWER), (TEXT, ANSWER), (IMAGE, TEXT, ANSWER)}


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_exactly_the_four_legal_orders_score(length: int) -> None:
    for turns in product((ANSWER, IMAGE, TEXT), repeat=length):
        assert format_score(turns) == (1.0 if turns in LEGAL else 0.0)


@pytest.mark.parametrize(
    "turn",
    [
        "<answer>Kent</answer>",
        "<reason></reason><answer>Kent</answer>",
        "<reason>r</reason>",
        "<reason>r<answer>Kent</answer>",
        "<reason>r</reason> so <answer>Kent</answer>",
        "<reason>r</reason><answer>Kent</answer> I am sure.",
        "<reason>r</reason><answer>Kent</answer><answer>Surrey</answer>",
        "<reason>r</reason><answer>Kent</answer><reason>s</reason>",
        "<reason>r</reason><reason>s</reason><answer>Kent</answer>",
        "<reason>r</reason> then <reason>s</reason><answer>Kent</answer>",  # text between two blocks hides neither
        "<reason>r <reason>s</reason><answer>Kent</answer>",
        "<reason>r</reason></reason><answer>Kent</answer>",
        "<reason>r</reason><answer>Kent <text_search>q</text_search></answer>",
        "<answer>Kent</answer><reason>r</reason>",
        "",
    ],
)
def test_a_malformed_turn_costs_the_format(turn: str) -> None:
    assert format_score([turn]) == 0.0
    assert format_score([IMAGE, turn]) == 0.0


def test_a_malformed_search_turn_costs_the_format() -> None:
    assert format_score(["<reason>r</reason><search>the tower</search>", ANSWER]) == 0.0
    assert format_score(["<reason>r</reason><text_search> </text_search>", ANSWER]) == 0.0


def test_a_search_by_a_part_of_the_image_keeps_the_format_only_where_it_is_allowed() -> None:
    turns = ["<reason>r</reason><search><crop>0,0,50,50</crop></search>", TEXT, ANSWER]
    assert (format_score(turns), format_score(turns, crops=True)) == (0.0, 1.0)


def test_a_tag_mentioned_in_the_reasoning_is_allowed() -> None:
    turn = "<reason>No need for <text_search>county</text_search>.\nSure.</reason>\n<answer>Kent</answer>\n"
    assert format_score([turn]) == 1.0
