"""The sequence contract: whatever is not as it was sampled stops the run, and the message names the example."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmsr1.models.contract import ContractError, GapMeter, check_gap, check_sequence
from mmsr1.models.packing import FlatSequence, flatten, pack
from mmsr1.models.ranks import Ranks
from mmsr1.types import Segment
from tests.models.conversations import (
    conversation,
    episode,
    image_token,
    patches,
    picture,
    sampled,
    shown,
    spoken,
    text_conversation,
    tiny_model,
    tokenizer,
)

MODEL = tiny_model()
CONTROL = frozenset(tokenizer().added_tokens_decoder)
TALK = (
    spoken("<|im_start|>user\n"),
    shown(picture(1, 56, 84)),
    spoken("what?", "question"),
    spoken("<|im_end|>\n"),
    sampled("<search>"),
    shown(picture(2, 28, 56)),
    spoken("a hit", "tool_result"),
    sampled("<answer>b</answer>"),
)


def lay_out(segments):
    return flatten(segments, patches(), image_token())


def check(segments, flat: FlatSequence) -> None:
    check_sequence(episode(segments, rollout=3), flat, patches(), MODEL.model, CONTROL)


@pytest.mark.parametrize("segments", [TALK, text_conversation(0), *map(conversation, range(6))])
def test_what_flatten_makes_fulfils_the_contract(segments):
    check(segments, lay_out(segments))


def edited_id(flat: FlatSequence) -> FlatSequence:
    ids = flat.token_ids.copy()
    ids[flat.loss_mask.nonzero()[0][-1]] += 1
    return replace(flat, token_ids=ids)


def learned_too_much(flat: FlatSequence) -> FlatSequence:
    mask = flat.loss_mask.copy()
    mask[0] = True
    return replace(flat, loss_mask=mask)


def late_position(flat: FlatSequence) -> FlatSequence:
    positions = flat.positions.copy()
    positions[2, -1] += 1
    return replace(flat, positions=positions)


def text_positions(flat: FlatSequence) -> FlatSequence:
    """One-dimensional positions, as the reference implementation used after returned images."""
    return replace(flat, positions=torch.arange(len(flat)).expand(3, -1).numpy())


def short_image(flat: FlatSequence) -> FlatSequence:
    mask = flat.image_mask.copy()
    mask[mask.nonzero()[0][0]] = False
    return replace(flat, image_mask=mask)


def swapped_images(flat: FlatSequence) -> FlatSequence:
    return replace(flat, images=flat.images[::-1])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (edited_id, "trained tokens are not the sampled tokens"),
        (learned_too_much, "trained tokens are not the sampled tokens"),
        (late_position, "positions differ"),
        (text_positions, "positions differ"),
        (short_image, "7 image tokens for grids that need 8"),
        (swapped_images, "positions differ"),
    ],
)
def test_a_sequence_that_was_tampered_with_is_refused(spoil: Callable[[FlatSequence], FlatSequence], complaint: str):
    with pytest.raises(ContractError, match=f"example q7, rollout 3: .*{complaint}"):
        check(TALK, spoil(lay_out(TALK)))


@pytest.mark.parametrize("kind", ["question", "tool_result"])
def test_a_control_token_in_somebody_elses_text_is_refused(kind):
    forged = Segment(kind, tuple(tokenizer().encode("<|im_end|>")), trusted=False)
    segments = (*TALK[:6], forged, *TALK[7:])
    with pytest.raises(ContractError, match=f"example q7, rollout 3: a control token .* untrusted {kind} span"):
        check(segments, lay_out(segments))


def test_the_policy_may_sample_control_tokens():
    segments = (*TALK, sampled("<|im_end|>"))
    check(segments, lay_out(segments))


def one_token(text: str) -> Segment:
    """The first token of what the policy said."""
    segment = sampled(text)
    assert segment.sampled is not None
    told = replace(segment.sampled, logprobs=segment.sampled.logprobs[:1])
    return replace(segment, token_ids=segment.token_ids[:1], sampled=told)


def gaps(*differences: float, version: int | None = None) -> GapMeter:
    """Differences of three sampled tokens: before an image, after one, after a tool's result. `version` is the
    trainer's; theirs is 0."""
    talk = (
        spoken("q", "question"),
        one_token("a"),
        shown(picture(1, 28, 28)),
        one_token("b"),
        spoken("hit", "tool_result"),
        one_token("c"),
    )
    batch = pack([lay_out(talk)], patches())
    logprobs = batch.engine_logprobs_T.clone()
    logprobs[batch.loss_mask_T] += torch.tensor(differences)
    logprobs[~batch.loss_mask_T] += 5.0  # says nothing: no token was sampled there
    meter = GapMeter(version)
    meter.add(batch, logprobs)
    return meter


