"""One job of a multirun, in the process that Hydra's launcher chose for it: skip it, go on with it, or start it.

The work is done in a fresh process, because engine and process groups live as long as theirs. What happens here is
known by the lines of `mmsr1.sweep.rows` alone: the objects of another process are lost with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from yaml import YAMLError

from mmsr1.assembly.settings import FREE, FREE_IN_TRAINING, compare, decides_nothing, flat
from mmsr1.cli import checked, resumed
from mmsr1.config import Config, check
from mmsr1.files import is_locked
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.processes import close
from mmsr1.run_directory import FIRST, RunDirectory
from mmsr1.sweep import rows, watch
from mmsr1.sweep.plan import Planned, run_dir

LOGS = "logs"
# A job begins once it is known by a line of `rows`: who dies before that leaves none behind that nobody ends.
_GATE = ("sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, KeyError, YAMLError)
# Chosen by `mmsr1.models.plan.settle` where they are null; config.yaml has what it chose.
_CHOSEN = ("trainer.optimizer_state", "trainer.offload")


@dataclass(frozen=True)
class Call:
    """The call of a program that sweeps, as far as its jobs need it: plain values, which go anywhere.

    `node` is its schema, `full_error` HYDRA_FULL_ERROR as the user set it; `program` is its file.
    """

    node: type[Config]
    full_error: str
    program: str = field(default_factory=lambda: sys.argv[0])
    id: str = field(default_factory=lambda: uuid4().hex[:12])

    def refused(self, jobs: Sequence[tuple[Planned, Any]], name: str) -> dict[str, list[str]]:
        """Why jobs of a sweep may not start, each reason with the folders that it holds for: told before any does.
        Several configurations in one folder would be taken for one another."""
        reasons: dict[str, list[str]] = {}
        for job, raw in jobs:
            try:
                _command(raw, job.folder, list(job.overrides), self.node, name)
            except USER_ERRORS as error:
                reasons.setdefault(explain(error), []).append(job.folder.name)
            except _DAMAGE:  # of a run that is there: it is told when its turn comes, and holds up no other
                continue
        for folder, count in Counter(job.folder for job, _ in jobs).items():
            if count > 1:
                named = "'${name}__lr${algorithm.lr}__seed${seed}'"
                remedy = f"ask for none twice, or name in it all that is swept, like {named}"
                told = f"hydra.sweep.subdir: {count} jobs have one folder; {remedy}"
                reasons.setdefault(told, []).append(folder.name)
        return reasons

    def is_stopped(self, sweep: Path) -> bool:
        return any(row.event == "stop" for row in rows.read(sweep, self.id))

    def do(self, raw: Any) -> float | None:
        """The job that Hydra has just composed: its final validation reward, None if it has none or failed."""
        settings = HydraConfig.get()
        sweep, run = Path(settings.sweep.dir).resolve(), Path(settings.runtime.output_dir)
        log = None if watch.is_here() else sweep / LOGS / f"{settings.sweep.subdir.replace('/', '_')}.log"
        job = _Job(self, sweep, run, settings.job.num, log)
        if self.is_stopped(sweep):
            return None
        try:
            command = _command(raw, run, list(settings.overrides.task), self.node, settings.job.config_name)
        except USER_ERRORS as error:
            job.say("failed", told=f"refused: {explain(error)}")
            return None
        except _DAMAGE as error:  # one line of one job: the others are done
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            job.say(
                "failed",
                told=f"refused: a file of the run that is there is damaged ({what}); move {run} away to start anew",
            )
            return None
        if command is None:
            job.say("skipped")
            return _objective(run)
        return _objective(run) if job.runs([sys.executable, self.program, *command], command[-1]) else None


@dataclass(frozen=True)
class _Job:
    call: Call
    sweep: Path
    run: Path
    number: int
    log: Path | None  # where its output goes; None: to the terminal of the sweep

    def say(self, event: rows.Event, told: str = "", pid: int | None = None) -> None:
        log = None if self.log is None else str(self.log)
        rows.add(self.sweep, rows.Row(self.call.id, self.number, str(self.run), event, told, log, pid))
        watch.tell()

    def runs(self, command: list[str], how: str) -> bool:
        """Whether it ended well. In a session of its own: a Ctrl-C is passed on by the sweep, once."""
        environment = os.environ | {"HYDRA_FULL_ERROR": self.call.full_error}
        if self.log is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal of the sweep, which ends its jobs itself
        with _output(self.log) as stream:
            process = subprocess.Popen(
                [*_GATE, *command], env=environment, stdout=stream, stderr=stream, stdin=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            try:
                self.say("resumed" if how.startswith("resume=") else "started", pid=process.pid)
                if self.call.is_stopped(self.sweep):
                    process.terminate()
                process.communicate(b"go\n")
                status = process.returncode
            except BaseException:  # the sweep is stopped, or a scheduler takes this process back
                close(process)
                self.say("interrupted", told="was interrupted")
                raise
        if status in (130, -signal.SIGTERM):
            self.say("interrupted", told="was interrupted")
        elif status:
            killed = status < 0 and signal.Signals(-status).name
            self.say("failed", told=f"was killed ({killed})" if killed else f"ended with status {status}")
        else:
            self.say("finished")
        return status == 0


@contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        yield stream


def _command(raw: Any, run: Path, overrides: list[str], node: type[Config], name: str | None) -> list[str] | None:
    """The arguments of the job, the one with its folder last; None if it is finished already. `name` is that of the
    configuration which `raw` was composed from.

    Raises the first of USER_ERRORS that `raw` has; ConfigError that names the first key in which the run that is there
    differs, or the one before it, and if someone is at work there.
    """
    config = checked(raw)
    _check_first(config, run, overrides, name)
    if not (run / "config.yaml").is_file():
        return [*overrides, run_dir(run)]
    remedy = "a process is still at work there; wait, or name another folder"
    check(not is_locked(run / ".lock"), "hydra.sweep.dir", run, remedy)
    free = FREE_IN_TRAINING if node is Config else FREE
    asked, there = _values(config), _values(checked(resumed(run, [], node)))

    def is_free(key: str) -> bool:
        return _is_free(key, free, asked)

    compare(there, asked, is_free, run, "hydra.sweep.dir=FOLDER names another")
    if RunDirectory(run).read_run().get("status") == "finished":
        return None
    given = [one for one in OverridesParser.create().parse_overrides(overrides) if not one.is_add()]
    anew = [one.input_line or "" for one in given if "." in one.key_or_group and is_free(one.key_or_group)]
    if any(one.key_or_group == "logger" for one in given):  # the one group whose keys all decide nothing
        anew += [f"{key}={json.dumps(value)}" for key, value in asked.items() if key.startswith("logger.")]
    return [*anew, f"resume={run}"]


def _is_free(key: str, free: tuple[str, ...], asked: Mapping[str, Any]) -> bool:
    return decides_nothing(key, free) or (key in _CHOSEN and asked[key] is None)


def _check_first(config: Config, run: Path, overrides: list[str], name: str | None) -> None:
    """Raises ConfigError that names the first key in which the run before this one, if it has begun, differs from what
    would be begun now: the files that it names may have changed."""
    folder = run / FIRST
    if config.first is None or not (folder / "config.yaml").is_file():
        return
    from mmsr1.assembly.before import arguments_of  # heavy

    asked = _values(checked(hydra.compose(name, arguments_of(config.first, overrides))))
    compare(_values(checked(resumed(folder, []))), asked, lambda key: _is_free(key, FREE_IN_TRAINING, asked), folder)


def _values(config: Config) -> dict[str, Any]:
    return flat(OmegaConf.structured(replace(config, resume=None)))


def _objective(run: Path) -> float | None:
    """What a sweeper maximises: the reward of the last validation."""
    try:
        return float(RunDirectory(run).read_summary()["final"]["reward"])
    except (ValueError, KeyError, TypeError):
        return None
