"""What `pictures.decode` accepts, refuses and drops."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsr1.tools.pictures import BadPicture, decode, encode_png
from mmsr1.types import Picture


def encoded(image: Image.Image, fmt: str, **options: object) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return Picture(buffer.getvalue())


def png_claiming(width: int, height: int) -> Picture:
    """A small valid PNG file whose header promises many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return Picture(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def test_png_and_lossless_webp_keep_every_pixel(photo):
    for picture in (encode_png(photo), encoded(photo, "WEBP", lossless=True)):
        assert np.array_equal(np.asarray(decode(picture)), np.asarray(photo))


def test_equal_pixels_make_equal_bytes_without_metadata(photo):
    tagged = encoded(photo, "PNG", icc_profile=b"profile", dpi=(300, 300), exif=Image.Exif())
    assert encode_png(Image.open(io.BytesIO(tagged.data))).digest == encode_png(photo).digest


def test_exif_turns_the_picture_and_is_then_gone(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    exif[0x010E] = "secret place"
    decoded = decode(encoded(photo, "JPEG", exif=exif))
    assert decoded.size == (20, 30)
    assert not decoded.getexif() and not decoded.info


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(decode(encoded(clear, "PNG")))
    assert tuple(pixels[0, 0]) == (255, 0, 0) and tuple(pixels[3, 3]) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert np.asarray(decode(encoded(grey, "PNG"))).max() == 128


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK"])
def test_every_mode_comes_out_as_rgb(photo, mode):
    picture = encoded(photo.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode(picture).mode == "RGB"


@pytest.mark.parametrize("fmt", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(photo, fmt):
    with pytest.raises(BadPicture, match="cannot be decoded"):
        decode(encoded(photo, fmt))


def test_limits_are_checked_on_the_header(photo):
    with pytest.raises(BadPicture, match="30x20 pixels, more than the 599 allowed"):
        decode(encode_png(photo), max_pixels=599)
    assert decode(encode_png(photo), max_pixels=600).size == (30, 20)
    with pytest.raises(BadPicture, match="bytes, more than the 10 allowed"):
        decode(encode_png(photo), max_bytes=10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_whatever_the_limit(side):
    with pytest.raises(BadPicture):
        decode(png_claiming(side, side), max_pixels=10**12)


def test_the_reason_is_one_line(photo):
    truncated = Picture(encode_png(photo).data[:200])
    with pytest.raises(BadPicture) as caught:
        decode(truncated)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damaged_bytes_raise_nothing_but_bad_picture(noise, at, fmt):
    whole = encoded(Image.new("RGB", (8, 8), "red"), fmt).data
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    for data in (noise, damaged):
        with contextlib.suppress(BadPicture):
            assert decode(Picture(data)).mode == "RGB"
