"""What Hydra says of a user's mistake, in one line: key, value received, remedy."""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import mmsr1.config as schema
from mmsr1.config import CONF, ConfigError, construct, edit, evaluate

USER_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ConfigError)
_PLUGINS = ("joblib", "submitit", "optuna")
_ADDED = ("experiment", "study", "arm")  # to what train.py has by default
_SPELT = {
    "data.mix": "is a group: data/mix=natural; its keys are data.mix.shares.free and so on",
    "data.sources": "is a list of files: 'data.sources=[{path: a.parquet, weight: 2}, {path: b.jsonl}]'",
}
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: Exception) -> str:
    """A composition error in one line: key, value received, remedy."""
    text = str(error)
    if isinstance(error, ConfigError | YAMLError):
        return text
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood; write key=value, a value with special characters as 'key=\"value\"'"
    if isinstance(error, MissingConfigException) and (missing := re.search(r"Could not find '([^']+)'", text)):
        group, _, option = missing[1].rpartition("/")
        options = _options(text)
        if not options:  # of a group that has its files in folders, like arm
            group, _, option = missing[1].partition("/")
            options = _below(CONF / group)
        near = _near(option, options)
        hint = f"did you mean {near[0]}? " if near else ""
        hint = "needs the extra `studies`, which make setup installs; " if option.startswith(_PLUGINS) else hint
        return f"{group or 'config'}={option}: there is no such option; {hint}available: {', '.join(options) or 'none'}"
    if group := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        typed = _as_typed(group[1])
        remedy = f"the group has no default: put + before it: +{typed}"
        return f"{typed}: {remedy if group[1] in _ADDED else 'no such config group; --help lists them'}"
    if group := re.search(r"Multiple values for (\w+)", text):
        return f"{_as_typed(group[1])}: the group has a default already; leave out the +"
    return _explain_value(text, str(error.__cause__ or error))


def _explain_value(text: str, detail: str) -> str:
    """A key that the schema does not have or a value that it does not take; `detail` is OmegaConf's message."""
    full = re.search(r"full_key: (\S+)", detail)
    if full is None:
        return text
    value, file = re.search(r"Value '(.*?)' of type", detail), re.match(r"In '([^']+)'", text)
    subject = f"{full[1]}={value[1]}" if value else _as_typed(full[1])
    where = f" (in conf/{file[1]}.yaml)" if file else ""
    if re.search(r"Key '[^']*' (is )?not in", detail):
        if re.fullmatch(r"(tools\.)?\w+\.options\.\w+", full[1]):
            return f"{subject}: options are new keys; put + before it: +{subject}"
        return f"{subject}: there is no such key{where}{near_key(full[1].rpartition('.')[2])}"
    if wanted := re.search(r"could not be converted to (\w+)", detail):
        return f"{subject}: must be {_KINDS.get(wanted[1], wanted[1])}{where}"
    if "Invalid" in detail and (spelt := _SPELT.get(full[1].partition("[")[0])):
        return f"{_as_typed(full[1].partition('[')[0])}: {spelt}{where}"
    if "is not Optional" in detail:
        return f"{subject}: needs a value{where}"
    return f"{subject}: {detail.splitlines()[0]}{where}"


def _as_typed(key: str) -> str:
    """`key=value` as given on the command line (perhaps with more of a key), else the key."""
    arguments = [argument.lstrip("+~") for argument in sys.argv[1:]]
    return next((argument for argument in arguments if argument.startswith((f"{key}=", f"{key}."))), key)


def _options(text: str) -> list[str]:
    """What Hydra lists as the options of a group, without our schemas."""
    _, _, listed = text.partition("Available options in")
    lines = takewhile(lambda line: line.startswith("\t"), listed.splitlines()[1:])
    return [line.strip() for line in lines if not line.endswith("schema")]


def _below(group: Path) -> list[str]:
    return sorted(str(file.relative_to(group).with_suffix("")) for file in group.rglob("*.yaml"))


def near_key(name: str) -> str:
    """For a key that is not there. The candidates are the key names of all schemas."""
    known = [value for module in (schema, construct, edit, evaluate) for value in vars(module).values()]
    classes = [value for value in known if isinstance(value, type) and is_dataclass(value)]
    near = _near(name, [field.name for c in classes for field in fields(c)])
    return f"; did you mean {near[0]}?" if near else "; --cfg job prints the keys there are"


def _near(name: str, options: list[str]) -> list[str]:
    return difflib.get_close_matches(name, options, n=1)
