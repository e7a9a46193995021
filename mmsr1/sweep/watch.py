"""The process that sweeps: tells which job is under way, ends the jobs when it is stopped, and says how all ended."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from mmsr1.cli import refuse
from mmsr1.config import Config, ConfigError
from mmsr1.files import write_whole
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.run_directory import RunDirectory
from mmsr1.sweep import rows
from mmsr1.sweep.plan import FILE, add, expanded, foreseen

if TYPE_CHECKING:
    from mmsr1.sweep.job import Call

# How Hydra comes to call `Started`; `++`, as a multirun may be started with a command that has it already.
_TELL_US = "++hydra.callbacks.sweep._target_=mmsr1.sweep.watch.Started"
_EVERY_S = 0.5
_CLOSING_S = 120
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_here: _Sweep | None = None  # in the process that sweeps, as long as it does


def is_here() -> bool:
    """Whether this is the process that sweeps, whose terminal shows one job after the other."""
    return _here is not None


def tell() -> None:
    """Print what the jobs have said by now, if this is the process that sweeps."""
    if _here is not None:
        _here.tell()


class Started(Callback):
    """Tells the process that sweeps where it does so: its folder holds a date, and only Hydra knows which."""

    def on_multirun_start(self, config: Any, config_name: str, **_: Any) -> None:
        if _here is not None:
            _here.started(config, config_name)


def sweep(
    call: Call, composing: Callable[[Callable[[Any], Any]], Callable[[], Any]], after: Callable[[Path], None]
) -> bool:
    """Hydra's multirun, where `composing` is `hydra.main` with its arguments; then `after(folder of the sweep)`.

    Returns whether all went well. SIGTERM, and SIGHUP of a terminal that closes, end it as Ctrl-C does.
    """
    global _here
    _here = here = _Sweep(call)
    lost = ""
    sys.argv = _with_override(sys.argv, _TELL_US)

    def task(raw: Any) -> float | None:  # a launcher may send it to another process: it knows of nothing else
        return call.do(raw)

    try:
        with here.passing_signals_on(), here.telling():
            try:
                composing(task)()
            except Exception as error:
                lost = here.cause(error)
    except KeyboardInterrupt:
        here.close("interrupted; the same command goes on with what is there")
        raise
    finally:
        _here = None
    return here.folder is None or here.close(lost, after)


def _with_override(arguments: Sequence[str], override: str) -> list[str]:
    """Beside the others, which argparse takes as one group: options may stand before or behind."""
    places = (i for i, one in enumerate(arguments) if i and "=" in one and not one.startswith("-"))
    place = next(places, len(arguments))
    return [*arguments[:place], override, *arguments[place:]]


class _Sweep:
    """`folder` is None until the multirun starts; it never does where Hydra only shows a configuration."""

    def __init__(self, call: Call) -> None:
        self._of, self.call, self.folder = call, call.id, None
        self._total: int | None = None
        self._study: str | None = None
        self._tunes = False
        self._since = time.monotonic()
        self._plan: bytes | None = None  # as it was before this command
        self._told, self._lock, self._stopping = 0, threading.Lock(), False

    def started(self, config: Any, name: str) -> None:
        """Before anything is written or launched. Hydra turns exceptions of this into warnings, but no SystemExit."""
        self._study = OmegaConf.select(config, "study")
        folder = Path(config.hydra.sweep.dir).resolve()
        self._total = OmegaConf.select(config.hydra.sweeper, "n_trials")
        self._tunes = self._total is not None
        if not self._tunes:
            try:
                self._total = self._planned(config, name, folder)
            except USER_ERRORS as error:
                refuse(explain(error))
            except (ValueError, OSError) as error:
                refuse(str(error))
        self.folder = folder

    def _planned(self, config: Any, name: str, folder: Path) -> int:
        """The number of jobs, which are planned now; refuses them all if one may not start.

        Those of an evaluation are no plan, and a benchmark that cannot be asked holds up no other.
        """
        loader = GlobalHydra.instance().config_loader()
        task = list(config.hydra.overrides.task)
        if any(
            one.key_or_group == "study" and one.is_sweep_override()
            for one in OverridesParser.create().parse_overrides(task)
        ):
            raise ConfigError("study: one at a time; give a command for each")
        if self._of.node is not Config:
            return len(expanded(config.hydra.sweeper.params or {}, task, loader))
        jobs = foreseen(config, name, loader)
        reasons = self._of.refused(jobs, name)
        for told, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            sys.stderr.write(f"error: {told} ({names[0]}{more}, of {len(jobs)} jobs; nothing was started)\n")
        if reasons:
            sys.exit(2)
        file = folder / FILE
        self._plan = file.read_bytes() if file.is_file() else None
        add(folder, [job for job, _ in jobs])
        return len(jobs)

    def _unplan(self, folder: Path) -> None:
        """Nothing of what this command asked for was begun."""
        if self._plan is not None:
            write_whole(folder / FILE, self._plan)
        else:
            (folder / FILE).unlink(missing_ok=True)

    def cause(self, error: Exception) -> str:
        """Why a launcher gave up, in words; raises what is not a launcher's. Exits with 2 for what a user can mend."""
        if isinstance(error, RuntimeError) and "slurm" in str(error):
            if self.folder is not None and self._of.node is Config:
                self._unplan(self.folder)
            refuse(
                f"hydra/launcher=slurm: {error}; submit from a machine of the cluster, or give slurm_local or joblib"
            )
        if type(error).__module__.partition(".")[0] in ("submitit", "joblib"):
            said = str(error).strip().splitlines()
            return f"the launcher gave up ({said[0] if said else type(error).__name__}); jobs may still be at work"
        seen = self._last()
        worthless = seen and not any(row.event in rows.DONE for row in seen.values())
        if self._tunes and worthless and isinstance(error, ValueError):
            return "no trial has a value"  # Optuna has no best one then
        raise error

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Jobs of other processes are looked after every half second."""
        end = threading.Event()

        def look() -> None:
            while not end.wait(_EVERY_S):
                self.tell()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.tell()

    def tell(self) -> None:
        with self._lock:
            said = self._rows()
            if not self._told and (log := next((row.log for row in said if row.log), None)):
                sys.stderr.write(f"output of the jobs: {_short(Path(log).parent)}\n")
            for row in said[self._told :]:
                job = f"job {row.job + 1}{f' of {self._total}' if self._total else ''}: {self._name(row)}"
                if line := _line(job, row):
                    sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
            self._told = len(said)

    def close(self, lost: str, after: Callable[[Path], None] = lambda folder: None) -> bool:
        """Say what came of all jobs, and where it is: whether all are done."""
        if self.folder is None:
            return False
        last = self._last()
        done = [row for row in last.values() if _is_done(row)]
        failed = [row for row in last.values() if not _is_done(row)]
        for row in failed:
            told = row.told or ("is still at work, or was killed" if row.event in rows.UNDER_WAY else row.event)
            sys.stderr.write(f"failed: {row.folder}: {told}{f'; its output: {row.log}' if row.log else ''}\n")
        if lost:
            sys.stderr.write(f"{lost}\n")
        total = self._total or len(last)
        sys.stderr.flush()
        minutes = (time.monotonic() - self._since) / 60
        told = f"{len(done)} of {total} jobs done in {minutes:.1f} min: {_short(self.folder)}"
        sys.stdout.write(f"{told}\n")
        if self._study is not None:
            sys.stdout.write(
                f"report: {shlex.join(['python', '-m', 'mmsr1.report.study', str(_short(self.folder))])}\n"
            )
        sys.stdout.flush()
        try:
            after(self.folder)
        except OSError as error:  # jobs that were refused leave nothing to look at
            sys.stderr.write(f"{error}\n")
            return False
        return not lost and len(done) == total

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """Jobs have sessions of their own; those of other processes would be killed with their launcher's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        before = {one: signal.signal(one, self._stop) for one in taken}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """End the jobs on this machine and wait until they have closed; a second signal waits no longer."""
        again, self._stopping = self._stopping, True
        if self.folder is not None and not again:
            rows.add(self.folder, rows.Row(self.call, -1, str(self.folder), "stop"))
            for row in self._elsewhere():
                with suppress(ProcessLookupError):
                    os.kill(row.pid or 0, signal.SIGTERM)
            with suppress(OSError):  # of a terminal that is closed
                self._tell_of_the_stop()
            until = time.monotonic() + _CLOSING_S
            while self._elsewhere() and time.monotonic() < until:
                time.sleep(0.1)
        raise KeyboardInterrupt

    def _tell_of_the_stop(self) -> None:
        under_way = [row for row in self._last().values() if row.event in rows.UNDER_WAY]
        if away := [row for row in under_way if not _is_near(row)]:
            told = "what is queued ends as it starts, and is not run; at work on other machines, and not ended"
            sys.stderr.write(f"{told}: {', '.join(self._name(row) for row in away)}\n")
        if near := len(self._elsewhere()) + sum(_is_near(row) and row.by == os.getpid() for row in under_way):
            jobs = "a job, which keeps" if near == 1 else f"{near} jobs, which keep"
            sys.stderr.write(f"ending {jobs} what is done; a second Ctrl-C does not wait for that\n")

    def _elsewhere(self) -> list[rows.Row]:
        """Jobs that other processes of this machine wait for; of one's own `Call.do` takes care."""
        mine = (row for row in self._last().values() if _is_near(row) and row.by != os.getpid())
        return [row for row in mine if row.event in rows.UNDER_WAY and row.pid and _lives(row.by)]

    def _rows(self) -> list[rows.Row]:
        return [] if self.folder is None else rows.read(self.folder, self.call)

    def _last(self) -> dict[int, rows.Row]:
        """The newest line of every job that has said anything."""
        return {row.job: row for row in self._rows() if row.job >= 0}

    def _name(self, row: rows.Row) -> str:
        folder = Path(row.folder)
        return (
            str(folder.relative_to(self.folder)) if self.folder and folder.is_relative_to(self.folder) else row.folder
        )


def _line(job: str, row: rows.Row) -> str | None:
    """What is told of a job at once; the end of one that has the terminal is told by itself."""
    if row.event == "stop" or (row.event == "finished" and row.log is None):
        return None
    if row.event in ("failed", "interrupted"):
        return f"{job}: {row.told}; the sweep goes on" if row.event == "failed" else f"{job}: {row.told}"
    if row.event == "skipped":
        return f"{job}: finished before, with this configuration"
    return {"started": job, "resumed": f"{job}: goes on where it was", "finished": f"{job}: finished"}[row.event]


def _is_done(row: rows.Row) -> bool:
    """Its last line may be lost with the process that was to write it; its run directory tells too."""
    if row.event in rows.UNDER_WAY:
        with suppress(OSError, ValueError, AttributeError):  # half a file of a process that was killed says no
            return RunDirectory(Path(row.folder)).read_run().get("status") == "finished"
        return False
    return row.event in rows.DONE


def _is_near(row: rows.Row) -> bool:
    return row.host == socket.gethostname()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _short(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
