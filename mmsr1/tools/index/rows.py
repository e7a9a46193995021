"""What one row of an input is made into: a passage or a picture, or why neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path, PurePath
from typing import Any

from mmsr1.tools.image_search.writing import ImageEntry
from mmsr1.tools.pictures import MAX_BYTES
from mmsr1.tools.text_search.writing import Passage
from mmsr1.types import Picture

ID_BYTES = 512  # of an id: what OpenSearch takes, and far below what tantivy finds again
_NAMED = 200  # characters of column names in a message


@dataclass(frozen=True)
class Row:
    place: str
    value: Any
    token: int


@dataclass(frozen=True)
class Bad:
    place: str
    why: str
    token: int


class Unusable(ValueError):
    """A row lacks something, in one line."""


@dataclass(frozen=True)
class Columns:
    """Which field of a row is what."""

    id: str = "id"
    title: str = "title"
    text: str = "text"
    url: str = "url"
    image: str = "image"

    def passage(self, fields: Mapping[str, Any]) -> Passage:
        """`contents` of Search-R1's corpora, whose first line is the title, stand in for a text that is not there."""
        title, body = text(fields, self.title), text(fields, self.text)
        if not body.strip() and (contents := text(fields, "contents")):
            first, _, rest = contents.partition("\n")
            title, body = (title, contents) if title or not rest.strip() else (first.strip().strip('"'), rest)
        if not body.strip():
            raise Unusable(self._lacks("text", fields))
        return Passage(self._id(fields), title, body, text(fields, self.url))

    def entry(self, fields: Mapping[str, Any], folder: Path) -> ImageEntry:
        """A picture in the row itself, or the path of one in the file's folder."""
        name = self._id(fields)
        found = fields.get(self.image)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, str) and found:
            found = beside(folder, found)
        if not isinstance(found, bytes) or not found:
            raise Unusable(self._lacks("image", fields))
        return ImageEntry(name, text(fields, self.title), text(fields, self.url), Picture(found))

    def _id(self, fields: Mapping[str, Any]) -> str:
        if not (found := text(fields, self.id)):
            raise Unusable(self._lacks("id", fields))
        return checked_id(found)

    def _lacks(self, wanted: str, fields: Mapping[str, Any]) -> str:
        column = getattr(self, wanted)
        return f"no {column}" if column in fields else no_column(column, wanted, list(fields))


def no_column(column: str, wanted: str, there: list[str]) -> str:
    """That a column is not there, which are, and how to say which it is."""
    named = " ".join(clean(", ".join(map(str, there))).split())[:_NAMED]
    return f"no {column!r}; there are: {named}; say which with --{wanted}-column"


def checked_id(name: str) -> str:
    """Raises Unusable for one that is too long to be found again."""
    if (size := len(name.encode("utf-8"))) > ID_BYTES:
        raise Unusable(f"an id of {size} bytes, more than {ID_BYTES}: {name[:40]!r}...")
    return name


def text(fields: Mapping[str, Any], column: str) -> str:
    """A field that may be missing; a number is one that was written without quotes. Raises Unusable."""
    found = fields.get(column)
    if found is None or isinstance(found, float) and isnan(found):
        return ""
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str):
        raise Unusable(f"{column} is of type {type(found).__name__}, not text")
    return clean(found)


def clean(found: str) -> str:
    """JSON can spell lone surrogates, and file names that are no UTF-8 have them; no index can hold them."""
    return found if found.isascii() else found.encode("utf-8", "replace").decode()


def beside(folder: Path, name: str) -> bytes:
    """The file that a row names, in the folder of the row's own file. What leads out of it is not opened: rows come
    from others. A link in the folder was made by its owner, and is followed. Raises Unusable."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise Unusable(f"{clean(name)[:80]!r} leads out of the file's folder; give a path in it, or put a link there")
    return read_bounded(folder / name)


def read_bounded(path: Path) -> bytes:
    """A file no larger than a picture may be. Raises Unusable in one line."""
    name = clean(path.name)[:80]
    try:
        if not path.is_file():  # a pipe or device would never end
            raise Unusable(f"{name} is not there, or is no file")
        with path.open("rb") as file:
            found = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeEncodeError) as error:
        raise Unusable(f"{name} cannot be read ({type(error).__name__})") from None
    except Unusable:
        raise
    except ValueError:  # of a null character, in a name
        raise Unusable("a name that no file has") from None
    if len(found) > MAX_BYTES:
        raise Unusable(f"{name} has more than the {MAX_BYTES} bytes allowed")
    return found
