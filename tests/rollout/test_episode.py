"""The episode loop: every way through it and out of it, with a scripted model and tools in memory."""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr1.rollout.engines.base import EngineFailure
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.episode import Limits, run_episode
from mmsr1.types import Episode, Example, ToolResult
from tests.rollout.conversation import (
    SAMPLING,
    MemoryTool,
    TokenEngine,
    example,
    ids_of,
    image_tokens,
    make_renderer,
    picture,
    text_of,
    titled,
)

IMAGE = "<reason>I do not know this flag</reason><search><img></search>"
TEXT = "<reason>I read the results</reason><text_search>capital of Dulmen</text_search>"
ANSWER = "<reason>I know this flag</reason><answer> Dulmen</answer>"
SHOWN, TOLD = titled("the flag of Dulmen", "flag of Zanzol", thumbnails=1), titled("Dulmen", "Zanzol")
LIMITS = Limits(turns=3, turn_tokens=64, episode_tokens=1024)


def tools(image: Any = SHOWN, text: Any = TOLD) -> dict[Any, MemoryTool]:
    return {"image_search": MemoryTool("image_search", image), "text_search": MemoryTool("text_search", text)}


class Play:
    """One episode with a script of turns (or an engine), and what engine and tools saw of it."""

    def __init__(
        self,
        tokenizer: Any,
        turns: Any,
        searches: Mapping[Any, Any] | None = None,
        limits: Limits = LIMITS,
        asked: Example | None = None,
        seed: tuple[object, ...] = (0, "train", 1),
        rollout: int = 0,
        prompts: str = "emblem",
    ) -> None:
        self.renderer = make_renderer(tokenizer, prompts)
        self.engine: Any = turns if hasattr(turns, "generate") else ScriptedEngine(turns, tokenizer)
        self.tools = tools() if searches is None else searches
        self.example = asked or example()
        self.episode: Episode = asyncio.run(
            run_episode(self.example, self.engine, self.tools, self.renderer, limits, SAMPLING, seed, rollout)
        )
        self.text = text_of(tokenizer, self.episode.segments)
        self.length = self.renderer.length(self.episode.segments)

    @property
    def statuses(self) -> list[str]:
        return [exchange.result.status for exchange in self.episode.calls]

    def heard_before(self, turn: int) -> str:
        """The whole prompt of one engine call."""
        return self.renderer.tokenizer.decode(self.engine.calls[turn][0].token_ids)


def check_contract(play: Play) -> None:
    """What holds for every episode: the engine was sent exactly the segments, in order, and nothing was edited."""
    episode, ids = play.episode, ids_of(play.episode.segments)
    pad = play.renderer.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert episode.example_id == play.example.id
    for prompt, _ in play.engine.calls:
        assert list(prompt.token_ids) == ids[: len(prompt.token_ids)]
        shown = list(itertools.chain.from_iterable(s.images for s in episode.segments))
        assert prompt.token_ids.count(pad) == len(prompt.images)
        assert list(prompt.images) == shown[: len(prompt.images)]
    said = [s for s in episode.segments if s.sampled is not None]
    assert "".join(play.renderer.decode(s.token_ids) for s in said) == "".join(episode.turns)
    assert episode.timings.total_s >= episode.timings.engine_s >= 0 and episode.timings.tools_s >= 0


def test_a_direct_answer(tokenizer: Any) -> None:
    play = Play(tokenizer, [ANSWER])
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == (ANSWER,) and play.episode.calls == ()
    assert play.text.endswith(ANSWER), "nothing follows the answer"
    assert [segment.kind for segment in play.episode.segments] == [
        "template",
        "image",
        "question",
        "template",
        "sampled",
    ]
    assert play.episode.sampled_tokens == len(tokenizer(ANSWER)["input_ids"])


