"""GRPO training steps on hand-made groups: what moves, what must not, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.contract import ContractError
from mmsr1.models.correction import CorrectionSpec
from mmsr1.models.grpo import LossSpec
from mmsr1.models.grpo_module import ON_POLICY, Encoding, GRPOModule
from mmsr1.models.module import OptimSpec
from mmsr1.models.policy import Policy
from mmsr1.types import Example, Group, Reward, Sampled, Segment, StepPrompts
from tests.models.conversations import (
    as_sampled_by,
    conversation,
    episode,
    image_token,
    naive_logprobs,
    patches,
    tiny_model,
    tokenizer,
)
from tests.models.fitting import Callback, Trainer, assert_equal_weights, fit

Talk = tuple[Segment, ...]
START = tiny_model()
# As an engine with the weights of START would have sampled them.
TALKS = [as_sampled_by(START, conversation(seed)) for seed in range(40, 50)]


def group(talks: Sequence[Talk], advantages: Sequence[float], trained: Sequence[bool] | None = None) -> Group:
    example = Example("q7", "what?", (), "a", (), "free", "test")
    return Group(
        example,
        tuple(episode(talk, rollout) for rollout, talk in enumerate(talks)),
        tuple(Reward(advantage, {}) for advantage in advantages),
        tuple(advantages),
        tuple(trained) if trained is not None else (True,) * len(talks),
    )


def pair(first: int) -> Group:
    """Two of the conversations, one better than the other."""
    return group(TALKS[first : first + 2], [1.0, -1.0])


class Feed(Callback):
    """Stands in for the rollout callback: puts the groups of each step, and keeps the figures of each."""

    def __init__(self, steps: Sequence[Sequence[Group]]) -> None:
        self.steps = steps
        self.figures: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.buffer.put(batch.step, tuple(self.steps[batch.step]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.figures.append(dict(pl_module.figures))


def module(
    lr: float = 1e-3,
    mini_batches: int = 1,
    loss: LossSpec | None = None,
    token_budget: int = 400,
    gap_limit: float | None = 1e-3,
    freeze_vision: bool = False,
    correction: CorrectionSpec = ON_POLICY,
    max_staleness: int = 2,
) -> GRPOModule:
    encoding = Encoding(patches(), image_token(), 2, frozenset(tokenizer().added_tokens_decoder))
    return GRPOModule(
        Policy(tiny_model()),
        RolloutBuffer(),
        encoding,
        loss or LossSpec(),
        OptimSpec(lr, "constant", total_steps=10),
        mini_batches,
        token_budget,
        gap_limit,
        freeze_vision,
        correction=correction,
        max_staleness=max_staleness,
    )


def train(one: GRPOModule, *steps: Sequence[Group]) -> tuple[list[dict[str, float]], Trainer]:
    """The figures of each step, and the trainer."""
    feed = Feed(steps)
    trainer = fit(one, [StepPrompts(step, ()) for step in range(len(steps))], feed)
    return feed.figures, trainer


def moved(one: GRPOModule, part: str = "") -> float:
    """Largest change of a weight whose name contains `part` since the start."""
    start = dict(START.named_parameters())
    changes = [(tensor - start[name]).abs().max().item() for name, tensor in one.full_weights() if part in name]
    return max(changes)


def test_a_step_makes_the_better_episode_likelier_and_the_worse_one_rarer():
    one = module(lr=3e-4)
    figures, _ = train(one, [pair(0)])
    with torch.no_grad():
        better, worse = (
            (naive_logprobs(one.policy.model, talk) - naive_logprobs(START, talk)).sum().item() for talk in TALKS[:2]
        )
    assert better > 0.05 and worse < -0.05
    assert figures[0]["logprob_gap_max"] < 1e-5
    assert figures[0]["kl"] == pytest.approx(0, abs=1e-9) and figures[0]["clip_fraction"] == 0
    assert figures[0]["tokens_trained"] == sum(e.sampled_tokens for e in pair(0).episodes_G)
    assert figures[0]["grad_norm"] > 0


@pytest.mark.parametrize(("mini_batches", "steps"), [(1, 1), (2, 2), (3, 3), (4, 4), (8, 5)])
def test_a_step_has_as_many_optimiser_steps_as_mini_batches(mini_batches, steps):
    groups = [pair(first) for first in (0, 2, 4, 6, 8)]
    _, trainer = train(module(mini_batches=mini_batches), groups)
    assert trainer.global_step == steps


def test_the_ratio_is_taken_to_the_weights_before_the_first_mini_batch():
    groups = [pair(0), pair(0)]
    once, _ = train(module(lr=3e-4, mini_batches=1), groups)
    twice, _ = train(module(lr=3e-4, mini_batches=2), groups)
    assert once[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert twice[0]["kl"] > 1e-6


def test_the_token_budget_changes_nothing_but_memory():
    groups = [pair(0), pair(2)]
    whole, parts = module(token_budget=100_000), module(token_budget=1)
    first, _ = train(whole, groups)
    second, _ = train(parts, groups)
    assert_equal_weights(whole, parts, tolerance=2e-5)
    assert first[0] == pytest.approx(second[0], abs=1e-4)


def test_groups_without_an_advantage_are_skipped_and_counted():
    flat = group(TALKS[4:6], [0.0, 0.0])
    with_them, without = module(), module()
    figures, _ = train(with_them, [flat, pair(0), flat])
    expected, _ = train(without, [pair(0)])
    assert_equal_weights(with_them, without)
    assert figures[0] == {**expected[0], "zero_advantage_groups": 2}
    assert expected[0]["zero_advantage_groups"] == 0


def test_a_step_without_any_advantage_leaves_the_weights_alone_and_the_next_one_trains():
    flat = group(TALKS[4:6], [0.0, 0.0])
    one, other = module(), module()
    figures, trainer = train(one, [flat, flat], [pair(0)])
    train(other, [pair(0)])
    assert figures[0]["tokens_trained"] == 0 and figures[0]["grad_norm"] == 0
    assert figures[0]["zero_advantage_groups"] == 2
    assert trainer.global_step == 1
    assert_equal_weights(one, other)


def test_an_untrained_episode_contributes_nothing():
    failed = (*TALKS[5][:-1], replace(TALKS[5][-1], sampled=Sampled((-99.0,) * len(TALKS[5][-1].token_ids), 0)))
    with_it, without = module(), module()
    # Neither an advantage that somebody left on it nor what the engine said of it may matter.
    figures, _ = train(with_it, [group([*TALKS[:2], failed], [1.0, -1.0, 0.7], [True, True, False])])
    expected, _ = train(without, [pair(0)])
    assert_equal_weights(with_it, without)
    assert figures == expected


def test_a_group_whose_only_advantages_are_untrained_is_a_zero_advantage_group():
    one = module()
    figures, _ = train(one, [group(TALKS[:2], [1.0, 0.0], [False, True])])
    assert figures[0]["zero_advantage_groups"] == 1 and moved(one) == 0


def test_the_kl_term_refers_to_the_weights_of_the_start():
    spec = LossSpec(kl_weight=0.5)
    one, free = module(lr=3e-4, loss=spec, gap_limit=None), module(lr=3e-4, gap_limit=None)
    figures, _ = train(one, [pair(0)], [pair(2)])
    train(free, [pair(0)], [pair(2)])
    assert figures[0]["kl"] == pytest.approx(0, abs=1e-9)

    # One step away from the reference: the second step's figure by hand, from a twin that made only the first.
    twin = module(lr=3e-4, loss=spec)
    train(twin, [pair(0)])
    with torch.no_grad():
        difference = torch.cat(
            [naive_logprobs(START, talk) - naive_logprobs(twin.policy.model, talk) for talk in TALKS[2:4]]
        )
    assert figures[1]["kl"] == pytest.approx((difference.exp() - difference - 1).mean().item(), rel=1e-3)
    assert figures[1]["kl"] > 1e-6
    # The pull shows in the weights from the second step on, and the reference is not part of what is saved.
    assert max((w - dict(free.full_weights())[n]).abs().max() for n, w in one.full_weights()) > 0
    assert len(one.state_dict()) == len(free.state_dict())


def test_a_frozen_vision_tower_stays_as_it_was():
    frozen, free = module(freeze_vision=True), module()
    train(frozen, [pair(0)])
    train(free, [pair(0)])
    assert moved(frozen, ".visual.") == 0 and moved(frozen, ".language_model.") > 0
    assert moved(free, ".visual.") > 0


def off_by(talk: Talk, difference: float) -> Talk:
    """As if the engine had other weights: the last token's log-prob is wrong."""
    last = talk[-1]
    assert last.sampled is not None
    logprobs = (*last.sampled.logprobs[:-1], last.sampled.logprobs[-1] + difference)
    return (*talk[:-1], replace(last, sampled=Sampled(logprobs, 0)))


