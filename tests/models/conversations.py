"""Conversations with the tiny model: random ones, and the same laid out and scored without this project's packing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from mmsr1.models.images import ImageFeatures  # noqa: E402
from mmsr1.models.policy import Policy  # noqa: E402
from mmsr1.models.tiny import tiny_image_processor  # noqa: E402
from mmsr1.tools.pictures import decode, encode_png  # noqa: E402
from mmsr1.types import Episode, Picture, Sampled, Segment, SegmentKind, Timings  # noqa: E402
from tests.tiny_model import random_weights, tiny_config, tiny_tokenizer  # noqa: E402

SIZES = ((28, 28), (56, 28), (56, 84), (112, 56))
EDGES = {"template": True, "question": False, "image": True, "tool_result": False}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@cache
def patches() -> ImageFeatures:
    return ImageFeatures(tiny_image_processor(), decode)


def image_token() -> int:
    return tokenizer().encode("<|image_pad|>")[0]


def tiny_model(seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return random_weights(tiny_config(tokenizer(), tied=True), seed)


@cache
def picture(seed: int, width: int = 56, height: int = 56) -> Picture:
    """Random coloured patches."""
    noise = random.Random(seed)
    image = Image.new("RGB", (width // 14, height // 14))
    image.putdata([tuple(noise.randrange(256) for _ in range(3)) for _ in range(image.width * image.height)])
    return encode_png(image.resize((width, height), Image.Resampling.NEAREST))


def spoken(text: str, kind: SegmentKind = "template") -> Segment:
    """A segment that somebody else than the policy wrote."""
    return Segment(kind, tuple(tokenizer().encode(text, add_special_tokens=False)), trusted=EDGES[kind])


def shown(image: Picture) -> Segment:
    ids = tokenizer().encode("<|vision_start|><|image_pad|><|vision_end|>", add_special_tokens=False)
    return Segment("image", tuple(ids), trusted=True, images=(image,))


def sampled(text: str, logprob: float = -1.0) -> Segment:
    """A segment that the policy said; every token gets another log-prob, so that none can change places."""
    ids = tuple(tokenizer().encode(text, add_special_tokens=False))
    logprobs = tuple(logprob - i / 64 for i in range(len(ids)))
    return Segment("sampled", ids, trusted=False, sampled=Sampled(logprobs, 0))


def conversation(seed: int) -> tuple[Segment, ...]:
    """Two to four turns; images of several sizes in the question (sometimes none) and in what the tools return."""
    draw = random.Random(seed)

    def some_picture() -> Picture:
        return picture(draw.randrange(6), *draw.choice(SIZES))

    def words(count: int) -> str:
        return "".join(draw.choice("abcdefgh ") for _ in range(count))

    talk = [spoken("<|im_start|>user\n")]
    talk += [shown(some_picture()) for _ in range(draw.randrange(3))]
    talk += [spoken(words(draw.randint(3, 12)), "question"), spoken("<|im_end|>\n<|im_start|>assistant\n")]
    for _ in range(draw.randint(1, 3)):
        talk += [sampled(words(draw.randint(2, 9)), -draw.random()), spoken("<|im_end|>\n<|im_start|>user\n")]
        for _ in range(draw.randint(1, 2)):
            talk += [shown(some_picture()), spoken(words(draw.randint(1, 6)), "tool_result")]
        talk += [spoken("<|im_end|>\n<|im_start|>assistant\n")]
    return (*talk, sampled(words(draw.randint(2, 9)), -draw.random()))


def text_conversation(seed: int) -> tuple[Segment, ...]:
    draw = random.Random(seed)
    return (
        spoken("<|im_start|>user\n"),
        spoken("".join(draw.choice("abcdefgh ") for _ in range(20)), "question"),
        spoken("<|im_end|>\n<|im_start|>assistant\n"),
        sampled("".join(draw.choice("abcdefgh ") for _ in range(12))),
    )


def episode(segments: Sequence[Segment], rollout: int = 0, example_id: str = "q7") -> Episode:
    return Episode(example_id, rollout, tuple(segments), ("said",), (), "answered", 0, Timings(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Expanded:
    """One conversation as the Hugging Face model takes it. Everything is made by a loop over its tokens."""

    ids: torch.Tensor
    types: torch.Tensor
    is_sampled: torch.Tensor
    engine_logprobs: list[float]
    pixels: torch.Tensor | None
    grids: torch.Tensor | None

    @property
    def image_tensors(self) -> dict[str, torch.Tensor]:
        if self.pixels is None or self.grids is None:
            return {}
        return {"pixel_values": self.pixels, "image_grid_thw": self.grids}


def expand(segments: Sequence[Segment]) -> Expanded:
    ids: list[int] = []
    types: list[int] = []
    is_sampled: list[bool] = []
    engine: list[float] = []
    made = [patches()(image) for segment in segments for image in segment.images]
    counts = iter([t * h * w // 4 for _, (t, h, w) in made])
    for segment in segments:
        for place, token in enumerate(segment.token_ids):
            count = next(counts) if token == image_token() else 1
            ids += [token] * count
            types += [int(token == image_token())] * count
            is_sampled += [segment.sampled is not None] * count
            engine += [segment.sampled.logprobs[place] if segment.sampled else 0.0] * count
    return Expanded(
        torch.tensor(ids),
        torch.tensor(types),
        torch.tensor(is_sampled),
        engine,
        torch.cat([pixels for pixels, _ in made]) if made else None,
        torch.tensor([grid for _, grid in made]) if made else None,
    )


def library_positions(model: Qwen2_5_VLForConditionalGeneration, one: Expanded) -> torch.Tensor:
    """[3, L], as transformers computes them."""
    backbone: Any = model.model  # annotated with legacy tensor classes
    positions, _ = backbone.get_rope_index(one.ids[None], one.types[None], image_grid_thw=one.grids)
    return positions[:, 0]


def full_logits(model: Qwen2_5_VLForConditionalGeneration, segments: Sequence[Segment]) -> torch.Tensor:
    """Log-distributions [L, V]; row t is what the model says of token t (row 0 is of no use)."""
    one = expand(segments)
    logits = model(
        input_ids=one.ids[None],
        position_ids=library_positions(model, one)[:, None],
        mm_token_type_ids=one.types[None],
        **one.image_tensors,
    ).logits[0]
    return logits.float().log_softmax(-1).roll(1, 0)


def naive_logprobs(model: Qwen2_5_VLForConditionalGeneration, segments: Sequence[Segment]) -> torch.Tensor:
    """log p of the sampled tokens, in order, from one unpacked forward of the library's model."""
    one = expand(segments)
    return full_logits(model, segments).gather(1, one.ids[:, None])[:, 0][one.is_sampled]


@torch.no_grad()
def as_sampled_by(model: Qwen2_5_VLForConditionalGeneration, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The conversation with the log-probs that an engine of these weights would have reported."""
    left = naive_logprobs(model, segments).tolist()
    told = []
    for segment in segments:
        if segment.sampled is not None:
            logprobs, left = left[: len(segment.token_ids)], left[len(segment.token_ids) :]
            segment = replace(segment, sampled=Sampled(tuple(logprobs), 0))
        told.append(segment)
    return tuple(told)


def gradients(
    policy: Policy, scalar: Callable[[], torch.Tensor], parameters: Sequence[torch.nn.Parameter] | None = None
) -> list[torch.Tensor]:
    """Gradient of `scalar()` for each of `parameters` (all of the policy's where absent)."""
    policy.zero_grad()
    scalar().backward()
    chosen = list(policy.parameters()) if parameters is None else parameters
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in chosen]
