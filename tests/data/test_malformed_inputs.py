"""Files as people have them on a bad day, given to a run: one clear line each, and the good rows stay."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from acceptance._malformed import CASES, GOOD, Case
from mmsr1.assembly.data import skipped_rows, training_examples
from mmsr1.cli import checked, composed
from mmsr1.config import Config, ConfigError


@cache
def fvqa() -> Any:
    return composed(["data=fvqa", "data.train_path=given.parquet"])


def config(folder: Path, file: Path) -> Config:
    changed = {"data": {"train_path": str(file), "cache_dir": str(folder / "cache")}}
    return checked(OmegaConf.merge(fvqa(), changed))


@pytest.mark.parametrize("case", [case for case in CASES if case.bad], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # the process ignores it, pytest does not
def test_a_bad_row_is_told_and_the_others_stay(tmp_path: Path, case: Case) -> None:
    (tmp_path / "in").mkdir()
    table, validation, bad = training_examples(config(tmp_path, case.make(tmp_path / "in")))
    assert tuple(table.ids) == GOOD and validation == list(table)
    row, count = skipped_rows(bad)
    assert case.told in row and "\n" not in row and row.startswith("skipped row 2 of rows.")
    assert count == "1 rows skipped in all"


@pytest.mark.parametrize("case", [case for case in CASES if not case.bad], ids=lambda case: case.name)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, case: Case) -> None:
    (tmp_path / "in").mkdir()
    file = case.make(tmp_path / "in")
    with pytest.raises(ConfigError) as caught:
        training_examples(config(tmp_path, file))
    told = str(caught.value)
    assert told.startswith(f"data.train_path={file}: ") and case.told in told and "\n" not in told
