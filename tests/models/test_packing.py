"""Packing: positions, alignment, images once, and the same log-probs as one conversation at a time."""

from dataclasses import replace

import pytest
import torch

from mmsr1.models.packing import REGIONS, by_token_budget, flatten, pack
from mmsr1.models.policy import Policy
from tests.models.conversations import (
    conversation,
    expand,
    gradients,
    image_token,
    library_positions,
    naive_logprobs,
    patches,
    picture,
    sampled,
    shown,
    spoken,
    text_conversation,
    tiny_model,
)

MODEL = tiny_model()
POLICY = Policy(MODEL)


def flat(segments, weights=None):
    return flatten(segments, patches(), image_token(), weights=weights)


@pytest.mark.parametrize("seed", range(12))
def test_ids_positions_and_log_probs_are_laid_out_as_the_library_wants_them(seed):
    segments = conversation(seed)
    one, made = expand(segments), flat(segments)
    assert made.token_ids.tolist() == one.ids.tolist()
    assert made.image_mask.tolist() == one.types.bool().tolist()
    assert made.loss_mask.tolist() == one.is_sampled.tolist()
    assert made.engine_logprobs.tolist() == pytest.approx(one.engine_logprobs)
    assert torch.equal(torch.from_numpy(made.positions), library_positions(MODEL, one))


def test_the_random_conversations_hold_images_of_several_sizes():
    grids = [expand(conversation(seed)).grids for seed in range(12)]
    assert sum(len(found.unique(dim=0)) >= 2 for found in grids if found is not None) >= 6


def test_regions_say_what_stood_before_a_sampled_token():
    first, second, third = sampled("ab"), sampled("cd"), sampled("ef")
    segments = (
        spoken("q", "question"),
        first,
        shown(picture(0, 28, 28)),
        second,
        spoken("found", "tool_result"),
        third,
    )
    made = flat(segments)
    names = [REGIONS[number] for number in made.region]
    said = [name for name, learned in zip(names, made.loss_mask, strict=True) if learned]
    expected = ["before_image", "after_image", "after_tool_result"]
    lengths = [len(segment.token_ids) for segment in (first, second, third)]
    assert said == [name for name, length in zip(expected, lengths, strict=True) for _ in range(length)]
    assert {name for name, learned in zip(names, made.loss_mask, strict=True) if not learned} == {"none"}


def test_demonstrations_learn_the_tokens_that_carry_weight():
    words = spoken("abc")
    weights = [None, [0.0] + [2.5] * (len(words.token_ids) - 1)]
    made = flat((spoken("q", "question"), words), weights)
    asked = len(made) - len(words.token_ids)
    assert made.weights.tolist() == [0.0] * (asked + 1) + [2.5] * (len(words.token_ids) - 1)
    assert made.loss_mask.tolist() == [weight > 0 for weight in made.weights]


@pytest.mark.parametrize("images", [(), (picture(0), picture(1))])
def test_placeholders_and_images_must_be_equally_many(images):
    broken = replace(shown(picture(0)), images=images)
    with pytest.raises(ValueError, match=f"image segment has {len(images)} images and 1 placeholders"):
        flat((spoken("q", "question"), broken, sampled("a")))


@pytest.mark.parametrize("seed", [0, 100, 200])
def test_packed_log_probs_equal_one_conversation_at_a_time(seed):
    talks = [conversation(seed + i) for i in range(5)] + [text_conversation(seed)]
    batch = pack([flat(talk) for talk in talks], patches(), advantages=[float(i) for i in range(6)])
    with torch.no_grad():
        found = POLICY(batch).logprobs_T
        expected = [naive_logprobs(MODEL, talk) for talk in talks]
    for number, logprobs in enumerate(expected):
        mine = batch.loss_mask_T & (batch.sequence_ids_T == number)
        torch.testing.assert_close(found[mine], logprobs, atol=1e-5, rtol=0)
        assert set(batch.advantages_T[batch.sequence_ids_T == number].tolist()) == {float(number)}


def test_a_shared_image_is_encoded_once_with_the_gradient_of_all_its_appearances():
    shared, other = picture(3, 56, 84), picture(4, 28, 28)
    talks = [
        (shown(shared), spoken("q", "question"), sampled("ab"), shown(other), sampled("cd")),
        (shown(other), shown(shared), spoken("why", "question"), sampled("efg")),
        (shown(shared), spoken("q", "question"), sampled("hhh")),
    ]
    once = pack([flat(talk) for talk in talks], patches())
    order = [image for talk in talks for segment in talk for image in segment.images]
    made = [patches()(image) for image in order]
    repeated = replace(
        once,
        pixels=torch.cat([pixels for pixels, _ in made]),
        grids=torch.tensor([grid for _, grid in made]),
        image_order=torch.arange(len(order)),
    )
    assert len(once.grids) == 2 and len(repeated.grids) == 5
    seen = []
    hook = MODEL.model.visual.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    vision, _ = POLICY.parameters_by_part()
    factors = torch.linspace(-1, 1, len(once.token_ids))
    try:
        mine = gradients(POLICY, lambda: (POLICY(once).logprobs_T * factors).sum(), vision)
        theirs = gradients(POLICY, lambda: (POLICY(repeated).logprobs_T * factors).sum(), vision)
    finally:
        hook.remove()
    assert seen == [len(once.pixels), len(repeated.pixels)] and seen[0] < seen[1]
    assert max(grad.abs().max() for grad in mine) > 1e-3
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_batch_without_images_is_the_text_alone_and_still_passes_through_the_vision_tower():
    talks = [text_conversation(seed) for seed in range(3)]
    batch = pack([flat(talk) for talk in talks], patches())
    stats = POLICY(batch)
    expected = torch.cat([naive_logprobs(MODEL, talk) for talk in talks])
    torch.testing.assert_close(stats.logprobs_T[batch.loss_mask_T], expected, atol=1e-5, rtol=0)
    POLICY.zero_grad()
    stats.logprobs_T.sum().backward()
    vision, language = POLICY.parameters_by_part()
    # A gradient of zero, not none: under FSDP the backward of every module is a collective.
    assert all(p.grad is not None and not p.grad.any() for p in vision)
    assert any(p.grad is not None and p.grad.any() for p in language)


def test_a_batch_moves_as_a_whole():
    batch = pack([flat(conversation(1))], patches()).to(torch.device("meta"))
    assert {getattr(batch, name).device.type for name in vars(batch)} == {"meta"}


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 10, []),
        ([3, 3, 4], 10, [[3, 3, 4]]),
        ([3, 3, 5], 10, [[3, 3], [5]]),
        ([12, 1, 1], 10, [[12], [1, 1]]),
        ([1, 12, 1], 10, [[1], [12], [1]]),
    ],
)
def test_micro_batches_keep_the_order_and_the_budget(lengths, budget, expected):
    assert by_token_budget(lengths, lambda length: length, budget) == expected
