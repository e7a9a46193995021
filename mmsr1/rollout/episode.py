"""The episode loop: one coroutine from an example to a finished conversation.

Whatever rolls out calls `run_episode`; a slow tool delays its own episode only. Whatever
goes wrong ends up in `Episode.stop` or in the status of a call, never in an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mmsr1.rollout.crop import crop
from mmsr1.rollout.engines.base import Engine, Sampling
from mmsr1.rollout.protocol import (
    Action,
    ActionName,
    Answer,
    ImageSearch,
    Malformed,
    TextSearch,
    action_name,
    parse_turn,
)
from mmsr1.rollout.renderer import Renderer
from mmsr1.rollout.turn import Clock, Turn, take_turn
from mmsr1.tools.base import Tool
from mmsr1.types import (
    REACHED_TOOL,
    Episode,
    Example,
    Exchange,
    Picture,
    Segment,
    Stop,
    ToolCall,
    ToolName,
    ToolResult,
)

T = TypeVar("T")
Tools = Mapping[ToolName, Tool[Any]]


@dataclass(frozen=True)
class Limits:
    """Bounds of one episode; token counts include expanded images.

    At a limit the model is told so and has its last turn to answer. `on_tool_failure`: `stop` ends the episode (it
    will not be trained on), `tell` reports the failure to the model and goes on; `on_over_budget` likewise, for money
    that the run has no more of (a search beyond `searches` is always told). With `crops` a part of the image may be
    searched by, if the renderer knows the size that the model sees. `actions` are what the first turns must do, each
    for its own reasons (see `turn`): a branch that shows what a search is worth, and is never trained on. `first_turn`
    is said in the model's place: what a fixed workflow does before it asks the model for anything.
    """

    turns: int = 3
    turn_tokens: int = 2048
    episode_tokens: int = 12288
    searches: Mapping[ToolName, int] = field(default_factory=lambda: {"image_search": 1, "text_search": 2})
    on_tool_failure: Literal["stop", "tell"] = "stop"
    on_over_budget: Literal["stop", "tell"] = "tell"
    crops: bool = False
    actions: tuple[ActionName, ...] = ()
    first_turn: str = ""


async def run_episode(
    example: Example,
    engine: Engine,
    tools: Tools,
    renderer: Renderer,
    limits: Limits,
    sampling: Sampling,
    seed: tuple[object, ...],
    rollout: int = 0,
) -> Episode:
    """Let the policy work on `example` until it answers or a limit ends it.

    `seed` (run seed, split, step, ...) with the example, rollout and turn determines every draw of the engine.
    """
    clock = Clock()
    talk = renderer.first(example)
    turns: list[str] = []
    calls: list[Exchange] = []
    stop: Stop = "turn_limit"
    last = limits.turns == 1
    for number in range(limits.turns):
        room = min(limits.turn_tokens, limits.episode_tokens - renderer.length(talk))
        forced = limits.actions[number] if number < len(limits.actions) else None
        key = (*seed, example.id, rollout, number)
        if number == 0 and limits.first_turn:
            turn = Turn((renderer.policy_turn(limits.first_turn),), limits.first_turn, cut=False, ended=False)
        else:
            turn = await take_turn(engine, renderer, talk, room, sampling, key, clock, forced)
        talk += turn.segments
        if turn.failure is not None:
            stop = "engine_failure"
            break
        if turn.segments:  # none if the conversation leaves no room for a turn
            turns.append(turn.text)
        action = _held_to(parse_turn(turn.text, limits.crops), forced)
        if isinstance(action, Answer):
            stop = "answered"
            break
        if turn.cut:
            stop = "length_limit"
            if last:
                break
            last = True
            heard = renderer.cut_notice(not turn.ended)
        elif last or (isinstance(action, Malformed) and action.tool is None):
            stop = "malformed" if isinstance(action, Malformed) else "turn_limit"
            break
        else:
            exchange, ends = await _call(action, number, example, tools, renderer, limits, calls, clock)
            calls.append(exchange)
            if ends:
                stop = "tool_failure"
                break
            last = number + 2 >= limits.turns
            heard, last = _hear(exchange, example, renderer, talk, limits, not turn.ended, last)
        if renderer.length(talk) + renderer.length(heard) + limits.turn_tokens > limits.episode_tokens:
            stop = "length_limit"  # not even the bare notice fits beside a last turn
            break
        talk += heard
    versions = [s.sampled.weight_version for s in talk if s.sampled]
    return Episode(
        example.id, rollout, tuple(talk), tuple(turns), tuple(calls), stop, versions[0] if versions else 0, clock.read()
    )


def _held_to(action: Action, forced: ActionName | None) -> Action:
    """An action of another kind than the forced one, written behind its opening, is none."""
    tool = action.tool if isinstance(action, Malformed) else None
    if forced is None or (action_name(action) in (forced, "malformed") and tool in (None, forced)):
        return action
    return Malformed(f"the turn has to be {forced}", None if forced == "answer" else forced)


async def _call(
    action: ImageSearch | TextSearch | Malformed,
    turn: int,
    example: Example,
    tools: Tools,
    renderer: Renderer,
    limits: Limits,
    calls: list[Exchange],
    clock: Clock,
) -> tuple[Exchange, bool]:
    """Carry out a search within the episode's budget for that tool; and whether the tool's failure ends the episode."""
    box = action.box if isinstance(action, ImageSearch) else None
    asked = await _query(action, example, renderer)
    if isinstance(asked, Malformed):
        call = ToolCall(asked.tool or "text_search", "", box)
        return Exchange(turn, call, ToolResult("malformed_call", detail=asked.detail)), False
    by_image = isinstance(asked, Picture)
    tool: ToolName = "image_search" if by_image else "text_search"
    call = ToolCall(tool, asked.digest if by_image else asked, box)
    made = sum(exchange.call.tool == tool and exchange.result.status in REACHED_TOOL for exchange in calls)
    if made >= limits.searches.get(tool, 0) or tool not in tools:
        detail = f"{made} of {limits.searches.get(tool, 0)} used"
        return Exchange(turn, call, ToolResult("over_budget", detail=detail)), False
    result = await clock.waiting("tools", tools[tool](asked))
    ending = {"infrastructure_error": limits.on_tool_failure, "over_budget": limits.on_over_budget}
    return Exchange(turn, call, result), ending.get(result.status) == "stop"


async def _query(
    action: ImageSearch | TextSearch | Malformed, example: Example, renderer: Renderer
) -> Picture | str | Malformed:
    """What the tool is asked: the image search gets only the image or its part, the text search only the query."""
    if not isinstance(action, ImageSearch):
        return action.query if isinstance(action, TextSearch) else action
    if not example.images:
        return Malformed("the question has no image", "image_search")
    if action.box is None:
        return example.images[0]
    if renderer.seen_size is None:
        return Malformed("nobody knows at which size the model sees the image", "image_search")
    try:
        return await asyncio.to_thread(crop, example.images[0], action.box, renderer.seen_size(example.images[0]))
    except ValueError as error:
        return Malformed(str(error), "image_search")


def _hear(
    exchange: Exchange,
    example: Example,
    renderer: Renderer,
    talk: list[Segment],
    limits: Limits,
    turn_open: bool,
    last: bool,
) -> tuple[list[Segment], bool]:
    """The tool's answer as the model reads it, with room kept for a last turn, and whether that turn is next."""
    room = limits.episode_tokens - renderer.length(talk) - limits.turn_tokens
    heard = renderer.results(exchange.call, exchange.result, example.question, room, turn_open, last)
    if not last and room - renderer.length(heard) < limits.turn_tokens:
        return renderer.results(exchange.call, exchange.result, example.question, room, turn_open, True), True
    return heard, last
