"""The log-prob head against the library's full logits: values, entropies, gradients, whatever the chunk."""

from dataclasses import replace

import pytest
import torch

from mmsr1.models.packing import flatten, pack
from mmsr1.models.policy import Policy
from tests.models.conversations import (
    conversation,
    expand,
    full_logits,
    gradients,
    image_token,
    naive_logprobs,
    patches,
    tiny_model,
)

MODEL = tiny_model()
TALKS = [conversation(seed) for seed in (20, 21)]
BATCH = pack([flatten(talk, patches(), image_token()) for talk in TALKS], patches())
LEARNED = BATCH.loss_mask_T
FACTORS = torch.linspace(-1, 1, int(LEARNED.sum()))


def test_log_probs_and_entropies_equal_those_of_the_full_logits():
    with torch.no_grad():
        stats = Policy(MODEL)(BATCH)
        rows = [full_logits(MODEL, talk)[expand(talk).is_sampled] for talk in TALKS]
        expected = torch.cat([naive_logprobs(MODEL, talk) for talk in TALKS])
    logits = torch.cat(rows)
    torch.testing.assert_close(stats.logprobs_T[LEARNED], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(stats.entropy_T[LEARNED], -(logits.exp() * logits).sum(-1), atol=1e-5, rtol=0)


def test_nothing_is_said_of_tokens_that_are_not_learned():
    with torch.no_grad():
        stats = Policy(MODEL)(BATCH)
    assert not stats.logprobs_T[~LEARNED].any() and not stats.entropy_T[~LEARNED].any()
    assert (stats.logprobs_T[LEARNED] < 0).all() and (stats.entropy_T[LEARNED] > 0).all()


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_values_and_gradients_are_those_of_the_full_logits_whatever_the_chunk(chunk):
    policy = Policy(MODEL, chunk)

    def chunked() -> torch.Tensor:
        stats = policy(BATCH)
        return (stats.logprobs_T[LEARNED] * FACTORS).sum() + 0.1 * stats.entropy_T[LEARNED].sum()

    def full() -> torch.Tensor:
        logits = torch.cat([full_logits(MODEL, talk)[expand(talk).is_sampled] for talk in TALKS])
        ids = torch.cat([expand(talk).ids[expand(talk).is_sampled] for talk in TALKS])
        entropy = -(logits.exp() * logits).sum(-1)
        return (logits.gather(1, ids[:, None])[:, 0] * FACTORS).sum() + 0.1 * entropy.sum()

    assert chunked().item() == pytest.approx(full().item(), abs=1e-4)
    largest = 0.0
    for mine, theirs in zip(gradients(policy, chunked), gradients(policy, full), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
        largest = max(largest, mine.abs().max().item())
    assert largest > 0.1


def test_a_batch_with_nothing_to_learn_stays_attached_to_every_parameter():
    policy = Policy(MODEL)
    silent = replace(BATCH, loss_mask_T=torch.zeros_like(LEARNED))
    stats = policy(silent)
    assert not stats.logprobs_T.any()
    policy.zero_grad()
    stats.logprobs_T.sum().backward()
    vision, language = policy.parameters_by_part()
    for parameter in vision + language:
        assert parameter.grad is not None and not parameter.grad.any()


def test_vision_tower_and_language_model_are_told_apart():
    policy = Policy(MODEL)
    vision, language = policy.parameters_by_part()
    names = {id(p): name for name, p in policy.named_parameters()}
    assert all(".visual." in names[id(p)] for p in vision) and len(vision) > 10
    assert not any(".visual." in names[id(p)] for p in language)
    assert len(vision) + len(language) == len(names)
