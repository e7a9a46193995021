"""Compare two evaluations, or the last validations of two training runs, on the questions that both were asked.

    python -m mmsr1.evaluation.compare A B [--score judge] [--html comparison.html]

A and B are run directories. Shown is B against A: figures with the paired difference, its 95 % interval clustered by
image and the p of the sign-flip test; what differs in the configurations; and the questions that flipped. Exit status
2 for a mistake, in one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.progress
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmsr1.cli import CommandParser, refuse
from mmsr1.evaluation.lines import SPLIT, UNREADABLE, Latest
from mmsr1.evaluation.outcome import Outcome, outcome_of
from mmsr1.evaluation.paired import Comparison, Difference, Flip, compare
from mmsr1.files import scan_lines, write_whole
from mmsr1.run_directory import RunDirectory

__all__ = ["Comparison", "Run", "compare", "config_differences", "main", "page", "read_run"]

_SHOWN = 10  # flips of each kind, and keys of the configurations, that the terminal shows
_LONGEST = 200  # characters of one text there
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Run:
    """One side. `searches` are those of each episode, as people read them; `bad` lines could not be read."""

    folder: Path
    what: str
    outcomes: tuple[Outcome, ...]
    searches: Mapping[tuple[str, int], tuple[str, ...]]
    config: Mapping[str, str]
    bad: int


def read_run(folder: Path) -> Run:
    """Its evaluation, or its last validation.

    Raises ValueError if there is neither, FileNotFoundError if there is no folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of an evaluation or of a training run")
    directory = RunDirectory(folder)
    split = next((split for split in (SPLIT, "val") if directory.episode_steps(split)), None)
    if split is None:
        raise ValueError(f"{folder}: no episodes of an evaluation or a validation in it; give the folder of one run")
    step = directory.episode_steps(split)[-1]
    latest, bad = Latest[tuple[Outcome, tuple[str, ...]]](), 0
    file, shown = folder / "episodes" / f"{split}-{step}.jsonl", Console(stderr=True)
    quiet = not shown.is_terminal
    with rich.progress.open(file, "rb", description=folder.name, console=shown, transient=True, disable=quiet) as lines:
        for _, record in scan_lines(lines):
            try:
                one = outcome_of(record)
                one.scores["accuracy"]  # what every episode is compared by
                latest.take(record, (one, tuple(_search(call) for call in record["calls"])))
            except UNREADABLE:
                bad += 1
    if not latest.found:
        raise ValueError(f"{folder}: none of {bad} lines of {split}-{step}.jsonl is a judged episode")
    what = "evaluation" if split == SPLIT else f"validation of step {step}"
    outcomes = tuple(one for one, _ in latest.found.values())
    searches = {key: asked for key, (_, asked) in latest.found.items()}
    return Run(folder, what, outcomes, searches, _config(folder / "config.yaml"), bad)


def _search(call: Mapping[str, Any]) -> str:
    what = "text: " + str(call["query"]) if call["tool"] == "text_search" else "image"
    what += f" {list(call['box'])}" if call.get("box") else ""
    return what if call["status"] == "ok" else f"{what} ({str(call['status']).replace('_', ' ')})"


def _config(file: Path) -> dict[str, str]:
    """Leaves by their dotted keys; empty without a file, or with one that is no YAML."""
    try:
        return dict(_leaves(yaml.safe_load(file.read_bytes())))
    except (OSError, yaml.YAMLError, UnicodeError):
        return {}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, json.dumps(node, default=str)


