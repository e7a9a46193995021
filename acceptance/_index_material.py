"""What the index lines search through: passages that distract, and pictures of many kinds, all by a seed.

The pictures are made to be confused: flags of the same layout in other colours or with another emblem, pages and charts
of one design, and copies of other pictures with one thing changed.
"""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance

PALETTE = ("#d22828", "#ffffff", "#2846c8", "#008c45", "#ffcd00", "#000000", "#75aadb", "#f08c1e", "#6a1b9a", "#002b7f")
SHARES = {"flag": 0.2, "logo": 0.13, "texture": 0.1, "photo": 0.22, "chart": 0.1, "page": 0.1}
Distortion = Callable[[Image.Image, random.Random], Image.Image]


def passages(real: Path, count: int, kind: str, seed: int = 0) -> Iterator[str]:
    """Lines of JSON: the real passages, then `count` made of 60 to 140 words in no order.

    same     words of the real passages as often as there: nothing but their order tells them from the real ones
    half     every other word of a vocabulary that the real ones do not share
    foreign  all words of that vocabulary
    """
    draw = random.Random(seed)
    rows = real.read_text(encoding="utf-8").splitlines()
    yield from rows
    words = Counter(word for row in rows for word in re.findall(r"\w+[.,]?", json.loads(row)["text"]))
    own = draw.choices(list(words), list(words.values()), k=2_000_000)
    made = [
        "".join(draw.choice("bcdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))
        for _ in range(50_000)
    ]
    foreign = draw.choices(made, [1 / rank for rank in range(1, len(made) + 1)], k=2_000_000)
    for number in range(count):
        start, length = draw.randrange(len(own) - 200), draw.randint(60, 140)
        share = {"same": length, "half": length // 2, "foreign": 0}[kind]
        text = own[start : start + share] + foreign[start : start + length - share]
        draw.shuffle(text)
        title = draw.sample(own if kind == "same" else made, 2)
        yield json.dumps({"id": f"distractor-{number}", "title": " ".join(title), "text": " ".join(text)})


def odd_queries(count: int = 500) -> list[str]:
    """What models write, and worse."""
    pieces = [
        '"',
        "title:",
        "C++ [1]",
        "AND NOT",
        "(",
        "^",
        "~2",
        "*",
        "\\",
        "\U0001f600",
        "\ud800",
        "\x00",
        "<b>",
        "who",
        "\u4e2d\u6587",
        "-",
        "{a TO b]",
    ]
    draw = random.Random(0)
    fixed = [
        "",
        " \t\n",
        "*",
        "a" * 10_000,
        "normans " * 1_250,
        "\ud800" * 50,
        '"' * 99,
        "\U0001f3f3\ufe0f\u200d\U0001f308" * 9,
    ]
    return fixed + [
        draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randint(1, 30))) for _ in range(count - len(fixed))
    ]


def pictures(real: Path, count: int, seed: int = 0) -> list[tuple[str, Image.Image]]:
    """(kind, picture), no two the same; the real ones of a parquet file in FVQA's format come first."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    photos = [row["bytes"] for images in pq.read_table(real)["images"].to_pylist() for row in images]
    found = [("real", Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos]
    seen = {image.tobytes() for _, image in found}
    make = {
        "flag": lambda: flag(draw, _design(draw)),
        "logo": lambda: logo(draw),
        "texture": lambda: texture(draw, noise),
    }
    make |= {"photo": lambda: photo(draw, noise), "chart": lambda: chart(draw), "page": lambda: page(draw)}

    def keep(kind: str, image: Image.Image) -> None:
        if image.tobytes() not in seen and len(found) < count:
            seen.add(image.tobytes())
            found.append((kind, image))

    for kind, share in SHARES.items():
        end = len(found) + int(share * count)
        while len(found) < end:
            keep(kind, make[kind]())
    while len(found) < 0.92 * count:
        design = _design(draw)
        for _ in range(5):
            keep("flag of a family", flag(draw, design))
            part = draw.choice(("colours", "emblem", "place", "colour"))
            design = {**design, part: _design(draw)[part]}
    while len(found) < count:
        keep(
            "changed copy",
            _changed(draw.choice([image for kind, image in found if kind in ("photo", "logo", "real")]), draw),
        )
    return found


def _design(draw: random.Random) -> dict[str, object]:
    return {
        "size": draw.choice(((300, 200), (320, 160), (320, 240))),
        "colours": draw.sample(PALETTE, 3),
        "layout": draw.choice(("rows", "columns", "saltire", "cross", "triangle", "canton")),
        "emblem": draw.choice(("none", "star", "disc", "crescent", "stars")),
        "place": draw.choice(((0.5, 0.5), (0.25, 0.5), (0.2, 0.25))),
        "colour": draw.choice(PALETTE),
    }


def flag(draw: random.Random, design: dict) -> Image.Image:
    (w, h), (a, b, c) = design["size"], design["colours"]
    image = Image.new("RGB", (w, h), a)
    pen = ImageDraw.Draw(image)
    if design["layout"] == "rows":
        pen.rectangle([0, h / 3, w, 2 * h / 3], fill=b)
        pen.rectangle([0, 2 * h / 3, w, h], fill=c)
    elif design["layout"] == "columns":
        pen.rectangle([w / 3, 0, 2 * w / 3, h], fill=b)
        pen.rectangle([2 * w / 3, 0, w, h], fill=c)
    elif design["layout"] == "saltire":
        pen.line([0, 0, w, h], fill=b, width=h // 6)
        pen.line([0, h, w, 0], fill=b, width=h // 6)
    elif design["layout"] == "cross":
        pen.rectangle([w * 0.3, 0, w * 0.42, h], fill=b)
        pen.rectangle([0, h * 0.42, w, h * 0.58], fill=b)
    elif design["layout"] == "triangle":
        pen.rectangle([0, h / 2, w, h], fill=b)
        pen.polygon([(0, 0), (w * 0.4, h / 2), (0, h)], fill=c)
    else:
        pen.rectangle([0, 0, w * 0.45, h * 0.5], fill=b)
    x, y, r, colour = w * design["place"][0], h * design["place"][1], h * 0.15, design["colour"]
    if design["emblem"] == "star":
        _star(pen, x, y, r, colour)
    elif design["emblem"] in ("disc", "crescent"):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        if design["emblem"] == "crescent":
            pen.ellipse([x - r / 2, y - 0.8 * r, x + 1.1 * r, y + 0.8 * r], fill=a)
    elif design["emblem"] == "stars":
        for turn in range(5):
            _star(pen, x + 1.2 * r * math.cos(1.257 * turn), y + 1.2 * r * math.sin(1.257 * turn), 0.4 * r, colour)
    return image


def _star(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: object, points: int = 5) -> None:
    ends = [(math.pi * n / points - math.pi / 2, r if n % 2 == 0 else 0.4 * r) for n in range(2 * points)]
    pen.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for a, d in ends], fill=colour)  # type: ignore[arg-type]


def logo(draw: random.Random) -> Image.Image:
    side = draw.choice((128, 200, 256, 400))
    image = Image.new("RGB", (side, side), draw.choice(("white", "white", draw.choice(PALETTE))))
    pen = ImageDraw.Draw(image)
    for _ in range(draw.randint(2, 5)):
        x, y, r = draw.uniform(0.2, 0.8) * side, draw.uniform(0.2, 0.8) * side, draw.uniform(0.1, 0.3) * side
        box, colour = [x - r, y - r, x + r, y + r], draw.choice(PALETTE)
        shape = draw.choice(("disc", "square", "star", "arc"))
        if shape == "disc":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        elif shape == "star":
            _star(pen, x, y, r, colour, draw.randint(3, 8))
        else:
            pen.arc(box, draw.randint(0, 180), draw.randint(200, 360), fill=colour, width=max(3, int(r / 3)))
    if draw.random() < 0.6:
        word = "".join(draw.choices("ABCDEFGHKLMNOPRSTUVX", k=draw.randint(3, 7)))
        pen.text((side * 0.15, side * 0.8), word, fill=draw.choice(PALETTE), font_size=side // 7)
    return image


def _fractal(noise: np.random.Generator, high: int, wide: int, slope: float) -> np.ndarray:
    power = np.fft.fftfreq(high)[:, None] ** 2 + np.fft.fftfreq(wide)[None] ** 2
    power[0, 0] = 1
    field = np.real(np.fft.ifft2(np.fft.fft2(noise.normal(size=(high, wide))) / power ** (slope / 4)))
    return (field - field.mean()) / field.std()


def photo(draw: random.Random, noise: np.random.Generator) -> Image.Image:
    """A landscape of sorts with things in it, soft and noisy as a photograph."""
    wide, high = draw.choice(((640, 480), (480, 640), (800, 533), (400, 400)))
    down = np.linspace(0, 1, high)[:, None]
    sky, ground, hills = (noise.uniform(40, 230, 3) for _ in range(3))
    level = _fractal(noise, high, wide, draw.uniform(2.6, 4)) + 4 * (down - 0.5) * draw.uniform(-1, 1)
    pixels = np.where(
        (level > draw.uniform(-0.5, 0.5))[..., None], sky * (1 - down[..., None]) + ground * down[..., None], hills
    )
    pixels = pixels + _fractal(noise, high, wide, 2.2)[..., None] * draw.uniform(5, 25)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(draw.randint(0, 4)):
        x, y, r = draw.uniform(0, wide), draw.uniform(0, high), draw.uniform(0.05, 0.25) * high
        colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
        pen.ellipse([x - r, y - 0.7 * r, x + r, y + 0.7 * r], fill=colour)
    return Image.fromarray(np.clip(np.asarray(image) + noise.normal(0, 4, (high, wide, 1)), 0, 255).astype(np.uint8))


def texture(draw: random.Random, noise: np.random.Generator, side: int = 256) -> Image.Image:
    y, x = np.mgrid[:side, :side] / side
    kind = draw.choice(("stripes", "cloud", "tiles", "marble"))
    if kind == "stripes":
        field = np.sin(2 * np.pi * (x * draw.randint(2, 20) + y * draw.randint(-20, 20)))
    elif kind == "cloud":
        field = _fractal(noise, side, side, draw.uniform(0.5, 2.5))
    elif kind == "tiles":
        field = np.sign(np.sin(2 * np.pi * x * draw.randint(3, 16)) * np.sin(2 * np.pi * y * draw.randint(3, 16)))
    else:
        field = np.sin(_fractal(noise, side, side, 3) * draw.uniform(2, 8))
    one, other, mix = noise.uniform(20, 235, 3), noise.uniform(20, 235, 3), np.clip((field + 1.5) / 3, 0, 1)[..., None]
    return Image.fromarray((one * mix + other * (1 - mix)).astype(np.uint8))


def chart(draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (480, 360), "white")
    pen = ImageDraw.Draw(image)
    pen.line([40, 20, 40, 320, 460, 320], fill="black", width=2)
    pen.text((150, 4), "".join(draw.choices("abcdefghij klmnop", k=18)), fill="black")
    for line in range(5):
        pen.line([40, 320 - line * 60, 460, 320 - line * 60], fill="#dddddd")
        pen.text((10, 314 - line * 60), str(line * draw.randint(1, 20)), fill="black")
    bars, colour = draw.choice((0, *range(4, 10))), draw.choice(PALETTE[2:])
    for bar in range(bars):
        x = 50 + bar * 400 / bars
        pen.rectangle([x, 320 - draw.randint(10, 280), x + 300 / bars, 320], fill=colour)
    for line_colour in draw.sample(PALETTE[2:], 0 if bars else draw.randint(1, 3)):
        heights = [draw.randint(60, 300)]
        while len(heights) < 25:
            heights.append(min(318, max(20, heights[-1] + draw.randint(-35, 35))))
        pen.line([(40 + 17 * n, y) for n, y in enumerate(heights)], fill=line_colour, width=3)
    return image


def page(draw: random.Random) -> Image.Image:
    wide, high = draw.choice(((480, 640), (600, 450)))
    image = Image.new("RGB", (wide, high), "white")
    pen = ImageDraw.Draw(image)
    top = 30
    if draw.random() < 0.5:
        pen.text((40, top), "".join(draw.choices("ABCDEFGH IJKLMNOP", k=14)), fill="black", font_size=24)
        top = 70
    for y in range(top, high - 40, 16):
        letters = 0 if draw.random() < 0.12 else draw.choice((60, 60, 60, draw.randint(10, 60))) * wide // 480
        pen.text((40, y), "".join(draw.choices("etaoin shrdlu cmfwyp", k=letters)), fill="#222222", font_size=11)
    return image


def _changed(image: Image.Image, draw: random.Random) -> Image.Image:
    """A copy with a spot on it, or mirrored."""
    if draw.random() < 0.3:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    copy = image.copy()
    (wide, high), r = copy.size, 0.09 * min(copy.size)
    x, y = draw.uniform(0.3, 0.7) * wide, draw.uniform(0.3, 0.7) * high
    ImageDraw.Draw(copy).ellipse([x - r, y - r, x + r, y + r], fill=draw.choice(PALETTE))
    return copy


def _cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    wide, high = image.size
    return image.crop((round(wide * left), round(high * top), round(wide * (1 - right)), round(high * (1 - bottom))))


def _cut_anywhere(image: Image.Image, draw: random.Random) -> Image.Image:
    left, top = draw.uniform(0, 0.1), draw.uniform(0, 0.1)
    return _cut(image, left, top, 0.1 - left, 0.1 - top)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


DISTORTIONS: dict[str, Distortion] = {
    "JPEG 30": lambda image, draw: _jpeg(image, 30),
    "resized to 50 %": lambda image, draw: image.resize(
        (image.width // 2, image.height // 2), Image.Resampling.BILINEAR
    ),
    "10 % cut off somewhere": _cut_anywhere,
    "10 % cut off each side": lambda image, draw: _cut(image, 0.1, 0.1, 0.1, 0.1),
    "brightness +20 %": lambda image, draw: ImageEnhance.Brightness(image).enhance(1.2),
    "brightness -20 %": lambda image, draw: ImageEnhance.Brightness(image).enhance(0.8),
}
