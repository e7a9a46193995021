"""Items, pictures and models for the tests of construction."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmsr1.data.construct.asking import Model
from mmsr1.data.construct.items import Question, Seed, Source
from mmsr1.data.construct.photos import Shelf
from mmsr1.tools.base import Outcome
from mmsr1.tools.chat import ChatQuery, ChatReply
from mmsr1.types import Evidence, Picture
from tests.tools.scripted import ScriptedPart, ok

PAGE = Evidence("Vardel Tower - a visit", "https://a.example/vardel", "Vardel Tower was built by Ilsa Morrow in 1889.")
ASKED = {"question": "Who built the tower in this picture?", "answer": "Ilsa Morrow", "aliases": ["I. Morrow"]}


def photo(number: int = 0, size: tuple[int, int] = (320, 240), quality: int = 90) -> Picture:
    """A JPEG; every number is another scene, whatever its size and quality."""
    image = Image.new("RGB", (320, 240), (30 + 70 * (number % 3), 90, 200 - 60 * (number % 4)))
    pen = ImageDraw.Draw(image)
    for step in range(6):
        x, y = (number * 53 + step * 97) % 280, (number * 31 + step * 61) % 200
        pen.rectangle((x, y, x + 30 + 9 * step, y + 50), fill=((number * 80 + step * 40) % 256, step * 40, 120))
    stream = io.BytesIO()
    image.resize(size).save(stream, format="JPEG", quality=quality)
    return Picture(stream.getvalue())


def seed(id: str = "vc-1", subject: str = "Vardel Tower", **more: Any) -> Seed:
    return Seed(**{"id": id, "origin": "auto-vc", "subject": subject, "source": "auto-vc/list", **more})


def source(shelf: Shelf, id: str = "vc-1", picture: Picture | None = None, **more: Any) -> Source:
    fields = {"pictures": (shelf.put(picture or photo()),), "evidence": (PAGE,), "titles": (PAGE.title,), **more}
    return Source(**{**vars(seed(id)), **fields})


def question(id: str = "vc-1", **more: Any) -> Question:
    fields = {**ASKED, "aliases": tuple(ASKED["aliases"]), "evidence": (PAGE,), "titles": (PAGE.title,), **more}
    return Question(**{**vars(seed(id)), **fields})


def shelf(folder: Path) -> Shelf:
    return Shelf(folder)


def says(reply: Any) -> Outcome[ChatReply]:
    """A model's reply: a text, or an object as JSON."""
    return ok(ChatReply(reply if isinstance(reply, str) else json.dumps(reply), "stop", 1, 1))


def chat(answer: Callable[[ChatQuery], Any]) -> ScriptedPart:
    """A model that says what `answer` makes of a request; an `Outcome` is passed on."""

    def reply(query: ChatQuery) -> Outcome[Any]:
        said = answer(query)
        return said if isinstance(said, Outcome) else says(said)

    return ScriptedPart("openai_chat", reply)


def model(answer: Callable[[ChatQuery], Any], tries: int = 3) -> Model:
    return Model(chat(answer), tries)


def asked_of(query: ChatQuery) -> str:
    """All texts of a request."""
    return "\n".join(part for message in query.messages for part in message.parts if isinstance(part, str))
