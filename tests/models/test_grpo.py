"""The GRPO loss against hand-computed numbers, a naive loop under autograd, and its own split into micro-batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsr1.models.grpo import LossSpec, MiniBatchSize, aggregate, clipped_objective, k3, policy_loss, size_of

MODES = ("token_mean", "sequence_mean", "constant_length")
LN2 = math.log(2.0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


def batch(seed: int, lengths: list[int]) -> dict[str, Tensor]:
    """A random packed batch; about a third of the tokens is not trained, and holds NaN wherever no gradient goes."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    mask_T = torch.rand(count, generator=generator) > 0.35

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    logprobs_T = -normal().abs()
    constants = {
        "old_logprobs_T": logprobs_T + 0.3 * normal(),
        "advantages_T": normal(),
        "weights_T": normal().abs(),
        "reference_logprobs_T": logprobs_T + 0.3 * normal(),
    }
    return {
        **{name: column.masked_fill(~mask_T, math.nan) for name, column in constants.items()},
        "logprobs_T": logprobs_T.requires_grad_(),
        "entropy_T": normal().abs().requires_grad_(),
        "mask_T": mask_T,
        "sequence_ids_T": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
    }


def naive_loss(parts: dict[str, Tensor], spec: LossSpec) -> Tensor:
    """The loss as the papers write it: one token and one sequence at a time."""
    columns = {name: list(column) for name, column in parts.items()}
    per_sequence: dict[int, list[Tensor]] = {}
    for t, trained in enumerate(columns["mask_T"]):
        if not trained:
            continue
        new, ref, advantage = (columns[k][t] for k in ("logprobs_T", "reference_logprobs_T", "advantages_T"))
        ratio = torch.exp(new - columns["old_logprobs_T"][t])
        bounded = torch.clip(ratio, 1 - spec.clip_low, 1 + spec.clip_high)
        loss = -torch.min(ratio * advantage, bounded * advantage)
        loss = loss + spec.kl_weight * (torch.exp(ref - new) - (ref - new) - 1)
        loss = (loss - spec.entropy_weight * columns["entropy_T"][t]) * columns["weights_T"][t]
        per_sequence.setdefault(int(columns["sequence_ids_T"][t]), []).append(loss)
    sequences = list(per_sequence.values())
    everything = torch.stack([token for tokens in sequences for token in tokens])
    if spec.aggregation == "token_mean":
        return everything.mean()
    if spec.aggregation == "sequence_mean":
        return torch.stack([torch.stack(tokens).mean() for tokens in sequences]).mean()
    return everything.sum() / (spec.constant_length * len(sequences))


def test_clipped_objective_in_its_four_cases() -> None:
    # Ratios 2, 2, 1/2, 1/2 with bounds 0.9 and 1.5.
    #   A = +1, ratio 2:   min(2, 1.5)     =  1.5, clipped
    #   A = -1, ratio 2:   min(-2, -1.5)   = -2
    #   A = +1, ratio 1/2: min(0.5, 0.9)   =  0.5
    #   A = -1, ratio 1/2: min(-0.5, -0.9) = -0.9, clipped
    gain_T, clipped_T = clipped_objective(
        tensor(LN2, LN2, -LN2, -LN2), tensor(0, 0, 0, 0), tensor(1, -1, 1, -1), clip_low=0.1, clip_high=0.5
    )
    torch.testing.assert_close(gain_T, tensor(1.5, -2.0, 0.5, -0.9))
    assert clipped_T.tolist() == [True, False, False, True]


def test_k3_by_hand() -> None:
    # d = ref - new = ln 2: 2 - ln 2 - 1 = 0.3069; d = -ln 2: 0.5 + ln 2 - 1 = 0.1931; d = 0: 0.
    estimate_T = k3(tensor(-1.0, -1.0, -1.0), tensor(-1.0 + LN2, -1.0 - LN2, -1.0))
    torch.testing.assert_close(estimate_T, tensor(1.0 - LN2, LN2 - 0.5, 0.0))


