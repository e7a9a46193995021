"""Whether a job of a multirun is started, gone on with, skipped or refused, by what its folder holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import psutil
import pytest
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from mmsr1.assembly.before import arguments_of
from mmsr1.cli import checked, composed
from mmsr1.config import CONF, Config, ConfigError
from mmsr1.models.plan import settle
from mmsr1.sweep import rows
from mmsr1.sweep.job import Call, _check_first, _command, _Job, _objective
from mmsr1.sweep.watch import _is_done


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of `model=tiny` that was interrupted, as train.py leaves it: with what the planner chose."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = settle(checked(composed(["model=tiny"])))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(replace(config, resume=None)))
    says(folder, "interrupted")
    return folder


def says(folder: Path, status: str) -> None:
    (folder / "run.json").write_text(json.dumps({"status": status, "command": "python train.py model=tiny"}))


def command(run: Path, *overrides: str) -> list[str] | None:
    raw: Any = composed(["model=tiny", *overrides])
    return _command(raw, run, ["model=tiny", *overrides], Config, "config")


def test_a_job_without_a_folder_is_started(tmp_path: Path) -> None:
    assert command(tmp_path / "run", "seed=3") == ["model=tiny", "seed=3", f"hydra.run.dir={tmp_path}/run"]


def test_an_unfinished_run_is_gone_on_with_though_the_planner_has_chosen(run: Path) -> None:
    assert "optimizer_state: float32" in (run / "config.yaml").read_text()
    assert command(run) == [f"resume={run}"]


def test_what_decides_no_result_may_differ_and_is_taken_over(run: Path) -> None:
    given = ("trainer.threads=3", "tools.budget.usd_per_run=2.5", "logger=wandb", "tools.cache_dir='a, b'")
    logger = ['logger.project="mmsr1"', 'logger.mode="online"']
    assert command(run, *given) == [given[0], given[1], given[3], *logger, f"resume={run}"]


def test_a_finished_run_is_left_alone(run: Path) -> None:
    says(run, "finished")
    assert command(run, "trainer.threads=3") is None


@pytest.mark.parametrize("status", ["finished", "interrupted"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("seed=4", "rollout.turns=2"), "rollout.turns=2: {0} was begun with 3; "),
        (("trainer.max_steps=4",), "trainer.max_steps=4: {0} was begun with 40; "),
        (("trainer.optimizer_state=bfloat16",), "trainer.optimizer_state=bfloat16: {0} was begun with float32; "),
        (("algorithm=sft",), "algorithm."),
        (("name=other",), "name=other: {0} was begun with default; "),
    ],
)
def test_another_configuration_is_refused_by_its_first_key(
    run: Path, status: str, given: tuple[str, ...], told: str
) -> None:
    says(run, status)
    with pytest.raises(ConfigError) as caught:
        command(run, *given)
    assert str(caught.value).startswith(told.format(run)) and "\n" not in str(caught.value)


def test_a_run_before_of_another_configuration_is_refused_too(run: Path) -> None:
    given = ["model=tiny", "+arm=sft_vs_rl/sft_then_rl"]
    config, first = checked(composed(given)), run / "first"
    before: Any = composed(arguments_of(config.first or (), given))
    first.mkdir()
    (first / "config.yaml").write_text(OmegaConf.to_yaml(replace(settle(checked(before)), resume=None)))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        _check_first(config, run, given, "config")
        before.trainer.max_steps = 100  # as conf/arm had it when that run was begun
        (first / "config.yaml").write_text(OmegaConf.to_yaml(replace(checked(before), resume=None)))
        with pytest.raises(ConfigError, match=f"^trainer.max_steps=150: {first} was begun with 100; "):
            _check_first(config, run, given, "config")


def test_a_run_of_before_lacks_the_keys_that_are_new(run: Path) -> None:
    saved: Any = OmegaConf.load(run / "config.yaml")
    del saved["study"], saved["trainer"]["counterfactual_questions"]
    OmegaConf.save(saved, run / "config.yaml")
    assert command(run) == [f"resume={run}"]


@pytest.mark.parametrize(
    ("name", "content"), [("run.json", b"{"), ("run.json", b"[]"), ("config.yaml", b"\xff"), ("config.yaml", b"{")]
)
def test_a_damaged_file_is_one_line_of_its_job(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    (run / name).write_bytes(content)
    job = SimpleNamespace(num=0, config_name="config")
    sweep = SimpleNamespace(dir=str(tmp_path), subdir="run")
    runtime, task = SimpleNamespace(output_dir=str(run)), SimpleNamespace(task=["model=tiny"])
    settings = SimpleNamespace(sweep=sweep, runtime=runtime, job=job, overrides=task)
    monkeypatch.setattr(HydraConfig, "get", lambda: settings)
    call = Call(Config, "0", "train.py")
    assert call.do(composed(["model=tiny"])) is None
    (row,) = rows.read(tmp_path, call.id)
    assert row.event == "failed" and row.told.startswith("refused: ") and str(run) in row.told


def test_a_folder_where_a_process_is_at_work_is_refused(run: Path) -> None:
    with FileLock(run / ".lock"), pytest.raises(ConfigError, match="a process is still at work there"):
        command(run)
    (run / ".lock").touch()  # left by one that was killed
    assert command(run) == [f"resume={run}"]


@pytest.mark.parametrize(
    ("summary", "value"),
    [
        ('{"final": {"reward": 0.75}}', 0.75),
        ('{"final": {"reward": null}}', None),
        ('{"final": null}', None),
        ("{", None),
        (None, None),
    ],
)
def test_a_trial_is_worth_the_reward_of_its_last_validation(
    tmp_path: Path, summary: str | None, value: float | None
) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert _objective(tmp_path) == value


@pytest.fixture
def sigint() -> Iterator[None]:
    """A job with a log ignores Ctrl-C, in a process of its own."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_a_job_that_starts_while_the_sweep_is_stopped_does_not_begin(tmp_path: Path) -> None:
    call = Call(Config, "0", "train.py")
    touch = [sys.executable, "-c", f"open({str(tmp_path / 'began')!r}, 'w')"]

    def job(number: int) -> _Job:
        return _Job(call, tmp_path, tmp_path / "run", number, tmp_path / "logs" / "run.log")

    rows.add(tmp_path, rows.Row(call.id, -1, str(tmp_path), "stop"))
    assert not job(0).runs(touch, "hydra.run.dir=run") and not (tmp_path / "began").exists()
    assert [row.event for row in rows.read(tmp_path, call.id)] == ["stop", "started", "interrupted"]
    (tmp_path / rows.FILE).unlink()
    assert job(1).runs(touch, "hydra.run.dir=run") and (tmp_path / "began").exists()


