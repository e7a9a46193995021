"""The one place where image bytes become pixels.

Encoded pictures come from data sets and from the web, so they are hostile until decoded. Only JPEG, PNG and WebP are
tried, the size is judged from the header before a pixel is allocated, and what comes out is plain RGB without metadata.
Decoding a large photo takes tens of milliseconds: call it in a worker thread, not on the event loop.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from mmsr1.types import Picture

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 40_000_000

# Where Pillow starts to warn of a decompression bomb. Checked here because turning that warning into an error means
# changing the warning filters of the whole process, which is not safe while threads decode.
BOMB_PIXELS = 2**30 // 4 // 3
# Nobody needs the warning beside our own refusal; said once, before there are threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadPicture(ValueError):
    """The bytes are not a picture that we are willing to decode; the message is one line, fit for a log."""


def decode(picture: Picture, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Pixels as an upright RGB image: EXIF rotation is applied, transparency is laid on white, metadata dropped.

    Of an animation only the first frame is read. Raises `BadPicture`, and nothing else, whatever the bytes are; more
    than `BOMB_PIXELS` are never decoded, whatever `max_pixels` says.
    """
    max_pixels = min(max_pixels, BOMB_PIXELS)
    if len(picture.data) > max_bytes:
        raise BadPicture(f"{len(picture.data)} bytes, more than the {max_bytes} allowed")
    try:
        with Image.open(io.BytesIO(picture.data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadPicture(f"{width}x{height} pixels, more than the {max_pixels} allowed")
            image.load()
            rgb = _flatten(ImageOps.exif_transpose(image))
    except BadPicture:
        raise
    except Exception as error:  # decoders raise a dozen types (OSError, SyntaxError, struct.error, ...) on bad bytes
        # Pillow's own words for bytes of no known format hold the address of an object.
        known = not isinstance(error, UnidentifiedImageError)
        reason = " ".join(str(error).split())[:200] if known else f"none of {', '.join(FORMATS)}"
        raise BadPicture(f"cannot be decoded ({type(error).__name__}: {reason})") from error
    rgb.info.clear()
    return rgb


def encode_png(image: Image.Image) -> Picture:
    """The image as PNG: lossless, RGB, no metadata, the same bytes for the same pixels (and the same Pillow)."""
    buffer = io.BytesIO()
    rgb = _flatten(image)
    rgb.info.clear()
    rgb.save(buffer, format="PNG", compress_level=1)  # photographs hardly shrink further, and cost ten times as much
    return Picture(buffer.getvalue())


def _flatten(image: Image.Image) -> Image.Image:
    """A new RGB image; 16-bit grey is scaled to 8 bits (Pillow would clip it to white)."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")
