"""A server that plays all that a construction asks: SerpAPI (pictures, pages), Jina Reader, the hosts of pictures, and
a language model. It fails as these do, and counts what it has answered, request by request.

    with ConstructWeb(key="...") as web:       web.url, web.answered
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import quote, unquote

from acceptance._construct_world import SHOWN, Thing, picture, things
from acceptance._fake_pages import chance
from acceptance._fake_web import Reply, _Handler, _Server, as_json

BROKEN_REPLIES = (
    "Of course! Here is the question you wanted.",
    '{"question": "Who built it?", "answer":',
    '{"question": ["Who", "built", "it?"], "answer": {"name": "?"}}',
    '```json\n{"answer": "somebody"}\n```',
)
ABOUT = "https://encyclo.example/about/"
LABELS = ("Place", "place", "Arts", "Buildings", "ARTS", "Place")


class ConstructWeb:
    """Serves while it is entered. `seconds` is how long an answer takes; `noise` the share of requests that fail by
    chance: 429, 500, 503, a lost connection. `inline` puts the pictures into the answers of the search, for a client
    that may fetch nothing from this machine."""

    def __init__(self, key: str, seconds: float = 0.01, noise: float = 0.06, inline: bool = False) -> None:
        self.key, self.seconds, self.noise, self.inline = key, seconds, noise, inline
        self.answered: Counter[str] = Counter()  # by request: kind and everything that decides the answer
        self.times: dict[str, list[float]] = {}  # when each was answered, by the monotonic clock
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []  # requests that a construction must not make
        self.prompts: Counter[str] = Counter()
        self._by_name = {thing.name: thing for thing in things()}
        self._by_question = {thing.question: thing for thing in things()}
        self._by_page = {url: thing for thing in things() for url in thing.pages}
        self._given: dict[str, str] = {}  # answers of existing questions
        self._lock = threading.Lock()
        self._draw = random.Random(0)
        web = self

        class Handler(_Handler):
            def answer(self, path: str, query: dict[str, str], body: bytes) -> Reply:
                return web._answer(self, path, query, body)

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ConstructWeb:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def total(self) -> int:
        """Answers so far."""
        with self._lock:
            return self.answered.total()

    def repeated(self) -> int:
        """Answers that had been given before."""
        with self._lock:
            return sum(count - 1 for count in self.answered.values())

    def of_kind(self, kind: str) -> int:
        with self._lock:
            return sum(count for request, count in self.answered.items() if request.startswith(f"{kind} "))

    def _answer(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes) -> Reply:
        time.sleep(self.seconds * chance("latency", path, body).uniform(0.5, 2.0))
        kind, asked, reply = self._found(request, path, query, body)
        with self._lock:
            fault = self._draw.random() if kind != "?" else 1.0
        if fault < self.noise and reply.status == 200:
            with self._lock:
                self.refused[kind] += 1
            return _fault(fault / self.noise, reply)
        if _is_answer(reply):
            name = f"{kind} {hashlib.sha256(asked.encode()).hexdigest()[:24]}"
            with self._lock:
                self.answered[name] += 1
                self.times.setdefault(name, []).append(time.monotonic())
        return reply

    def _found(
        self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes
    ) -> tuple[str, str, Reply]:
        """(kind of request, all that decides the answer, the answer)."""
        if path == "/search.json":
            if query.get("api_key") != self.key:
                return "?", "", as_json(401, {"error": "Invalid API key."})
            asked = json.dumps({name: value for name, value in query.items() if name != "api_key"}, sort_keys=True)
            pictures = query.get("engine") == "google_images"
            return "pictures" if pictures else "search", asked, self._search(query.get("q", ""), pictures)
        if path.endswith("/chat/completions"):
            return "chat", body.decode(), self._chat(json.loads(body))
        if path.startswith("/pictures/"):
            return "picture", path, self._picture(path)
        target = request.path.partition("/http")
        if target[1]:
            url = unquote("http" + target[2])
            return "page", url, self._page(url)
        return "?", "", as_json(404, {"error": "nothing here"})

    def _search(self, query: str, pictures: bool) -> Reply:
        told = {"search_metadata": {"status": "Success"}, "search_parameters": {"q": query}}
        thing = self._by_name.get(query)
        if thing is None and not pictures and "?" in query:  # a question with its answer: somebody wrote about it
            hits = [{"title": "About", "link": f"{ABOUT}{quote(query, safe='')}", "snippet": "..."}]
            return as_json(200, {**told, "organic_results": hits})
        if thing is None or (pictures and thing.fate == "no_hits"):
            return as_json(200, {**told, "error": "Google hasn't returned any results for this query."})
        if pictures:
            return as_json(200, {**told, "images_results": list(map(self._hit, [thing] * SHOWN, range(SHOWN)))})
        hits = [{"title": thing.title, "link": url, "snippet": thing.page[:80]} for url in thing.pages]
        other = {"title": "Opening hours", "link": "https://news.example/hours", "snippet": "Closed on Mondays."}
        return as_json(200, {**told, "organic_results": [other, *hits]})

    def _hit(self, thing: Thing, version: int) -> dict[str, Any]:
        page = thing.pages[version % 2] if version else "https://news.example/gallery"
        shown = {"original": f"{self.url}/pictures/{thing.number}-{version}.jpg"}
        if self.inline:
            data = b"" if thing.fate == "no_picture" else picture(thing, version)
            shown = {"thumbnail": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}
        return {"position": version + 1, "title": thing.title, "link": page, "source": "example", **shown}

    def _picture(self, path: str) -> Reply:
        found = re.fullmatch(r"/pictures/(\d+)-(\d)\.jpg", path)
        if found is None:
            return Reply(404, b"not found", "text/plain")
        thing = next(one for one in things() if one.number == int(found[1]))
        version, fate = int(found[2]), chance("picture", path).random()
        data = picture(thing, version)
        never = thing.fate == "no_picture"
        if not never and (version == SHOWN - 1 or fate > 0.35):
            return Reply(200, data, "image/jpeg")
        faults = (
            Reply(404, b"not found", "text/plain"),
            Reply(403, b"no hotlinking", "text/plain"),
            Reply(410, b"", "text/plain"),
            Reply(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
            Reply(200, b"<html>please log in</html>", "text/html"),
        )
        return faults[int(fate * 1000) % len(faults)]

    def _page(self, url: str) -> Reply:
        thing, fate = self._by_page.get(url), chance("page", url).random()
        if url.startswith(ABOUT):
            return _read(url, "About", f"Many have asked: {unquote(url.removeprefix(ABOUT))}. So it is.")
        if thing is None:
            return _read(url, "Opening hours", "Closed on Mondays, and in August.")
        if thing.fate == "no_page" or (fate < 0.12 and url == thing.pages[1]):
            return as_json(451, {"code": 451, "status": 45102, "message": "Access to this domain is blocked"})
        if fate < 0.2 and url == thing.pages[1]:
            return _read(url, thing.title, "Verify you are human", warning="This page maybe requiring CAPTCHA")
        return _read(url, thing.title, thing.page)

    def _chat(self, asked: dict[str, Any]) -> Reply:
        system, user = (message["content"] for message in asked["messages"])
        parts = user if isinstance(user, list) else [{"type": "text", "text": user}]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        shown = any(part["type"] == "image_url" for part in parts)
        role = _role(system)
        with self._lock:
            self.prompts[role] += 1
            if shown == (role in ("guess", "label")):
                self.wrong.append(f"{role} {'with' if shown else 'without'} a picture")
            if re.search(r"<\|im_(start|end)\|>|</information>", text):
                self.wrong.append(f"{role}: control text of a page in the prompt")
        seed = asked.get("seed") or 0
        said = self._said(role, system, text, seed)
        usage = {"prompt_tokens": (len(system) + len(text)) // 4, "completion_tokens": len(said) // 4 + 1}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return as_json(200, {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _said(self, role: str, system: str, text: str, seed: int) -> str:
        if role == "rewrite":
            question, answer = _block(text, "question and answer").split("\n")[:2]
            self._given[question] = answer
            return json.dumps({"question": question, "answer": answer, "aliases": [], "query": f"{question} {answer}"})
        if role == "write":
            thing = max((one for name, one in self._by_name.items() if name in system), key=lambda one: len(one.name))
            return _written(thing, seed)
        about = _block(text, "question")
        thing = next((one for question, one in self._by_question.items() if question in about), None)
        if role == "label":
            return json.dumps({"class": LABELS[chance("label", about, seed).randrange(len(LABELS))]})
        if thing is None:  # a question of an existing set
            answer = self._given.get(about, "I do not know")
            solved = {"answer": answer, "other_answers": [], "unambiguous": True, "language": "en"}
            return "No idea" if role == "guess" else json.dumps(solved)
        return _guessed(thing, seed) if role == "guess" else _solved(thing)


class _Quiet(_Server):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed hang up."""


