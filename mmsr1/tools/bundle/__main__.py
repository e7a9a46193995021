"""Bundles: what searches answered, to be passed on and replayed.

    python -m mmsr1.tools.bundle export outputs/my-run --out my-bundle
    python -m mmsr1.tools.bundle verify my-bundle
    python -m mmsr1.tools.bundle info my-bundle
    python -m mmsr1.tools.bundle merge one another --out both
    python -m mmsr1.tools.bundle import-fvqa image_cache.pkl --data fvqa_train.parquet --out fvqa

Exit status 2 for what cannot be done, in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmsr1.cli import refuse
from mmsr1.tools.bundle.export import Exported, export, merge, totals
from mmsr1.tools.bundle.format import FILES, MANIFEST, Manifest, read_manifest, verify
from mmsr1.tools.bundle.fvqa import import_fvqa
from mmsr1.types import Example, ToolStatus

screen = Console()


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (OSError, ValueError) as error:
        refuse(str(error))


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m mmsr1.tools.bundle", description=(__doc__ or "").splitlines()[0])
    commands = whole.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[Any], None], what: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=what)
        one.set_defaults(run=run)
        return one

    one = command("export", _export, "write what a run has seen, or all that a cache holds")
    one.add_argument("source", type=Path, help="a run directory, or a cache of searches (tools.cache_dir)")
    one.add_argument("--out", type=Path, required=True, help="the bundle: a folder that does not exist yet")
    one.add_argument("--cache", type=Path, help="where the run's cache lies now, if not where its configuration says")
    one.add_argument(
        "--backend", action="append", default=[], help="only what this back end answered (see the refusal)"
    )
    one = command("verify", _verify, "check every byte")
    one.add_argument("bundle", type=Path)
    one.add_argument("--hash", help="the bundle's name as it was published")
    one = command("info", _info, "say what is in it")
    one.add_argument("bundle", type=Path)
    one = command("merge", _merge, "one bundle of several; for a call that more than one has, the first's answer")
    one.add_argument("bundles", type=Path, nargs="+", metavar="bundle")
    one.add_argument("--out", type=Path, required=True)
    one = command("import-fvqa", _import_fvqa, "convert the image-search cache that FVQA was released with")
    one.add_argument("pickles", type=Path, nargs="+", metavar="pickle")
    one.add_argument("--data", type=Path, action="append", required=True, help="the parquet file with the questions")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--edge", type=int, default=280, help="longer edge of thumbnails, in pixels")
    return whole


def _export(given: Any) -> None:
    known = totals(given.source)
    with _bar("rows", None if known is None else 2 * known) as advance:
        done = export(given.source, given.out, given.cache, given.backend, advance)
    _tell(given.out, done)


def _merge(given: Any) -> None:
    with _bar("rows", None) as advance:
        done = merge(given.bundles, given.out, advance)
    _tell(given.out, done)


def _verify(given: Any) -> None:
    size = sum(path.stat().st_size for path in given.bundle.iterdir()) if given.bundle.is_dir() else 0
    try:
        with _bar("bytes", 2 * size) as advance:
            manifest = verify(given.bundle, advance)
        if given.hash is not None and given.hash != manifest.hash:
            raise ValueError(f"it is whole, but another one: its name is {manifest.hash}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{given.bundle}: {error}") from error
    _say(f"{given.bundle}: whole; {_size(manifest)}")
    _say(f"hash {manifest.hash}")


def _info(given: Any) -> None:
    try:
        manifest = read_manifest(given.bundle)
    except (OSError, ValueError) as error:
        raise ValueError(f"{given.bundle}: {error}") from error
    size = sum((given.bundle / name).stat().st_size for name in (MANIFEST, *FILES))
    _say(f"{given.bundle}: {_size(manifest)}, {size / 1e6:.1f} MB")
    _say(f"hash {manifest.hash}")
    screen.print(_contents(manifest))
    for short, name in manifest.backends.items():
        _say(f"{short}  {name}")


def _contents(manifest: Manifest) -> Table:
    shown = Table("tool", "rows", "ok", "empty", "malformed", "failed", box=box.SIMPLE_HEAD)
    columns: tuple[ToolStatus, ...] = ("ok", "empty", "malformed_call", "infrastructure_error")
    for tool, counts in manifest.tools.items():
        shown.add_row(tool, str(sum(counts.values())), *(str(counts.get(status, 0)) for status in columns))
    return shown


def _import_fvqa(given: Any) -> None:
    from mmsr1.data.fvqa import read_fvqa  # pyarrow, which the other commands need not wait for

    pictures = {
        row.id: row.images[0].digest
        for file in given.data
        for row in read_fvqa(file)
        if isinstance(row, Example) and row.images
    }
    with _bar("questions", None) as advance:
        done = import_fvqa(given.pickles, pictures, given.out, given.edge, advance)
    _tell(given.out, done.exported)
    for what, count in done.left_out.items():
        _say(f"left out: {count} {what}")


def _tell(out: Path, done: Exported) -> None:
    _say(f"{out}: {_size(done.manifest)}")
    if done.lost:
        _say(f"left out: {done.lost} searches that are damaged, or not in the cache any more")
    if done.replaced:
        _say(f"{done.replaced} answers gave way to another one to the same search")
    _say(f"hash {done.manifest.hash}")
    _say(f"replay it with tools=replay tools.bundle={out}")


def _size(manifest: Manifest) -> str:
    return f"searches {manifest.rows}, thumbnails {manifest.blobs}, recorded {manifest.dates}"


def _say(line: str) -> None:
    """As it is, for paths and hashes are copied from the terminal; but nothing in it may steer one."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in line)
    screen.print(plain, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


if __name__ == "__main__":
    main(sys.argv[1:])
