"""What the gateway is put between: a web that fails now and then, and clients that know what the right answer is.

`Tally` counts every answer; `search_r1` and `verl` send what these two projects send, and read what they read.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import requests
from PIL import Image

from acceptance import _fake_pages as pages
from acceptance._fake_web import FakeWeb, Reply, as_json
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.providers.pictures import as_jpeg
from mmsr1.tools.providers.serpapi import UPLOAD_BYTES
from mmsr1.types import Picture

PASSING = (500, 502, 503, 504)
CAUSES = ("transient", "throttled", "exhausted", "refused", "blocked", "broken", "invalid")


class FaultyWeb(FakeWeb):
    """The web of `FakeWeb` at its best, but for a `share` of all answers that are injected faults."""

    def __init__(self, key: str, share: float, scale: float) -> None:
        super().__init__(key, scale, steady=True)
        self.share, self.asked, self.faults = share, 0, 0
        self._draw, self._drawing = random.Random(0), threading.Lock()

    def __enter__(self) -> FaultyWeb:
        super().__enter__()
        return self

    def _answer(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes) -> Reply:
        with self._drawing:
            self.asked += 1
            kind = self._draw.randrange(5) if self._draw.random() < self.share else None
            self.faults += kind is not None
        if kind is None:
            return super()._answer(request, path, query, body)
        if kind == 0:
            return as_json(429, {"error": "slow down"}, **{"Retry-After": "1"})
        if kind in (1, 2):
            return as_json((500, 503)[kind - 1], {"error": "try again"})
        return Reply(200, b'{"search_metadata": {"status": "Succ', cut=kind == 4)


@dataclass
class Tally:
    """`answers` by status and `causes` of those that are failures; `wrong` answers; `lost` calls, which got none."""

    answers: Counter[int] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def failed(self, status: int, body: Any) -> None:
        """Count a failure, which must say in our words why."""
        error = body.get("error") if isinstance(body, dict) else None
        cause, detail = (error.get("cause"), error.get("detail")) if isinstance(error, dict) else (None, None)
        self.causes[f"{status} {cause}"] += 1
        if cause not in CAUSES or not detail:
            self.wrong.append(f"status {status} without a cause")

    @property
    def own_5xx(self) -> int:
        """Answers of the 5xx kind that do not tell of an upstream failure."""
        told = sum(n for cause, n in self.causes.items() if cause.startswith("503 ") and cause[4:] in CAUSES)
        return sum(n for status, n in self.answers.items() if status >= 500) - told


@lru_cache(maxsize=100_000)
def text_urls(query: str) -> tuple[str, ...]:
    """The addresses that a search for a text may bring, in order."""
    return tuple(hit["link"] for hit in pages.text_matches(query) if hit["link"] != pages.MIRROR)


@lru_cache
def picture(number: int) -> Picture:
    return encode_png(Image.new("RGB", (90, 60), (number * 7 % 256, number * 31 % 256, number * 53 % 256)))


@lru_cache
def picture_urls(number: int) -> tuple[str, ...]:
    name = hashlib.sha256(as_jpeg(picture(number), UPLOAD_BYTES)).hexdigest()[:24]
    return tuple(hit["link"] for hit in pages.visual_matches(name, "") if hit["link"] != pages.MIRROR)


def in_order(found: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether something was found, and only what was expected, in its order."""
    left = iter(expected)
    return bool(found) and all(url in left for url in found)


def is_right(hits: Sequence[dict[str, Any]], expected: Sequence[str]) -> bool:
    return len(hits) <= 5 and in_order([hit["document"]["url"] for hit in hits], expected)


class Client:
    """One of many: asks for texts, batches and pictures, most of which others have asked for before."""

    def __init__(self, url: str, tally: Tally, number: int, known: int) -> None:
        self._url, self._tally, self._number, self._known = url, tally, number, known
        self._http = many(1)  # one pool for all would be slower than what it asks
        self._draw, self._asked = random.Random(number), 0

    async def ask_until(self, end: float) -> None:
        async with self._http:
            while time.monotonic() < end:
                await self.ask()

    async def ask(self) -> None:
        """One request, repeated when it is asked to come back later."""
        kind, self._asked = self._draw.random(), self._asked + 1
        if kind < 0.1:
            number = self._draw.randrange(40)
            body = {"images": [base64.b64encode(picture(number).data).decode()], "topk": 5}
            await self._post("/retrieve_image", body, [picture_urls(number)])
            return
        queries = [f"what is known about number {int(self._known * self._draw.random() ** 2)}" for _ in range(3)]
        if kind < 0.15:
            queries[0] = f"asked by client {self._number} alone, time {self._asked}"
        queries = queries if kind > 0.95 else queries[:1]
        body = {"queries": queries, "topk": 5, "return_scores": True}
        await self._post("/retrieve", body, [text_urls(query) for query in queries])

    async def _post(self, path: str, body: Any, expected: Sequence[Sequence[str]]) -> None:
        while True:
            try:
                reply = await self._http.post(self._url + path, json=body)
            except httpx.HTTPError as error:
                self._tally.lost[type(error).__name__] += 1
                raise
            self._tally.answers[reply.status_code] += 1
            if reply.status_code != 429:
                break
            await asyncio.sleep(float(reply.headers["retry-after"]))
        if reply.status_code != 200:
            self._tally.failed(reply.status_code, reply.json())
            return
        result = reply.json()["result"]
        if len(result) != len(expected) or not all(map(is_right, result, expected)):
            self._tally.wrong.append(str(body.get("queries", "a picture"))[:80])


def many(number: int) -> httpx.AsyncClient:
    """Connections for so many clients at a time."""
    limits = httpx.Limits(max_connections=number, max_keepalive_connections=number)
    return httpx.AsyncClient(limits=limits, timeout=120.0, trust_env=False, verify=False)


def search_r1(url: str, queries: list[str]) -> list[str]:
    """What Search-R1 makes of a batch of searches: one text for each. It sends the list as it is, also an empty one,
    tries once and looks at no status."""
    sent = {"queries": queries, "topk": 3, "return_scores": True}
    found = requests.post(f"{url}/retrieve", json=sent).json()["result"]
    texts = []
    for hits in found:
        parts = [hit["document"]["contents"].partition("\n") for hit in hits]
        texts.append("".join(f"Doc {n}(Title: {title}) {text}\n" for n, (title, _, text) in enumerate(parts, 1)))
    return texts


def verl(url: str, queries: list[str]) -> list[list[str]]:
    """What veRL's search tool makes of it: the passages for each query. It tries ten times after a 5xx or a lost
    connection, a second longer each time, and gives up at every other status."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    sent = {"queries": queries, "topk": 3, "return_scores": True}
    for pause in range(1, 11):
        try:
            reply = requests.post(f"{url}/retrieve", headers=headers, json=sent, timeout=30)
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
            time.sleep(pause)
            continue
        if reply.status_code in PASSING:
            time.sleep(pause)
            continue
        reply.raise_for_status()
        return [[hit["document"]["contents"] for hit in hits] for hits in reply.json().get("result", [])]
    raise RuntimeError("ten attempts have failed")
