"""Emblems: 2 x 2 quadrants, each one of 8 colours and one of 4 marks, drawn with camera-like jitter.

An emblem is a tuple of four codes in 0..31 (colour * 4 + mark), top left, top right, bottom left, bottom right:
32^4 emblems in all. A picture is 56 x 56 pixels, which Qwen2.5-VL turns into 4 image tokens, one a quadrant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsr1.tools.pictures import encode_png
from mmsr1.types import Picture

Emblem = tuple[int, int, int, int]

EDGE = 56
CODES = 32
_HALF = EDGE // 2
_COLOURS = np.array(
    [
        [200, 40, 40],
        [40, 140, 60],
        [40, 70, 190],
        [230, 190, 50],
        [150, 60, 160],
        [50, 180, 190],
        [230, 120, 40],
        [110, 80, 60],
    ],
    dtype=np.float32,
)
_WHITE, _BLACK = np.float32(245), np.float32(15)
_ROWS, _COLUMNS = np.mgrid[0:_HALF, 0:_HALF].astype(np.float32)


@dataclass(frozen=True)
class Jitter:
    """How two photographs of one emblem differ: shift of a mark (pixels), gain (share), sensor noise (levels)."""

    shift: int = 2
    gain: float = 0.10
    noise: float = 6.0


def draw(emblem: Emblem, rng: np.random.Generator, jitter: Jitter, edge: int = EDGE) -> Picture:
    """A PNG of the emblem; `edge` other than 56 gives the thumbnail of that size."""
    canvas = np.empty((EDGE, EDGE, 3), dtype=np.float32)
    for quadrant, code in enumerate(emblem):
        row, column = divmod(quadrant, 2)
        shift = rng.integers(-jitter.shift, jitter.shift + 1, size=2)
        canvas[row * _HALF : (row + 1) * _HALF, column * _HALF : (column + 1) * _HALF] = _quadrant(code, shift)
    canvas *= 1 + rng.uniform(-jitter.gain, jitter.gain)
    canvas += rng.normal(0, jitter.noise, size=canvas.shape)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    if edge != EDGE:
        image = image.resize((edge, edge), Image.Resampling.BOX)
    return encode_png(image)


def _quadrant(code: int, shift: NDArray[np.int64]) -> NDArray[np.float32]:
    colour, mark = divmod(code, 4)
    tile = np.broadcast_to(_COLOURS[colour], (_HALF, _HALF, 3)).copy()
    rows, columns = _ROWS - (_HALF - 1) / 2 - shift[0], _COLUMNS - (_HALF - 1) / 2 - shift[1]
    if mark == 1:
        tile[rows**2 + columns**2 <= 7.5**2] = _WHITE
    elif mark == 2:
        tile[np.maximum(abs(rows), abs(columns)) <= 6.5] = _BLACK
    elif mark == 3:
        tile[(np.minimum(abs(rows), abs(columns)) <= 2.5) & (np.maximum(abs(rows), abs(columns)) <= 8.5)] = _WHITE
    return tile