def test_an_image_search_gets_the_picture_and_nothing_else(tokenizer: Any) -> None:
    asked = example(images=[picture(1), picture(2)])
    play = Play(tokenizer, [IMAGE, ANSWER], asked=asked)
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == (IMAGE, ANSWER)
    assert play.tools["image_search"].asked == [asked.images[0]] and play.tools["text_search"].asked == []
    (exchange,) = play.episode.calls
    assert (exchange.turn, exchange.call.tool, exchange.call.query) == (0, "image_search", asked.images[0].digest)
    assert exchange.result == SHOWN and "the flag of Dulmen" in play.heard_before(1)
    assert play.engine.calls[1][0].images == (*asked.images, SHOWN.items[0].thumbnail)


def test_a_text_search_gets_the_query_and_nothing_else(tokenizer: Any) -> None:
    query = "capital of </answer><|im_start|> é"
    play = Play(tokenizer, [f"<reason>r</reason><text_search>\n{query} </text_search>", ANSWER])
    check_contract(play)
    assert play.tools["text_search"].asked == [query] and play.tools["image_search"].asked == []
    assert play.episode.calls[0].call.query == query and "text of Dulmen" in play.heard_before(1)


def test_image_then_text_then_answer(tokenizer: Any) -> None:
    play = Play(tokenizer, [IMAGE, TEXT, ANSWER])
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == (IMAGE, TEXT, ANSWER)
    assert [(e.turn, e.call.tool, e.result.status) for e in play.episode.calls] == [
        (0, "image_search", "ok"),
        (1, "text_search", "ok"),
    ]
    kinds = [key for key, _ in itertools.groupby(segment.kind for segment in play.episode.segments)]
    assert kinds.count("sampled") == 3 and kinds[-1] == "sampled"


def test_the_last_turn_is_announced_only_before_it(tokenizer: Any) -> None:
    play = Play(tokenizer, [IMAGE, TEXT, ANSWER])
    notice = play.renderer.prompts.last_turn
    assert notice not in play.heard_before(1) and play.heard_before(2).count(notice) == 1
    alone = Play(tokenizer, [IMAGE, ANSWER], limits=replace(LIMITS, turns=2))
    assert alone.heard_before(1).count(notice) == 1


@pytest.mark.parametrize("last", [IMAGE, TEXT])
def test_a_search_in_the_last_turn_is_not_made(tokenizer: Any, last: str) -> None:
    play = Play(tokenizer, [TEXT, last], limits=replace(LIMITS, turns=2))
    check_contract(play)
    assert play.episode.stop == "turn_limit" and len(play.episode.calls) == 1
    assert play.episode.turns == (TEXT, last) and play.text.endswith(last)


def test_a_single_turn_leaves_no_search(tokenizer: Any) -> None:
    play = Play(tokenizer, [IMAGE], limits=replace(LIMITS, turns=1))
    assert play.episode.stop == "turn_limit" and play.tools["image_search"].asked == []
    assert Play(tokenizer, [ANSWER], limits=replace(LIMITS, turns=1)).episode.stop == "answered"


@pytest.mark.parametrize("turn", ["I think it is Dulmen.<|im_end|>", "<reason>r</reason>", "<answer>Dulmen"])
def test_a_turn_without_an_action_ends_the_episode(tokenizer: Any, turn: str) -> None:
    play = Play(tokenizer, [turn])
    check_contract(play)
    assert play.episode.stop == "malformed" and play.episode.turns == (turn.removesuffix("<|im_end|>"),)
    assert Play(tokenizer, [IMAGE, TEXT, turn]).episode.stop == "malformed"


@pytest.mark.parametrize(
    ("turn", "tool"),
    [("<search>the tower</search>", "image_search"), ("<text_search> </text_search>", "text_search")],
)
def test_a_malformed_call_is_told_and_costs_no_search(tokenizer: Any, turn: str, tool: str) -> None:
    limits = Limits(turns=4, turn_tokens=64, episode_tokens=1024, searches={"image_search": 1, "text_search": 1})
    play = Play(tokenizer, [turn, IMAGE, TEXT, ANSWER], limits=limits)
    check_contract(play)
    assert play.episode.stop == "answered" and play.statuses == ["malformed_call", "ok", "ok"]
    assert play.episode.calls[0].call.tool == tool
    assert play.renderer.prompts.bad_call in play.heard_before(1)


