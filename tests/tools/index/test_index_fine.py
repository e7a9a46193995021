"""The default way to find pictures again: distorted, and among others that hardly differ."""

import io
import random

import numpy as np
import pytest
from index_helpers import picture
from PIL import Image, ImageDraw, ImageEnhance

from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.local import ImageEntry, LocalImageSearch, build_image_index
from mmsr1.tools.pictures import encode_png


def flag(stripes, star):
    image = Image.new("RGB", (240, 160), stripes[0])
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 53, 240, 106], fill=stripes[1])
    pen.rectangle([0, 107, 240, 160], fill=stripes[2])
    if star:
        x, y = star
        pen.polygon([(x, y - 16), (x + 14, y + 12), (x - 14, y + 12)], fill="white")
    return image


def page(seed):
    draw, image = random.Random(seed), Image.new("RGB", (300, 400), "white")
    for y in range(20, 380, 12):
        ImageDraw.Draw(image).rectangle([20, y, 20 + draw.randint(60, 260), y + 5], fill="#333333")
    return image


COLOURS = ("#d22828", "#28a03c", "#2846c8", "#e6c828", "#000000")
FLAGS = [
    flag((a, b, c), star) for a in COLOURS for b in COLOURS for c in COLOURS[:2] for star in (None, (60, 80), (120, 80))
]
SHELF = [*FLAGS, *(page(seed) for seed in range(60)), *(picture(seed, 160) for seed in range(60))]


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


DISTORTIONS = {
    "jpeg": jpeg,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "cut": lambda image: image.crop((0, 0, round(0.9 * image.width), round(0.9 * image.height))),
    "cut all around": lambda image: image.crop(
        (image.width // 10, image.height // 10, image.width * 9 // 10, image.height * 9 // 10)
    ),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    home = tmp_path_factory.mktemp("shelf")
    entries = [ImageEntry(f"{n:03d}", "", "", encode_png(image)) for n, image in enumerate(SHELF)]
    for descriptor in ("fine", "cells"):
        build_image_index(home / descriptor, entries, 32, descriptor)
    return {descriptor: LocalImageSearch(home / descriptor, topk=1) for descriptor in ("fine", "cells")}


def recall(tool, distort):
    asked = range(0, len(SHELF), 9)
    return np.mean([tool.find(encode_png(distort(SHELF[n])))[0].id == f"{n:03d}" for n in asked])


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_distorted_copy_finds_its_picture(tools, name):
    assert recall(tools["fine"], DISTORTIONS[name]) >= 0.95


def test_the_closer_look_is_what_tells_cut_pages_apart(tools):
    cut = DISTORTIONS["cut all around"]
    assert recall(tools["fine"], cut) > recall(tools["cells"], cut)
    assert tools["fine"].backend != tools["cells"].backend


def test_likeness_is_one_for_the_same_and_for_a_window_of_it():
    image = picture(3, 160)
    kept = np.stack([fine.shrink(image), fine.shrink(picture(4, 160))])
    same, other = fine.likeness(image, kept)
    assert same > 0.99 > other  # the query is made small in two steps
    window = image.crop((10, 5, 150, 145))
    assert fine.likeness(window, kept)[0] > 0.97


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2), (5000, 4)])
def test_odd_shapes_are_no_error(size):
    kept = np.stack([fine.shrink(picture(3)), fine.shrink(Image.new("RGB", size, "white"))])
    scores = fine.likeness(Image.new("RGB", size, "white"), kept)
    assert np.isfinite(scores).all() and scores[1] > 0.999
