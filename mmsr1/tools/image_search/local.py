"""Search by image in a local index: "which titled pictures look like this one?"

A picture is found by a vector: a weight-free descriptor (`descriptor.py`), after which the best may be looked at more
closely (`fine.py`), or that of a model. Exact search of 360 numbers takes about 5 ms at 50,000 pictures; beyond that a
graph is searched.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from mmsr1.tools.base import in_thread
from mmsr1.tools.embedding import PictureEncoder, encoder_of
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.descriptor import describe
from mmsr1.tools.image_search.writing import ENDS, ROWS, THUMBNAILS, Descriptor, ImageEntry, ImageWriter
from mmsr1.tools.index.building import build_at_once
from mmsr1.tools.index.growing import array
from mmsr1.tools.index.vectors import FILE as VECTORS
from mmsr1.tools.index.vectors import Nearest, nearest
from mmsr1.tools.index_files import Manifest, best, opened
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.tools.thumbnails import showable
from mmsr1.types import Picture, ToolItem, ToolName, ToolResult

KIND = "image"

__all__ = ["ImageEntry", "ImageHit", "LocalImageSearch", "build_image_index"]


@dataclass(frozen=True)
class ImageHit:
    """A picture that was found; `score` is 1 for the same one, and compares hits of one query."""

    id: str
    score: float
    row: ImageRow


@dataclass(frozen=True)
class ImageRow:
    """`thumbnail` is its digest, empty if there is none; `at` where it begins and how many bytes it has (None: it is a
    file of its own)."""

    id: str
    title: str
    url: str
    thumbnail: str
    at: list[int] | None = None


def build_image_index(
    directory: Path, entries: Iterable[ImageEntry], thumbnail_px: int = 28, descriptor: Descriptor = "cells"
) -> Manifest:
    """Write an index of the pictures; `thumbnail_px` is the longer edge of a thumbnail in pixels.

    Raises BadPicture for a picture that cannot be decoded, ValueError for a repeated id or no entries at all,
    FileExistsError if the directory exists. The directory appears complete or not at all.
    """
    settings = ImageWriter.settings(descriptor, thumbnail_px=thumbnail_px)
    return build_at_once(Path(directory), lambda scratch: ImageWriter(scratch, settings), settings, entries)


class LocalImageSearch:
    """`Tool[Picture]` over an image index: the `topk` most similar pictures, best first.

    The first `thumbnails` of them carry a thumbnail, those aside whose shape shows nothing. A query that cannot be
    decoded is a malformed call. `model` is where the index's model lies now, if it was moved.
    The constructor raises FileNotFoundError or ValueError if the directory holds no index of this version.
    """

    name: ToolName = "image_search"
    price_usd: float = 0.0

    def __init__(self, directory: Path, topk: int = 5, thumbnails: int = 0, model: str | None = None) -> None:
        if topk < 1 or not 0 <= thumbnails <= topk:
            raise ValueError(f"topk={topk}, thumbnails={thumbnails}: need topk >= 1 and 0 <= thumbnails <= topk")
        self._directory, self._topk, self._thumbnails = Path(directory), topk, thumbnails
        self._encode: PictureEncoder | None = None
        self._fine: np.ndarray | None = None
        opened(self._directory, KIND, self._open)
        if "encoder" in self.manifest.settings:
            self._encode = encoder_of(PictureEncoder, self._directory, self.manifest.settings, model)
        self.backend = f"local-image:{self.manifest.content}:topk={topk}:thumbnails={thumbnails}"

    def _open(self, manifest: Manifest) -> None:
        self.manifest = manifest
        if manifest.version == 1:
            self._open_first(manifest)
            return
        count, sizes = manifest.count, manifest.sizes
        self._lines = array(self._directory / ROWS, (sizes[ROWS],), "uint8")
        self._ends = array(self._directory / ENDS, (count,), "<u8")
        vectors = Nearest(self._directory, manifest.parts, count, sizes[VECTORS] // (4 * count))
        self._search = vectors.search
        if manifest.settings.get("descriptor") == "fine":
            self._fine = array(self._directory / fine.FILE, (count, fine.SIDE, fine.SIDE, 3), "uint8")

    def _open_first(self, manifest: Manifest) -> None:
        """The layout of version 1, of which folders are about."""
        index = faiss.read_index(str(self._directory / "vectors.faiss"))
        self._search = lambda vector, limit: nearest(index, vector, limit)
        self._lines = np.fromfile(self._directory / ROWS, dtype="uint8")
        self._ends = np.flatnonzero(self._lines == ord("\n")).astype("uint64") + np.uint64(1)
        if not manifest.count == len(self._ends) == index.ntotal:
            found = f"{len(self._ends)} titles and {index.ntotal} vectors"
            raise ValueError(f"{manifest.count} entries announced, {found} found")

    async def __call__(self, query: Picture) -> ToolResult:
        return await in_thread(lambda: self._result(query))

    def _result(self, query: Picture) -> ToolResult:
        try:
            hits = self.find(query)
        except BadPicture as error:
            return ToolResult("malformed_call", detail=f"the query picture {error}")
        return ToolResult("ok", tuple(self._item(hit.row, rank < self._thumbnails) for rank, hit in enumerate(hits)))

    def find(self, query: Picture) -> list[ImageHit]:
        """The hits, best first. Blocks. Raises BadPicture for a query that cannot be decoded."""
        image = decode(query)
        vector = describe(np.asarray(image)) if self._encode is None else self._encode([image])[0]
        if self._fine is not None:
            return self._closer(image, self._fine, vector)

        def ids(rows: Sequence[int]) -> list[str]:
            return [self.row(row).id for row in rows]

        found = best(lambda limit: self._search(vector, limit), ids, self._topk, self.manifest.count)
        return [self._hit(score, row) for score, row in found]

    def _closer(self, image: Image.Image, kept: np.ndarray, vector: np.ndarray) -> list[ImageHit]:
        rows = sorted(row for _, row in self._search(vector, max(fine.CANDIDATES, self._topk)))
        scores = fine.likeness(image, np.asarray(kept[rows]))
        hits = [self._hit(float(score), row) for score, row in zip(scores, rows, strict=True)]
        return sorted(hits, key=lambda hit: (-round(hit.score, 4), hit.id))[: self._topk]

    def _hit(self, score: float, row: int) -> ImageHit:
        found = self.row(row)
        return ImageHit(found.id, score, found)

    def row(self, number: int) -> ImageRow:
        """What is known of the picture with this number."""
        start = int(self._ends[number - 1]) if number else 0
        return ImageRow(**json.loads(self._lines[start : int(self._ends[number])].tobytes()))

    def _item(self, row: ImageRow, with_thumbnail: bool) -> ToolItem:
        if not with_thumbnail or not row.thumbnail:
            return ToolItem(row.title, url=row.url)
        thumbnail = Picture(self._thumbnail(row))
        if thumbnail.digest != row.thumbnail:
            raise ValueError(f"thumbnail {row.thumbnail} was changed on disk")
        with Image.open(io.BytesIO(thumbnail.data)) as image:
            if not showable(*image.size, least=1):  # of an index that was made without this rule
                return ToolItem(row.title, url=row.url)
        return ToolItem(row.title, url=row.url, thumbnail=thumbnail)

    def _thumbnail(self, row: ImageRow) -> bytes:
        if row.at is None:
            return (self._directory / "thumbnails" / f"{row.thumbnail}.png").read_bytes()
        with (self._directory / THUMBNAILS).open("rb") as pack:
            pack.seek(row.at[0])
            return pack.read(row.at[1])