def test_an_image_search_without_an_image_is_a_malformed_call(tokenizer: Any) -> None:
    play = Play(tokenizer, [IMAGE, ANSWER], asked=example(images=[]))
    assert play.episode.stop == "answered" and play.statuses == ["malformed_call"]
    assert play.tools["image_search"].asked == []


@pytest.mark.parametrize(("turn", "tool", "limit"), [(IMAGE, "image_search", 1), (TEXT, "text_search", 2)])
def test_over_the_budget_of_a_tool_the_model_is_told_and_still_answers(
    tokenizer: Any, turn: str, tool: Any, limit: int
) -> None:
    play = Play(tokenizer, [turn] * (limit + 1) + [ANSWER], limits=replace(LIMITS, turns=limit + 2))
    check_contract(play)
    assert play.episode.stop == "answered" and play.statuses == ["ok"] * limit + ["over_budget"]
    assert len(play.tools[tool].asked) == limit
    notice = play.renderer.prompts.over_budget
    assert notice in play.heard_before(limit + 1) and notice not in play.heard_before(limit)


def test_the_budgets_of_the_tools_are_separate_and_a_missing_tool_has_none(tokenizer: Any) -> None:
    limits = Limits(turns=4, turn_tokens=64, episode_tokens=1024, searches={"image_search": 1, "text_search": 1})
    assert Play(tokenizer, [TEXT, IMAGE, ANSWER], limits=limits).statuses == ["ok", "ok"]
    assert Play(tokenizer, [TEXT, IMAGE, TEXT, ANSWER], limits=limits).statuses == ["ok", "ok", "over_budget"]
    only_text = {"text_search": tools()["text_search"]}
    assert Play(tokenizer, [IMAGE, TEXT, ANSWER], only_text, limits=limits).statuses == ["over_budget", "ok"]


@pytest.mark.parametrize("status", ["empty", "ok"])
def test_a_search_that_finds_nothing_counts_and_the_model_is_told(tokenizer: Any, status: Any) -> None:
    play = Play(tokenizer, [IMAGE, IMAGE, ANSWER], tools(image=ToolResult(status)))
    assert play.statuses == [status, "over_budget"]
    if status == "empty":
        assert play.renderer.prompts.no_results in play.heard_before(1)


def test_a_failed_tool_stops_the_episode_or_is_told(tokenizer: Any) -> None:
    failing = ToolResult("infrastructure_error", detail="time-out")
    stopped = Play(tokenizer, [IMAGE, ANSWER], tools(image=failing))
    check_contract(stopped)
    assert stopped.episode.stop == "tool_failure" and stopped.statuses == ["infrastructure_error"]
    assert stopped.text.endswith(IMAGE)
    told = Play(tokenizer, [IMAGE, ANSWER], tools(image=failing), replace(LIMITS, on_tool_failure="tell"))
    check_contract(told)
    assert told.episode.stop == "answered" and told.statuses == ["infrastructure_error"]
    assert told.renderer.prompts.tool_failed in told.heard_before(1)


def test_an_engine_failure_is_an_outcome(tokenizer: Any) -> None:
    first = Play(tokenizer, [EngineFailure("gone")])
    check_contract(first)
    assert first.episode.stop == "engine_failure" and first.episode.turns == () and first.episode.sampled_tokens == 0
    later = Play(tokenizer, [IMAGE, EngineFailure("gone")])
    check_contract(later)
    assert later.episode.stop == "engine_failure" and later.episode.turns == (IMAGE,)
    assert len(later.episode.calls) == 1


def test_an_engine_that_fails_within_a_turn_leaves_what_was_said(tokenizer: Any) -> None:
    play = Play(tokenizer, ["<reason>maybe <search><img></search>", EngineFailure("gone")])
    assert play.episode.stop == "engine_failure" and play.text.endswith("maybe <search><img></search>")


