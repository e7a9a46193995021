"""One event loop for all tests of a module: an engine belongs to the loop that started it."""

import asyncio

import pytest


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner
