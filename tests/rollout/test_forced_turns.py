"""Branches that force an action: the reason is the policy's own, the opening tag is not."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from mmsr1.rollout.engines.base import Completion, Sampling, TokenPrompt
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.episode import Limits, run_episode
from mmsr1.rollout.protocol import searches
from tests.rollout.conversation import SAMPLING, MemoryTool, example, make_renderer, titled

LIMITS = Limits(turns=3, turn_tokens=64, episode_tokens=1024)
REASON = "<reason>I know this flag</reason>"


class Writer:
    """A policy that has a full turn in mind, and goes on with it, or with another end, from wherever it is put."""

    def __init__(self, tokenizer: Any, turns: list[str], ends: dict[str, str]) -> None:
        self.tokenizer, self.turns, self.ends = tokenizer, turns, ends
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Completion:
        text = self.tokenizer.decode(prompt.token_ids)
        turn, begun = text.count("<|im_start|>assistant\n") - 1, text.rpartition("<|im_start|>assistant\n")[2]
        self.calls.append((begun, sampling.stop))
        said = self.turns[turn].removeprefix(begun) if self.turns[turn].startswith(begun) else None
        if said is None or not begun:
            said = said or next(end for tag, end in self.ends.items() if begun.endswith(tag))
        ids: list[int] = []
        for token in self.tokenizer(said, add_special_tokens=False)["input_ids"][: sampling.max_tokens]:
            ids.append(token)
            if any(stop in self.tokenizer.decode(ids) for stop in sampling.stop):
                return Completion(tuple(ids), (-1.0,) * len(ids), "stop", 0)
        ended = len(ids) < sampling.max_tokens
        ids += [self.tokenizer.convert_tokens_to_ids("<|im_end|>")] if ended else []
        return Completion(tuple(ids), (-1.0,) * len(ids), "stop" if ended else "length", 0)


ENDS = {"<search>": "<img></search>", "<text_search>": "river of Dulmen</text_search>", "<answer>": " Kent</answer>"}


def play(tokenizer: Any, turns: list[str], actions: tuple[Any, ...], limits: Limits = LIMITS) -> Any:
    engine = Writer(tokenizer, turns, ENDS)
    found = titled("Dulmen", "Zanzol")
    tools: Any = {name: MemoryTool(name, found) for name in ("image_search", "text_search")}
    renderer = make_renderer(tokenizer)
    forced = replace(limits, actions=actions)
    episode = asyncio.run(run_episode(example(), engine, tools, renderer, forced, SAMPLING, (0,)))
    return episode, engine


@pytest.mark.parametrize("meant", ["<answer> Kent</answer>", "<search><img></search>", "<text_search>x</text_search>"])
@pytest.mark.parametrize("space", ["", "\n", " "])
@pytest.mark.parametrize(
    ("action", "said"), [("answer", "<answer> Kent</answer>"), ("image_search", "<search><img></search>")]
)
def test_the_reason_stays_and_the_action_is_the_forced_one(
    tokenizer: Any, meant: str, space: str, action: Any, said: str
) -> None:
    episode, _ = play(tokenizer, [REASON + space + meant, f"{REASON}<answer> Kent</answer>"], (action, "answer"))
    assert episode.turns[0] == REASON + space + said
    assert episode.stop == "answered"
    assert searches(episode.turns) == ["image_search"] * (action == "image_search")


def test_every_turn_of_a_branch_is_forced_and_later_ones_are_free(tokenizer: Any) -> None:
    direct = f"{REASON}<answer> Kent</answer>"
    episode, _ = play(tokenizer, [direct] * 3, ("image_search", "text_search", "answer"))
    assert [made.call.tool for made in episode.calls] == ["image_search", "text_search"]
    assert episode.calls[1].call.query == "river of Dulmen" and episode.stop == "answered"
    free, _ = play(tokenizer, [direct, f"{REASON}<text_search>x</text_search>", direct], ("image_search",))
    assert [made.call.tool for made in free.calls] == ["image_search", "text_search"], "the second turn is its own"


def test_an_opening_of_its_own_keeps_its_log_probs_and_ours_has_none(tokenizer: Any) -> None:
    same, _ = play(tokenizer, [f"{REASON}<answer> Kent</answer>"], ("answer",))
    own = [segment for segment in same.segments if segment.sampled]
    assert tokenizer.decode([t for s in own for t in s.token_ids]) == f"{REASON}<answer> Kent</answer>"
    other, _ = play(tokenizer, [f"{REASON}<search><img></search>"], ("answer",))
    sampled = "".join(tokenizer.decode(s.token_ids) for s in other.segments if s.sampled)
    assert "<answer>" not in sampled and "<search" not in sampled and sampled.endswith("Kent</answer>")
    assert all(len(s.token_ids) == len(s.sampled.logprobs) for s in other.segments if s.sampled)


def test_a_mention_in_the_reasoning_is_no_action(tokenizer: Any) -> None:
    turn = "<reason>I could <answer>guess</answer> or <search> it</reason><text_search>x</text_search>"
    episode, _ = play(tokenizer, [turn], ("answer",))
    assert episode.turns[0] == "<reason>I could <answer>guess</answer> or <search> it</reason><answer> Kent</answer>"


@pytest.mark.parametrize("hidden", ["<search><img></search>", "<text_search>x</text_search>", "<search>x</search>"])
def test_a_search_behind_a_forced_answer_is_not_made(tokenizer: Any, hidden: str) -> None:
    """`workflow=direct` never searches, nor has a turn of its own after that."""
    turns = [f"{REASON}<answer>{hidden}", f"{REASON}<search><img></search>", f"{REASON}<answer> Kent</answer>"]
    episode, _ = play(tokenizer, turns, ("answer",))
    assert episode.calls == () and len(episode.turns) == 1 and episode.stop == "malformed"


def test_an_image_search_behind_a_forced_text_search_is_a_bad_call(tokenizer: Any) -> None:
    turns = [f"{REASON}<text_search><search><img></search>", f"{REASON}<answer> Kent</answer>"]
    episode, _ = play(tokenizer, turns, ("text_search", "answer"))
    assert [made.result.status for made in episode.calls] == ["malformed_call"] and episode.stop == "answered"


def test_a_turn_without_an_action_gets_one(tokenizer: Any) -> None:
    """The policy ended its turn after its reason: the end is taken back."""
    episode, _ = play(tokenizer, [REASON], ("answer",))
    assert episode.turns == (f"{REASON}<answer> Kent</answer>",) and episode.stop == "answered"


def test_reasoning_without_an_end_cannot_be_forced(tokenizer: Any) -> None:
    long = "<reason>" + "I know this flag " * 80
    limits = replace(LIMITS, turn_tokens=24)
    episode, _ = play(tokenizer, [long, f"{REASON}<answer> Kent</answer>"], ("image_search",), limits)
    assert not episode.calls and "<search>" not in episode.turns[0], "it is told that it was cut, as ever"


def test_without_branches_the_engine_is_asked_as_before(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer)
    engine = ScriptedEngine([f"{REASON}<answer> Kent</answer>"], tokenizer)
    episode = asyncio.run(run_episode(example(), engine, {}, renderer, LIMITS, SAMPLING, (0,)))
    assert len(engine.calls) == 1 and engine.calls[0][1].stop == SAMPLING.stop and episode.stop == "answered"


def test_a_fixed_first_turn_is_said_in_the_models_place(tiny: Any) -> None:
    """A fixed workflow searches by the image before the model is asked for anything; what it said is not learned."""
    first = "<reason>The image is searched for first.</reason><search><img></search>"
    turns = ["never asked", f"{REASON}<text_search>river of Dulmen</text_search>", f"{REASON}<answer> Kent</answer>"]
    fixed = replace(LIMITS, first_turn=first)
    episode, engine = play(tiny, turns, ("image_search", "text_search", "answer"), fixed)
    assert episode.stop == "answered" and episode.turns[0] == first
    assert [made.call.tool for made in episode.calls] == ["image_search", "text_search"]
    assert [made.turn for made in episode.calls] == [0, 1]
    said = [segment for segment in episode.segments if segment.sampled is not None]
    assert "searched for first" not in tiny.decode([token for segment in said for token in segment.token_ids])
    assert all("searched for first" not in begun for begun, _ in engine.calls), "nothing was asked in that turn"