def test_a_tag_in_the_reasoning_does_not_end_the_turn(tokenizer: Any) -> None:
    """Reference defect 11. The stop string ends the engine's call; the turn goes on after it."""
    parts = [
        "<reason>I could <search><img></search>",
        " or <text_search>q</text_search>",
        " but no</reason><answer>x</answer>",
    ]
    play = Play(tokenizer, parts)
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == ("".join(parts),) and play.episode.calls == ()
    assert [s.kind for s in play.episode.segments].count("sampled") == 3
    assert [text_of(tokenizer, [s]) for s in play.episode.segments if s.sampled] == parts
    rooms = [sampling.max_tokens for _, sampling in play.engine.calls]
    spent = [len(tokenizer(part)["input_ids"]) for part in parts]
    assert rooms == [64, 64 - spent[0], 64 - spent[0] - spent[1]], "one turn, one allowance"
    assert len({sampling.seed for _, sampling in play.engine.calls}) == 3


def test_open_reasoning_that_the_model_ends_itself_ends_the_turn(tokenizer: Any) -> None:
    play = Play(tokenizer, ["<reason>so <answer>Dulmen</answer>", "<|im_end|>"])
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == ("<reason>so <answer>Dulmen</answer>",)


def test_a_turn_that_the_model_ends_itself_is_not_ended_twice(tokenizer: Any) -> None:
    stopped = Play(tokenizer, [IMAGE, ANSWER])
    ended = Play(tokenizer, [f"{IMAGE}<|im_end|>", f"{ANSWER}<|im_end|>"])
    check_contract(ended)
    assert ended.text == f"{stopped.text}<|im_end|>" and "<|im_end|><|im_end|>" not in ended.text
    assert ended.episode.turns == stopped.episode.turns


def test_a_turn_cut_at_its_limit_has_one_more_to_answer(tokenizer: Any) -> None:
    limits = replace(LIMITS, turn_tokens=12)
    play = Play(tokenizer, ["<reason>" + "flag " * 40, "<answer> x</answer>"], limits=limits)
    check_contract(play)
    assert play.episode.stop == "answered" and len(play.episode.turns) == 2
    notice = play.renderer.prompts.turn_cut + play.renderer.prompts.last_turn
    assert f"<|im_end|>\n<|im_start|>user\n{notice}<|im_end|>\n<|im_start|>assistant\n" in play.heard_before(1)
    assert [len(s.token_ids) for s in play.episode.segments if s.sampled][0] == 12


def test_a_cut_turn_gets_no_second_chance_and_makes_no_search(tokenizer: Any) -> None:
    long = "<reason>" + "flag " * 40
    twice = Play(tokenizer, [long, long], limits=replace(LIMITS, turn_tokens=12))
    check_contract(twice)
    assert twice.episode.stop == "length_limit" and len(twice.episode.turns) == 2
    search = Play(tokenizer, [long, "<search><img></search>"], limits=replace(LIMITS, turn_tokens=12))
    assert search.episode.stop == "turn_limit" and search.tools["image_search"].asked == []
    only = Play(tokenizer, [long], limits=replace(LIMITS, turn_tokens=12, turns=1))
    assert only.episode.stop == "length_limit" and only.text.endswith("flag")


def test_a_conversation_near_its_token_limit_gets_fewer_results_and_a_last_turn(tokenizer: Any) -> None:
    many = titled(*(f"flag of Dulmen {n}" for n in range(30)), thumbnails=30)
    whole = Play(tokenizer, [IMAGE, ANSWER], tools(image=many), replace(LIMITS, episode_tokens=4096))
    assert "Dulmen 29" in whole.text and whole.renderer.prompts.last_turn not in whole.text
    limits = replace(LIMITS, episode_tokens=whole.length - 40, turns=5)
    play = Play(tokenizer, [IMAGE, ANSWER], tools(image=many), limits)
    check_contract(play)
    assert play.episode.stop == "answered" and play.length <= limits.episode_tokens
    assert "Dulmen 9" in play.text and "Dulmen 29" not in play.text
    assert play.heard_before(1).count(play.renderer.prompts.last_turn) == 1, "no room for two more turns"
    assert play.engine.calls[1][1].max_tokens == limits.turn_tokens, "the last turn has its full room"
    assert play.episode.calls[0].result == many, "the record keeps what the tool returned"


