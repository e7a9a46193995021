"""Local image search on emblems as in the emblem world: 2x2 quadrants, 8 colours x 4 shapes, jitter, gain and noise."""

import asyncio
import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmsr1.tools.image_search.descriptor import describe
from mmsr1.tools.image_search.local import ImageEntry, LocalImageSearch, build_image_index
from mmsr1.tools.pictures import BadPicture, decode, encode_png
from mmsr1.types import Picture

COLOURS = ("#d22828", "#28a03c", "#2846c8", "#e6c828", "#9632aa", "#f08c1e", "#3cbec8", "#808080")
Emblem = tuple[tuple[int, int], ...]


class Camera:
    """Draws views of an emblem: shapes moved by up to 2 px, brightness +-10 %, sensor noise of sigma 6."""

    def __init__(self, seed: int) -> None:
        self.random, self.noise = random.Random(seed), np.random.default_rng(seed)

    def shot(self, emblem: Emblem) -> Image.Image:
        image = Image.new("RGB", (56, 56))
        draw = ImageDraw.Draw(image)
        for quadrant, (colour, shape) in enumerate(emblem):
            left, top = quadrant % 2 * 28, quadrant // 2 * 28
            draw.rectangle([left, top, left + 27, top + 27], fill=COLOURS[colour])
            x, y = left + 14 + self.random.randint(-2, 2), top + 14 + self.random.randint(-2, 2)
            if shape == 1:
                draw.ellipse([x - 7, y - 7, x + 7, y + 7], fill="white")
            elif shape == 2:
                draw.rectangle([x - 7, y - 7, x + 7, y + 7], fill="black")
            elif shape == 3:
                # As much white as in the circle: only the outline tells them apart.
                draw.rectangle([x - 9, y - 3, x + 8, y + 2], fill="white")
                draw.rectangle([x - 3, y - 9, x + 2, y + 8], fill="white")
        pixels = np.asarray(image) * self.random.uniform(0.9, 1.1) + self.noise.normal(0, 6, (56, 56, 3))
        return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))

    def view(self, emblem: Emblem) -> Picture:
        return encode_png(self.shot(emblem))


def random_emblems(count: int, seed: int) -> list[Emblem]:
    rng, emblems = random.Random(seed), set()
    while len(emblems) < count:
        emblems.add(tuple((rng.randrange(8), rng.randrange(4)) for _ in range(4)))
    return sorted(emblems)


def neighbours(emblem: Emblem) -> list[Emblem]:
    """The emblem and the twelve that differ from it in one shape."""
    changed = {(*emblem[:q], (emblem[q][0], shape), *emblem[q + 1 :]) for q in range(4) for shape in range(4)}
    return sorted(changed)


def entries(emblems: list[Emblem], camera: Camera) -> list[ImageEntry]:
    return [ImageEntry(f"e{n}", f"flag {n}", f"local://{n}", camera.view(e)) for n, e in enumerate(emblems)]


def search(tool: LocalImageSearch, pictures: list[Picture]) -> list:
    async def all_of_them():
        return [await tool(picture) for picture in pictures]

    return asyncio.run(all_of_them())


