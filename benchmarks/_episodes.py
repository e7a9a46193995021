"""Recorded episodes out of nothing: drawn tokens, noise for pictures, the segments of a real conversation."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from mmsr1.tools.pictures import encode_png
from mmsr1.types import Episode, Example, Group, Picture, Reward, Sampled, Segment, SegmentKind, Timings

FOUND, AFTER_PICTURE = 4, 0


@dataclass(frozen=True)
class Sizes:
    """Of an episode: tokens of the prompt, of each of two results and of each of three answers; pixels of the
    question's picture and of each of four that an image search finds."""

    prompt: int
    result: int
    answer: int
    question_edge: int
    found_edge: int

    @property
    def tokens(self) -> int:
        """Expanded; a token is 28 pixels wide and high."""
        pictures = (self.question_edge // 28) ** 2 + 1 + FOUND * ((self.found_edge // 28) ** 2 + 1)
        return self.prompt + 2 * self.result + 3 * self.answer + pictures

    @property
    def sampled(self) -> int:
        return 3 * self.answer


def groups(count: int, rollouts: int, sizes: Sizes, image_token: int) -> tuple[Group, ...]:
    """`count` questions with `rollouts` episodes each, of which the even ones are better than the odd ones.

    The rollouts share the question and its picture; what a search finds is new every time. Ids are below `image_token`.
    """
    return tuple(_group(number, rollouts, sizes, image_token) for number in range(count))


def _group(number: int, rollouts: int, sizes: Sizes, image_token: int) -> Group:
    draw = random.Random(number)
    question = _picture(draw, sizes.question_edge)
    prompt = _ids(draw, sizes.prompt, image_token)
    episodes = tuple(_episode(draw, number, index, prompt, question, sizes, image_token) for index in range(rollouts))
    advantages = tuple(1.0 if index % 2 else -1.0 for index in range(rollouts))
    rewards = tuple(Reward(advantage, {}) for advantage in advantages)
    example = Example(f"q{number}", "what is it?", (question,), "it", (), "both", "drawn")
    return Group(example, episodes, rewards, advantages, (True,) * rollouts)


def _episode(
    draw: random.Random,
    number: int,
    index: int,
    prompt: tuple[int, ...],
    question: Picture,
    sizes: Sizes,
    image_token: int,
) -> Episode:
    """Prompt, image search, its pictures, text search, its passages, answer."""

    def given(kind: SegmentKind, ids: tuple[int, ...], pictures: tuple[Picture, ...] = ()) -> Segment:
        shown = (image_token, AFTER_PICTURE) * len(pictures)  # two runs of image tokens would be one picture
        return Segment(kind, ids + shown, trusted=True, images=pictures)

    def answer() -> Segment:
        ids = _ids(draw, sizes.answer, image_token)
        return Segment("sampled", ids, trusted=False, sampled=Sampled((-1.0,) * len(ids), 0))

    def result() -> tuple[int, ...]:
        return _ids(draw, sizes.result, image_token)

    found = tuple(_picture(draw, sizes.found_edge) for _ in range(FOUND))
    segments = (
        given("template", prompt, (question,)),
        answer(),
        given("tool_result", result(), found),
        answer(),
        given("tool_result", result()),
        answer(),
    )
    return Episode(f"q{number}", index, segments, ("",) * 3, (), "answered", 0, Timings(0.0, 0.0, 0.0))


def _ids(draw: random.Random, count: int, below: int) -> tuple[int, ...]:
    return tuple(draw.randrange(below) for _ in range(count))


def _picture(draw: random.Random, edge: int) -> Picture:
    image = Image.frombytes("RGB", (edge // 14, edge // 14), draw.randbytes(3 * (edge // 14) ** 2))
    return encode_png(image.resize((edge, edge), Image.Resampling.NEAREST))
