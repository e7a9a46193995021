"""A closer look at few candidates: is the query this very picture, cut, re-encoded, resized, darkened or brightened?

Each indexed picture is kept as 32 x 32 colours (3 KiB). The query is laid over every window of it that leaves out up
to a fifth of either side; where their greys agree best, the colours are compared, under the gain that fits best and
with the clipping at white that comes with it. So flags that differ in a small emblem, or pages of text that a coarse
description cannot tell apart, are told apart; photographs of one object from two sides are not brought together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

VERSION = 1
FILE = "fine.u8"
SIDE = 32
BYTES = SIDE * SIDE * 3
CANDIDATES = 50  # that are looked at: some 40 ms on one core
_SIZES = range(SIDE, round(0.78 * SIDE) - 1, -1)  # of a window, in cells
_GAINS = np.arange(0.7, 1.31, 0.05, dtype=np.float32)
_FLOOR = 1e-3  # of the spread of greys (0 to 255), so that a plain picture agrees with nothing by chance


def shrink(image: Image.Image) -> UInt8[ndarray, "32 32 3"]:
    """What is kept of an indexed picture."""
    return _resized(image, SIDE, SIDE)


def likeness(image: Image.Image, kept: UInt8[ndarray, "N 32 32 3"]) -> Float[ndarray, "N"]:
    """How well the picture agrees with each of the kept ones: 1 is equal, 0 as far apart as black and white."""
    small = image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BOX) if min(image.size) > 2 * SIDE else image
    colours = kept.astype(np.float32)
    windows = _windows(small, colours.mean(axis=-1))
    return np.array([1 - _distance(small, colour, *window) for colour, window in zip(colours, windows, strict=True)])


@dataclass
class _Sums:
    """Sums over any window of many pictures at once."""

    table: Float[ndarray, "N H W"]

    @classmethod
    def of(cls, values: Float[ndarray, "N 32 32"]) -> _Sums:
        table = np.zeros((len(values), SIDE + 1, SIDE + 1))
        table[:, 1:, 1:] = values.astype(np.float64).cumsum(axis=1).cumsum(axis=2)
        return cls(table)

    def over(self, high: int, wide: int) -> Float[ndarray, "N Y X"]:
        table = self.table
        return table[:, high:, wide:] - table[:, :-high, wide:] - table[:, high:, :-wide] + table[:, :-high, :-wide]


def _windows(image: Image.Image, greys: Float[ndarray, "N 32 32"]) -> list[tuple[int, int, int, int]]:
    """(height, width, top, left) of the window of each picture in which the query's greys correlate best."""
    spectrum, sums, squares = np.fft.rfft2(greys), _Sums.of(greys), _Sums.of(greys * greys)
    every = np.arange(len(greys))
    best = np.full(len(greys), -np.inf)
    found = np.tile([SIDE, SIDE, 0, 0], (len(greys), 1))
    for high in _SIZES:
        for wide in _SIZES:
            query = np.zeros((SIDE, SIDE), dtype=np.float32)
            query[:high, :wide] = _resized(image, wide, high).mean(axis=-1)
            query[:high, :wide] -= query[:high, :wide].mean()
            places = (slice(None), slice(SIDE - high + 1), slice(SIDE - wide + 1))
            overlap = np.fft.irfft2(np.conj(np.fft.rfft2(query)) * spectrum, s=(SIDE, SIDE))[places]
            cells = high * wide
            spread = np.maximum(squares.over(high, wide) - sums.over(high, wide) ** 2 / cells, 0)
            floor = _FLOOR * np.sqrt(cells)
            agreement = overlap / ((np.linalg.norm(query) + floor) * (np.sqrt(spread) + floor))
            agreement = agreement.reshape(len(greys), -1)
            place = agreement.argmax(axis=1)
            better = agreement[every, place] > best
            best[better] = agreement[every, place][better]
            top, left = np.divmod(place, SIDE - wide + 1)
            found[better] = np.stack([np.full_like(top, high), np.full_like(top, wide), top, left], axis=1)[better]
    return [(int(high), int(wide), int(top), int(left)) for high, wide, top, left in found]


def _distance(
    image: Image.Image, colours: Float[ndarray, "32 32 3"], high: int, wide: int, top: int, left: int
) -> float:
    """Mean difference of the colours in the window, 0 to 1, under the best gain."""
    query = _resized(image, wide, high).astype(np.float32)
    window = colours[top : top + high, left : left + wide]
    lit = np.minimum(window[None] * _GAINS[:, None, None, None], 255)
    return float(np.abs(lit - query).mean(axis=(1, 2, 3)).min()) / 255


def _resized(image: Image.Image, wide: int, high: int) -> UInt8[ndarray, "H W 3"]:
    method = Image.Resampling.BOX if image.width >= wide and image.height >= high else Image.Resampling.BILINEAR
    return np.asarray(image.resize((wide, high), method))
