"""What a multirun was to do, as its multirun.yaml has it, and the command of one of its jobs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from sweep_program import make, swept

from mmsr1.sweep import Planned, command_of, planned


def written(folder: Path, params: dict[str, str] | None, *task: str) -> Path:
    """A multirun.yaml with what is read of it, as Hydra writes it."""
    hydra: Any = {"sweeper": {"params": params}, "overrides": {"task": list(task)}, "job": {"config_name": "config"}}
    hydra["sweep"] = {"dir": "outputs/${study}", "subdir": "${name}__seed${seed}"}
    OmegaConf.save(OmegaConf.create({"name": "default", "hydra": hydra}), folder / "multirun.yaml")
    return folder


def test_every_job_in_order_with_its_folder(tmp_path: Path) -> None:
    params = {"rewards.search_penalty": "0.0,0.1", "seed": "range(0,2)"}
    jobs = planned(written(tmp_path, params, "name=penalty_${rewards.search_penalty}", "trainer.max_steps=3"))
    assert [job.folder.relative_to(tmp_path).as_posix() for job in jobs] == [
        "penalty_0.0__seed0",
        "penalty_0.0__seed1",
        "penalty_0.1__seed0",
        "penalty_0.1__seed1",
    ]
    assert jobs[2].overrides[:2] == ("rewards.search_penalty=0.1", "seed=0")
    assert jobs[2].overrides[3] == "trainer.max_steps=3"


def test_the_command_line_goes_before_the_parameters_of_the_sweeper(tmp_path: Path) -> None:
    jobs = planned(written(tmp_path, {"seed": "0,1,2", "name": "a,b"}, "seed=choice(7,8)", "trainer.max_steps=3"))
    assert [job.overrides for job in jobs] == [
        ("seed=7", "name=a", "trainer.max_steps=3"),
        ("seed=7", "name=b", "trainer.max_steps=3"),
        ("seed=8", "name=a", "trainer.max_steps=3"),
        ("seed=8", "name=b", "trainer.max_steps=3"),
    ]
    assert [job.folder.name for job in jobs] == ["a__seed7", "b__seed7", "a__seed8", "b__seed8"]


def test_commas_in_quotes_and_lists_are_no_sweep(tmp_path: Path) -> None:
    sources = "data.sources=[{path:a.parquet,weight:2},{path:b.jsonl}]"
    jobs = planned(written(tmp_path, None, "name='x,y','z'", sources))
    assert [job.folder.name for job in jobs] == ["x,y__seed0", "z__seed0"]
    assert jobs[0].overrides == ("name='x,y'", sources)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "holds no multirun.yaml; name the folder of a sweep"),
        ("hydra: [", "damaged"),
        ("hydra: {}\n", "damaged"),
        ("- 1\n", "damaged"),
    ],
)
def test_a_folder_that_says_nothing_of_its_jobs_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "multirun.yaml").write_text(content)
    with pytest.raises(ValueError, match=told) as caught:
        planned(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_key_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no sweep of this program any more: rollout.turnz"):
        planned(written(tmp_path, None, "rollout.turnz=2,3"))


@pytest.mark.parametrize("name", ["a__seed0", "two words", "a=b,c", "it's", "50% (1) [x]"])
def test_a_job_that_left_nothing_is_started_as_the_sweep_would(tmp_path: Path, name: str) -> None:
    job = Planned(("name='x,y'", "seed=3"), tmp_path / name)
    python, program, *arguments = shlex.split(command_of(job))
    assert (python, program, arguments[:2]) == ("python", "train.py", list(job.overrides))
    (folder,) = OverridesParser.create().parse_overrides(arguments[2:])
    assert (folder.key_or_group, folder.value()) == ("hydra.run.dir", str(job.folder))


def test_a_job_that_left_something_is_gone_on_with(tmp_path: Path) -> None:
    job = Planned(("seed=3",), tmp_path / "two words")
    job.folder.mkdir()
    (job.folder / "config.yaml").touch()
    assert shlex.split(command_of(job, "evaluate.py")) == ["python", "evaluate.py", f"resume={job.folder}"]


def test_the_plan_of_a_real_study_names_its_runs_and_its_commands(tmp_path: Path) -> None:
    """Of the study's own parameters, those of the command line take the place."""
    make(tmp_path)
    given = ("+study=search_penalty", "model=tiny", "rewards.search_penalty=0.0,0.1", "seed=2")
    outcome = swept(tmp_path, *given, "hydra.sweep.dir=study")
    jobs = planned(tmp_path / "study")
    names = ["penalty_0.0__seed2", "penalty_0.1__seed2"]
    assert outcome.status == 0 and [job.folder.name for job in jobs] == names
    for job in jobs:
        made = json.loads((job.folder / "run.json").read_text())["command"]
        assert made == f"python program.py {' '.join(job.overrides)} hydra.run.dir={job.folder}"
        assert command_of(job) == f"python train.py resume={job.folder}"
        (job.folder / "config.yaml").unlink()
        assert command_of(job, "program.py") == made
    assert "report: python -m mmsr1.report.study study\n" in outcome.out
