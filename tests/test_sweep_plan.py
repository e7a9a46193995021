"""What a multirun is to do, what is kept of that, and the command of one of its jobs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from sweep_program import make, swept

from mmsr1.config import CONF, register
from mmsr1.sweep import Planned, command_of, planned
from mmsr1.sweep.plan import add, foreseen


def jobs_of(params: dict[str, str] | None, *task: str) -> list[Planned]:
    """Those that a multirun with this configuration of Hydra would start."""
    register()
    settings: Any = {"sweeper": {"params": params}, "overrides": {"task": list(task)}}
    settings["sweep"] = {"dir": "study", "subdir": "${name}__seed${seed}"}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = foreseen(OmegaConf.create({"hydra": settings}), "config", GlobalHydra.instance().config_loader())
    return [job for job, _ in found]


def test_every_job_in_order_with_its_folder() -> None:
    params = {"rewards.search_penalty": "0.0,0.1", "seed": "range(0,2)"}
    jobs = jobs_of(params, "name=penalty_${rewards.search_penalty}", "trainer.max_steps=3")
    assert [job.folder.relative_to(Path.cwd() / "study").as_posix() for job in jobs] == [
        "penalty_0.0__seed0",
        "penalty_0.0__seed1",
        "penalty_0.1__seed0",
        "penalty_0.1__seed1",
    ]
    assert jobs[2].overrides[:2] == ("rewards.search_penalty=0.1", "seed=0")
    assert jobs[2].overrides[3] == "trainer.max_steps=3"


def test_the_command_line_goes_before_the_parameters_of_the_sweeper() -> None:
    jobs = jobs_of({"seed": "0,1,2", "name": "a,b"}, "seed=choice(7,8)", "trainer.max_steps=3")
    assert [job.overrides for job in jobs] == [
        ("seed=7", "name=a", "trainer.max_steps=3"),
        ("seed=7", "name=b", "trainer.max_steps=3"),
        ("seed=8", "name=a", "trainer.max_steps=3"),
        ("seed=8", "name=b", "trainer.max_steps=3"),
    ]
    assert [job.folder.name for job in jobs] == ["a__seed7", "b__seed7", "a__seed8", "b__seed8"]


def test_commas_in_quotes_and_lists_are_no_sweep() -> None:
    sources = "data.sources=[{path:a.parquet,weight:2},{path:b.jsonl}]"
    jobs = jobs_of(None, "name='x,y','z'", sources)
    assert [job.folder.name for job in jobs] == ["x,y__seed0", "z__seed0"]
    assert jobs[0].overrides == ("name='x,y'", sources)


def test_a_further_command_adds_its_jobs_to_the_plan(tmp_path: Path) -> None:
    first = [Planned(("seed=0",), tmp_path / "a__seed0"), Planned(("seed=1",), tmp_path / "a__seed1")]
    more = [
        Planned(("seed=1", "trainer.threads=2"), tmp_path / "a__seed1"),
        Planned(("seed=2",), tmp_path / "a__seed2"),
    ]
    add(tmp_path, first)
    add(tmp_path, more)
    assert planned(tmp_path) == [first[0], *more]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert planned(moved)[0].folder == moved / "a__seed0"


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "holds no plan.jsonl; name the folder of a sweep"), ("{", "damaged"), ("[]", "damaged"), ("{}", "damaged")],
)
def test_a_folder_that_says_nothing_of_its_jobs_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "plan.jsonl").write_text(f"{content}\n")
    with pytest.raises(ValueError, match=told) as caught:
        planned(tmp_path)
    assert str(tmp_path) in str(caught.value)


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
