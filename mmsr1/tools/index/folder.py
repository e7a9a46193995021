"""The folder of an index that is being written: whose it is, and what is swept out of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.writing import ENDS, ROWS, THUMBNAILS
from mmsr1.tools.index import ids, vectors
from mmsr1.tools.index_files import JOURNAL, MANIFEST, Manifest, scratch_of

LOCK = "write.lock"
_GROWING = (ids.FILE, vectors.FILE, ROWS, ENDS, fine.FILE, THUMBNAILS)
_REPLACED = re.compile(r"tantivy-\d+|graph-\d+\.faiss")


def check_free(folder: Path) -> None:
    """Raises ValueError unless a new index can be made here without touching what is not an index's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give a folder that is empty or not there yet")
    if (folder / MANIFEST).is_file() or (folder / JOURNAL).is_file():
        return  # whoever reads them says what may be done
    own = {LOCK, scratch_of(folder / MANIFEST).name, scratch_of(folder / JOURNAL).name}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in own):
        raise ValueError(
            f"{folder}: holds other files ({', '.join(others[:3])}) and no index; "
            "give a folder that is empty or not there yet"
        )


def clean(folder: Path, manifest: Manifest | None) -> None:
    """Remove what no manifest names any more, and the journal; readers that have it open keep it."""
    named = () if manifest is None else manifest.parts.values()
    for path in folder.iterdir():
        if _REPLACED.fullmatch(path.name) and path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / JOURNAL).unlink(missing_ok=True)


def undo(folder: Path, base: Manifest | None, was_there: bool) -> None:
    """Take back a build or append of which nothing is safe yet, so that what was wrong can be put right and done again.

    What has grown beyond its manifest is cut off by whoever writes next.
    """
    clean(folder, base)
    if base is not None:
        return
    for name in _GROWING:
        (folder / name).unlink(missing_ok=True)
    pack = (folder / THUMBNAILS).parent
    if pack.is_dir() and not any(pack.iterdir()):
        pack.rmdir()
    (folder / LOCK).unlink(missing_ok=True)
    if not was_there and not any(folder.iterdir()):
        folder.rmdir()
