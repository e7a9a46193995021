"""Multiruns under every launcher: a failed job loses no other, what is there is gone on with, and all is told."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sweep_program import ROOT, STUDY, Swept, environment, make, swept

from mmsr1.config import Config, register
from mmsr1.mistakes import explain
from mmsr1.sweep import rows
from mmsr1.sweep.job import Call
from mmsr1.sweep.watch import _Sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path)
    return tmp_path


def status(run: Path) -> str:
    return json.loads((run / "run.json").read_text())["status"]


def done(outcome: Swept, count: int, total: int, folder: str) -> bool:
    return bool(re.search(rf"^{count} of {total} jobs done in [0-9.]+ min: {folder}$", outcome.out, re.MULTILINE))


def lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith(("job ", "failed: "))]


def test_a_failed_job_loses_no_other_and_the_same_command_fills_the_gap(folder: Path) -> None:
    study = folder / "study"
    first = swept(folder, *STUDY, "seed=0,1,2")
    assert first.status == 1 and lines(first.err) == [
        "job 1 of 3: default__seed0",
        "job 2 of 3: default__seed1",
        "job 2 of 3: default__seed1: ended with status 1; the sweep goes on",
        "job 3 of 3: default__seed2",
        f"failed: {study}/default__seed1: ended with status 1",
    ]
    assert done(first, 2, 3, "study") and "table of study\n" in first.out
    before = (study / "default__seed0" / "run.json").read_bytes()

    again = swept(folder, *STUDY, "seed=0,1,2", "trainer.threads=3")
    assert again.status == 0 and lines(again.err) == [
        "job 1 of 3: default__seed0: finished before, with this configuration",
        "job 2 of 3: default__seed1: goes on where it was",
        "job 3 of 3: default__seed2: finished before, with this configuration",
    ]
    assert "output of seed 1" in again.out and done(again, 3, 3, "study")
    assert "output of seed 0" not in again.out
    assert status(study / "default__seed1") == "finished"

    other = swept(folder, *STUDY, "seed=0", "rollout.turns=2")
    told = f"rollout.turns=2: {study}/default__seed0 was begun with 3; give that, or another folder"
    how = "(hydra.sweep.dir=FOLDER names another) (default__seed0, of 1 jobs; nothing was started)"
    assert (other.status, other.err) == (2, f"error: {told} {how}\n")
    assert (study / "default__seed0" / "run.json").read_bytes() == before


def test_a_sweep_of_which_a_job_may_not_start_starts_none_and_changes_no_plan(folder: Path) -> None:
    assert swept(folder, *STUDY, "seed=0").status == 0
    plan = (folder / "study" / "plan.jsonl").read_bytes()
    for given, told in (
        (("seed=2,3", "rewards.search_penalty=0.1,2"), "rewards.search_penalty=2"),
        (("seed=2", "rewards.search_penalty=0.1,x"), "rewards.search_penalty=x: must be a number"),
        (("seed=2", "algorithm.lr=0.1,0.2"), "hydra.sweep.subdir: 2 jobs have one folder; "),
        (("seed=0,2", "rollout.turns=2"), "rollout.turns=2: "),
        (("+study=reward,search_penalty",), "study: one at a time; "),
        (("seed=2", "hydra/launcher=slurm"), "hydra/launcher=slurm: "),
    ):
        outcome = swept(folder, *STUDY, *given)
        assert outcome.status == 2 and f"error: {told}" in outcome.err and "Traceback" not in outcome.err, given
        assert (folder / "study" / "plan.jsonl").read_bytes() == plan
        assert [run.name for run in (folder / "study").glob("*__seed*")] == ["default__seed0"]


def test_options_stand_where_they_like(folder: Path) -> None:
    """Hydra is told something on the command line."""
    command = [sys.executable, "program.py", *STUDY, "seed=0", "-m"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "1 of 1 jobs done" in done.stdout
    alone = [sys.executable, "program.py", "model=tiny", "+study=reward"]
    done = subprocess.run(alone, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stderr.startswith("error: study=reward: is a sweep; put -m before it")


@pytest.mark.parametrize("launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("slurm_local",)], ids=lambda one: one[0])
def test_jobs_of_other_processes_are_told_counted_and_kept_apart(folder: Path, launcher: tuple[str, ...]) -> None:
    outcome = swept(folder, *STUDY, "seed=0,1", f"hydra/launcher={launcher[0]}", *launcher[1:])
    study, told = folder / "study", lines(outcome.err)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert sorted(told[:4]) == [
        "job 1 of 2: default__seed0",
        "job 1 of 2: default__seed0: finished",
        "job 2 of 2: default__seed1",
        "job 2 of 2: default__seed1: ended with status 1; the sweep goes on",
    ]
    log = study / "logs" / "default__seed1.log"
    assert told[4:] == [f"failed: {study}/default__seed1: ended with status 1; its output: {log}"]
    assert log.read_text() == "output of seed 1\n" and "output of seed" not in outcome.out
    assert done(outcome, 1, 2, "study") and "table of study\n" in outcome.out
    assert [status(study / f"default__seed{seed}") for seed in (0, 1)] == ["finished", "failed"]


def test_optuna_maximises_the_reward_and_outlives_a_failed_trial(folder: Path) -> None:
    """The program returns clip_high as its reward; with seed=1 it fails. The sampler draws 0, then 1."""
    space = ("algorithm.clip_high=0.3", "algorithm.lr=0.1", "algorithm.entropy_weight=0.0", "seed=range(0,1)")
    trials = ("hydra.sweep.dir=trials", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    outcome = swept(folder, "hydra/sweeper=tune", "model=tiny", *trials, *space)
    best: Any = OmegaConf.load(folder / "trials" / "optimization_results.yaml")
    assert outcome.status == 1 and "Traceback" not in outcome.err and done(outcome, 1, 2, "trials")
    assert best.best_value == 0.3 and best.best_params == {"seed": 0}


def test_a_sweep_whose_trials_all_failed_has_no_best_one(tmp_path: Path) -> None:
    sweep, none = _Sweep(Call(Config, "0", id="mine")), ValueError("No trials are completed yet.")
    sweep.folder, sweep._tunes = tmp_path, True
    with pytest.raises(ValueError):  # no job has said anything: this is another mistake
        sweep.cause(none)
    rows.add(tmp_path, rows.Row("mine", 0, str(tmp_path / "0"), "failed", told="ended with status 1"))
    assert sweep.cause(none) == "no trial has a value"
    rows.add(tmp_path, rows.Row("mine", 1, str(tmp_path / "1"), "finished"))
    with pytest.raises(ValueError):
        sweep.cause(none)


@pytest.mark.parametrize(
    ("number", "group", "launcher"),
    [
        (signal.SIGTERM, False, ()),
        (signal.SIGINT, True, ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    ],
    ids=["SIGTERM", "Ctrl-C under joblib"],
)
def test_a_sweep_that_is_stopped_ends_its_jobs_cleanly(
    folder: Path, number: signal.Signals, group: bool, launcher: tuple[str, ...]
) -> None:
    os.mkfifo(folder / "ready")
    command = [sys.executable, "program.py", "-m", *STUDY, "name=waits", "seed=0,2,3", *launcher]
    options: Any = {"cwd": folder, "env": environment(folder), "text": True, "start_new_session": True}
    # What a shell starts in the background, such as these tests, ignores Ctrl-C, and so would the sweep.
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    at_a_time = 2 if "hydra.launcher.n_jobs=2" in launcher else 1
    wait_for(at_a_time, folder / "ready")
    (os.killpg if group else os.kill)(sweep.pid, number)
    _, err = sweep.communicate(timeout=100)
    runs = sorted((folder / "study").glob("waits__seed*/run.json"))
    assert sweep.returncode == 130 and [status(run.parent) for run in runs] == ["interrupted"] * at_a_time
    assert "interrupted; the same command goes on with what is there\n" in err and "Traceback" not in err


def test_a_terminal_that_closes_ends_the_jobs_of_its_sweep_cleanly(folder: Path) -> None:
    os.mkfifo(folder / "ready")
    ours, theirs = os.openpty()
    command = [sys.executable, "program.py", "-m", *STUDY, "name=waits", "seed=0,2", "hydra/launcher=joblib"]

    def at_the_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which a sweep heeds
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    sweep = subprocess.Popen(
        [*command, "hydra.launcher.n_jobs=2"], cwd=folder, env=environment(folder), stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True, preexec_fn=at_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    wait_for(2, folder / "ready")
    os.close(ours)
    assert sweep.wait(100)
    assert [status(folder / "study" / f"waits__seed{seed}") for seed in (0, 2)] == ["interrupted"] * 2


def wait_for(jobs: int, ready: Path) -> None:
    """Until as many have begun to wait."""
    # Open for writing too: it does not end between two jobs, whose letters may also come together.
    with open(os.open(ready, os.O_RDWR), "rb", buffering=0) as letters:
        said = 0
        while said < jobs:
            said += len(letters.read(1))


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def test_slurm_is_asked_for_a_node_with_the_devices_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit: Any = pytest.importorskip("submitit")
    config = composed("hydra/launcher=slurm", "scale=8xh100", "hydra.launcher.partition=gpu", "name=arm")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    asked: list[Any] = []

    def submit(executor: Any, *arguments: Any) -> list[Any]:
        asked.append(executor._executor._make_submission_file_text("command", "uid"))
        done = JobReturn(status=JobStatus.COMPLETED)
        return [type("Job", (), {"results": lambda self: [done]})() for _ in arguments[1]]

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submit)
    config.hydra.sweep.dir = str(tmp_path)
    launcher = instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=None, config=config)
    assert len(launcher.launch([["seed=0"], ["seed=1"]], 0)) == 2
    wanted = ("nodes=1", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=64", "partition=gpu", "time=1440")
    assert len(asked) == 1 and all(f"#SBATCH --{one}\n" in asked[0] for one in (*wanted, "job-name=arm"))


def test_what_tries_slurm_out_differs_from_the_plugin_in_time_alone() -> None:
    both = (composed(f"hydra/launcher={name}").hydra.launcher for name in ("slurm_local", "submitit_local"))
    ours, plugin = (OmegaConf.to_container(one, resolve=False) for one in both)
    assert isinstance(plugin, dict) and ours == plugin | {"timeout_min": 1440} and ours != plugin


def test_tuning_maximises_and_lets_trials_fail() -> None:
    sweeper = composed("hydra/sweeper=tune").hydra.sweeper
    assert (sweeper.direction, sweeper.max_failure_rate, sweeper.sampler.seed) == ("maximize", 1.0, 0)
    for key in sweeper.params:  # the schema knows them
        assert OmegaConf.select(composed(), key) is not None


def test_a_launcher_that_is_not_installed_is_told_with_its_extra() -> None:
    """`slurm.yaml` is ours and always there; what it builds on is the plugin's."""
    text = (
        "In 'hydra/launcher/slurm': Could not find 'hydra/launcher/submitit_slurm'\n\nAvailable options in x:\n\tbasic"
    )
    line = explain(MissingConfigException(text, "hydra/launcher/submitit_slurm"))
    assert line.startswith("hydra/launcher=submitit_slurm: there is no such option; needs the extra `studies`, which ")


def test_slurm_without_slurm_is_one_line(folder: Path) -> None:
    outcome = swept(folder, *STUDY, "seed=0", "hydra/launcher=slurm")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: hydra/launcher=slurm: ") and "slurm_local" in outcome.err
