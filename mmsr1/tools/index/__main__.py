"""Search indexes of one's own: passages or pictures, on this disk.

    python -m mmsr1.tools.index build --kind text --out my-index passages.jsonl more.parquet
    python -m mmsr1.tools.index build --kind image --out my-pictures folder
    python -m mmsr1.tools.index append my-index new.jsonl
    python -m mmsr1.tools.index search my-index --queries questions.jsonl --topk 5
    python -m mmsr1.tools.index info my-index
    python -m mmsr1.tools.index push my-index --to opensearch --url http://localhost:9200

A build that was killed goes on where it was when the same command is given again. Exit status 2 for what cannot be
done, in one line. docs/indexes.md has the whole way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmsr1.cli import refuse
from mmsr1.tools.embedding import Encoder
from mmsr1.tools.image_search.writing import ImageWriter
from mmsr1.tools.index import journal
from mmsr1.tools.index.building import Task, run
from mmsr1.tools.index.inputs import Source, sources
from mmsr1.tools.index.push import PUSHES, push
from mmsr1.tools.index.rows import Columns
from mmsr1.tools.index.searching import answers, open_index
from mmsr1.tools.index_files import Manifest, read_manifest
from mmsr1.tools.text_search.writing import TextWriter

said = Console(stderr=True)  # what the answers of `search` must not be mixed with


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (OSError, ValueError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        said.print("interrupted; the same command goes on where it was")
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m mmsr1.tools.index", description=(__doc__ or "").splitlines()[0])
    commands = whole.add_subparsers(required=True, metavar="command")

    def command(name: str, work: Callable[[Any], None], what: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=what)
        one.set_defaults(run=work)
        return one

    one = command("build", _build, "make an index")
    one.add_argument("--kind", choices=("text", "image"), required=True)
    one.add_argument("--out", type=Path, required=True, help="the index: a folder that is empty or not there yet")
    _inputs(one)
    one.add_argument("--embed", metavar="MODEL", help="also by vectors: a transformers folder or hub name")
    one.add_argument("--mode", choices=("hybrid", "rerank"), default="hybrid", help="text: what the vectors are for")
    one.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="text: of the model's last layer")
    one.add_argument("--query-prefix", default="", help="text: as the model was trained with, e.g. 'query: '")
    one.add_argument("--passage-prefix", default="", help="text: e.g. 'passage: '")
    one.add_argument("--descriptor", choices=("fine", "cells"), default="fine", help="image: without a model")
    one.add_argument("--thumbnail-px", type=int, default=280, help="image: longer edge of thumbnails")
    one = command("append", _append, "add to an index; whoever has it open keeps what they opened")
    one.add_argument("index", type=Path)
    _inputs(one)
    one = command("search", _search, "answer queries, one JSON object a line")
    one.add_argument("index", type=Path)
    one.add_argument("--queries", type=Path, required=True, help="JSON lines: id, and query or image")
    one.add_argument("--topk", type=int, default=5)
    one.add_argument("--model", metavar="DIR", help="where the model of the index lies now, if it was moved")
    one = command("info", _info, "say what is in an index, as JSON")
    one.add_argument("index", type=Path)
    one = command("push", _push, "hand an index over to a search server")
    one.add_argument("index", type=Path)
    one.add_argument("--to", choices=sorted(PUSHES), required=True)
    one.add_argument("--url", required=True)
    one.add_argument("--name", default="mmsr1", help="of the index or collection there")
    one.add_argument("--key-env", help="the environment variable that holds the key")
    return whole


def _inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("input", type=Path, nargs="+", help="JSON lines (.gz too), Parquet, folders of pictures")
    for name in fields(Columns):
        command.add_argument(f"--{name.name}-column", default=name.default, metavar="NAME")
    command.add_argument("--restart", action="store_true", help="throw away what an unfinished one has done")


def _build(given: Any) -> None:
    encoder = None
    if given.embed is not None:
        model = str(Path(given.embed).resolve()) if Path(given.embed).is_dir() else given.embed
        encoder = Encoder(model, given.pooling, given.query_prefix, given.passage_prefix)
        encoder = encoder.weighed(given.kind)
    if given.kind == "text":
        settings = TextWriter.settings(encoder, given.mode)
    else:
        settings = ImageWriter.settings(given.descriptor, encoder, given.thumbnail_px)
    _work(Task(given.out, given.kind, _sources(given, given.kind), settings, restart=given.restart))


def _append(given: Any) -> None:
    manifest = read_manifest(given.index)
    task = Task(given.index, manifest.kind, _sources(given, manifest.kind), manifest.settings, True, given.restart)
    _work(task, manifest.count)


def _sources(given: Any, kind: str) -> list[Source]:
    columns = Columns(**{name.name: getattr(given, f"{name.name}_column") for name in fields(Columns)})
    return sources(kind, given.input, columns)


def _work(task: Task, before: int = 0) -> None:
    def writer(folder: Path, settings: Mapping[str, Any], base: Manifest | None, resumed: bool) -> Any:
        make = TextWriter if task.kind == "text" else ImageWriter
        return make(folder, settings, base, resumed)

    with _bar(task.sources) as watch:
        manifest, done = run(task, writer, watch)
    if done.skipped:
        said.print(f"{done.skipped} rows left out; the first:", highlight=False)
        for told in done.told:
            said.print(f"  {told}", highlight=False, markup=False, soft_wrap=True)
    added = f"{manifest.count - before} added, " if task.append else ""
    print(f"{task.directory}: {added}{manifest.count} {'passages' if task.kind == 'text' else 'pictures'}")
    print(f"use it: tools.{task.kind}_index={task.directory}  (train.py, the gateway), or search {task.directory}")


def passed(sizes: Sequence[int | None], done: journal.Progress) -> float:
    """How many of the inputs are behind, and how much of the present one."""
    size = sizes[done.source] if done.source < len(sizes) else None
    return done.source + (min(1.0, done.token / size) if size else 0.0)


@contextmanager
def _bar(inputs: Sequence[Source]) -> Iterator[Callable[[journal.Progress], None]]:
    """Progress over the inputs, each an equal share because bytes, rows and pictures cannot be added, and how many rows
    there are. One whose size is not known counts when it is done."""
    sizes = [source.size for source in inputs]
    total = None if sizes == [None] else len(sizes)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]} rows"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=said) as progress:
        shown = progress.add_task("indexing", total=total, rows=0)

        def watch(done: journal.Progress) -> None:
            progress.update(shown, completed=passed(sizes, done), rows=done.count)

        yield watch


def _search(given: Any) -> None:
    if given.topk < 1:
        raise ValueError(f"--topk {given.topk}: must be at least 1")
    bad = 0
    try:
        for answer in answers(open_index(given.index, given.topk, given.model), given.queries):
            bad += "error" in answer
            print(json.dumps(answer))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if bad:
        said.print(f"{bad} queries could not be asked; their answers say why", highlight=False)


def _info(given: Any) -> None:
    manifest = read_manifest(given.index)
    size = sum(path.stat().st_size for path in given.index.rglob("*") if path.is_file())
    print(json.dumps({"index": str(given.index), "bytes": size, **vars(manifest)}, indent=1))


def _push(given: Any) -> None:
    columns = (TextColumn("pushing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=said) as progress:
        shown = progress.add_task("push")
        sent, total = push(
            given.index,
            given.to,
            given.url,
            given.name,
            given.key_env,
            lambda done, total: progress.update(shown, completed=done, total=total),
        )
    part = "text" if read_manifest(given.index).kind == "text" else "image"
    named = "index" if given.to == "opensearch" else "collection"
    print(f"{given.to}: {sent} sent, {total} there")
    provider = f"tools.{part}_search.provider={given.to} tools.{part}_search.url={given.url}"
    print(f"use it: {provider} +tools.{part}_search.options.{named}={given.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
