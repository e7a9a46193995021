"""The life of a child process and the environment it is started in, without vLLM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsr1.rollout.engines.vllm_child import child_environment

PARENT = """
import multiprocessing, os, signal, sys, time
from mmsr1.rollout.engines.vllm_child import child_environment, end_with_parent, take_signals

def child():
    end_with_parent()
    take_signals()
    print(os.getpid(), flush=True)
    time.sleep(300)

if __name__ == "__main__":
    with child_environment(threads=1, eager=True):
        multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(300)
"""


def test_a_killed_parent_takes_its_child_along(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGINT)  # for the parent to decide
    time.sleep(0.1)
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_the_environment_of_the_child_is_not_left_to_the_parent(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    before = dict(os.environ)
    with child_environment(threads=2, eager=True):
        assert os.environ["OMP_NUM_THREADS"] == "2" and os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
        os.environ["LD_PRELOAD"] = "as vLLM does"
    assert dict(os.environ) == before


NOISE = """
import warnings
warnings.warn("`torch.distributed.reduce_op` is deprecated, please use another", FutureWarning)
warnings.warn("something new", FutureWarning)
"""


@pytest.mark.parametrize(("users", "heard"), [(None, ["something new"]), ("ignore::FutureWarning", [])])
def test_what_is_known_of_the_libraries_does_not_reach_the_terminal(monkeypatch, users, heard):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    if users:
        monkeypatch.setenv("PYTHONWARNINGS", users)
    with child_environment(threads=1, eager=True):
        child = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True)
    assert [line.partition("FutureWarning: ")[2] for line in child.stderr.splitlines() if "Warning" in line] == heard
    assert os.environ.get("PYTHONWARNINGS") == users
