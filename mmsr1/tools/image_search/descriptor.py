"""A picture as a vector, without any learned weights.

Two pictures of the same thing should lie close although brightness, noise, encoding and the exact place of a shape
differ. So colours and edges are pooled over the cells of a coarse grid: within a cell a shape may move freely.
Good for flags, logos, covers and near copies; photographs of one object from two sides need a learned embedding.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

VERSION = 1
SIDE = 56
ORIENTATIONS = 12
# Cells per side, weight. The 2x2 level decides; the finer one separates pictures that it cannot tell apart.
LEVELS = ((2, 1.0), (4, 0.2))
# Edges weigh more than colours because a shape's outline covers few pixels: among emblems that differ in one shape,
# another view finds the right one in 80 % of cases at 0.5, 94 % at 1, 99.9 % at 2 and 100 % at 3.
EDGE_WEIGHT = 3.0
DIMENSIONS = sum(cells * cells * (3 + 3 + ORIENTATIONS) for cells, _ in LEVELS)


def describe(rgb: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "D"]:
    """A float32 vector of length 1; the scalar product of two is their similarity, 1 for the same picture.

    For each cell: mean and spread of each colour channel, and a histogram of edge directions weighted by edge strength
    (square roots, so that one strong edge does not drown the rest). Under 1 ms for small pictures.
    """
    image = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float32)
    brightness = max(float(np.sqrt(np.mean(pixels * pixels))), 16.0)  # the floor keeps a black picture's noise small
    pixels = _smooth(pixels / brightness)
    edges = _edges(pixels.mean(axis=-1))
    parts = []
    for cells, weight in LEVELS:
        mean = _pool(pixels, cells)
        spread = np.sqrt(np.maximum(_pool(pixels * pixels, cells) - mean * mean, 0.0))
        level = (mean, spread, EDGE_WEIGHT * np.sqrt(_pool(edges, cells)))
        parts += [values.ravel() * (weight / cells) for values in level]
    vector = np.concatenate(parts)
    return (vector / max(float(np.linalg.norm(vector)), 1e-6)).astype(np.float32)


def _smooth(pixels: Float[ndarray, "S S 3"]) -> Float[ndarray, "S S 3"]:
    """A 3x3 binomial blur: halves the pixel noise and hardly touches a shape."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _edges(grey: Float[ndarray, "S S"]) -> Float[ndarray, "S S O"]:
    """Edge strength of each pixel, shared between the two nearest of the `ORIENTATIONS` directions."""
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:-1] = grey[2:] - grey[:-2]
    right[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    direction = np.arctan2(down, right) * (ORIENTATIONS / (2 * np.pi)) % ORIENTATIONS
    distance = np.abs(direction[..., None] - np.arange(ORIENTATIONS, dtype=np.float32))
    distance = np.minimum(distance, ORIENTATIONS - distance)
    return np.maximum(0.0, 1.0 - distance) * np.hypot(down, right)[..., None]


def _pool(values: Float[ndarray, "S S C"], cells: int) -> Float[ndarray, "N N C"]:
    step = SIDE // cells
    return values.reshape(cells, step, cells, step, -1).mean(axis=(1, 3))
