"""Packed equals one by one, over random episodes; MMSR1_EPISODES=200 makes it as many as the acceptance run wants."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.models.packed_equivalence import IMAGES, TURNS, Differences, compare

EPISODES = int(os.environ.get("MMSR1_EPISODES", "24"))
SEED = 0


@pytest.fixture(scope="module")
def found() -> Iterator[Differences]:
    """On one thread: for matrices this small, several are ten times slower where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield compare(EPISODES, SEED)
    torch.set_num_threads(threads)


def test_packed_log_probs_and_gradients_are_those_of_one_episode_at_a_time(found: Differences) -> None:
    assert found.logprob <= 1e-5, found
    assert found.gradient <= 1e-4, found


def test_an_image_encoded_once_gives_the_vision_tower_the_gradient_of_all_its_appearances(found: Differences) -> None:
    assert found.vision_once <= 1e-5, found
    assert found.saved >= 0.3, found  # else hardly anything was shared, and nothing is shown


def test_the_episodes_are_of_every_kind(found: Differences) -> None:
    assert found.turns == set(range(TURNS[0], TURNS[1] + 1))
    assert found.images == set(range(IMAGES[0], IMAGES[1] + 1))
    assert found.largest_pack >= 4