def test_no_room_even_for_a_notice_ends_the_episode_after_the_turn(tokenizer: Any) -> None:
    first = Play(tokenizer, [ANSWER]).renderer
    start = first.length(first.first(example()))
    for turn in (IMAGE, "<reason>" + "flag " * 80):
        limits = Limits(turns=3, turn_tokens=64, episode_tokens=start + 64 + 10)
        play = Play(tokenizer, [turn], limits=limits)
        check_contract(play)
        assert play.episode.stop == "length_limit" and play.episode.segments[-1].sampled is not None
        assert play.length <= limits.episode_tokens


def test_a_question_longer_than_the_limit_is_not_asked(tokenizer: Any) -> None:
    play = Play(tokenizer, [], limits=Limits(turns=3, turn_tokens=4, episode_tokens=12))
    assert play.episode.stop == "length_limit" and play.episode.turns == () and play.engine.calls == []
    assert play.episode.segments == tuple(play.renderer.first(play.example)), "no notice is piled on top"


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(
        st.sampled_from([IMAGE, TEXT, ANSWER, "<search>x</search>", "<reason>" + "flag " * 60, f"{TEXT}<|im_end|>"])
        | st.sampled_from(["<reason>or <search><img></search>", "<reason>r</reason>", "<|im_end|>"]),
        min_size=6,
        max_size=6,
    ),
    limits=st.builds(
        Limits,
        turns=st.integers(1, 5),
        turn_tokens=st.integers(5, 60),
        episode_tokens=st.integers(10, 400),
        searches=st.fixed_dictionaries({"image_search": st.integers(0, 2), "text_search": st.integers(0, 2)}),
        on_tool_failure=st.sampled_from(["stop", "tell"]),
    ),
    image=st.sampled_from([SHOWN, ToolResult("infrastructure_error"), ToolResult("empty")]),
)
def test_no_script_breaks_the_limits_or_the_contract(tiny: Any, turns: list[str], limits: Limits, image: Any) -> None:
    script = itertools.cycle(turns)
    play = Play(tiny, ScriptedEngine(lambda prompt, sampling: next(script), tiny), tools(image=image), limits)
    check_contract(play)
    first = play.renderer.first(play.example)
    assert play.length <= max(limits.episode_tokens, play.renderer.length(first))
    assert len(play.episode.turns) <= limits.turns
    assert play.episode.segments[-1].sampled is not None or not play.episode.turns
    for name, allowed in limits.searches.items():
        assert len(play.tools[name].asked) <= allowed
    assert (play.episode.stop == "answered") == ("</answer>" in "".join(play.episode.turns[-1:]))
    assert play.episode.stop != "tool_failure" or limits.on_tool_failure == "stop"


def seeds(tokenizer: Any, **more: Any) -> list[int]:
    return [sampling.seed for _, sampling in Play(tokenizer, [IMAGE, TEXT, ANSWER], **more).engine.calls]


def test_every_request_has_a_seed_of_its_own_and_always_the_same(tiny: Any) -> None:
    variants: list[Callable[[], list[int]]] = [
        lambda: seeds(tiny),
        lambda: seeds(tiny, rollout=1),
        lambda: seeds(tiny, asked=example("other")),
        lambda: seeds(tiny, seed=(0, "train", 2)),
        lambda: seeds(tiny, seed=(0, "val", 1)),
        lambda: seeds(tiny, seed=(1, "train", 1)),
    ]
    drawn = [variant() for variant in variants]
    assert drawn == [variant() for variant in variants]
    flat = [seed for variant in drawn for seed in variant]
    assert len(set(flat)) == len(flat) == 18 and all(0 <= seed < 2**31 for seed in flat)