def config_differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Keys whose values differ, with both, first those that both have; "-" where one has none."""
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    keys.sort(key=lambda key: (key not in a or key not in b, key))
    return [(key, a.get(key, "-"), b.get(key, "-")) for key in keys]


# ---- shown


def _show(console: Console, a: Run, b: Run, found: Comparison) -> None:
    for name, run in (("A", a), ("B", b)):
        said = f"{name} {run.folder}: {run.what}, {len(run.outcomes)} episodes"
        console.print(_text(said + (f", {run.bad} lines could not be read" if run.bad else "")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, heading in enumerate(("", "A", "B", "B less A", "95 %", "p", "Holm", "n")):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in found.differences:
        table.add_row(*cells(row))
    console.print(table)
    for line in found.remarks():
        console.print(_text(line))
    _show_configs(console, config_differences(a.config, b.config))
    for won, heading in ((True, "wrong in A, right in B"), (False, "right in A, wrong in B")):
        flips = [flip for flip in found.flips if flip.won is won]
        console.print(_text(f"\nquestions {heading}: {len(flips)}", "bold"))
        for flip in flips[:_SHOWN]:
            _show_flip(console, flip, a, b)
        if len(flips) > _SHOWN:
            console.print(_text(f"  and {len(flips) - _SHOWN} more; --html FILE shows all"))


def _show_configs(console: Console, differing: Sequence[tuple[str, str, str]]) -> None:
    console.print(_text(f"\nkeys of the configurations that differ: {len(differing)}", "bold"))
    for key, left, right in differing[:_SHOWN]:
        console.print(_text(f"  {key}: {_cut(left)} | {_cut(right)}"))
    if len(differing) > _SHOWN:
        console.print(_text(f"  and {len(differing) - _SHOWN} more; --html FILE shows all"))


def _show_flip(console: Console, flip: Flip, a: Run, b: Run) -> None:
    console.print(_text(f"  {flip.a.id}  {_cut(flip.a.question)}  [truth: {_cut(flip.a.truths[0])}]"))
    for name, one, run in (("A", flip.a, a), ("B", flip.b, b)):
        searches = "; ".join(_cut(search) for search in run.searches[one.id, one.rollout]) or "no search"
        console.print(_text(f"    {name}: {_said(one)}  ({searches})"))


def cells(row: Difference) -> tuple[str, ...]:
    """A line of the table."""
    low, high = row.interval
    return (
        row.name,
        _figure(row.a),
        _figure(row.b),
        _figure(row.difference, "+"),
        f"[{_figure(low, '+')}, {_figure(high, '+')}]",
        _figure(row.p),
        _figure(row.p_holm),
        str(row.questions),
    )


def _figure(value: float, sign: str = "") -> str:
    """Three digits behind the point; what they would hide, like the price of a search, by its magnitude."""
    return f"{value:{sign}.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.1e}"


def _said(one: Outcome) -> str:
    return _cut(one.said) if one.said is not None else f"no answer ({one.stop.replace('_', ' ')})"


def _text(said: str, style: str = "") -> Text:
    """Not markup; without characters that move the cursor or turn the writing direction."""
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in said), style=style)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def page(a: Run, b: Run, found: Comparison) -> str:
    """The comparison as one HTML file without script or network; all text in it is escaped."""
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("compare.html.j2").render(
        runs=(("A", a), ("B", b)),
        rows=[cells(row) for row in found.differences],
        remarks=found.remarks(),
        differing=config_differences(a.config, b.config),
        flips=[
            ("Wrong in A, right in B", [flip for flip in found.flips if flip.won]),
            ("Right in A, wrong in B", [flip for flip in found.flips if not flip.won]),
        ],
    )


def main(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="python -m mmsr1.evaluation.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", type=Path, metavar="A", help="folder of an evaluation or of a training run")
    parser.add_argument("b", type=Path, metavar="B", help="the one that is held against it")
    parser.add_argument("--score", default="accuracy", help="which score says what is right: accuracy, judge, ...")
    parser.add_argument("--html", type=Path, help="write a page with all of it to this file")
    parser.add_argument("--seed", type=int, default=0, help="of the sign-flip test")
    given = parser.parse_args(arguments)
    try:
        a, b = read_run(given.a), read_run(given.b)
        found = compare(a.outcomes, b.outcomes, given.score, given.seed)
        _show(Console(), a, b, found)
        if given.html is not None:
            # Models sample lone surrogates, which UTF-8 cannot hold.
            write_whole(given.html, page(a, b, found).encode("utf-8", "replace"))
    except (ValueError, OSError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        return 130
    name, _, _, apart, interval, p, _, asked = cells(found.score)
    told = f"{name}: B less A {apart} {interval}, p {p}, on {asked} questions"
    sys.stdout.write(f"{told}; page: {given.html}\n" if given.html is not None else f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