def test_aggregate_by_hand() -> None:
    # Sequences (1, 3, [9]) and (5): 9 is not trained. Token sum 9; sequence means 2 and 5.
    values_T, mask_T = tensor(1, 3, 9, 5), torch.tensor([True, True, False, True])
    sequence_ids_T = ids(0, 0, 0, 1)
    size = size_of(mask_T, sequence_ids_T)
    assert size == MiniBatchSize(tokens=3, sequences=2)
    expected = {"token_mean": 9 / 3, "sequence_mean": (2 + 5) / 2, "constant_length": 9 / (10 * 2)}
    for mode, value in expected.items():
        normaliser = size.normaliser(LossSpec(aggregation=mode, constant_length=10))
        assert aggregate(values_T, mask_T, sequence_ids_T, mode, normaliser).item() == pytest.approx(value)


def test_sequences_without_a_trained_token_are_not_counted() -> None:
    mask_T = torch.tensor([True, False, False, True])
    assert size_of(mask_T, ids(0, 0, 1, 2)) == MiniBatchSize(tokens=2, sequences=2)
    assert MiniBatchSize(2, 1) + MiniBatchSize(3, 2) == MiniBatchSize(5, 3)


def test_loss_metrics_and_gradient_by_hand() -> None:
    # Ratios 1, 2 (A = 1, clipped at 1.2) and 1/2 (A = -1, clipped at 0.8); reference = old; the last is not trained.
    logprobs_T = tensor(-1.0, -1.0 + LN2, -1.0 - LN2, -5.0).requires_grad_()
    old_T = tensor(-1.0, -1.0, -1.0, 0.0)
    mask_T = torch.tensor([True, True, True, False])
    output = policy_loss(
        logprobs_T,
        old_T,
        tensor(2.0, 1.0, -1.0, 7.0),
        mask_T,
        ids(0, 0, 1, 1),
        MiniBatchSize(tokens=6, sequences=4),
        LossSpec(kl_weight=0.5),
        reference_logprobs_T=old_T,
    )
    kl = [0.0, LN2 - 0.5, 1.0 - LN2]  # d = 0, -ln 2, +ln 2
    assert output.loss.item() == pytest.approx((-2.0 - 1.2 + 0.8 + 0.5 * sum(kl)) / 6)
    assert output.metrics == {
        "kl": pytest.approx(sum(kl) / 6),
        "entropy": pytest.approx((1.0 + (1.0 - LN2) + (1.0 + LN2)) / 6),  # -log p of the sampled tokens
        "clip_fraction": pytest.approx(2 / 6),
    }
    # d loss / d logp: -A ratio where not clipped, plus 0.5 (1 - exp(d)); all over 6.
    output.loss.backward()
    expected = tensor(-2.0, 0.5 * (1 - 0.5), 0.5 * (1 - 2.0), 0.0) / 6
    torch.testing.assert_close(logprobs_T.grad, expected)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_loss_and_gradients_equal_the_naive_ones(mode: str, seed: int) -> None:
    parts = batch(seed, [5, 1, 7, 3])
    spec = LossSpec(0.1, 0.28, mode, constant_length=11, kl_weight=0.3, entropy_weight=0.2)
    output = policy_loss(**parts, size=size_of(parts["mask_T"], parts["sequence_ids_T"]), spec=spec)
    inputs = (parts["logprobs_T"], parts["entropy_T"])
    expected = naive_loss(parts, spec)
    torch.testing.assert_close(output.loss, expected)
    # The naive loop never touches the untrained tokens; ours must leave exact zeros there, not NaN.
    ours, naive = torch.autograd.grad(output.loss, inputs), torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(ours, naive)
    assert all((gradient[~parts["mask_T"]] == 0).all() for gradient in ours)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 5)))
def test_micro_batches_add_up_to_the_mini_batch(mode: str, seed: int, cuts: set[int]) -> None:
    lengths = [4, 1, 6, 2, 3, 5]
    parts = batch(seed, lengths)
    spec = LossSpec(aggregation=mode, constant_length=9, kl_weight=0.1, entropy_weight=0.1)
    size = size_of(parts["mask_T"], parts["sequence_ids_T"])
    whole = policy_loss(**parts, size=size, spec=spec)
    bounds = [0, *(sum(lengths[:cut]) for cut in sorted(cuts)), sum(lengths)]
    micro = [{k: v[a:b] for k, v in parts.items()} for a, b in zip(bounds, bounds[1:], strict=False)]
    assert sum((size_of(m["mask_T"], m["sequence_ids_T"]) for m in micro), MiniBatchSize(0, 0)) == size

    outputs = [policy_loss(**m, size=size, spec=spec) for m in micro]
    summed = sum(output.loss for output in outputs)
    torch.testing.assert_close(summed, whole.loss)
    leaf = parts["logprobs_T"]
    torch.testing.assert_close(torch.autograd.grad(summed, leaf), torch.autograd.grad(whole.loss, leaf))
    for name, value in whole.metrics.items():
        assert sum(output.metrics[name] for output in outputs) == pytest.approx(value)


