"""A cache on disk, and the log in which a back end counts its calls."""

import pytest

from mmsr1.tools.store import Store


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")
