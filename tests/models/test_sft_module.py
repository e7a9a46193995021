"""Supervised steps: the weighted likelihood by hand, both optimisers, the schedule."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mmsr1.models.module import OptimSpec
from mmsr1.models.packing import FlatSequence, flatten
from mmsr1.models.policy import Policy
from mmsr1.models.schedule import Schedule
from mmsr1.models.sft_module import Demonstrations, SFTModule
from mmsr1.types import Segment
from tests.models.conversations import (
    conversation,
    full_logits,
    image_token,
    patches,
    picture,
    shown,
    spoken,
    text_conversation,
    tiny_model,
)
from tests.models.fitting import Callback, assert_equal_weights, fit

START = tiny_model()
Weights = list[list[float] | None]


def demonstration(seed: int) -> tuple[tuple[Segment, ...], Weights]:
    """A conversation with weights of 0 to 3 on some of the words in it."""
    draw = random.Random(seed)
    segments = conversation(seed) if seed % 2 else text_conversation(seed)
    return segments, [
        [draw.choice((0.0, 0.3, 1.0, 3.0)) for _ in s.token_ids] if s.sampled is not None else None for s in segments
    ]


TAUGHT = [demonstration(seed) for seed in range(60, 64)]


def laid_out() -> list[FlatSequence]:
    return [flatten(segments, patches(), image_token(), weights=weights) for segments, weights in TAUGHT]


@torch.no_grad()
def loss_by_hand() -> float:
    """Sum of weight * -log p over all taught tokens, divided by the sum of the weights."""
    total = weight = 0.0
    for segments, weights in TAUGHT:
        logits = full_logits(START, segments)
        place = 0
        for segment, given in zip(segments, weights, strict=True):
            for i, token in enumerate(segment.token_ids):
                if token == image_token():
                    t, h, w = patches()(segment.images[0])[1]
                    place += t * h * w // 4
                    continue
                if given is not None:
                    total -= given[i] * logits[place, token].item()
                    weight += given[i]
                place += 1
    return total / weight


class Record(Callback):
    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.figures.append(dict(pl_module.figures))


def train(
    budget: int = 400,
    steps: int = 1,
    lr: float = 1e-3,
    muon_lr: float | None = None,
    schedule: Schedule = "constant",
    freeze_vision: bool = False,
) -> tuple[SFTModule, Record]:
    optim = OptimSpec(lr, schedule, total_steps=steps, muon_lr=muon_lr)
    module = SFTModule(Policy(tiny_model()), patches(), optim, budget, freeze_vision)
    record = Record()
    fit(module, [Demonstrations(step, laid_out()) for step in range(steps)], record)
    return module, record


def changes(module: SFTModule) -> dict[str, float]:
    start = dict(START.named_parameters())
    return {name: (tensor - start[name]).abs().max().item() for name, tensor in module.full_weights()}


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_the_loss_is_the_weighted_likelihood_however_it_is_split(budget):
    _, record = train(budget)
    assert record.figures[0]["loss"] == pytest.approx(loss_by_hand(), rel=1e-5)
    taught = sum(w > 0 for _, weights in TAUGHT for given in weights if given is not None for w in given)
    assert record.figures[0]["tokens_trained"] == taught


def test_the_split_into_micro_batches_does_not_change_the_step():
    whole, _ = train(100_000)
    parts, _ = train(1)
    assert_equal_weights(whole, parts, tolerance=2e-5)


def test_training_lowers_the_loss():
    _, record = train(steps=8)
    losses = [figures["loss"] for figures in record.figures]
    assert losses[-1] < 0.8 * losses[0]


def test_muon_trains_the_matrices_and_adamw_the_rest():
    module, _ = train(muon_lr=0.02)
    optimizers: Any = module.optimizers()
    adamw, muon = optimizers
    ours = {id(p): (name, p) for name, p in module.policy.model.named_parameters()}
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    by_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == ours.keys() and not by_muon & by_adamw
    assert all(p.ndim == 2 and "embed_tokens" not in name for key, (name, p) in ours.items() if key in by_muon)
    assert all(p.ndim != 2 or "embed_tokens" in name for key, (name, p) in ours.items() if key in by_adamw)
    moved = changes(module)
    assert moved["model.language_model.layers.0.mlp.up_proj.weight"] > 1e-4
    assert moved["model.language_model.embed_tokens.weight"] > 1e-4
    assert moved["model.language_model.norm.weight"] > 1e-4
    assert moved["model.visual.blocks.0.attn.qkv.weight"] > 1e-4


def test_without_muon_one_optimiser_trains_everything():
    module, _ = train()
    assert not isinstance(module.optimizers(), list)
    assert min(changes(module)[name] for name, p in START.named_parameters() if "norm" in name) > 1e-4


def test_a_frozen_vision_tower_stays_as_it_was():
    module, _ = train(freeze_vision=True, muon_lr=0.02)
    moved = changes(module)
    assert max(change for name, change in moved.items() if ".visual." in name) == 0
    assert min(change for name, change in moved.items() if "language_model.layers" in name) > 0


def test_both_rates_follow_the_schedule_once_a_training_step():
    _, record = train(steps=4, muon_lr=0.02, lr=1e-3, schedule="linear")
    expected = [[1e-3 * factor, 0.02 * factor] for factor in (1.0, 0.75, 0.5, 0.25)]
    assert [pytest.approx(rates) for rates in expected] == record.rates


def test_a_picture_in_a_demonstration_reaches_the_loss():
    def loss(image) -> float:
        segments = (shown(image), spoken("abc"))
        flat = flatten(segments, patches(), image_token(), weights=[None, [1.0] * len(segments[1].token_ids)])
        module = SFTModule(Policy(tiny_model()), patches(), OptimSpec(1e-3, "constant", 1), 100, False)
        fit(module, [Demonstrations(0, [flat])])
        return module.figures["loss"]

    assert abs(loss(picture(1)) - loss(picture(2))) > 1e-3
