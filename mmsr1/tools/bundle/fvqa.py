"""The image-search caches that FVQA was released with, as a bundle.

They are pickles of a dict: id of a question -> {"tool_returned_web_title_list": titles, "tool_returned_images_urls":
addresses or pictures of the thumbnails}. The pictures that were searched for are in the parquet file of the questions.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from mmsr1.tools.bundle.export import Exported
from mmsr1.tools.bundle.format import written
from mmsr1.tools.bundle.rows import Item, Row
from mmsr1.tools.bundle.unpickle import Pickled, Refused, read_pickle
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.pipeline import TITLE_CHARACTERS, is_web, shortened

BACKEND = "fvqa-release:image_search:1"
TITLES, PICTURES = "tool_returned_web_title_list", "tool_returned_images_urls"
ITEMS = 20  # of one search; what was released has five


@dataclass(frozen=True)
class Imported:
    """`left_out` counts what could not be used, by what is wrong with it."""

    exported: Exported
    left_out: Mapping[str, int]


def import_fvqa(
    pickles: Sequence[Path],
    pictures: Mapping[str, str],
    out: Path,
    edge: int = 280,
    advance: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Write a bundle of all searches in `pickles`. `pictures` has the digest of each question's picture by its id.

    Thumbnails get a longer `edge` of so many pixels. Raises Refused for a pickle that is more than data and pictures,
    or of another structure, FileExistsError if `out` exists, ValueError if nothing can be used.
    """
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows: dict[bytes, Row] = {}
        replaced = 0
        for file in pickles:
            for name, found in _searches(file).items():
                advance(1)
                digest = pictures.get(str(name))
                if digest is None:
                    left_out["searches for questions that are not in the data"] += 1
                    continue
                row = _row(digest, found, Path(scratch), edge, left_out)
                known = rows.get(row.key)
                replaced += known is not None and known.said() != row.said()
                if known is None or (row.answered and not known.items):
                    rows[row.key] = row
        if not rows:
            raise ValueError(f"{pickles[0]}: none of its searches belongs to a question of the data")
        with written(out, lambda digest: Path(scratch, digest).read_bytes()) as writer:
            for key in sorted(rows):
                writer.add(rows[key], BACKEND)
    return Imported(Exported(writer.manifest, replaced=replaced), left_out)


def _searches(file: Path) -> Mapping[Any, Any]:
    found = read_pickle(file)
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise Refused(f"{file}: not a dict of searches by the id of their question")
    return found


def _row(digest: str, found: Mapping[Any, Any], scratch: Path, edge: int, left_out: Counter[str]) -> Row:
    titles, shown = (_listed(found.get(name)) for name in (TITLES, PICTURES))
    items = []
    for title, picture in list(zip_longest(titles, shown))[:ITEMS]:
        url = shortened(picture, TITLE_CHARACTERS) if isinstance(picture, str) and is_web(picture) else ""
        thumbnail = _thumbnail(picture, scratch, edge, left_out) if isinstance(picture, Pickled) else None
        name = shortened(title, TITLE_CHARACTERS) if isinstance(title, str) else ""
        if name or thumbnail:
            items.append(Item(name, "", url, thumbnail))
    status = "ok" if items else "empty"
    return Row("image_search", BACKEND, {"image": digest}, status, tuple(items), 0.0, 0.0, None, "")


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _thumbnail(picture: Pickled, scratch: Path, edge: int, left_out: Counter[str]) -> str | None:
    """Its name, with its bytes in a file of that name."""
    try:
        image = picture.image().convert("RGBA")
        image.thumbnail((edge, edge), Image.Resampling.BOX)
        small = encode_png(image)
    except Exception:  # Pillow raises a dozen types on pixels that are none
        left_out["thumbnails that are no pictures"] += 1
        return None
    (scratch / small.digest).write_bytes(small.data)
    return small.digest
