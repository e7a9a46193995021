"""Processes of a run: who is the first, what a launch of several tells when one ends, and how a lost one shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsr1.processes import (
    interrupt_on_sigterm,
    is_first_process,
    launch,
    lost_another,
    started_count,
    started_from_outside,
)

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Started by nobody; and torch's launcher leaves its own signal handlers behind."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in handled}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


STARTED = {
    "by hand": ({}, (True, False, 1)),
    "by torchrun, first": ({"RANK": "0", "WORLD_SIZE": "2"}, (True, True, 2)),
    "by torchrun, second": ({"RANK": "1", "WORLD_SIZE": "2"}, (False, True, 2)),
    "by torchrun, one alone": ({"RANK": "0", "WORLD_SIZE": "1"}, (True, True, 1)),
    "by hand in a shell of sbatch": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (True, False, 1)),
    "by srun, alone": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, (True, False, 1)),
    "by srun, first": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, (True, True, 4)),
    "by srun, last": ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, (False, True, 4)),
    # One torchrun on each of two nodes; which of them gets rank 0 is up to torchrun's rendezvous.
    "by torchrun under srun, first": (
        {"RANK": "0", "WORLD_SIZE": "16", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        (True, True, 16),
    ),
    "by torchrun under srun, ninth": (
        {"RANK": "8", "WORLD_SIZE": "16", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
        (False, True, 16),
    ),
}


@pytest.mark.parametrize("how", STARTED)
def test_how_a_process_was_started(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, expected = STARTED[how]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (is_first_process(), started_from_outside(), started_count()) == expected


def script(folder: Path, text: str) -> str:
    """A program that knows its `rank`, the `folder`, and can `wait` for a file there."""
    start = f"""
import json, os, signal, sys, time
from pathlib import Path
folder, rank = Path({str(folder)!r}), int(os.environ["RANK"])

def wait(name):
    while not (folder / name).exists():
        time.sleep(0.02)
"""
    (folder / "program.py").write_text(start + text)
    return str(folder / "program.py")


@pytest.mark.timeout(60)
def test_every_process_gets_its_place_and_the_arguments(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        "(folder / f'{rank}.json').write_text(json.dumps({'arguments': sys.argv[1:], **os.environ}))",
    )
    assert launch(3, [program, 'hydra.run.dir="a b"', "x=1"]) == (0, "")
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert {one["WORLD_SIZE"] for one in told} == {"3"} and [one["LOCAL_RANK"] for one in told] == ["0", "1", "2"]
    assert all(one["arguments"] == ['hydra.run.dir="a b"', "x=1"] for one in told)
    ((address, port),) = {(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in told}
    assert address and int(port) > 0


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(60)
def test_a_killed_process_is_named_and_ends_the_others(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
def end(*_):
    (folder / "asked").touch()
    sys.exit(130)

if rank == 0:
    signal.signal(signal.SIGTERM, end)
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "ready").touch()
    time.sleep(600)
wait("ready")
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    status, cause = launch(2, [program])
    assert status != 0 and cause == "process 1 of 2 was ended by SIGKILL"
    assert (tmp_path / "asked").exists(), "with the chance to write down where it was"
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.timeout(60)
def test_the_process_that_was_killed_is_named_also_if_another_fails_of_it_at_once(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
if rank == 1:
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "ready").touch()
    time.sleep(600)
wait("ready")
os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
sys.exit(1)
""",
    )
    status, cause = launch(2, [program])
    assert status != 0 and cause == "process 1 of 2 was ended by SIGKILL"


@pytest.mark.timeout(60)
def test_a_failing_status_is_passed_on(tmp_path: Path) -> None:
    program = script(tmp_path, "sys.exit(3) if rank == 1 else time.sleep(600)")
    assert launch(2, [program]) == (3, "process 1 of 2 ended with status 3")


def test_sigterm_ends_a_run_as_ctrl_c_does() -> None:
    interrupt_on_sigterm()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


# Rank 1 first does not answer, then is killed. Rank 0 tells what its collectives say, and goes on with the next one.
PAIR = """
import json, os, signal, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from mmsr1.processes import lost_another

rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=30), rank=rank, world_size=2)
impatient = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
dist.barrier()
if rank == 1:
    dist.recv(torch.zeros(1), 0)
    os.kill(os.getpid(), signal.SIGKILL)
told = []

def attempt(collective):
    try:
        collective()
    except Exception as error:
        told.append([lost_another(error), f"{type(error).__name__}: {error}"])

attempt(lambda: dist.all_reduce(torch.zeros(1), group=impatient))
dist.send(torch.zeros(1), 1)
attempt(lambda: dist.all_reduce(torch.zeros(1)))
attempt(lambda: dist.all_gather_object([None, None], "x"))
attempt(lambda: dist.barrier())
print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.mark.timeout(60)
def test_what_gloo_says_of_a_lost_process_is_recognised(tmp_path: Path) -> None:
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
        )
        for rank in range(2)
    ]
    try:
        told = json.loads(pair[0].communicate()[0])
        pair[1].wait()
    finally:
        for process in pair:
            process.kill()
    assert pair[1].returncode == -signal.SIGKILL
    assert len(told) == 4 and "Timed out" in told[0][1]
    assert [text for recognised, text in told if not recognised] == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("Connection closed by peer"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_no_lost_process(error: BaseException) -> None:
    assert not lost_another(error)
