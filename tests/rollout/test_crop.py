"""Search by a part of the image: the model speaks of what it sees, the original is what is cut."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsr1.rollout.crop import crop
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.episode import Limits, run_episode
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.renderer import Renderer
from mmsr1.run_directory import episode_record
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.types import Episode, Picture, Reward
from tests.rollout.conversation import SAMPLING, MemoryTool, example, image_tokens, make_renderer, titled

ANSWER = "<reason>I know this flag</reason><answer> Dulmen</answer>"
LIMITS = Limits(turns=3, turn_tokens=128, episode_tokens=2048, crops=True)


def quarters() -> Picture:
    """Red, green / blue, white."""
    image = Image.new("RGB", (2, 2))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)])
    return encode_png(image.resize((112, 56), Image.Resampling.NEAREST))


def colours(picture: Picture) -> set[Any]:
    return {colour for _, colour in decode(picture).getcolors() or []}


def asking(box: str) -> str:
    return f"<reason>I look closer</reason><search><crop>{box}</crop></search>"


def play(
    tokenizer: Any, turn: str, limits: Limits = LIMITS, seen: Any = lambda picture: (56, 28), images: Any = None
) -> tuple[Episode, MemoryTool]:
    tool = MemoryTool("image_search", titled("flag of Dulmen", thumbnails=1))
    renderer = Renderer(tokenizer, load_prompts("on_demand_crops"), image_tokens, seen)
    asked = example(images=[quarters()] if images is None else images)
    work = run_episode(
        asked, ScriptedEngine([turn, ANSWER], tokenizer), {"image_search": tool}, renderer, limits, SAMPLING, (0,)
    )
    return asyncio.run(work), tool


def test_the_named_part_of_the_original_is_searched_by(tokenizer: Any) -> None:
    """The model sees half the size, so its right lower quarter begins at (28, 14)."""
    episode, tool = play(tokenizer, asking("28,14,56,28"))
    (searched,) = tool.asked
    assert decode(searched).size == (56, 28) and colours(searched) == {(255, 255, 255)}
    (exchange,) = episode.calls
    assert exchange.call.query == searched.digest and exchange.call.box == (28, 14, 56, 28)
    assert exchange.result.status == "ok" and episode.stop == "answered"
    record = episode_record(example(images=[quarters()]), episode, Reward(1.0, {}))
    assert record["calls"][0]["box"] == [28, 14, 56, 28] and record["calls"][0]["query"] == searched.digest


@pytest.mark.parametrize(
    ("box", "size"),
    [("0,0,56,28", (112, 56)), ("-50,-9,9999,9999", (112, 56)), ("48,20,99,99", (16, 16)), ("1,1,9,9", (16, 16))],
)
def test_the_box_is_scaled_and_cut_at_the_edges(tokenizer: Any, box: str, size: tuple[int, int]) -> None:
    _, tool = play(tokenizer, asking(box))
    assert decode(tool.asked[0]).size == size


@pytest.mark.parametrize("box", ["56,0,90,28", "-40,0,-10,28", "53,0,90,28", "900,900,950,950", "3,3,3,20", "9,9,1,1"])
def test_a_box_beside_the_image_or_too_small_is_a_malformed_call(tokenizer: Any, box: str) -> None:
    episode, tool = play(tokenizer, asking(box))
    (exchange,) = episode.calls
    assert exchange.result.status == "malformed_call" and exchange.call.tool == "image_search" and tool.asked == []
    assert episode.stop == "answered" and exchange.result.detail


def test_where_crops_are_off_or_impossible_it_is_a_malformed_call(tokenizer: Any) -> None:
    off = replace(LIMITS, crops=False)
    for episode, tool in (
        play(tokenizer, asking("0,0,28,28"), off),
        play(tokenizer, asking("0,0,28,28"), seen=None),
        play(tokenizer, asking("0,0,28,28"), images=[]),
    ):
        assert [exchange.result.status for exchange in episode.calls] == ["malformed_call"] and tool.asked == []
        assert episode.stop == "answered"


def test_a_crop_counts_against_the_image_searches(tokenizer: Any) -> None:
    limits = replace(LIMITS, searches={"image_search": 0})
    episode, tool = play(tokenizer, asking("0,0,28,28"), limits)
    assert [exchange.result.status for exchange in episode.calls] == ["over_budget"] and tool.asked == []


def test_allowing_crops_changes_nothing_for_whoever_asks_for_none(tokenizer: Any) -> None:
    turn = "<reason>I do not know</reason><search><img></search>"
    with_crops, without = (play(tokenizer, turn, replace(LIMITS, crops=crops))[0] for crops in (True, False))
    timings = without.timings
    assert replace(with_crops, timings=timings) == without and with_crops.calls[0].call.box is None
    assert make_renderer(tokenizer).seen_size is None


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    seen=st.tuples(st.integers(28, 300), st.integers(28, 300)),
    box=st.tuples(*(st.integers(-400, 400) for _ in range(4))),
)
def test_any_box_gives_a_part_of_the_image_or_a_reason(size: Any, seen: Any, box: Any) -> None:
    picture = encode_png(Image.new("RGB", size, "red"))
    try:
        part = decode(crop(picture, box, seen))
    except ValueError as error:
        assert "8 pixels" in str(error)
    else:
        assert 8 <= part.width <= size[0] and 8 <= part.height <= size[1]
        assert crop(picture, box, seen) == encode_png(part), "the same box is the same query"
