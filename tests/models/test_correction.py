"""Importance weights against hand-computed numbers, and what they are for: an unbiased gradient off policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmsr1.models.correction import Correction, CorrectionMeter, CorrectionSpec, Level, correct
from mmsr1.models.grpo import LossSpec, MiniBatchSize, policy_loss
from mmsr1.models.ranks import Ranks

# Two sequences of three tokens; the first token of each was not sampled.
MASK = torch.tensor([False, True, True, False, True, True])
SEQUENCES = torch.tensor([0, 0, 0, 1, 1, 1])
ENGINE = torch.tensor([-9.0, -1.0, -2.0, -9.0, -3.0, -1.0])
GAPS = torch.tensor([5.0, 0.1, -0.3, -5.0, 1.0, 0.2])


def found(**spec: Any) -> Correction:
    return correct(ENGINE + GAPS, ENGINE, MASK, SEQUENCES, CorrectionSpec(**spec))


def test_off_weighs_everything_alike():
    assert found().weights_T.tolist() == [1.0] * 6 and not found().truncated_T.any()


def test_a_token_is_weighed_by_its_own_ratio_up_to_the_cap():
    weights = found(level="token", cap=2.0)
    expected = [1.0, math.exp(0.1), math.exp(-0.3), 1.0, 2.0, math.exp(0.2)]
    assert weights.weights_T.tolist() == pytest.approx(expected)
    assert weights.truncated_T.tolist() == [False, False, False, False, True, False]


def test_a_sequence_is_weighed_by_its_mean_log_ratio():
    weights = found(level="sequence", cap=1.5)
    first, second = math.exp((0.1 - 0.3) / 2), 1.5  # exp(0.6) is cut
    assert weights.weights_T.tolist() == pytest.approx([1.0, first, first, 1.0, second, second])
    assert weights.truncated_T.tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize("level", ["off", "token", "sequence"])
def test_a_token_beyond_the_gap_limit_contributes_nothing(level: Level):
    weights = found(level=level, mask_above=0.25)
    assert weights.masked_T.tolist() == [False, False, True, False, True, False]
    assert (weights.weights_T == 0).tolist() == weights.masked_T.tolist()


def test_a_masked_token_says_nothing_of_its_conversation():
    """One conversation of four tokens, of which one is far off or no number: the others keep weight 1."""
    four, one = torch.ones(4).bool(), torch.zeros(4, dtype=torch.int64)
    for far in (17.0, float("nan")):
        trainer = torch.tensor([-1.0, -1.0, -1.0, far])
        weights = correct(trainer, -torch.ones(4), four, one, CorrectionSpec("sequence", mask_above=1.0))
        assert weights.weights_T.tolist() == [1.0, 1.0, 1.0, 0.0] and not weights.truncated_T.any()


def test_what_is_no_number_is_masked():
    trainer = (ENGINE + GAPS).index_fill(0, torch.tensor([1]), math.nan)
    weights = correct(trainer, ENGINE, MASK, SEQUENCES, CorrectionSpec("token", mask_above=10.0))
    assert weights.masked_T.tolist() == [False, True, False, False, False, False] and weights.weights_T[1] == 0


def test_nothing_sampled_is_no_special_case():
    nothing = torch.zeros(6, dtype=torch.bool)
    for level in ("off", "token", "sequence"):
        weights = correct(ENGINE + GAPS, ENGINE, nothing, SEQUENCES, CorrectionSpec(level, mask_above=0.1))
        assert weights.weights_T.tolist() == [1.0] * 6


def test_the_meter_counts_trained_tokens_alone():
    meter = CorrectionMeter()
    assert meter.read(Ranks()) == {"importance_weight_mean": 1.0, "importance_truncated": 0.0, "tokens_masked_gap": 0.0}
    for _ in range(2):
        meter.add(found(level="token", cap=1.15, mask_above=0.25), MASK)
    figures = meter.read(Ranks())
    assert figures["importance_weight_mean"] == pytest.approx((math.exp(0.1) + 1.15) / 4)
    assert figures["importance_truncated"] == 0.25 and figures["tokens_masked_gap"] == 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"cap": 0.5}, "cap"),
        ({"mask_above": 0.0}, "mask_above"),
        ({"cap": math.nan}, "cap"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=f"^{named}: "):
        CorrectionSpec(**settings)


def gradient(level: Level, logits: Tensor, engine: Tensor, rewards: Tensor, draws: Tensor) -> Tensor:
    """The loss's gradient at `logits` for one-token answers that were drawn from `engine`."""
    policy = logits.clone().requires_grad_()
    logprobs = policy.log_softmax(-1)[draws]
    everywhere, each = torch.ones(len(draws), dtype=torch.bool), torch.arange(len(draws))
    old = logprobs.detach()
    weights = correct(old, engine.log_softmax(-1)[draws], everywhere, each, CorrectionSpec(level, cap=100.0)).weights_T
    size = MiniBatchSize(len(draws), len(draws))
    out = policy_loss(logprobs, old, rewards[draws], everywhere, each, size, LossSpec(), weights_T=weights)
    out.loss.backward()
    assert policy.grad is not None
    return policy.grad


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_off_policy_the_gradient_is_biased_without_the_correction_and_right_with_it(level: Level):
    logits, engine = torch.tensor([0.0, 0.5, 1.0, -0.5]), torch.tensor([0.6, 0.0, 0.2, 0.3])
    rewards = torch.tensor([1.0, -0.5, 0.2, -0.7])
    draws = torch.multinomial(engine.softmax(-1), 400_000, replacement=True, generator=torch.Generator().manual_seed(0))
    # d/dlogits of -E_policy[reward], exactly.
    chances = logits.softmax(-1)
    exact = -chances * (rewards - (chances * rewards).sum())
    biased = (gradient("off", logits, engine, rewards, draws) - exact).norm()
    corrected = (gradient(level, logits, engine, rewards, draws) - exact).norm()
    assert biased > 0.1 * exact.norm()
    assert corrected < 0.015 * exact.norm()
