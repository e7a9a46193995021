"""Parts of a benchmark in processes of their own, which measure when they are asked: JSON lines in and out.

What is compared stands side by side and takes turns, so that whatever else the machine does disturbs both. Only one
works at a time; the others wait for a line. Standard library only: another environment's Python imports this too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
# One thread computes models of this size fastest, and a thread that waits for its team must not spin.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


class Part:
    """A process that answers tasks. Use it in a `with` block; leaving it ends the process.

    `command` runs a program that opens a `Channel`; `env` comes on top of this process's own variables. What it writes
    to its standard error goes where ours goes.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._command = command
        variables = {**os.environ, **QUIET, **(env or {})}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True)

    @classmethod
    def of(cls, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Part:
        """The module of this package run as a program, in this environment."""
        return cls([sys.executable, "-m", f"benchmarks.{module}", *arguments], env)

    def ask(self, **task: Any) -> Any:
        """The answer to a task. Raises RuntimeError if the process ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its status tells more
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it has nothing to save, and vLLM would take its time
        self._process.communicate()


class Channel:
    """The other end of a `Part`. What libraries print to standard output goes to standard error from then on."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        """The next task; None if there is none any more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, answer: Any) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
