"""The command line around Hydra: mistakes become one line and exit status 2."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mmsr1.config as schema
from mmsr1.config import CONF, HUB_ID, Config, ConfigError, check, edit, evaluate, register
from mmsr1.mistakes import USER_ERRORS, explain, near_key
from mmsr1.rollout.prompts import load_prompts

# What a checkpoint was made with; another value would train something else in its place.
_FIXED = {f"model.{name}" for name in ("path", "lora_rank", "lora_alpha", "freeze_vision", "hidden", "layers")}
_FIXED |= {"algorithm.kind", "algorithm.prompts_per_step", "data.train_path", "data.train_size"}
_FIXED |= {"data.kind", "data.root", "algorithm.all_equal", "algorithm.group_size", "algorithm.traces"}
_FIXED |= {f"rollout.{name}" for name in ("overlap", "oversample", "max_staleness")}
_FIXED_GROUPS = ("data.world.", "data.mix.", "data.sources")
_MULTIRUN = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
_FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0")  # as the user set it; `run_command` sets it for Hydra
# Programs whose runs can be resumed: their file, how they are called, their schema.
_PROGRAMS = (
    ("train.py", "train.py", Config),
    ("evaluate.py", "evaluate.py", evaluate.EvaluateConfig),
    ("evaluation/edit/__main__.py", "-m mmsr1.evaluation.edit", edit.EditConfig),
)


def run_command(
    job: Callable[[Any, Path], None],
    name: str = "config",
    node: type[Config] = Config,
    after_sweep: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Compose `conf/<name>.yaml`, whose schema is `node`, check it, and call `job(config, run directory)`.

    Exits with 2 for a user's mistake, told in one line; with 130 after an interrupt; other errors keep their traceback.
    A Hydra multirun (`-m`) does every job in a fresh process (`mmsr1.sweep`); then `after_sweep(its folder)` is called,
    and it exits with 1 if a job failed. `HYDRA_FULL_ERROR=1` shows the traceback of a mistake too.
    """
    register()
    full_errors = _FULL_ERROR == "1"
    # Hydra's own handler prints several lines and exits with 1; with this set it lets us handle the error.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    conf = str(Path(sys.argv[0]).resolve().parent / "conf")
    sys.argv = _resuming(sys.argv)
    composing = hydra.main(version_base="1.3", config_path=conf, config_name=name)

    def task(raw: Any) -> None:
        settings = HydraConfig.get()
        output = Path(settings.runtime.output_dir)
        with _mistakes_in_one_line(full_errors, output):  # here already: Hydra would announce what reaches it
            _check_single(raw)
            job(checked(raw if raw.resume is None else resumed(output, list(settings.overrides.task), node)), output)

    with _mistakes_in_one_line(full_errors):
        if not _MULTIRUN & set(sys.argv):
            composing(task)()
        else:
            from mmsr1.sweep.job import Call
            from mmsr1.sweep.watch import sweep

            if not sweep(Call(node, _FULL_ERROR), composing, after_sweep):
                sys.exit(1)


def _check_single(raw: Any) -> None:
    """Raises ConfigError for a study without -m: a sweep's own jobs have a folder given."""
    named = any(one.startswith("hydra.run.dir=") for one in sys.argv)
    remedy = "is a sweep; put -m before it, or name the folder of a single run: hydra.run.dir=FOLDER"
    study = OmegaConf.select(raw, "study")
    check(study is None or named, "study", study, remedy)


@contextmanager
def _mistakes_in_one_line(full_errors: bool, output: Path | None = None) -> Iterator[None]:
    """Refuse what raises a user's error; Hydra's empty folder for the run goes too."""
    try:
        yield
    except USER_ERRORS as error:
        if output is not None:
            remove_empty(output)
        if full_errors:
            raise
        refuse(explain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def composed(overrides: list[str], name: str = "config") -> Any:
    """The raw configuration of train.py, or another one of `conf/` by its `name`, with these overrides, for commands
    beside it. Raises `USER_ERRORS`."""
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides)


def refuse(message: str) -> NoReturn:
    """One line on standard error and exit status 2."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)


def answering_command(overrides: list[str], job: Callable[[Config], int], out: str) -> int:
    """Run a job beside train.py that has a policy answer questions, its results in the folder `out`: the exit status.

    A mistake is one line and status 2, an interrupt status 130.
    """
    try:
        config = checked(composed(overrides))
        from mmsr1.environment import prepare_process

        prepare_process(config.trainer.threads)
        return job(config)
    except USER_ERRORS as error:
        refuse(explain(error))
    except OSError as error:  # of its folder, or the cache's
        refuse(f"--out={out}: {error}")
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; the same command goes on, with what is in {out}\n")
        return 130


class CommandParser(argparse.ArgumentParser):
    """Options of a command beside train.py; a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; --help lists the options")


def configured_command(arguments: list[str], prog: str, description: str | None, example: str) -> argparse.Namespace:
    """What was given to a command with a configuration of its own: its `overrides`, and whether `cfg` asks for that
    configuration alone."""
    parser = CommandParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help=f"key=value, e.g. {example}")
    parser.add_argument("--cfg", choices=("job",), help="print the configuration and end")
    return parser.parse_intermixed_args(arguments)


def _resuming(arguments: list[str]) -> list[str]:
    """The command line with the run directory that `resume=` names as Hydra's own."""
    named = [argument.removeprefix("resume=").strip('"') for argument in arguments if argument.startswith("resume=")]
    if not named:
        return arguments
    output = Path(named[-1]).resolve()
    rest = [argument for argument in arguments if not argument.startswith(("resume=", "hydra.run.dir="))]
    if not (output / "config.yaml").is_file():
        refuse(f"resume={named[-1]}: no run there; give the run directory, which holds config.yaml")
    if _MULTIRUN & set(rest):
        refuse(f"resume={named[-1]}: a run is resumed alone, not in a sweep; leave out -m")
    return [*rest, f'resume="{output}"', f'hydra.run.dir="{output}"']


