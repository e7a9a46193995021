"""Small corpora, and processes that are killed while they index them."""

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmsr1.tools.image_search.writing import ImageWriter
from mmsr1.tools.index import building
from mmsr1.tools.index.building import Task
from mmsr1.tools.index.inputs import sources
from mmsr1.tools.index.rows import Columns
from mmsr1.tools.text_search.writing import TextWriter

WORDS = "river capital tower bridge king battle stone bird island engine glass metal winter salt paper".split()  # noqa: SIM905


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Passages with a word of their own (n17) and some that they share."""
    draw = random.Random(first)
    made = []
    for number in range(first, first + count):
        text = " ".join([f"n{number}", *draw.choices(WORDS, k=12)])
        made.append(
            {"id": f"p{number}", "title": draw.choice(WORDS), "text": text, "url": f"https://a.example/{number}"}
        )
    return made


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def picture(seed: int, side: int = 96) -> Image.Image:
    draw = random.Random(seed)
    image = Image.new("RGB", (side, side), (draw.randrange(256), draw.randrange(256), draw.randrange(256)))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, r = draw.randrange(side), draw.randrange(side), draw.randrange(8, 30)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(draw.randrange(256), draw.randrange(256), draw.randrange(256)))
    return image


def folder(path: Path, count: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(path / f"{number:03d}.png")
    return path


def task(directory: Path, kind: str, *inputs: Path, append: bool = False, settings: Any = None, **more: Any) -> Task:
    made = TextWriter.settings() if kind == "text" else ImageWriter.settings(thumbnail_px=32)
    return Task(directory, kind, sources(kind, inputs, Columns()), settings or made, append=append, **more)


def make(kind: str) -> Any:
    return TextWriter if kind == "text" else ImageWriter


def run(work: Task, watch: Callable[[Any], None] = lambda progress: None):
    return building.run(work, make(work.kind), watch)


def killed(work: Task, prepare: Callable[[Callable[[], None]], None]) -> None:
    """Do the task in a process of its own that `prepare(kill)` sets up to die of SIGKILL."""

    def child() -> None:
        prepare(lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(work)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
