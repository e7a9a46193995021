"""Reading pickles without running them: plain data, and pictures by Pillow as the bytes that they are.

A pickle is a program that may call anything it can name. Here it can name a few classes of Pillow only, and gets inert
stand-ins for them, which remember what they are given. Every other name is refused, before anything is called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

MAX_PIXELS = 40_000_000
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"}
_PLUGINS = {"Jpeg": "JpegImageFile", "Png": "PngImageFile", "WebP": "WebPImageFile", "Gif": "GifImageFile"}
_PLUGINS |= {"Mpo": "MpoImageFile", "Bmp": "BmpImageFile", "Tiff": "TiffImageFile"}
_PICTURES = {("PIL.Image", "Image"), *((f"PIL.{kind}ImagePlugin", name) for kind, name in _PLUGINS.items())}
# What Pillow keeps of a file beside its pixels; nobody looks at it.
_IGNORED = {("PIL.TiffImagePlugin", "IFDRational"), ("PIL.PngImagePlugin", "iTXt"), ("fractions", "Fraction")}


class Refused(ValueError):
    """The pickle names something that is neither data nor a picture; or it is none."""


class Pickled:
    """A picture as a pickle holds it."""

    def __init__(self, *arguments: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def image(self) -> Image.Image:
        """Its pixels. Raises ValueError if they are not what they say, or too many."""
        try:
            _, mode, (width, height), palette, data = self._state[:5]
        except (TypeError, ValueError) as error:
            raise ValueError("a picture without pixels") from error
        sizes = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
        if mode not in _MODES or not sizes or width * height > MAX_PIXELS or not isinstance(data, bytes):
            raise ValueError("a picture of an unknown kind, or too large")
        image = Image.frombytes(mode, (width, height), data)
        if mode in ("L", "LA", "P", "PA") and isinstance(palette, list):
            image.putpalette(palette)
        return image


class _Ignored:
    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _rebuilt(kind: type, base: type, state: Any) -> Any:
    """What old pickles make their objects with, for stand-ins only."""
    if not (isinstance(kind, type) and issubclass(kind, Pickled | _Ignored)):
        raise Refused("the pickle rebuilds something that is no picture")
    return kind()


def _latin1(text: Any, encoding: Any) -> bytes:
    """How old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("the pickle encodes something that is no text")
    return text.encode("latin1")


_MAY_NAME: dict[tuple[str, str], Any] = {
    **dict.fromkeys(_PICTURES, Pickled),
    **dict.fromkeys(_IGNORED, _Ignored),
    # Protocols before 3 use the names of Python 2.
    **dict.fromkeys((("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")), _rebuilt),
    **dict.fromkeys((("builtins", "object"), ("__builtin__", "object")), object),
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """In Python: that in C makes room for as many memos as a pickle of nine bytes asks for."""

    def find_class(self, module: str, name: str) -> Any:
        found = _MAY_NAME.get((module, name))
        if found is None:
            raise Refused(f"the pickle names {module}.{name}, which is neither data nor a picture")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("the pickle refers to something outside of it")


def read_pickle(file: Path) -> Any:
    """Dicts, lists, texts, numbers and `Pickled` pictures. Raises Refused, naming the global; OSError."""
    with file.open("rb") as data:
        try:
            return _Unpickler(io.BufferedReader(data)).load()
        except Refused as error:
            raise Refused(f"{file}: {error}: refused") from None
        except Exception as error:  # the pickle machine raises anything on what is no pickle
            raise Refused(f"{file}: not a pickle that can be read ({type(error).__name__})") from error
