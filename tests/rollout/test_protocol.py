"""The turn protocol: tags outside the reasoning are actions, tags inside it are words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.rollout.protocol import (
    STOP_STRINGS,
    TAGS,
    Answer,
    ImageSearch,
    Malformed,
    TextSearch,
    action_name,
    is_open_reason,
    parse_turn,
    searches,
    well_formed,
)

THINK = "<reason>I look at the tower.</reason>"
IMAGE, TEXT, ANSWER = "<search><img></search>", "<text_search>height of it</text_search>", "<answer>96 m</answer>"
ACTIONS = {IMAGE: ImageSearch(), TEXT: TextSearch("height of it"), ANSWER: Answer("96 m")}
# Words as a model writes them: brackets may occur, complete tags of ours may not.
WORDS = st.text(alphabet=st.sampled_from("ab <>/=\n\t{}é漢"), max_size=30).filter(
    lambda text: not any(f"{tag}>" in text for tag in TAGS)
)


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_is_read_and_ends_with_its_stop_string(action: str) -> None:
    assert parse_turn(THINK + action) == parse_turn(f"{THINK}\n{action}\n") == parse_turn(action) == ACTIONS[action]
    assert action.endswith(STOP_STRINGS)


@given(WORDS, WORDS, WORDS)
def test_what_stands_between_the_tags_comes_out_stripped(before: str, content: str, after: str) -> None:
    content += "x"  # never empty
    assert parse_turn(f"{before}<answer>{content}</answer>{after}") == Answer(content.strip())
    assert parse_turn(f"{before}<text_search>{content}</text_search>{after}") == TextSearch(content.strip())


def test_a_query_may_span_lines() -> None:
    assert parse_turn("<text_search>\nwho built\nthe tower?\n</text_search>") == TextSearch("who built\nthe tower?")


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("", None),
        (THINK, None),
        ("96 m", None),
        ("<answer>96 m", None),
        ("96 m</answer>", None),
        ("<answer>96 m</text_search>", None),
        ("<Answer>96 m</Answer>", None),
        ("<search>the tower</search>", "image_search"),
        ("<search></search>", "image_search"),
        ("<search><img><img></search>", "image_search"),
        ("<text_search></text_search>", "text_search"),
        ("<text_search> \n </text_search>", "text_search"),
    ],
)
def test_what_cannot_be_carried_out_is_malformed_and_says_for_which_tool(text: str, tool: str | None) -> None:
    action = parse_turn(text)
    assert isinstance(action, Malformed) and action.tool == tool and action.detail
    assert not well_formed(THINK + text)


CROP = "<search><crop>10,20,110,220</crop></search>"


def test_a_crop_is_an_action_only_where_it_is_allowed() -> None:
    assert parse_turn(THINK + CROP, crops=True) == ImageSearch((10, 20, 110, 220))
    assert well_formed(THINK + CROP, crops=True) and searches([CROP], crops=True) == ["image_search"]
    assert parse_turn(THINK + CROP) == parse_turn(THINK + "<search>the tower</search>")
    assert not well_formed(THINK + CROP) and searches([CROP]) == []
    assert parse_turn("<search> <crop> -3 , 0,\n 90,40 </crop>\n</search>", crops=True) == ImageSearch((-3, 0, 90, 40))


@pytest.mark.parametrize(
    "content",
    ["", "<crop></crop>", "<crop>1,2,30</crop>", "<crop>1,2,30,40,50</crop>", "<crop>1.5,2,30,40</crop>", "1,2,30,40"]
    + ["<crop>1,2,30,40", "<img><crop>1,2,30,40</crop>", "<crop>1,2,30,40</crop><crop>1,2,30,40</crop>"]
    + ["<crop>30,2,1,40</crop>", "<crop>1,2,8,40</crop>", "<crop>1,2,30,9</crop>", "<crop>a,b,c,d</crop>"]
    + ["<crop>1,2,30,4000000</crop>", "<crop>\u0661,2,30,40</crop>", "<crop>1 2 30 40</crop>", "the tower"],
)
def test_a_crop_that_says_nothing_is_malformed(content: str) -> None:
    for crops in (True, False):
        action = parse_turn(f"{THINK}<search>{content}</search>", crops)
        assert isinstance(action, Malformed) and action.tool == "image_search" and action.detail
        assert not well_formed(f"{THINK}<search>{content}</search>", crops)


@given(st.sampled_from([IMAGE, TEXT, ANSWER]) | WORDS, st.booleans())
def test_turns_without_a_crop_are_read_as_ever(action: str, thinks: bool) -> None:
    turn = (THINK if thinks else "") + action
    assert well_formed(turn, crops=True) == well_formed(turn) and searches([turn], crops=True) == searches([turn])
    with_crops, without = parse_turn(turn, crops=True), parse_turn(turn)
    assert with_crops == without or (isinstance(with_crops, Malformed) and isinstance(without, Malformed))


def test_spaces_around_the_image_do_not_matter_and_an_empty_answer_is_one() -> None:
    assert parse_turn("<search> <img>\n</search>") == ImageSearch()
    assert parse_turn("<answer> </answer>") == Answer("")


def test_the_first_of_two_actions_is_carried_out() -> None:
    assert parse_turn(f"{THINK}{TEXT}{ANSWER}") == ACTIONS[TEXT]
    assert parse_turn(f"{THINK}{ANSWER}{TEXT}") == ACTIONS[ANSWER]
    assert not well_formed(f"{THINK}{TEXT}{ANSWER}")


@pytest.mark.parametrize("mention", ACTIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_tag_mentioned_in_the_reasoning_is_no_action(mention: str, action: str) -> None:
    turn = f"<reason>I could use {mention} here,\nor not.</reason>{action}"
    assert parse_turn(turn) == ACTIONS[action]
    assert well_formed(turn)
    assert searches([turn]) == searches([action])


@given(st.lists(st.sampled_from([*ACTIONS, "<search>", "</answer>", "so ", "\n"]), max_size=8).map("".join))
def test_nothing_in_closed_reasoning_ever_becomes_an_action(thoughts: str) -> None:
    assert isinstance(parse_turn(f"<reason>{thoughts}</reason>"), Malformed)
    assert parse_turn(f"<reason>{thoughts}</reason> {ANSWER}") == ACTIONS[ANSWER]
    assert searches([f"<reason>{thoughts}</reason>{ANSWER}"]) == []


def test_mentions_in_several_reason_blocks_are_all_passed_over() -> None:
    assert parse_turn(f"<reason>{TEXT}</reason><reason>{IMAGE}</reason>{ANSWER}") == ACTIONS[ANSWER]


@pytest.mark.parametrize("action", ACTIONS)
def test_reasoning_that_is_never_closed_hides_all_but_the_action_that_ends_the_turn(action: str) -> None:
    assert parse_turn(f"<reason>perhaps {action}") == ACTIONS[action]
    assert parse_turn(f"<reason>not {IMAGE} but {action} \n") == ACTIONS[action]
    assert isinstance(parse_turn(f"<reason>perhaps {action} or not"), Malformed)
    assert not well_formed(f"<reason>perhaps {action}")


def test_an_action_before_unclosed_reasoning_counts() -> None:
    assert parse_turn(f"{TEXT}<reason>now I wait {ANSWER} and") == ACTIONS[TEXT]


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("", False),
        ("<reason>", True),
        (f"<reason>say {TEXT}", True),
        (THINK, False),
        (f"{THINK}{TEXT}", False),
        (f"{THINK}<reason>and", True),
        ("</reason>", False),
        ("<reas", False),
    ],
)
def test_reasoning_is_open_until_its_closing_tag(text: str, open_: bool) -> None:
    assert is_open_reason(text) == open_


@given(WORDS.filter(str.strip), st.sampled_from(sorted(ACTIONS)), st.sampled_from(["", " ", "\n\n"]))
def test_one_reason_then_one_action_is_well_formed(thought: str, action: str, space: str) -> None:
    assert well_formed(f"{space}<reason>{thought}</reason>{space}{action}{space}")


@given(st.sampled_from(sorted(ACTIONS)), st.sampled_from(["x", "<reason>", "</answer>", "<search>", "<text_search>"]))
def test_anything_more_than_that_is_not(action: str, more: str) -> None:
    assert not well_formed(THINK + action + more)
    assert not well_formed(more + THINK + action)
    assert not well_formed(THINK + more + action)


@given(st.text() | st.lists(st.sampled_from([f"<{c}{t}>" for t in TAGS for c in ("", "/")]), max_size=9).map("".join))
def test_any_text_has_a_reading(text: str) -> None:
    action = parse_turn(text)
    assert not (well_formed(text) and isinstance(action, Malformed))
    assert searches([text]) == ([action_name(action)] if isinstance(action, ImageSearch | TextSearch) else [])


def test_searches_are_listed_in_order() -> None:
    turns = [THINK + IMAGE, "<search>tower</search>", THINK + TEXT, "thinking", THINK + ANSWER]
    assert searches(turns) == ["image_search", "text_search"]
