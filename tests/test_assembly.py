"""Decisions of the assembly that a user can meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mmsr1.assembly import training as assembly
from mmsr1.config import Config, register
from mmsr1.types import Example

CONF = Path(__file__).parent.parent / "conf"


def rows(*needs: str) -> list[Example]:
    return [Example(str(i), "q", (), "a", (), need, "s") for i, need in enumerate(needs)]  # type: ignore[arg-type]


def config(*overrides: str) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", ["data=fvqa", "data.train_path=rows.parquet", *overrides])
    made = OmegaConf.to_object(raw)
    assert isinstance(made, Config)
    return made


@pytest.mark.parametrize(
    ("asked", "needs", "drawn"),
    [
        ("balanced", ("unknown", "unknown"), "natural"),
        ("balanced", ("unknown", "free"), "balanced"),
        ("search_required_only", ("unknown", "unknown"), "search_required_only"),
        ("natural", ("free", "required"), "natural"),
    ],
)
def test_rows_that_nobody_labelled_are_drawn_as_they_come(asked, needs, drawn) -> None:
    assert assembly.mixture(config(f"data/mix={asked}"), rows(*needs)).name == drawn


def test_the_fallback_and_the_missing_validation_file_are_told() -> None:
    said = "\n".join(assembly.remarks(config("data/mix=balanced"), rows("unknown")))
    assert "data/mix=balanced" in said and "data.val_path" in said and "emblem world" in said
    quiet = "\n".join(assembly.remarks(config("data.val_path=other.parquet"), rows("free")))
    assert "data/mix" not in quiet and "data.val_path" not in quiet