def recall(tool: LocalImageSearch, pictures: list[Picture]) -> float:
    results = search(tool, pictures)
    return float(np.mean([result.items[0].title == f"flag {n}" for n, result in enumerate(results)]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """1,300 random emblems on disk, indexed from one view each."""
    emblems = random_emblems(1300, seed=3)
    directory = tmp_path_factory.mktemp("images") / "index"
    build_image_index(directory, entries(emblems, Camera(0)))
    return directory, emblems


def test_another_view_finds_its_emblem(world):
    directory, emblems = world
    camera, tool = Camera(1), LocalImageSearch(directory, topk=5)
    views = [camera.view(emblem) for emblem in emblems]
    results = search(tool, views)
    hits = [result.items[0].title == f"flag {n}" for n, result in enumerate(results)]
    assert np.mean(hits) >= 0.995
    assert all(result.status == "ok" and len(result.items) == 5 and not result.cached for result in results)


def test_one_different_shape_is_told_apart(tmp_path):
    emblems = sorted({near for emblem in random_emblems(25, seed=5) for near in neighbours(emblem)})
    build_image_index(tmp_path / "index", entries(emblems, Camera(2)))
    camera = Camera(3)
    assert recall(LocalImageSearch(tmp_path / "index"), [camera.view(emblem) for emblem in emblems]) >= 0.99


@pytest.mark.parametrize("change", ["jpeg", "twice the size", "webp, smaller"])
def test_reencoding_and_resizing_do_not_matter(world, change):
    directory, emblems = world
    camera = Camera(4)

    def changed(emblem: Emblem) -> Picture:
        shot, buffer = camera.shot(emblem), io.BytesIO()
        if change == "jpeg":
            shot.save(buffer, format="JPEG", quality=75)
        elif change == "twice the size":
            shot.resize((112, 112), Image.Resampling.BICUBIC).save(buffer, format="PNG")
        else:
            shot.resize((48, 48), Image.Resampling.LANCZOS).save(buffer, format="WEBP", quality=80)
        return Picture(buffer.getvalue())

    assert recall(LocalImageSearch(directory), [changed(emblem) for emblem in emblems[:100]]) >= 0.99


def test_the_descriptor_ignores_brightness():
    pixels = np.asarray(Camera(5).shot(random_emblems(1, 1)[0]))
    darker = (pixels * 0.7).astype(np.uint8)
    assert describe(pixels).dtype == np.float32
    assert float(describe(pixels) @ describe(darker)) > 0.999
    assert np.isfinite(describe(np.zeros((3, 500, 3), dtype=np.uint8))).all()


def test_only_the_first_results_carry_a_thumbnail_never_the_picture(tmp_path):
    indexed = entries(random_emblems(6, seed=7), Camera(6))
    build_image_index(tmp_path / "index", indexed, thumbnail_px=20)
    for count in (0, 2, 5):
        (result,) = search(LocalImageSearch(tmp_path / "index", topk=5, thumbnails=count), [indexed[0].picture])
        shown = [item.thumbnail for item in result.items]
        assert [thumbnail is not None for thumbnail in shown] == [True] * count + [False] * (5 - count)
        assert all(decode(thumbnail).size == (20, 20) for thumbnail in shown[:count])
    stored = {path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert not stored & {entry.picture.data for entry in indexed}


def test_a_thumbnail_of_a_shape_that_shows_nothing_is_not_shown(tmp_path, monkeypatch):
    """Indexes made before the writer left them out have such."""
    monkeypatch.setattr("mmsr1.tools.image_search.writing.showable", lambda *size: True)
    line = encode_png(Image.new("RGB", (4000, 1), "teal"))
    build_image_index(tmp_path / "index", [ImageEntry("line", "a line", "", line)], thumbnail_px=280)
    (result,) = search(LocalImageSearch(tmp_path / "index", topk=1, thumbnails=1), [line])
    assert [(item.title, item.thumbnail) for item in result.items] == [("a line", None)]


def test_equal_pictures_come_in_order_of_id_beyond_the_cut(tmp_path):
    picture = Camera(8).view(random_emblems(1, 9)[0])
    names = [f"{n:03d}" for n in range(100)]
    random.Random(0).shuffle(names)
    build_image_index(tmp_path / "index", [ImageEntry(name, name, "", picture) for name in names])
    (result,) = search(LocalImageSearch(tmp_path / "index", topk=3), [picture])
    assert [item.title for item in result.items] == ["000", "001", "002"]


def test_an_unreadable_query_is_a_malformed_call_and_a_broken_index_a_failure(tmp_path):
    indexed = entries(random_emblems(3, seed=1), Camera(1))
    build_image_index(tmp_path / "index", indexed)
    tool = LocalImageSearch(tmp_path / "index", topk=1, thumbnails=1)
    (result,) = search(tool, [Picture(b"GIF89a not a picture")])
    assert result.status == "malformed_call" and "cannot be decoded" in result.detail
    for thumbnail in (tmp_path / "index" / "thumbnails").iterdir():
        thumbnail.write_bytes(b"something else")
    (result,) = search(tool, [indexed[0].picture])
    assert result.status == "infrastructure_error" and "changed on disk" in result.detail


def test_the_back_end_names_content_and_settings(tmp_path):
    emblems = random_emblems(3, seed=1)
    for name, camera in (("a", 1), ("b", 1), ("c", 2)):
        build_image_index(tmp_path / name, entries(emblems, Camera(camera)))
    a, b, c = (LocalImageSearch(tmp_path / name, topk=2).backend for name in "abc")
    assert a == b != c
    assert LocalImageSearch(tmp_path / "a", topk=3).backend != a
    assert LocalImageSearch(tmp_path / "a", topk=2, thumbnails=1).backend != a


def test_an_index_is_complete_or_absent(tmp_path):
    good = entries(random_emblems(2, seed=1), Camera(1))
    with pytest.raises(BadPicture):
        build_image_index(tmp_path / "index", [*good, ImageEntry("bad", "", "", Picture(b"x"))])
    with pytest.raises(ValueError, match="'e0' occurs twice"):
        build_image_index(tmp_path / "index", [*good, good[0]])
    with pytest.raises(ValueError, match="no image entries"):
        build_image_index(tmp_path / "index", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="build_image_index"):
        LocalImageSearch(tmp_path / "index")
    with pytest.raises(ValueError, match="thumbnails"):
        LocalImageSearch(tmp_path / "index", topk=2, thumbnails=3)