def test_a_gap_to_the_engine_stops_training_before_anything_moves():
    one = module(gap_limit=1e-3)
    with pytest.raises(ContractError, match=r"differ by up to 0\.01 nats"):
        train(one, [group([TALKS[0], off_by(TALKS[1], 0.01)], [1.0, -1.0])])
    assert moved(one) == 0


def test_without_a_limit_the_gap_is_measured_and_the_trainers_own_log_probs_train():
    strict, loose = module(), module(gap_limit=None)
    train(strict, [pair(0)])
    figures, _ = train(loose, [group([TALKS[0], off_by(TALKS[1], 0.5)], [1.0, -1.0])])
    assert figures[0]["logprob_gap_max"] == pytest.approx(0.5, abs=1e-4)
    assert_equal_weights(strict, loose)


def test_an_episode_that_breaks_the_contract_stops_training():
    forged = replace(TALKS[1][0], kind="tool_result", trusted=False)  # holds <|im_start|>
    with pytest.raises(ContractError, match="example q7, rollout 1: a control token"):
        train(module(), [group([TALKS[0], (forged, *TALKS[1][1:])], [1.0, -1.0])])


def test_groups_of_another_step_are_refused():
    class Late(Feed):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.buffer.put(batch.step + 1, tuple(self.steps[0]))

    with pytest.raises(RuntimeError, match=r"holds steps \[1\]; step 0 was asked for"):
        fit(module(), [StepPrompts(0, ())], Late([[pair(0)]]))


