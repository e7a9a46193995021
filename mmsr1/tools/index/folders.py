"""A folder of pictures as an input."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsr1.tools.image_search.writing import ImageEntry
from mmsr1.tools.index.rows import Bad, Row, Unusable, checked_id, clean, read_bounded, text
from mmsr1.types import Picture

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".svg", ".ico")  # pictures that are not read
METADATA = "metadata.jsonl"


class PictureFolder:
    """All pictures below a folder in order of their paths, which are their ids.

    Links to folders are followed. Titles and addresses stand in `metadata.jsonl` (`file_name`, `title`, `url`), as
    Hugging Face's image folders have them; without, the title is the file's name. What is found but cannot be used is a
    `Bad` row. Raises ValueError if the metadata cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = sorted(_found(path))
        self.size: int | None = len(self._found)
        self._about = _metadata(path / METADATA)

    def identity(self) -> list[Any]:
        about = json.dumps(sorted(self._about.items()))
        digest = hashlib.sha256(json.dumps([self._found, about]).encode()).hexdigest()
        return [str(self.path.resolve()), len(self._found), digest]

    def read(self, start: int) -> Iterator[Row | Bad]:
        for number, (name, wrong) in enumerate(self._found[start:], start + 1):
            place = clean(str(self.path / name))
            try:
                if wrong:
                    raise Unusable(wrong)
                named = checked_id(clean(name))
                title, url = self._about.get(named, (Path(named).stem, ""))
                yield Row(place, ImageEntry(named, title, url, Picture(read_bounded(self.path / name))), number)
            except Unusable as error:
                yield Bad(place, str(error), number)


def _found(folder: Path) -> Iterator[tuple[str, str]]:
    """Each path below the folder that should be a picture, and why it cannot be one, or nothing.

    What links lead to comes after all else, once: so a link changes no ids, and may lead to a folder above.
    """
    wrong: list[tuple[str, str]] = []

    def unread(error: OSError) -> None:
        wrong.append((_below(folder, str(error.filename)), f"cannot be listed ({type(error).__name__})"))

    waiting, seen = [str(folder)], set[tuple[int, int]]()
    while waiting:
        links = []
        for inside, folders, files in os.walk(waiting.pop(0), onerror=unread):
            here = os.stat(inside)
            if (here.st_dev, here.st_ino) in seen:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            links += [path for name in folders if os.path.islink(path := os.path.join(inside, name))]
            for file in files:
                suffix = Path(file).suffix.lower()
                if suffix in (*PICTURES, *OTHERS):
                    why = "" if suffix in PICTURES else f"{suffix[1:].upper()} is not read; give JPEG, PNG or WebP"
                    yield _below(folder, os.path.join(inside, file)), why
        waiting += sorted(links)
    yield from wrong


def _below(folder: Path, path: str) -> str:
    return Path(path).relative_to(folder).as_posix()


def _metadata(path: Path) -> dict[str, tuple[str, str]]:
    """Title and address by the name of the file."""
    if not path.is_file():
        return {}
    found = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    fields = json.loads(line)
                    name = text(fields, "file_name")
                    found[name] = (text(fields, "title") or Path(name).stem, text(fields, "url"))
                except (ValueError, AttributeError, RecursionError) as error:
                    raise ValueError(f"{path} line {number}: cannot be read ({error})") from None
    return found
