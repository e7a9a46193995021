"""The product's packed path beside the library's model on one conversation at a time, over random episodes.

The other path shares the weights and the patches of the pictures with the product, and nothing else: it expands the
placeholders in a loop, lets `Qwen2_5_VLForConditionalGeneration` find its own positions, encodes every image where it
stands, and takes the full log-softmax.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmsr1.batch import Batch
from mmsr1.models.packing import by_token_budget, flatten, pack
from mmsr1.models.policy import Policy
from mmsr1.types import Picture, Segment
from tests.models.conversations import SIZES, expand, image_token, patches, picture, sampled, shown, spoken, tiny_model

Gradients = dict[str, torch.Tensor]
TURNS, IMAGES, BUDGET = (1, 4), (1, 6), 640


@dataclass(frozen=True)
class Differences:
    """The largest found: log-probs in nats, gradients as |a - b| / |b| in the norm of each parameter.

    `gradient` is packed against one by one; `vision_once` the vision tower with each image encoded once against every
    appearance encoded by itself, in the same packed batches; `saved` the share of patches that were not encoded again.
    """

    logprob: float
    gradient: float
    vision_once: float
    saved: float
    turns: frozenset[int]
    images: frozenset[int]
    largest_pack: int


def compare(episodes: int, seed: int) -> Differences:
    """Everything over `episodes` random episodes, packed in their order into micro-batches of BUDGET tokens."""
    talks = [random_episode(seed * 100_003 + index) for index in range(episodes)]
    packs = by_token_budget(talks, lambda talk: len(expand(talk).ids), BUDGET)
    found = torch.tensor([_compare_pack(talks, index) for index, talks in enumerate(packs)])
    # The maximum of tensors, unlike Python's, is NaN where anything is.
    logprob, gradient, vision = found[:, :3].amax(0).tolist()
    once, repeated = found[:, 3:].sum(0).tolist()
    return Differences(
        logprob=logprob,
        gradient=gradient,
        vision_once=vision,
        saved=1 - once / repeated,
        turns=frozenset(sum(segment.sampled is not None for segment in talk) for talk in talks),
        images=frozenset(sum(len(segment.images) for segment in talk) for talk in talks),
        largest_pack=max(len(talks) for talks in packs),
    )


def random_episode(seed: int) -> tuple[Segment, ...]:
    """1 to 4 turns and 1 to 6 images of several sizes, one of them in the question at least where there is one turn.

    The pictures come from a pool of a dozen, so that episodes share them.
    """
    draw = random.Random(seed)
    turns, images = draw.randint(*TURNS), draw.randint(*IMAGES)
    places = [draw.randrange(turns) for _ in range(images)]
    talk = [spoken("<|im_start|>user\n")]
    for turn in range(turns):
        if turn:
            talk.append(spoken("<|im_end|>\n<|im_start|>user\n"))
        for _ in range(places.count(turn)):
            number = draw.randrange(12)
            talk.append(shown(picture(number, *SIZES[number % len(SIZES)])))
            if turn:
                talk.append(spoken(_words(draw, 1, 12), "tool_result"))
        if not turn:
            talk.append(spoken(_words(draw, 3, 12), "question"))
        talk += [spoken("<|im_end|>\n<|im_start|>assistant\n"), sampled(_words(draw, 2, 16))]
    return tuple(talk)


@cache
def models() -> tuple[Policy, torch.nn.Module]:
    """The product's policy, and the library's model with the same weights and none of its tensors."""
    model = tiny_model(1)
    return Policy(copy.deepcopy(model)), model


def _compare_pack(talks: Sequence[tuple[Segment, ...]], index: int) -> tuple[float, float, float, int, int]:
    """(log-prob, gradient and vision differences, patches encoded once, patches of all appearances)."""
    policy, library = models()
    once, repeated = _packed(talks), _packed(list(_with_own_copies(talks)))
    generator = torch.Generator().manual_seed(index)
    # What the gradients are of: the log-probs times factors of either sign, other ones for every token.
    factors = torch.rand(int(once.loss_mask_T.sum()), generator=generator) * 2 - 1
    mine, my_gradients = _score_packed(policy, once, factors)
    _, repeated_gradients = _score_packed(policy, repeated, factors)
    theirs, their_gradients = _score_one_by_one(library, talks, factors)
    tower = {name: gradient for name, gradient in repeated_gradients.items() if ".visual." in name}
    return (
        (mine - theirs).abs().max().item(),
        _apart(my_gradients, their_gradients),
        _apart({name: my_gradients[name] for name in tower}, tower),
        len(once.pixels),
        len(repeated.pixels),
    )


def _packed(talks: Sequence[tuple[Segment, ...]]) -> Batch:
    return pack([flatten(talk, patches(), image_token()) for talk in talks], patches())


def _score_packed(policy: Policy, batch: Batch, factors: torch.Tensor) -> tuple[torch.Tensor, Gradients]:
    policy.zero_grad()
    logprobs = policy(batch).logprobs_T[batch.loss_mask_T]
    (logprobs * factors).sum().backward()
    return logprobs.detach(), _gradients(policy.model)


def _score_one_by_one(
    library: torch.nn.Module, talks: Sequence[tuple[Segment, ...]], factors: torch.Tensor
) -> tuple[torch.Tensor, Gradients]:
    library.zero_grad()
    found: list[torch.Tensor] = []
    for talk in talks:
        one = expand(talk)
        logits = library(input_ids=one.ids[None], mm_token_type_ids=one.types[None], **one.image_tensors).logits[0]
        before = logits[:-1].log_softmax(-1).gather(1, one.ids[1:, None])[:, 0]
        said = before[one.is_sampled[1:]]
        start = sum(len(logprobs) for logprobs in found)
        (said * factors[start : start + len(said)]).sum().backward()
        found.append(said.detach())
    return torch.cat(found), _gradients(library)


def _gradients(model: torch.nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _apart(mine: Gradients, theirs: Gradients) -> float:
    """The largest relative difference over the parameters, which must be the same."""
    if mine.keys() != theirs.keys() or not mine:
        raise AssertionError(f"gradients of different parameters: {sorted(mine.keys() ^ theirs.keys())}")
    return torch.stack([(mine[name] - theirs[name]).norm() / theirs[name].norm() for name in mine]).max().item()


def _with_own_copies(talks: Sequence[tuple[Segment, ...]]) -> Iterator[tuple[Segment, ...]]:
    """The same pixels, but other bytes, and so another digest, for every appearance of a picture."""
    number = 0
    for talk in talks:
        copied = []
        for segment in talk:
            copied.append(replace(segment, images=tuple(_copy(p, number + i) for i, p in enumerate(segment.images))))
            number += len(segment.images)
        yield tuple(copied)


@cache
def _copy(image: Picture, number: int) -> Picture:
    note, buffer = PngInfo(), io.BytesIO()
    note.add_text("copy", str(number))
    Image.open(io.BytesIO(image.data)).save(buffer, format="PNG", pnginfo=note)
    return Picture(buffer.getvalue())


def _words(draw: random.Random, least: int, most: int) -> str:
    return "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(least, most)))