def test_a_full_buffer_and_a_step_put_twice_are_refused():
    buffer = RolloutBuffer(capacity=2)
    buffer.put(0, (pair(0),))
    with pytest.raises(RuntimeError, match="cannot add 0"):
        buffer.put(0, (pair(2),))
    buffer.put(1, (pair(2),))
    with pytest.raises(RuntimeError, match="cannot add 2"):
        buffer.put(2, (pair(4),))
    assert buffer.take(1).groups[0].episodes_G == pair(2).episodes_G
    with pytest.raises(RuntimeError, match="step 1 was asked for"):
        buffer.take(1)


def said_by_others(talk: Talk, shift: float, version: int = 0) -> Talk:
    """The same tokens from an engine that gave each of them `shift` nats less."""
    return tuple(
        segment
        if segment.sampled is None
        else replace(segment, sampled=Sampled(tuple(p - shift for p in segment.sampled.logprobs), version))
        for segment in talk
    )


def test_a_correction_weighs_the_loss_of_every_token():
    """Log-probs that differ by the same amount everywhere weigh everything alike: the gradient norm shows it."""
    ratio = 1.25
    shifted = group([said_by_others(talk, math.log(ratio)) for talk in TALKS[:2]], [1.0, -1.0])
    settings: dict[str, Any] = {"gap_limit": None, "lr": 1e-6}
    plain, _ = train(module(**settings), [pair(0)])
    for correction in (CorrectionSpec("token"), CorrectionSpec("sequence")):
        weighed, _ = train(module(**settings, correction=correction), [shifted])
        assert weighed[0]["grad_norm"] == pytest.approx(ratio * plain[0]["grad_norm"], rel=1e-3)
        assert weighed[0]["importance_weight_mean"] == pytest.approx(ratio, rel=1e-3)
    off, _ = train(module(**settings), [shifted])
    assert off[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-5)


def test_tokens_beyond_the_gap_limit_are_masked_and_counted():
    far = group([said_by_others(talk, 0.5) for talk in TALKS[:2]], [1.0, -1.0])
    one = module(gap_limit=None, correction=CorrectionSpec(mask_above=0.25))
    figures, _ = train(one, [far])
    assert figures[0]["tokens_masked_gap"] == figures[0]["tokens_trained"] > 0
    assert figures[0]["grad_norm"] == 0 and moved(one) == 0


def test_older_weights_are_told_apart_and_bounded():
    old = group([said_by_others(talk, 0.5, version=0) for talk in TALKS[2:4]], [1.0, -1.0])
    new = group([said_by_others(talk, 0.0, version=1) for talk in TALKS[:2]], [1.0, -1.0])
    figures, _ = train(module(lr=1e-7), [pair(0)], [old, new])
    assert figures[0]["staleness_max"] == 0
    assert figures[0]["logprob_gap_max_fresh"] == figures[0]["logprob_gap_max"] < 1e-3
    # What stale tokens differ by is no fault of the engine: only the fresh ones are held to the limit.
    assert figures[1]["staleness_max"] == 1 and 0 < figures[1]["staleness_mean"] < 1
    assert figures[1]["logprob_gap_max"] > 0.4 > 1e-3 > figures[1]["logprob_gap_max_fresh"]
    with pytest.raises(ContractError, match=r"1 updates old, limit 0 \(rollout.max_staleness\)"):
        train(module(max_staleness=0), [pair(0)], [old])
    with pytest.raises(ContractError, match=r"-1 updates old"):
        train(module(), [new])
