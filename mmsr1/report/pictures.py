"""Pictures of a run made small enough to live inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from PIL import Image

from mmsr1.run_directory import RunDirectory

EDGE = 96
_MOST_PIXELS = 50_000_000


def small_picture(directory: RunDirectory, digest: str) -> Image.Image | None:
    """The picture in RGB, neither side over 96 px, or None if it is missing or is no readable image."""
    picture = directory.read_picture(digest)
    if picture is None:
        return None
    # Thumbnails come from the web: a broken or absurdly large file costs the report one picture, nothing more.
    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.thumbnail((EDGE, EDGE))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def data_uris(directory: RunDirectory, digests: Iterable[str]) -> dict[str, str]:
    """Digest -> data URI of the small picture, for those that can be shown."""
    uris = {}
    for digest in dict.fromkeys(digests):
        image = small_picture(directory, digest)
        if image is not None:
            stream = io.BytesIO()
            image.save(stream, "WEBP", quality=85)
            uris[digest] = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return uris
