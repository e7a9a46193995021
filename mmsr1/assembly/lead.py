"""The process that writes a run directory: it is complete also after a failure, a refusal or an interrupt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from mmsr1.assembly.services import ledger_folder
from mmsr1.assembly.tools import check_tools, frozen_web
from mmsr1.cli import remove_empty
from mmsr1.config import Config, ConfigError, check
from mmsr1.files import write_whole
from mmsr1.processes import lost_another
from mmsr1.report.run import write_report
from mmsr1.run_directory import RunDirectory, git_commit, versions
from mmsr1.tools.bundle.record import FOLDER as SEARCHES

ROOT = Path(__file__).resolve().parents[2]
_LOG = "train.log"  # conf/hydra/job_logging/file.yaml


def lead(config: Config, run: RunDirectory, program: str, job: Callable[[], tuple[str, str | None]]) -> None:
    """Do the `job` as `program` in a run directory that no other process writes, and say how it ended.

    The job returns its final status, and which budget was spent if that ended it, or why it failed. Leaves with status
    130 after an interrupt and 1 after a failed job or the loss of another process; other failures are raised. A new run
    whose job refuses its configuration, and has done nothing, leaves nothing behind.
    """
    started = time.perf_counter()
    remedy = f"a run is there; resume={run.path} goes on with it, another folder starts afresh"
    check(not (config.resume is None and run.read_run()), "hydra.run.dir", run.path, remedy)
    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(f"resume={run.path}: a process is still at work there") from error
    try:
        check_tools(config, run.path)
    except ConfigError:  # what an earlier process wrote of this run stays as it is
        _release(lock)
        raise
    file = run.path / "config.yaml"
    settings, before = OmegaConf.to_yaml(replace(config, resume=None)), file.read_bytes() if config.resume else None
    command = " ".join(["python", *sys.argv])
    fresh = config.resume is None and {file.name for file in run.path.iterdir()} <= {".lock", _LOG}
    run.start(command, config.seed, settings, versions() | frozen_web(config), git_commit(ROOT))
    status, cause, reason, refused = "failed", None, None, False
    try:
        status, reason = job()
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
    except BaseException as failure:
        cause = " ".join(f"{type(failure).__name__}: {failure}".split())
        if isinstance(failure, ConfigError) and before is not None:
            write_whole(file, before)  # what was refused is not what the run goes on with
        refused = isinstance(failure, ConfigError) and fresh and _taken_back(run.path)
        if not lost_another(failure):
            raise
        cause = f"another process of this run is gone ({cause})"
    finally:
        if not refused:
            run.finish(status, time.perf_counter() - started, cause, reason)  # type: ignore[arg-type]
            _report(run)
        _release(lock)
        if refused:
            remove_empty(run.path)
    if status != "finished":
        again, what = f"python {program} resume={run.path}", cause or reason or "interrupted"
        sys.stderr.write(f"{what}; what was written so far is in {run.path}; go on with {again}\n")
        if reason is None or status == "failed":  # otherwise it ended as its configuration says
            sys.exit(130 if status == "interrupted" else 1)


def _release(lock: FileLock) -> None:
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _taken_back(folder: Path) -> bool:
    """Remove what the start of a run writes, by name. False, and all stays, if there is anything else: episodes, a
    summary, a ledger that tells of calls."""
    files = [folder / name for name in ("config.yaml", "run.json", _LOG)]
    folders = [folder / "episodes" / "images", folder / "episodes", ledger_folder(folder), folder / SEARCHES]
    ledgers = [file for file in ledger_folder(folder).glob("*.jsonl") if not file.stat().st_size]
    known = {*files, *folders, *ledgers, folder / ".lock"}
    if any(path not in known or path.is_symlink() for path in folder.rglob("*")):
        return False
    for file in (*files, *ledgers):
        file.unlink(missing_ok=True)
    for inner in folders:
        if inner.is_dir():
            inner.rmdir()
    return True


def _report(run: RunDirectory) -> None:
    """A run that failed keeps its own error even if the report about it fails too."""
    try:
        write_report(run.path)
    except Exception as error:
        sys.stderr.write(f"no report: {type(error).__name__}: {error}; try python -m mmsr1.report.run {run.path}\n")
