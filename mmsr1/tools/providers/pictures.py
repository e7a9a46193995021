"""How a picture reaches a service: as a small file, or by the address at which it can be fetched."""

from __future__ import annotations

import io

from PIL import Image

from mmsr1.tools.base import CallFailed
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.tools.providers.fields import without_password
from mmsr1.types import Picture

_QUALITIES = (90, 75, 60)
_SHRINK = 0.7
LONGEST_EDGE = 2_000  # pixels; services look at less


def as_jpeg(picture: Picture, max_bytes: int) -> bytes:
    """The picture as a JPEG of at most `max_bytes`, without metadata: poorer first, then smaller, until it fits.

    Raises CallFailed("invalid") for what is no picture. Takes up to a few hundred milliseconds: not on the event loop.
    """
    try:
        image = decode(picture)
    except BadPicture as error:
        raise CallFailed("invalid", f"the picture {error}") from None
    image.thumbnail((LONGEST_EDGE, LONGEST_EDGE), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=quality)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        size = (max(1, int(image.width * _SHRINK)), max(1, int(image.height * _SHRINK)))
        image = image.resize(size, Image.Resampling.LANCZOS)


class PictureAddress:
    """Where a picture of the data can be fetched by others: a template with {digest} for its name.

    Raises ValueError if there is none; `name` is the provider that needs it.
    """

    def __init__(self, name: str, template: str | None) -> None:
        without_password("image_url", template or "")
        if template is None or "{digest}" not in template:
            raise ValueError(
                f"image_url={template}: {name} takes pictures by address; "
                "say where yours can be fetched, e.g. https://host/images/{digest}.png"
            )
        self._template = template

    def of(self, picture: Picture) -> str:
        return self._template.replace("{digest}", picture.digest)


def about_picture(error: CallFailed) -> CallFailed:
    """A service that does not accept a picture says nothing about whoever asked: the picture is not the model's."""
    return CallFailed("blocked", error.detail) if error.cause == "invalid" else error
