"""Emblems as pictures: the same for the same generator, told apart by their codes, jittered within bounds."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mmsr1.data.emblem.drawing import CODES, EDGE, Emblem, Jitter, draw
from mmsr1.tools.pictures import decode

STILL = Jitter(shift=0, gain=0.0, noise=0.0)
HALF = EDGE // 2


def pixels(emblem: Emblem, seed: int = 0, jitter: Jitter = STILL, edge: int = EDGE) -> NDArray[np.float64]:
    return np.asarray(decode(draw(emblem, np.random.default_rng(seed), jitter, edge)), dtype=np.float64)


def test_the_generator_alone_decides_the_picture() -> None:
    emblem = (3, 14, 15, 9)
    first, again, other = (draw(emblem, np.random.default_rng(seed), Jitter()) for seed in (1, 1, 2))
    assert first == again and first.digest != other.digest
    rng = np.random.default_rng(1)
    assert draw(emblem, rng, Jitter()) == first != draw(emblem, rng, Jitter())


@pytest.mark.parametrize("edge", [14, 28, EDGE])
def test_a_picture_is_a_square_of_the_edge_asked_for(edge: int) -> None:
    assert pixels((0, 1, 2, 3), edge=edge).shape == (edge, edge, 3)


def test_every_code_looks_different_and_fills_its_own_quadrant() -> None:
    base = pixels((0, 0, 0, 0))
    tiles = []
    for quadrant in range(4):
        for code in range(CODES):
            emblem = [0, 0, 0, 0]
            emblem[quadrant] = code
            picture = pixels((emblem[0], emblem[1], emblem[2], emblem[3]))
            row, column = divmod(quadrant, 2)
            window = (slice(row * HALF, (row + 1) * HALF), slice(column * HALF, (column + 1) * HALF))
            tiles.append(picture[window].copy())
            picture[window] = base[window]
            assert (picture == base).all(), "the other quadrants are untouched"
    for quadrant in range(4):
        own = tiles[quadrant * CODES : (quadrant + 1) * CODES]
        distances = [np.abs(a - b).mean() for n, a in enumerate(own) for b in own[:n]]
        assert min(distances) > 9, "further apart than the noise"


def test_a_mark_moves_by_at_most_the_shift() -> None:
    code = 2  # a black square
    centre = (HALF - 1) / 2
    offsets = set()
    for seed in range(300):
        dark = np.argwhere(
            pixels((code, code, code, code), seed, Jitter(shift=2, gain=0.0, noise=0.0))[:HALF, :HALF].max(axis=-1) < 20
        )
        offsets.add(tuple(dark.mean(axis=0) - centre))
    assert offsets == {(float(y), float(x)) for y in range(-2, 3) for x in range(-2, 3)}


def test_the_gain_scales_the_whole_picture_within_its_bounds() -> None:
    plain = pixels((0, 4, 12, 28))
    gains = []
    for seed in range(200):
        ratio = pixels((0, 4, 12, 28), seed, Jitter(shift=0, gain=0.1, noise=0.0)) / plain
        gains.append(ratio.mean())
        assert np.abs(ratio - ratio.mean()).max() < 0.03, "one factor for all pixels, up to rounding"
    assert 0.895 < min(gains) < 0.92 and 1.08 < max(gains) < 1.105


def test_the_noise_has_its_standard_deviation() -> None:
    difference = pixels((8, 8, 8, 8), 1, Jitter(shift=0, gain=0.0, noise=6.0)) - pixels((8, 8, 8, 8))
    assert 5.7 < difference[:, :, 1:].std() < 6.3 and abs(difference.mean()) < 1
