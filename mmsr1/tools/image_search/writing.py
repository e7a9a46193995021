"""Writing an image index: what is kept of each picture, in files that only grow.

    entries.jsonl      id, title, url, and where the thumbnail lies
    entries.u64        where each line of that ends
    vectors.f32        the vector by which it is found
    fine.u8            32 x 32 colours for a closer look (descriptor `fine`)
    thumbnails/pack    the thumbnails, one after the other
The pictures themselves are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mmsr1.tools.embedding import Encoder, PictureEncoder, encoder_of
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.descriptor import VERSION as CELLS
from mmsr1.tools.image_search.descriptor import describe
from mmsr1.tools.index.growing import Growing
from mmsr1.tools.index.vectors import FILE as VECTORS
from mmsr1.tools.index.vectors import graph_parts
from mmsr1.tools.index_files import Manifest
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.tools.thumbnails import showable
from mmsr1.types import Picture

ROWS, ENDS, THUMBNAILS = "entries.jsonl", "entries.u64", "thumbnails/pack"
Descriptor = Literal["cells", "fine"]


@dataclass(frozen=True)
class ImageEntry:
    """A picture on the (local) web and the title of the page that shows it."""

    id: str
    title: str
    url: str
    picture: Picture


@dataclass(frozen=True)
class Prepared:
    """What is kept of an entry; `pixels` are what a model looks at, if there is one. A picture of a shape that shows
    nothing, such as a line, has no thumbnail."""

    id: str
    title: str
    url: str
    digest: str
    thumbnail: Picture | None
    vector: np.ndarray | None
    close: bytes
    pixels: Mapping[str, Any] | None


class ImageWriter:
    """Adds pictures to the index in `directory`; arguments as those of `TextWriter`."""

    kind = "image"

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], base: Manifest | None = None, resumed: bool = False
    ) -> None:
        self._directory = directory
        self._edge = settings["thumbnail_px"]
        self._fine = settings.get("descriptor") == "fine"
        self._encode = encoder_of(PictureEncoder, directory, settings) if "encoder" in settings else None
        self._files: Growing | None = None

    @staticmethod
    def settings(
        descriptor: Descriptor = "fine", encoder: Encoder | None = None, thumbnail_px: int = 280
    ) -> dict[str, Any]:
        """What decides the results of a new index. Raises ValueError for an unknown descriptor."""
        if descriptor not in get_args(Descriptor):
            raise ValueError(f"descriptor={descriptor}: must be one of {', '.join(get_args(Descriptor))}")
        if thumbnail_px < 1:
            raise ValueError(f"thumbnail_px={thumbnail_px}: must be at least 1")
        if encoder is not None:
            return {"encoder": asdict(encoder), "thumbnail_px": thumbnail_px}
        versions = {"cells": CELLS} if descriptor == "cells" else {"cells": CELLS, "fine": fine.VERSION}
        return {"descriptor": descriptor, "versions": versions, "thumbnail_px": thumbnail_px}

    def committed(self) -> None:
        """The files that grow are all there is: what the journal says holds."""

    def open(self, sizes: Mapping[str, int]) -> None:
        (self._directory / THUMBNAILS).parent.mkdir(exist_ok=True)
        names = [ROWS, ENDS, VECTORS, THUMBNAILS, *([fine.FILE] if self._fine else [])]
        self._files = Growing(self._directory, names, sizes)

    def prepare(self, entry: ImageEntry) -> Prepared:
        """Raises BadPicture."""
        image = decode(entry.picture)
        vector = describe(np.asarray(image)) if self._encode is None else None
        close = fine.shrink(image).tobytes() if self._fine else b""
        thumbnail = _thumbnail(image, self._edge) if showable(*image.size) else None
        pixels = None if self._encode is None else self._encode.pixels(image)
        return Prepared(entry.id, entry.title, entry.url, entry.picture.digest, thumbnail, vector, close, pixels)

    def identify(self, prepared: Prepared) -> tuple[str, ...]:
        return prepared.id, prepared.title, prepared.url, prepared.digest

    def add(self, prepared: Sequence[Prepared], first: int) -> None:
        """`first`: the files know where they end."""
        files = self._files
        assert files is not None
        vectors = [one.vector for one in prepared]
        if self._encode is not None and prepared:
            vectors = list(self._encode.vectors([one.pixels for one in prepared if one.pixels is not None]))
        for one, vector in zip(prepared, vectors, strict=True):
            assert vector is not None
            shown, digest = (one.thumbnail.data, one.thumbnail.digest) if one.thumbnail is not None else (b"", "")
            row = {"id": one.id, "title": one.title, "url": one.url, "thumbnail": digest}
            at = files.write(THUMBNAILS, shown)
            line = json.dumps({**row, "at": [at, len(shown)]}).encode("ascii") + b"\n"
            end = files.write(ROWS, line) + len(line)
            files.write(ENDS, end.to_bytes(8, "little"))
            files.write(VECTORS, vector.astype("<f4").tobytes())
            if self._fine:
                files.write(fine.FILE, one.close)

    def sync(self) -> dict[str, int]:
        assert self._files is not None
        return self._files.sync()

    def commit(self) -> None:
        """Nothing but the growing files has to be safe."""

    def finish(self, count: int) -> dict[str, str]:
        assert self._files is not None
        return graph_parts(self._directory, count, self._files.sizes[VECTORS] // (4 * count))

    def close(self) -> None:
        if self._files is not None:
            self._files.close()


def _thumbnail(image: Image.Image, edge: int) -> Picture:
    small = image.copy()
    small.thumbnail((edge, edge), Image.Resampling.BOX)
    return encode_png(small)