def test_who_is_killed_before_a_job_is_known_leaves_none_behind(tmp_path: Path) -> None:
    """As a launcher kills its workers on Ctrl-C: here where the line of the job is being written, to nobody."""
    os.mkfifo(tmp_path / rows.FILE)
    job = "import sys, time; from pathlib import Path; Path(sys.argv[1], 'began').touch(); time.sleep(60)"
    worker = (
        "import sys; from pathlib import Path; from mmsr1.config import Config; from mmsr1.sweep.job import Call, _Job;"
        "here = Path(sys.argv[1]); job = _Job(Call(Config, '0', 'train.py'), here, here, 0, here / 'log');"
        f"job.runs([sys.executable, '-c', {job!r}, sys.argv[1]], 'hydra.run.dir=run')"
    )
    with subprocess.Popen([sys.executable, "-c", worker, str(tmp_path)]) as process:
        until = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children()) and time.monotonic() < until:
            time.sleep(0.05)
        assert children, "the job is there, and waits to be known"
        process.kill()
    until = time.monotonic() + 30
    while any(map(_lives, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_lives, children)) and not (tmp_path / "began").exists()


def _lives(process: Any) -> bool:
    try:
        return process.is_running() and process.status() != "zombie"  # nobody may be there to bury it
    except psutil.NoSuchProcess:
        return False


def test_lines_of_another_call_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    assert rows.read(tmp_path, "mine") == []
    mine = rows.Row("mine", 0, "a", "started", pid=3)
    rows.add(tmp_path, mine)
    rows.add(tmp_path, rows.Row("other", 0, "a", "failed"))
    with (tmp_path / rows.FILE).open("ab") as file:
        file.write(b"{\n[]\n")
    rows.add(tmp_path, replace(mine, event="finished"))
    assert rows.read(tmp_path, "mine") == [mine, replace(mine, event="finished")]


@pytest.mark.parametrize(("status", "done"), [("finished", True), ("running", False)])
def test_the_run_directory_tells_of_a_job_whose_last_line_is_lost(run: Path, status: str, done: bool) -> None:
    says(run, status)
    assert _is_done(rows.Row("mine", 0, str(run), "started")) is done
    assert not _is_done(rows.Row("mine", 0, str(run), "failed"))
