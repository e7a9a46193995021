"""Pictures to patches: what the processor says, once for each content, within bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmsr1.models.images import ImageFeatures
from mmsr1.models.tiny import tiny_image_processor
from mmsr1.tools.pictures import BadPicture, decode, encode_png
from mmsr1.types import Picture
from tests.models.conversations import SIZES, picture


class Counted:
    """The image processor, with a note of every picture it is given."""

    def __init__(self) -> None:
        self.processor = tiny_image_processor()
        self.merge_size, self.patch_size = self.processor.merge_size, self.processor.patch_size
        self.size = self.processor.size
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images, **options):
        self.sizes += [image.size for image in images]
        return self.processor(images=images, **options)


@pytest.mark.parametrize("size", SIZES)
def test_patches_and_token_counts_are_the_processors(size):
    image = picture(5, *size)
    features = ImageFeatures(tiny_image_processor(), decode)
    pixels, grid = features(image)
    expected = tiny_image_processor()(images=[decode(image)], return_tensors="pt")
    assert torch.equal(pixels, expected["pixel_values"]) and pixels.dtype == torch.float32
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert features.tokens(image) == size[0] * size[1] // 28**2


def test_a_picture_is_processed_once_whatever_object_holds_it():
    counted = Counted()
    features = ImageFeatures(counted, decode)
    first, _ = features(picture(1, 56, 28))
    again, _ = features(Picture(bytes(picture(1, 56, 28).data)))
    assert features.tokens(picture(1, 56, 28)) == 2
    assert again is first and counted.sizes == [(56, 28)]


def test_beyond_the_capacity_the_picture_not_used_for_longest_goes():
    counted = Counted()
    features = ImageFeatures(counted, decode, capacity_bytes=100_000)  # not all three sizes at once: 19, 38, 75 kB
    for size in ((28, 28), (56, 28), (28, 28), (56, 56), (28, 28), (56, 28)):
        features(picture(1, *size))
    assert counted.sizes == [(28, 28), (56, 28), (56, 56), (56, 28)]


def test_a_large_picture_is_scaled_down_to_the_token_limit():
    features = ImageFeatures(tiny_image_processor(max_tokens=4), decode)
    assert features.tokens(picture(1, 280, 280)) == 4


def test_bytes_that_are_no_picture_raise_and_leave_nothing_behind():
    features = ImageFeatures(tiny_image_processor(), decode)
    for _ in range(2):
        with pytest.raises(BadPicture):
            features(Picture(b"GIF89a"))


def test_a_fitted_picture_is_resized_by_no_library():
    """What the engine is given: at the model's size already, so that its own processor cannot interpolate otherwise."""
    features = ImageFeatures(tiny_image_processor(max_tokens=16), decode)
    for size in ((56, 56), (500, 333), (30, 900)):
        shot = picture(3, *size)
        fitted = features.fitted(shot)
        _, (_, height, width) = features(shot)
        assert fitted.size == features.size(shot) == (width * 14, height * 14)
        again = features.fitted(encode_png(fitted))
        assert np.array_equal(np.asarray(again), np.asarray(fitted))