def resumed(run: Path, overrides: list[str], node: type[Config] = Config) -> Any:
    """The configuration that `run` was started with, under single keys given now; raw, with `resume` set.

    Raises ConfigError for an override that is not a plain `key=value`, and for a run of another program.
    """
    _check_program(run, node)
    raw = OmegaConf.merge(OmegaConf.structured(node), {"resume": str(run)})
    saved: Any = OmegaConf.load(run / "config.yaml")
    for override in OverridesParser.create().parse_overrides(overrides):
        key, given = override.key_or_group, override.input_line or ""
        plain = not (override.is_add() or override.is_delete() or override.is_sweep_override()) and "." in key
        if key != "resume":
            remedy = "a resumed run brings its own configuration; beside it give only keys like trainer.max_steps=80"
            check(plain, key, given.partition("=")[2], remedy)
            fixed = key in _FIXED or key.startswith(_FIXED_GROUPS)
            check(not fixed, key, given.partition("=")[2], "a resumed run keeps its model and its examples")
            OmegaConf.update(saved, key, override.value(), force_add=False)
    nodes = {"grpo": schema.GrpoConfig, "sft": schema.SftConfig}
    kind = OmegaConf.select(saved, "algorithm.kind")
    check(kind in nodes, "resume", str(run), "its config.yaml is damaged: no algorithm.kind")
    raw.algorithm = OmegaConf.structured(nodes[kind])
    return OmegaConf.merge(raw, saved, {"resume": str(run)})


def _check_program(run: Path, node: type[Config]) -> None:
    """Raises ConfigError for a run that a program with another schema began, as far as its run.json tells."""
    try:
        command = str(json.loads((run / "run.json").read_bytes())["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    program = re.match(r"python (?:.*?/)?(train\.py|evaluate\.py|evaluation/edit/__main__\.py)( |$)", command)
    made_by = {name: (told, schema) for name, told, schema in _PROGRAMS}[program[1]] if program else None
    if made_by is not None and made_by[1] is not node:
        other = f", or evaluate its policy: policy={run}" if node is evaluate.EvaluateConfig else ""
        told = f"python {made_by[0]} made it; go on with python {made_by[0]} resume={run}{other}"
        raise ConfigError(f"resume={run}: {told}")


def checked(raw: Any) -> Config:
    """The typed configuration. Raises ConfigError for a value that makes no sense or a file that is not there."""
    config: Any = OmegaConf.to_object(raw)
    check_keys(config)
    _check_files(config)
    return config


def check_keys(node: Any, prefix: str = "") -> None:
    """Hydra's `+key=value` adds keys that the schema does not know; nothing would ever read them."""
    for name, value in vars(node).items():
        if name not in {field.name for field in fields(node)}:
            raise ConfigError(f"{prefix}{name}={value}: there is no such key{near_key(name)}")
        if is_dataclass(value):
            check_keys(value, f"{prefix}{name}.")


def _check_files(config: Config) -> None:
    """What the configuration names is there; quick, so that a mistake shows before anything heavy is imported."""
    held_out = {"data.val_path": config.data.val_path} if config.data.val_path else {}
    for key, path in (config.data.files | held_out).items():
        wanted = "give a parquet file in the FVQA format, or JSON lines (.jsonl)"
        check(Path(path).is_file(), key, path, f"no such file; {wanted}")
        if Path(path).suffix.lower() != ".jsonl":
            with Path(path).open("rb") as file:
                check(file.read(4) == b"PAR1", key, path, wanted)
    if config.algorithm.kind == "sft" and config.algorithm.source == "traces":
        folder = config.algorithm.traces
        remedy = "name a folder of traces; python -m mmsr1.data.traces makes one"
        check(folder is not None and Path(folder).is_dir(), "algorithm.traces", folder, remedy)
    elif config.algorithm.kind == "sft":
        remedy = "has no warm-up demonstrations; train on traces: algorithm=sft algorithm.traces=FOLDER"
        if config.algorithm.source == "teacher":
            remedy = "nobody knows its answers: make traces of a model; docs/data.md has the command"
        check(config.data.kind == "emblem", "data.kind", config.data.kind, remedy)
    if path := config.model.path:
        found = Path(path, "config.json").is_file() or re.fullmatch(HUB_ID, path)
        check(bool(found), "model.path", path, "no model there; give a Hugging Face folder or a hub id")
    if isinstance(config, evaluate.EvaluateConfig) and config.benchmark.path is None:
        _check_benchmark(config.benchmark.name)
    try:
        load_prompts(config.rollout.prompts)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_benchmark(name: str) -> None:
    """Raises ConfigError for a published benchmark, whose file was not named. The emblem world needs none."""
    if name == "emblem":
        return
    from mmsr1.evaluation.benchmarks import BENCHMARKS  # reads Parquet: not for every command

    if name in BENCHMARKS:
        raise ConfigError(f"benchmark.path=None: {BENCHMARKS[name].wanted}")


def remove_empty(folder: Path) -> None:
    """Remove the folder, and those above it within the working directory, as far as they are empty."""
    here = Path.cwd()
    try:
        folder.rmdir()
        while (folder := folder.parent) != here and folder.is_relative_to(here):
            folder.rmdir()
    except OSError:
        return


def restore_environment() -> None:
    """The environment as it was before `run_command`, for commands that start this program again."""
    os.environ["HYDRA_FULL_ERROR"] = _FULL_ERROR
