"""The processes of a run: which one is the first, starting them on one machine, and what to do when one of them ends.

Several machines are started from outside, by torchrun or srun; this reads what those put into the environment.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, Literal, NoReturn
from uuid import uuid4


def is_first_process() -> bool:
    """True in the process that names and writes the run directory, before any process group exists.

    Reads what torchrun and `launch` (RANK) or else SLURM (SLURM_PROCID) set: torchrun under srun numbers nodes anew.
    """
    name = {"torchrun": "RANK", "srun": "SLURM_PROCID"}.get(started_by())
    return name is None or os.environ[name] == "0"


def started_from_outside() -> bool:
    """True if torchrun, `launch` or srun started this process as one of several."""
    return started_by() != "nobody"


def started_by() -> Literal["torchrun", "srun", "nobody"]:
    """srun alone numbers its steps: a shell inside an allocation knows SLURM_NTASKS too."""
    if "RANK" in os.environ:
        return "torchrun"
    several = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return "srun" if several else "nobody"


def started_count() -> int:
    """How many processes torchrun, `launch` or srun started."""
    name = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS"}.get(started_by())
    return int(os.environ[name]) if name else 1


def close(process: subprocess.Popen[bytes], within_s: float = 120.0) -> None:
    """Have a job of ours end and wait until it has: it writes its summary and its report. One that takes longer is
    killed."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def launch(processes: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Run this program `processes` times with `arguments`, by torch's own launcher; (exit status, what went wrong).

    When one process fails, the others get SIGTERM, and SIGKILL half a minute later.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say what went wrong, in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda one: _suspicion(one[1]))
        if failure.exitcode < 0:
            return 1, f"process {rank} of {processes} was ended by {signal.Signals(-failure.exitcode).name}"
        return failure.exitcode, f"process {rank} of {processes} ended with status {failure.exitcode}"
    except SignalException:
        return 130, ""
    return 0, ""


def _suspicion(failure: Any) -> tuple[int, int]:
    """The cause first, of failures whose timestamps are whole seconds: a process that is killed takes others with it,
    and the rest are ended by SIGTERM."""
    return failure.timestamp, 2 if failure.exitcode == -signal.SIGTERM else int(failure.exitcode > 0)


def interrupt_on_sigterm() -> None:
    """A scheduler's SIGTERM ends the run as Ctrl-C does: with its summary written.

    Call it after Lightning has set its own handler, which waits for a broadcast that a lost process never joins.
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def lost_another(error: BaseException) -> bool:
    """True if a collective failed because its peer is gone."""
    said = re.search(r"closed by peer|reset by peer|Broken pipe|remote process exited|Timed out waiting", str(error))
    return isinstance(error, RuntimeError) and bool(said)
