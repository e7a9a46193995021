"""The examples in docstrings say what the code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = sorted(file for file in (ROOT / "mmsr1").rglob("*.py") if ">>> " in file.read_text())


@pytest.mark.parametrize("file", SHOWN, ids=[str(file.relative_to(ROOT)) for file in SHOWN])
def test_examples_hold(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