def test_the_seed_does_not_depend_on_what_was_said(tiny: Any) -> None:
    other = Play(tiny, [TEXT, IMAGE, ANSWER])
    assert [sampling.seed for _, sampling in other.engine.calls] == seeds(tiny)


def test_sampling_settings_reach_the_engine(tiny: Any) -> None:
    for _, sampling in Play(tiny, [IMAGE, ANSWER]).engine.calls:
        assert replace(sampling, seed=0, max_tokens=64) == SAMPLING


@pytest.mark.parametrize("tail", ["", "\n", "\n\n", ".", " x", "<|im_end|>", "\n<|im_end|>"])
@pytest.mark.parametrize("search", [IMAGE, TEXT])
def test_sampled_ids_stay_as_they_were_sampled(tokenizer: Any, search: str, tail: str) -> None:
    """Reference defect 6. With Qwen's tokens a stop string ends inside one (`>` + newline): it is not cut."""
    engine = TokenEngine(tokenizer, [search + tail, ANSWER + tail])
    play = Play(tokenizer, engine)
    check_contract(play)
    assert play.episode.stop == "answered" and len(play.episode.calls) == 1
    assert [s.token_ids for s in play.episode.segments if s.sampled] == engine.given
    assert all(s.sampled.logprobs == (-0.5,) * len(s.token_ids) for s in play.episode.segments if s.sampled)
    assert play.episode.weight_version == 7
    said = engine.given[0]
    assert list(said) == engine.turns[0][: len(said)]
    follows = ids_of(play.episode.segments)[len(engine.calls[0][0].token_ids) + len(said) :]
    assert tokenizer.decode(follows).startswith("<|im_end|>\n<|im_start|>user\n")


def test_qwens_merged_bracket_is_kept_whole(qwen: Any) -> None:
    play = Play(qwen, TokenEngine(qwen, [f"{IMAGE}\n", ANSWER]))
    said = next(s for s in play.episode.segments if s.sampled)
    assert qwen.convert_ids_to_tokens(said.token_ids[-1]) == ">Ċ"
    assert play.episode.turns[0] == f"{IMAGE}\n" and "</search>\n<|im_end|>\n<|im_start|>user\n" in play.text


def test_a_mention_that_ends_inside_a_token_is_still_a_mention(tokenizer: Any) -> None:
    """`</search></reason>`: with Qwen's tokens the stop string ends in `></`, the middle of the next tag."""
    turn = "<reason>no need for <search><img></search></reason>\n<answer>Dulmen</answer>"
    engine = TokenEngine(tokenizer, [turn])
    play = Play(tokenizer, engine)
    check_contract(play)
    assert play.episode.stop == "answered" and play.episode.turns == (turn,) and play.episode.calls == ()
    assert list(itertools.chain.from_iterable(engine.given)) == engine.turns[0]
    assert len(engine.given) == 2


def test_a_cut_in_the_middle_of_a_tag_is_no_action(qwen: Any) -> None:
    cut = len(qwen(IMAGE)["input_ids"]) - 1
    play = Play(qwen, TokenEngine(qwen, [IMAGE, "<answer>x</answer>"]), limits=replace(LIMITS, turn_tokens=cut))
    check_contract(play)
    assert play.tools["image_search"].asked == [] and play.episode.turns[0] == IMAGE[:-1]


def test_the_length_counts_expanded_pictures(tiny: Any) -> None:
    large = example(images=[picture(3, 280)])
    assert image_tokens(large.images[0]) == 100
    play = Play(tiny, [], limits=replace(LIMITS, episode_tokens=100), asked=large)
    assert play.episode.stop == "length_limit" and play.engine.calls == []
    small = Play(tiny, [ANSWER], limits=replace(LIMITS, episode_tokens=100))
    assert small.episode.stop == "answered"
