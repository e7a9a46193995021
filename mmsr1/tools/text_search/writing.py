"""Writing a text index: passages into tantivy, and their vectors where a model is given.

An index is never changed where it lies: appending makes a new folder of hard links to the old one's files, which are
themselves never changed, and writes there. The manifest then names the new folder, and the old one goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tantivy

from mmsr1.tools.embedding import Encoder, TextEncoder, encoder_of
from mmsr1.tools.index.growing import Growing
from mmsr1.tools.index.vectors import FILE as VECTORS
from mmsr1.tools.index.vectors import graph_parts
from mmsr1.tools.index_files import Manifest
from mmsr1.tools.text_search.words import ANALYZER, composed, passage_grams, register, schema

HEAP_BYTES = 512 * 2**20  # in which tantivy gathers passages before it writes them, all threads together


@dataclass(frozen=True)
class Passage:
    """A piece of text that can be found."""

    id: str
    title: str
    text: str
    url: str


class TextWriter:
    """Adds passages to the index in `directory`. `base` is the manifest to go on from, None for a new index;
    `resumed`: an earlier process has begun.

    Raises ValueError if the model of the settings cannot be loaded.
    """

    kind = "text"

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        base: Manifest | None,
        resumed: bool,
        threads: int = 2,
    ) -> None:
        self._encode = encoder_of(TextEncoder, directory, settings) if "encoder" in settings else None
        self._analyzer = settings.get("analyzer", 1)
        self._directory = directory
        self._folder = _next_folder(base)
        where = directory / self._folder
        if not resumed:
            _prepare(where, None if base is None else directory / base.parts["tantivy"])
        index = tantivy.Index(schema(self._analyzer, self._encode is not None), path=str(where), reuse=True)
        register(index)
        index.config_reader("manual")
        self._index, self._threads = index, threads
        self._writer: tantivy.IndexWriter | None = None
        self._vectors: Growing | None = None

    @staticmethod
    def settings(
        encoder: Encoder | None = None, mode: str = "hybrid", proximity: bool = True, analyzer: int = ANALYZER
    ) -> dict[str, Any]:
        """What decides the results of a new index; `mode` is what a model is used for: hybrid or rerank."""
        words = {"analyzer": analyzer, "proximity": proximity}
        return words if encoder is None else {**words, "encoder": asdict(encoder), "mode": mode}

    def committed(self) -> int:
        """How many passages are safe."""
        self._index.reload()
        return self._index.searcher().num_docs

    def open(self, sizes: Mapping[str, int]) -> None:
        self._vectors = None if self._encode is None else Growing(self._directory, [VECTORS], sizes)
        self._writer = self._index.writer(HEAP_BYTES, self._threads)

    def prepare(self, passage: Passage) -> Passage:
        title, text = composed(passage.title, self._analyzer), composed(passage.text, self._analyzer)
        return replace(passage, title=title, text=text)

    def identify(self, passage: Passage) -> tuple[str, ...]:
        return passage.id, passage.title, passage.text, passage.url

    def add(self, passages: Sequence[Passage], first: int) -> None:
        """`first` is the number of the first, counted from 0 over all of the index."""
        if self._encode is not None and self._vectors is not None and passages:
            texts = [f"{passage.title}\n{passage.text}".strip() for passage in passages]
            self._vectors.write(VECTORS, self._encode(texts, query=False).astype("<f4").tobytes())
        assert self._writer is not None
        for number, passage in enumerate(passages, first):
            document = tantivy.Document(id=passage.id, title=passage.title, text=passage.text, url=passage.url)
            if grams := passage_grams(f"{passage.title} {passage.text}"):
                document.add_text("grams", grams)
            if self._vectors is not None or self._analyzer >= 3:
                document.add_unsigned("row", number)
            self._writer.add_document(document)

    def sync(self) -> dict[str, int]:
        """Everything but the passages themselves onto the disk; sizes as in `Growing`."""
        return {} if self._vectors is None else self._vectors.sync()

    def commit(self) -> None:
        """The passages too."""
        assert self._writer is not None
        self._writer.commit()

    def finish(self, count: int) -> dict[str, str]:
        """The parts of the manifest."""
        self.close()
        parts = {"tantivy": self._folder}
        if self._encode is not None:
            parts |= graph_parts(self._directory, count, dimensions(self._directory, count))
        return parts

    def close(self) -> None:
        """After this no thread of tantivy's writes to the directory any more."""
        if self._writer is not None:
            self._writer.wait_merging_threads()
            self._writer = None
        if self._vectors is not None:
            self._vectors.close()


def dimensions(directory: Path, count: int) -> int:
    """How many numbers a vector has; only when nobody writes."""
    return (directory / VECTORS).stat().st_size // (4 * count)


def _next_folder(base: Manifest | None) -> str:
    number = 1 if base is None else int(base.parts["tantivy"].rpartition("-")[2]) + 1
    return f"tantivy-{number}"


def _prepare(where: Path, base: Path | None) -> None:
    """An empty folder, or one of links to the files of `base`; what tantivy itself replaces is copied."""
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    for file in [] if base is None else base.iterdir():
        if file.suffix == ".json":
            shutil.copy2(file, where / file.name)
        elif file.suffix != ".lock":
            _link(file, where / file.name)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copy2(file, target)
