"""What comes before a run: a teacher's traces, or a run whose policy it starts from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsr1 import cli
from mmsr1.assembly.before import arguments_of, is_prepared, prepared
from mmsr1.config import CONF, Config, ConfigError
from mmsr1.data.emblem.store import EmblemStore
from mmsr1.run_directory import RunDirectory

ARMS = sorted((CONF / "arm").glob("*/*.yaml"))


def composed(*overrides: str) -> Config:
    config: Any = cli.checked(cli.composed(["rollout=transformers", *overrides]))
    return config


def test_a_teacher_is_asked_once_about_as_many_questions_as_wanted(
    store: EmblemStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"data.root={store.root.parent}", f"tools.cache_dir={tmp_path}/c", f"data.cache_dir={tmp_path}/d"]
    config = composed(
        "algorithm=sft", "algorithm.source=teacher", "algorithm.questions=5", "data.train_size=12", *folders
    )
    run = tmp_path / "run"
    assert not is_prepared(config, run)
    found = prepared(config, run)
    assert (found.algorithm.source, found.algorithm.traces) == ("traces", str(run / "traces"))
    assert found.rollout.engine == config.rollout.engine, "the policy's own"
    lines = (run / "traces" / "traces.jsonl").read_text().splitlines()
    assert len(lines) == 5 and all(json.loads(line)["kept"] for line in lines)
    assert is_prepared(config, run)
    monkeypatch.setattr("mmsr1.assembly.teaching.make_traces", None)  # nobody is asked again
    assert prepared(config, run) == found


def test_a_run_without_anything_before_it_is_as_it_was(tmp_path: Path) -> None:
    config = composed()
    assert is_prepared(config, tmp_path) and prepared(config, tmp_path) is config and not list(tmp_path.iterdir())


PROGRAM = """
import json, pathlib, sys
named = next(a for a in sys.argv if a.startswith(("hydra.run.dir=", "resume=")))
folder = pathlib.Path(named.split("=", 1)[1].strip('"'))
(folder / "policy").mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("")
with (folder / "called").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
status = "STATUS" if len((folder / "called").read_text().splitlines()) == 1 else "finished"
(folder / "run.json").write_text(json.dumps({"status": status}))
sys.exit(0 if status == "finished" else 1)
"""


def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> Path:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.replace("STATUS", status))
    monkeypatch.setattr(sys, "argv", [str(program), "seed=3", 'first=["algorithm=sft"]', 'hydra.run.dir="x"'])
    return tmp_path / "run" / "first"


def test_the_policy_of_the_run_before_is_where_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = first(tmp_path, monkeypatch, "finished")
    config = composed('first=["algorithm=sft"]')
    for _ in range(2):  # the second time it is there
        assert prepared(config, tmp_path / "run").model.path == str(folder / "policy")
    (given,) = map(json.loads, (folder / "called").read_text().splitlines())
    assert given == ["seed=3", "algorithm=sft", f'hydra.run.dir="{folder}"']


def test_a_run_before_that_was_ended_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = first(tmp_path, monkeypatch, "interrupted")
    config = composed('first=["algorithm=sft"]')
    with pytest.raises(ConfigError, match=r"first=\['algorithm=sft'\]: that run ended with status 1; see .*first"):
        prepared(config, tmp_path / "run")
    assert RunDirectory(folder).read_run() == {"status": "interrupted"} and not is_prepared(config, tmp_path / "run")
    config.resume = str(tmp_path / "run")
    prepared(config, tmp_path / "run")
    assert json.loads((folder / "called").read_text().splitlines()[-1]) == [f"resume={folder}"]


@pytest.mark.parametrize("arm", [f"{file.parent.name}/{file.stem}" for file in ARMS if "first:" in file.read_text()])
def test_what_comes_before_an_arm_composes_beside_what_was_given(arm: str) -> None:
    study = arm.partition("/")[0]
    given = [f"+study={study}", f"+arm={arm}", "seed=2", "trainer.threads=2", "hydra.run.dir=x"]
    outer: Any = cli.checked(cli.composed(given[:-1]))
    inner: Any = cli.checked(cli.composed(arguments_of(outer.first, given)))
    assert inner.first is None and (inner.seed, inner.trainer.threads, inner.study) == (2, 2, study)
    assert inner.name != outer.name and inner.algorithm.kind == "sft"


def test_a_child_that_was_killed_while_it_started_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = first(tmp_path, monkeypatch, "finished")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "first.json").write_text(json.dumps(["seed=5", f"hydra.run.dir={folder}"]))
    config = composed('first=["algorithm=sft"]')
    config.resume = str(tmp_path / "run")
    prepared(config, tmp_path / "run")
    assert json.loads((folder / "called").read_text()) == ["seed=5", f"hydra.run.dir={folder}"]


def test_a_run_that_ended_before_anything_began_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first(tmp_path, monkeypatch, "finished")
    config = composed('first=["algorithm=sft"]')
    config.resume = str(tmp_path / "run")
    with pytest.raises(ConfigError, match="was ended before anything of first had begun; remove it and start afresh"):
        prepared(config, tmp_path / "run")