def test_metrics_are_means_over_the_trained_tokens() -> None:
    parts = batch(3, [6, 4])
    mask_T = parts["mask_T"]
    size = size_of(mask_T, parts["sequence_ids_T"])
    metrics = policy_loss(**parts, size=size, spec=LossSpec()).metrics
    assert metrics["entropy"] == pytest.approx(parts["entropy_T"][mask_T].mean().item())
    reference = k3(parts["logprobs_T"], parts["reference_logprobs_T"])[mask_T].mean().item()
    assert metrics["kl"] == pytest.approx(reference)
    del parts["reference_logprobs_T"]
    metrics = policy_loss(**parts, size=size, spec=LossSpec()).metrics
    assert metrics["kl"] == pytest.approx(k3(parts["logprobs_T"], parts["old_logprobs_T"])[mask_T].mean().item())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [MiniBatchSize(0, 0), MiniBatchSize(8, 2)])
def test_without_a_trained_token_the_loss_is_zero_and_attached(mode: str, size: MiniBatchSize) -> None:
    logprobs_T = tensor(-math.inf, math.nan, -1.0).requires_grad_()
    nothing_T = torch.zeros(3, dtype=torch.bool)
    spec = LossSpec(aggregation=mode)
    output = policy_loss(logprobs_T, tensor(0, 0, 0), tensor(1, 1, 1), nothing_T, ids(0, 0, 1), size, spec)
    assert output.loss.item() == 0.0
    output.loss.backward()
    assert logprobs_T.grad.tolist() == [0.0, 0.0, 0.0]
    assert set(output.metrics.values()) == {0.0}


def test_a_ratio_beyond_float_range_stays_finite() -> None:
    # exp(200) overflows float32; with a zero advantage inf * 0 would be NaN.
    logprobs_T = torch.tensor([-1.0, -201.0, -1.0], requires_grad=True)
    old_T = torch.tensor([-201.0, -1.0, -1.0])
    mask_T = torch.ones(3, dtype=torch.bool)
    advantages_T = torch.tensor([0.0, 1.0, 1.0])
    output = policy_loss(logprobs_T, old_T, advantages_T, mask_T, ids(0, 0, 0), MiniBatchSize(3, 1), LossSpec())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-1.0 / 3, abs=1e-6)  # gains 0, ~0 and 1
    torch.testing.assert_close(logprobs_T.grad, torch.tensor([0.0, 0.0, -1.0 / 3]), atol=1e-6, rtol=0)
    assert math.isfinite(output.metrics["kl"])


def test_missing_tensors_and_a_wrong_size_are_refused() -> None:
    arguments = (tensor(-1.0), tensor(-1.0), tensor(1.0), torch.tensor([True]), ids(0))
    with pytest.raises(ValueError, match="^kl_weight: 0.1 received without reference_logprobs_T"):
        policy_loss(*arguments, MiniBatchSize(1, 1), LossSpec(kl_weight=0.1))
    with pytest.raises(ValueError, match="^entropy_weight: 0.1 received without entropy_T"):
        policy_loss(*arguments, MiniBatchSize(1, 1), LossSpec(entropy_weight=0.1))
    with pytest.raises(ValueError, match="^size: 0 tokens received, 1 are trained here"):
        policy_loss(*arguments, MiniBatchSize(0, 0), LossSpec())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_low", 0.0),
        ("clip_low", 1.5),
        ("clip_high", -0.2),
        ("clip_high", math.nan),
        ("constant_length", 0),
        ("kl_weight", -1.0),
        ("entropy_weight", math.inf),
    ],
)
def test_a_constant_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{key}: {value!r} received; "):
        LossSpec(**{key: value})


def test_an_unknown_aggregation_is_refused_by_name() -> None:
    # With the jaxtyping import hook on, the type checker refuses the literal before the class does.
    with pytest.raises((ValueError, TypeError), match="aggregation"):
        LossSpec(aggregation="batch_mean")
