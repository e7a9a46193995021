"""Files that survive a kill: those that appear whole or not at all, and those that grow by whole lines.

All JSON is strict: NaN and infinities are written as null.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmsr1.types import Picture


def plain(value: Any) -> Any:
    """`value` as JSON values: types by their fields, pictures by digest, NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Picture):
        return value.digest
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def json_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(row), allow_nan=False) + "\n").encode()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; what follows the last newline was cut off by a kill and does not count."""
    if not file.exists():
        return []
    *lines, _unfinished = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


def scan_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Offset and content of each whole line of an open JSON-lines file, one at a time; None for a damaged one."""
    offset = 0
    for line in stream:
        if line.endswith(b"\n"):
            try:
                yield offset, json.loads(line)
            except (ValueError, RecursionError):
                yield offset, None
        offset += len(line)


def set_aside(file: Path, counts: Callable[[Any], bool], aside: Path) -> int:
    """Move the whole lines that do not count (they are given as JSON, None for a damaged one) to the end of `aside`;
    how many. A kill meanwhile loses none."""
    if not file.is_file():
        return 0
    with file.open("rb") as stream:
        gone = {offset for offset, line in scan_lines(stream) if not counts(line)}
    if gone:
        with file.open("rb") as stream, replaced(file) as whole, whole.open("wb") as kept, aside.open("ab") as others:
            offset = 0
            for line in stream:
                (others if offset in gone else kept).write(line)
                offset += len(line)
    return len(gone)


def append_line(file: Path, line: bytes) -> None:
    """Add `line` in one write, after cutting off an unfinished last line."""
    file.touch()
    with file.open("r+b", buffering=0) as stream:
        content_end = stream.seek(0, os.SEEK_END)
        if content_end:
            stream.seek(content_end - 1)
            if stream.read(1) != b"\n":
                stream.seek(0)
                content_end = stream.read().rfind(b"\n") + 1
                stream.truncate(content_end)
        stream.seek(content_end)
        stream.write(line)


def is_locked(file: Path) -> bool:
    """Whether a process holds this lock; one that was killed left the file alone."""
    if not file.is_file():
        return False
    try:
        with FileLock(file, blocking=False):
            return False
    except (Timeout, OSError):
        return True


def write_whole(file: Path, content: bytes) -> None:
    """Replace `file` in one rename; on failure the old content stays and no temporary file is left."""
    with replaced(file) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replaced(file: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary sibling that takes the place of `file` when the block ends; if it raises, the old file stays.

    Without `sync` only a failure of the machine, not of the process, can leave it damaged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep_picture(folder: Path, picture: Picture, sync: bool = True) -> str:
    """Write the picture into the folder unless it is there; the name of its file, `<digest>.<kind>`."""
    file = folder / f"{picture.digest}.{picture_suffix(picture.data)}"
    if not file.is_file() or file.stat().st_size != len(picture.data):
        with replaced(file, sync) as temporary:
            temporary.write_bytes(picture.data)
    return file.name


def picture_suffix(data: bytes) -> str:
    """File name ending by the first bytes; "bin" for formats that a search engine sent and nobody asked for."""
    if data.startswith(b"\x89PNG"):
        return "png"
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "bin"