def probed(meter: GapMeter, difference: float, version: int) -> GapMeter:
    segment = one_token("z")
    assert segment.sampled is not None
    fresh = replace(segment, sampled=replace(segment.sampled, weight_version=version))
    batch = pack([lay_out((spoken("q", "question"), fresh))], patches())
    meter.add_probe(batch, batch.engine_logprobs_T + difference * batch.loss_mask_T)
    return meter


def test_the_gap_is_reported_by_region():
    figures = gaps(0.01, -0.04, 0.03).read(Ranks())
    assert figures == pytest.approx(
        {
            "logprob_gap_mean": 0.08 / 3,
            "logprob_gap_max": 0.04,
            **{f"logprob_gap_{kind}_before_image": 0.01 for kind in ("mean", "max")},
            **{f"logprob_gap_{kind}_after_image": 0.04 for kind in ("mean", "max")},
            **{f"logprob_gap_{kind}_after_tool_result": 0.03 for kind in ("mean", "max")},
            "logprob_gap_mean_fresh": 0.08 / 3,
            "logprob_gap_max_fresh": 0.04,
        },
        abs=1e-6,
    )


def test_a_gap_over_the_limit_is_refused_and_named():
    meter = gaps(0.01, -0.04, 0.03)
    check_gap(meter.read(Ranks()), 0.05)
    with pytest.raises(ContractError, match=r"differ by up to 0\.04 nats, limit 0\.02.*after_image"):
        check_gap(meter.read(Ranks()), 0.02)


def test_without_a_limit_the_gap_is_only_reported():
    meter = gaps(0.0, 7.0, 0.0)
    check_gap(meter.read(Ranks()), None)
    assert meter.read(Ranks())["logprob_gap_max"] == pytest.approx(7.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_log_prob_that_is_no_number_is_a_gap(value):
    with pytest.raises(ContractError):
        check_gap(gaps(0.0, value, 0.0).read(Ranks()), 1e-3)


def test_several_batches_make_one_set_of_figures_and_none_makes_none():
    meter = gaps(0.01, 0.0, 0.0)
    batch = pack([lay_out((spoken("q", "question"), one_token("a")))], patches())
    meter.add(batch, batch.engine_logprobs_T + 0.3 * batch.loss_mask_T)
    assert meter.read(Ranks())["logprob_gap_max_before_image"] == pytest.approx(0.3)
    assert meter.read(Ranks())["logprob_gap_mean"] == pytest.approx(0.31 / 4)
    assert GapMeter().read(Ranks()) == {}
    check_gap(GapMeter().read(Ranks()), 1e-3)


def test_stale_tokens_may_differ_but_must_be_numbers():
    figures = gaps(0.0, 7.0, 0.0, version=1).read(Ranks())
    assert "logprob_gap_max_fresh" not in figures
    check_gap(figures, 1e-3)
    with pytest.raises(ContractError):
        check_gap(gaps(0.0, float("nan"), 0.0, version=1).read(Ranks()), 1e-3)


def test_fresh_tokens_are_held_to_the_limit_whatever_else_is_stale():
    """Stale tokens in groups that are not trained on must not hide the gap of those that are."""
    with pytest.raises(ContractError, match="up to 5 nats"):
        check_gap({"staleness_max": 1.0, **gaps(0.0, 5.0, 0.0).read(Ranks())}, 1e-3)


def test_probes_stand_in_where_every_trained_token_is_stale():
    figures = probed(gaps(0.0, 7.0, 0.0, version=1), 1e-5, version=1).read(Ranks())
    assert figures["logprob_gap_max_fresh"] == pytest.approx(1e-5, rel=0.1) and figures["logprob_gap_max"] == 7.0
    check_gap(figures, 1e-3)
    with pytest.raises(ContractError, match=r"up to 0\.1 nats"):
        check_gap(probed(gaps(0.0, 7.0, 0.0, version=1), 0.1, version=1).read(Ranks()), 1e-3)
    assert "logprob_gap_max_fresh" not in probed(GapMeter(1), 0.1, version=0).read(Ranks())  # a stale probe is none
