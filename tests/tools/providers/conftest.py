"""One fake server and one cache for all tests, and keys that must never be seen again."""

import pytest
from adapters import ADAPTERS, CANARY
from fake_api import FakeApi
from stack import Shelf

from mmsr1.tools.store import Store


@pytest.fixture(scope="session")
def server():
    api = FakeApi()
    yield api
    api.close()


@pytest.fixture
def api(server):
    server.reset()
    return server


@pytest.fixture(scope="session")
def private():
    """A server that nobody may be led to."""
    api = FakeApi()
    yield api
    api.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("providers"))
    yield store
    store.close()


@pytest.fixture
def shelf(store, request):
    return Shelf(store, request.node.nodeid)


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for adapter in ADAPTERS:
        if adapter.key_env is not None:
            monkeypatch.setenv(adapter.key_env, CANARY)
