"""What comes before a run: a teacher's traces to imitate, or a run whose policy it starts from. Both lie in its folder,
and are made once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmsr1.assembly.teaching import COMPLETE, TRACES, taught
from mmsr1.cli import restore_environment
from mmsr1.config import Config, ConfigError, check
from mmsr1.files import write_whole
from mmsr1.processes import close
from mmsr1.run_directory import FIRST, RunDirectory


def prepared(config: Config, run: Path) -> Config:
    """The configuration with what came before. Raises ConfigError if that failed."""
    return _after_first(taught(config, run), run)


def is_prepared(config: Config, run: Path) -> bool:
    """Whether nothing has to come before the run any more."""
    taught_already = getattr(config.algorithm, "source", "") != "teacher" or (run / TRACES / COMPLETE).is_file()
    return taught_already and (config.first is None or _finished(run / FIRST))


def _after_first(config: Config, run: Path) -> Config:
    folder = run / FIRST
    if config.first is None:
        return config
    if not _finished(folder):
        _run_first(config, folder)
    return replace(config, model=replace(config.model, path=str(folder / "policy")))


def _run_first(config: Config, folder: Path) -> None:
    """In a process of its own: engines and process groups live as long as theirs."""
    asked = folder.with_name(f"{FIRST}.json")
    if (folder / "config.yaml").is_file():
        arguments = [f"resume={folder}"]
    elif asked.is_file():
        arguments = json.loads(asked.read_text())
    else:
        remedy = f"was ended before anything of {FIRST} had begun; remove it and start afresh"
        check(config.resume is None, "resume", config.resume, remedy)
        arguments = [*arguments_of(config.first or (), sys.argv[1:]), f'hydra.run.dir="{folder}"']
        write_whole(asked, json.dumps(arguments).encode())
    restore_environment()
    process = subprocess.Popen([sys.executable, sys.argv[0], *arguments])
    try:
        status = process.wait()
    except BaseException:
        close(process)
        raise
    if status in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if not _finished(folder):
        raise ConfigError(f"first={config.first}: that run ended with status {status}; see {folder}")


def arguments_of(first: Sequence[str], given: Sequence[str]) -> list[str]:
    """The command line of the run before: that of this one, where it does not say otherwise."""
    keys = {_key(one) for one in first} | {"hydra.run.dir", FIRST}
    return [*(one for one in given if _key(one) not in keys), *first]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _finished(folder: Path) -> bool:
    return RunDirectory(folder).read_run().get("status") == "finished"
