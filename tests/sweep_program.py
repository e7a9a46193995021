"""A program with the contract of train.py and nothing to compute, to test how the jobs of a multirun are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# seed=1 fails until it is resumed; name=waits tells the named pipe of $READY that it can be interrupted, and waits.
PROGRAM = """
import os, sys, threading
from dataclasses import replace
from pathlib import Path
from omegaconf import OmegaConf
from mmsr1.cli import run_command
from mmsr1.processes import interrupt_on_sigterm
from mmsr1.run_directory import RunDirectory

def job(config, output):
    run = RunDirectory(output)
    settings = OmegaConf.to_yaml(OmegaConf.structured(replace(config, resume=None)))
    run.start(" ".join(["python", *sys.argv]), config.seed, settings, {}, None)
    print("output of seed", config.seed, flush=True)
    if config.name == "waits":
        interrupt_on_sigterm()
        try:
            Path(os.environ["READY"]).write_text("x")
            threading.Event().wait(60)
        except KeyboardInterrupt:
            run.finish("interrupted", 0.0)
            sys.exit(130)
    if config.seed == 1 and config.resume is None:
        run.finish("failed", 0.0, "an error")
        sys.exit(1)
    run.write_summary({"final": {"reward": config.algorithm.clip_high}})
    run.finish("finished", 0.0)

if __name__ == "__main__":
    run_command(job, after_sweep=lambda folder: print("table of", folder.name, flush=True))
"""
STUDY = ("model=tiny", "hydra.sweep.dir=study", "hydra.sweep.subdir=${name}__seed${seed}")


class Swept(NamedTuple):
    status: int
    out: str
    err: str


def make(folder: Path) -> None:
    """Write the program into the folder, beside the configuration."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "conf").symlink_to(ROOT / "conf")


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return kept | {"PYTHONPATH": str(ROOT), "READY": str(folder / "ready")}


def swept(folder: Path, *arguments: str) -> Swept:
    """`python program.py -m arguments...` in the folder where `make` has put it."""
    command = [sys.executable, "program.py", "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    return Swept(done.returncode, done.stdout, done.stderr)
