"""The chunked head against full logits: values, gradients, and where the gradient of the head ends up."""

from __future__ import annotations

import pytest
import torch

from mmsr1.models.logprob_head import token_logprobs


def naive(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = (hidden @ weight.t()).log_softmax(-1)
    return log_p.gather(1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(13, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(21, 8, generator=generator, dtype=torch.float64)
    return hidden, weight, torch.randint(21, (13,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
def test_values_and_gradients_equal_the_full_logits(chunk: int, entropy_weight: float) -> None:
    hidden, weight, target = inputs()
    slopes = torch.linspace(-1, 1, 13)
    results = []
    for function in (lambda h, w: token_logprobs(h, w, target, chunk), lambda h, w: naive(h, w, target)):
        h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
        logprob, entropy = function(h, w)
        loss = (slopes * logprob).sum()
        if entropy_weight:
            loss = loss + entropy_weight * (entropy * slopes.flip(0)).sum()
        loss.backward()
        results.append((logprob.detach(), entropy.detach(), h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_an_existing_gradient_is_added_to_in_place() -> None:
    hidden, weight, target = (t.float() if t.is_floating_point() else t for t in inputs())
    weight.requires_grad_()
    before = torch.full_like(weight, 0.5)
    weight.grad = before
    token_logprobs(hidden, weight, target, 4)[0].sum().backward()
    assert weight.grad is before
    fresh = weight.detach().clone().requires_grad_()
    naive(hidden, fresh, target)[0].sum().backward()
    torch.testing.assert_close(before, fresh.grad + 0.5, atol=2e-5, rtol=2e-5)


def test_two_uses_in_one_graph_add_up() -> None:
    hidden, weight, target = (t.float() if t.is_floating_point() else t for t in inputs())
    weight.requires_grad_()
    first, second = hidden[:6], hidden[6:]
    (
        token_logprobs(first, weight, target[:6], 4)[0].sum() + token_logprobs(second, weight, target[6:], 4)[0].sum()
    ).backward()
    whole = weight.detach().clone().requires_grad_()
    naive(hidden, whole, target)[0].sum().backward()
    torch.testing.assert_close(weight.grad, whole.grad, atol=2e-5, rtol=2e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, target = (t.float() if t.is_floating_point() else t for t in inputs())
    hidden.requires_grad_()
    token_logprobs(hidden, weight, target, 4)[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