def _role(system: str) -> str:
    """What a request wants, by the fields that it asks for."""
    for field, role in (
        ('"query"', "rewrite"),
        ('"aliases"', "write"),
        ('"unambiguous"', "solve"),
        ('"class"', "label"),
    ):
        if field in system:
            return role
    return "guess"


def _written(thing: Thing, seed: int) -> str:
    draw = chance("reply", thing.number, seed)
    if thing.fate == "refuses" or (thing.fate == "refuses_once" and seed == 0):
        return "I'm sorry, but I can't identify what is shown in this picture."
    if thing.fate == "malformed" or (thing.fate == "malformed_once" and seed == 0):
        return draw.choice(BROKEN_REPLIES)
    aliases = [thing.answer.upper(), thing.answer.split()[-1]] if draw.random() < 0.5 else []
    found = json.dumps(
        {"question": thing.question, "answer": thing.spoken_answer, "aliases": aliases},
        ensure_ascii=draw.random() < 0.5,
    )
    return draw.choice((found, f"```json\n{found}\n```", f"<think>A tower?</think>Here you are: {found}"))


def _guessed(thing: Thing, seed: int) -> str:
    if thing.fate == "text_only" and chance("guess", thing.number, seed).random() < 0.85:
        return f"That must be {thing.answer}."
    return chance("wrong guess", thing.number, seed).choice(("I cannot see it.", "Gustave Eiffel", "Unknown", ""))


