"""The benchmark of a whole training step, at the size that a CPU can take."""

from __future__ import annotations

import pytest
import torch

from benchmarks._episodes import FOUND, Sizes, groups
from benchmarks.full_step import PATCHES, measure, real, small
from mmsr1.models.packing import flatten


def test_a_step_takes_the_memory_that_is_planned() -> None:
    found = measure("tiny", simulate=False)
    assert found["ratio"] == pytest.approx(1, abs=0.1)
    assert found["peak_gib"] / found["planner_gib"] == pytest.approx(found["ratio"])
    assert (found["size"], found["episodes"], found["tokens"]) == ("tiny", 16, 16 * small().sizes.tokens)
    assert found["tokens_per_second"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="8 billion parameters need a GPU")
def test_a_step_of_the_7b_model_takes_the_memory_that_is_planned() -> None:
    found = measure("7b")
    assert found["ratio"] == pytest.approx(1, abs=0.1)


def test_drawn_episodes_have_the_sizes_asked_for() -> None:
    sizes = Sizes(30, 20, 10, 112, 56)
    (group,) = groups(1, 2, sizes, image_token=500)
    for episode in group.episodes_G:
        flat = flatten(episode.segments, PATCHES, 500)
        assert len(flat) == sizes.tokens
        assert flat.loss_mask.sum() == sizes.sampled == episode.sampled_tokens
        assert len(flat.images) == 1 + FOUND
    first, second = ({p.digest for s in e.segments for p in s.images} for e in group.episodes_G)
    assert len(first & second) == 1  # the question's
    assert groups(1, 2, sizes, 500) == groups(1, 2, sizes, 500)
    assert not group.all_equal


def test_the_real_episodes_are_of_about_4000_tokens_with_several_images() -> None:
    assert 3900 <= real().sizes.tokens <= 4100
