"""Thumbnails from the web: fetched, decoded within bounds, made small, and plain RGB from then on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re

from PIL import Image

from mmsr1.tools.base import Answer, CallFailed
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.http import raise_for
from mmsr1.tools.pictures import BadPicture, decode, encode_png
from mmsr1.types import Picture

VERSION = 1
MAX_BYTES = 4 * 2**20
MAX_PIXELS = 20_000_000
# Beyond this, in either direction, it is a spacer or a banner; the model's image processor refuses 200 : 1.
LEAST_EDGE, MAX_RATIO = 8, 10
_DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,", re.IGNORECASE)
_ACCEPT = ("image/", "application/octet-stream", "binary/octet-stream")


class ThumbnailBackend:
    """`Backend[str, Picture]`: the picture at a URL, at most `edge` pixels wide and high, as PNG.

    http, https and `data:` URLs with base64. Nothing (value None) is an address without a picture, a format other than
    JPEG, PNG and WebP, or a picture too small or too long to show anything.
    """

    name = "thumbnail"
    price_usd = 0.0

    def __init__(self, fetch: SafeFetch, edge: int) -> None:
        if edge < LEAST_EDGE:
            raise ValueError(f"edge: {edge} received; give {LEAST_EDGE} or more pixels")
        self._fetch, self._edge = fetch, edge
        self.backend = f"thumbnail:{VERSION}:edge={edge}"

    async def ask(self, query: str) -> Answer[Picture]:
        inline = query[:5].lower() == "data:"
        data = _inline(query) if inline else await self._fetched(query)
        if data is None:
            return Answer(None)
        try:
            return Answer(await asyncio.to_thread(_small, data, self._edge))
        except BadPicture as error:
            # What is fetched again may come whole; what is in the address stays as it is.
            raise CallFailed("invalid" if inline else "broken", f"the picture {error}") from None

    async def _fetched(self, url: str) -> bytes | None:
        reply = await self._fetch.get(url, max_bytes=MAX_BYTES, accept=_ACCEPT)
        if reply.status in (404, 410):
            return None
        if 400 <= reply.status < 500 and reply.status not in (408, 425, 429):  # not for us; others may be
            raise CallFailed("blocked", f"HTTP {reply.status}")
        raise_for(reply)
        if _known(reply.body):
            return reply.body
        if reply.media_type.startswith("image/"):
            return None  # GIF, SVG, AVIF: it will not be another format next time
        raise CallFailed("blocked", "no picture")


def _inline(url: str) -> bytes | None:
    """The bytes inside a `data:` URL. Raises CallFailed("invalid") if there are none, or more than allowed."""
    opening = _DATA_URL.match(url)
    if opening is None or len(url) > MAX_BYTES * 4 // 3:
        raise CallFailed("invalid", "a data: URL without a base64 picture, or too long")
    try:
        data = base64.b64decode(url[opening.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise CallFailed("invalid", "a data: URL whose base64 is broken") from None
    return data if _known(data) else None


def _known(data: bytes) -> bool:
    """Whether the bytes begin as JPEG, PNG or WebP do."""
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def showable(width: int, height: int, least: int = LEAST_EDGE) -> bool:
    """Whether a picture of this shape shows anything, on the web or in an index."""
    return min(width, height) >= least and max(width, height) <= MAX_RATIO * min(width, height)


def _small(data: bytes, edge: int) -> Picture | None:
    image = decode(Picture(data), MAX_PIXELS, MAX_BYTES)
    if not showable(*image.size):
        return None
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return encode_png(image)