def _solved(thing: Thing) -> str:
    wrong = chance("unanswerable", thing.number).choice((None, "Somebody Else", "The page does not say."))
    found = {
        "answer": wrong if thing.fate == "unanswerable" else f"It was {thing.answer}.",
        "other_answers": ["the mason Hal Brook"] if thing.fate == "ambiguous" and thing.number % 2 else [],
        "unambiguous": thing.fate != "ambiguous" or bool(thing.number % 2),
        "language": "de" if thing.fate == "german" else "en",
    }
    return json.dumps(found)


def _block(text: str, name: str) -> str:
    """What stands between the marks of that name."""
    found = re.search(rf"----- {name} \w+ begins -----\n(.*?)\n----- {name} \w+ ends", text, re.DOTALL)
    return found[1] if found else ""


def _read(url: str, title: str, content: str, **more: str) -> Reply:
    data = {"title": title, "url": url, "content": content, "usage": {"tokens": len(content) // 4}, **more}
    return as_json(200, {"code": 200, "status": 20000, "data": data})


def _is_answer(reply: Reply) -> bool:
    """A CAPTCHA and a page to log in come as success, but nobody keeps them: another time there may be an answer."""
    return reply.status == 200 and not reply.cut and b'"warning"' not in reply.body and reply.kind != "text/html"


def _fault(place: float, reply: Reply) -> Reply:
    """What goes wrong, by a number from 0 to 1; none of it is an answer."""
    if place < 0.35:
        return as_json(429, {"error": "Too many requests, slow down."}, **{"Retry-After": "0"})
    if place < 0.65:
        return as_json(500, {"error": "Something went wrong."})
    if place < 0.8:
        return as_json(503, {"error": "Try again."})
    return Reply(200, reply.body, reply.kind, cut=True)
