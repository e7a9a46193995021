"""A set of questions about pictures from a list of concepts, or from existing questions: search, write, filter, label.

    python -m mmsr1.data.construct out=DIR concepts=FILE tools=web llm.url=http://localhost:8000 llm.options.model=NAME

Overrides are those of conf/construct.yaml; --cfg job prints all of them. The same command goes on where it was, after
a kill or with more money. Exit status 0 when candidates.parquet is there, 1 when something is missing to go on (a
service, money), 2 for a mistake. docs/construct.md has the whole way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmsr1 import cli
from mmsr1.assembly.construct import Construction, check_construction, construction, held_out, planned
from mmsr1.assembly.settings import decides_nothing, settle
from mmsr1.cli import configured_command, refuse
from mmsr1.config import ConfigError, check
from mmsr1.config.construct import ConstructConfig, register
from mmsr1.data.card import write_card
from mmsr1.data.construct.building import DROPPED, build, examples, plan
from mmsr1.data.construct.items import Dropped, Labelled
from mmsr1.data.construct.journal import Journal
from mmsr1.data.construct.photos import Shelf
from mmsr1.data.construct.report import card_facts, report, stage_table
from mmsr1.data.construct.stages import Desk
from mmsr1.data.formats import write_examples
from mmsr1.files import write_whole
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.report.searches import search_table, tool_table

CANDIDATES = "candidates.parquet"
SETTINGS, INPUTS = "config.yaml", "inputs.json"
# What may differ when a construction is gone on with: how fast and at what price, not what comes of it.
FREE = ("out", "concurrent", "give_up", "tools.budget", "tools.cache_dir")

said = Console(stderr=True)


def composed(overrides: list[str]) -> Any:
    """The raw configuration. Raises `USER_ERRORS`."""
    register()
    return cli.composed(overrides, "construct")


def checked(raw: Any) -> ConstructConfig:
    """The typed configuration. Raises ConfigError."""
    config: Any = OmegaConf.to_object(raw)
    cli.check_keys(config)
    check_construction(config)
    return config


def main(arguments: list[str]) -> int:
    """Construct; the exit status."""
    program = "python -m mmsr1.data.construct"
    asked = configured_command(arguments, program, __doc__, "tools=web out=outputs/my-set")
    try:
        raw = composed(asked.overrides)
        if asked.cfg:
            sys.stdout.write(OmegaConf.to_yaml(raw))
            return 0
        config = checked(raw)
        out = Path(config.out or "")
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            return _construct(config, out)
    except Timeout:
        refuse(f"out={config.out}: another construction is at work there")
    except (*USER_ERRORS, ValueError, OSError) as error:
        refuse(explain(error))
    except KeyboardInterrupt:
        said.print("interrupted; the same command goes on where it was")
        return 130


def _construct(config: ConstructConfig, out: Path) -> int:
    logging.basicConfig(filename=out / "construct.log", level=logging.WARNING, format="%(asctime)s %(message)s")
    others = held_out(config)  # first: what cannot be read begins no folder
    inputs = check_inputs(config, out)
    settle(out / SETTINGS, OmegaConf.structured(config), lambda key: decides_nothing(key, FREE))
    drops = Journal(out / DROPPED, Dropped)
    try:
        seeds = plan(out, planned(config, Shelf(out)), drops)
    except ConfigError:
        (out / SETTINGS).unlink()
        raise
    write_whole(out / INPUTS, inputs)
    whole = construction(config, others)
    with _bars() as watch:
        desk = Desk(out, drops, whole.services.spent, watch, config.give_up)
        rows = asyncio.run(_built(seeds, whole, desk, config.concurrent))
    told = report(out, drops.rows, rows, whole.others.files, desk.left)
    write_whole(out / "report.json", (json.dumps(told, indent=1) + "\n").encode())
    screen = Console()
    screen.print(stage_table(told))
    if (table := search_table(tool_table(whole.services.rows()))) is not None:
        screen.print(table)
    spent = f"{sum(part['usd'] for part in told['costs'].values()):.4f} USD in all"
    if rows is None:
        _say(f"not finished ({spent}): {desk.left}; the same command goes on where it was")
        return 1
    return _finish(config, out, whole.shelf, rows, told, f"{len(drops.rows)} dropped (why: {out / DROPPED}), {spent}")


def _finish(
    config: ConstructConfig, out: Path, shelf: Shelf, rows: list[Labelled], told: dict[str, Any], summary: str
) -> int:
    if not rows:
        _say(f"no question is left; {summary}")
        return 1
    count = write_examples(out / CANDIDATES, examples(rows, shelf))
    facts = {"language": config.language, "model": config.llm.options.get("model"), "seed": config.seed}
    write_card(out, examples(rows, shelf), out.name, card_facts(told, facts))
    _say(f"{count} questions, {summary}")
    _say(f"{out / CANDIDATES}: review it: python -m mmsr1.data.review {out / CANDIDATES}")
    return 0


async def _built(seeds: Any, whole: Construction, desk: Desk, concurrent: int) -> list[Labelled] | None:
    try:
        return await build(seeds, whole.works, desk, concurrent)
    finally:
        await whole.services.aclose()


def check_inputs(config: ConstructConfig, out: Path) -> bytes:
    """The digests of the lists and files that items are made of. Raises ConfigError for one that has changed since the
    folder was begun: its items are planned once."""
    files = [*([config.concepts] if config.concepts else []), *config.rows]
    now = {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    before = json.loads((out / INPUTS).read_bytes()) if (out / INPUTS).is_file() else now
    for file, digest in now.items():
        key = "concepts" if file == config.concepts else "rows"
        remedy = f"has changed since {out} was begun, whose items are planned; give the old file, or another out"
        check(before.get(file, digest) == digest, key, file, remedy)
    return (json.dumps(now, indent=1) + "\n").encode()


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage that has begun."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=said) as progress:
        tasks: dict[str, Any] = {}

        def watch(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done, total=of)

        yield watch


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
