"""The command line around Hydra: mistakes become one line and exit status 2, sweeps run each job in its own process."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmsr1.config import Config, ConfigError, register

USER_ERRORS = (HydraException, OmegaConfBaseException, ConfigError)


def run_command(job: Callable[[Config, Path], None]) -> None:
    """Compose the configuration of `conf/`, check it against the schema, and call `job(config, run directory)`.

    Exits with 2 for a user's mistake, told in one line; with 130 after an interrupt; other errors keep their traceback.
    A Hydra multirun (`-m`) runs every job in a fresh process: engine and process groups live as long as theirs.
    """
    register()
    # Hydra's own handler prints several lines and exits with 1; with this set it lets us handle the error.
    user_wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    conf = str(Path(sys.argv[0]).resolve().parent / "conf")

    @hydra.main(version_base="1.3", config_path=conf, config_name="config")
    def task(raw: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            _in_own_process(list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir))
            return
        config: Any = OmegaConf.to_object(raw)
        job(config, Path(hydra_config.runtime.output_dir))

    try:
        task()
    except USER_ERRORS as error:
        if user_wants_traceback:
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def refuse(message: str) -> NoReturn:
    """One line on standard error and exit status 2."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)


def explain(error: Exception) -> str:
    """A composition error in one line: key, value received, remedy."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (missing := re.search(r"Could not find '([^']+)'", text)):
        group, _, option = missing[1].rpartition("/")
        options = _options(text)
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{group or 'config'}={option}: there is no such option; {hint}available: {', '.join(options) or 'none'}"
    if unknown := re.search(r"Key '([^']+)' (?:is not in struct|not in '(\w+)')", text):
        full = re.search(r"full_key: (\S+)", text)
        key = full[1] if full else unknown[1]
        override = re.search(r"Could not override '([^']+)'", text)
        value = next((arg.partition("=")[2] for arg in sys.argv[1:] if arg.lstrip("+").startswith(f"{key}=")), None)
        received = f"={value}" if value is not None else ""
        near = difflib.get_close_matches((override[1] if override else key).rpartition(".")[2], _keys(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; --cfg job prints the keys there are"
        return f"{key}{received}: there is no such key{hint}"
    if group := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{group[1]}: no such config group; --help lists them (experiment and study need a leading +)"
    if isinstance(error, OmegaConfBaseException) and (full := getattr(error, "full_key", None)):
        return f"{full}: {text.splitlines()[0]}"
    return text


def _options(text: str) -> list[str]:
    _, _, listed = text.partition("Available options in")
    return [line.strip() for line in listed.splitlines()[1:] if line.startswith("\t")]


def _keys() -> list[str]:
    """Every key name of the schema, for "did you mean"."""
    from dataclasses import fields

    import mmsr1.config as schema

    classes = [c for c in vars(schema).values() if isinstance(c, type) and hasattr(c, "__dataclass_fields__")]
    return sorted({field.name for c in classes for field in fields(c)})


def _in_own_process(overrides: list[str], output_dir: Path) -> None:
    command = [sys.executable, sys.argv[0], *overrides, f"hydra.run.dir={output_dir}"]
    if status := subprocess.run(command, check=False).returncode:
        sys.stderr.write(f"job {output_dir} ended with status {status}; the sweep goes on\n")
