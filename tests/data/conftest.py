"""The emblem world as shipped, and a small one for what does not need its size."""

import pytest

from mmsr1.data.emblem.store import EmblemStore, open_store
from mmsr1.data.emblem.world import World, WorldSpec

SMALL = WorldSpec(seed=3, known_train=5, known_heldout=4, unknown_train=9, unknown_heldout=7, graded=4)


@pytest.fixture(scope="session")
def world() -> World:
    return World(WorldSpec())


@pytest.fixture(scope="session")
def small() -> World:
    return World(SMALL)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmblemStore:
    """All places and all validation questions, but few for training."""
    return open_store(tmp_path_factory.mktemp("emblem"), WorldSpec(), train_size=12, val_size=480, thumbnail_edge=28)
