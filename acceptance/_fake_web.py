"""A server on this machine that plays the paper's search stack: SerpAPI (Lens, Google, upload, account), Jina Reader, a
summariser behind an OpenAI-compatible endpoint, and the hosts of thumbnails.

    with FakeWeb(key="...") as web:       web.url, web.counts
    python -m acceptance._fake_web --port 8900 --key KEY

Answers have the shapes of the documented APIs and take about as long; some fail as the real ones do: 429 now and then,
pages that are down once or for ever, CAPTCHAs that come as success, thumbnails that are cut short. What a page does
depends on its address alone. What is served and would be billed is counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from acceptance import _fake_pages as pages

# Median seconds of an answer and the sigma of their logarithm.
LATENCY = {
    "upload": (0.4, 0.3),
    "lens": (1.4, 0.4),
    "google": (0.7, 0.4),
    "account": (0.1, 0.1),
    "reader": (1.2, 0.7),
    "summary": (0.9, 0.4),
    "thumbnail": (0.06, 0.5),
}
LONGEST_PROMPT = 60_000  # characters: more than the summariser's context holds


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # the connection is lost half-way


def as_json(status: int, content: Any, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), headers=headers)


class FakeWeb:
    """Serves while it is entered. `scale` stretches all latencies; `searches` are left on the account (None: many);
    every `throttle`-th request to SerpAPI or the reader is told to come back in a second. `steady` leaves out all that
    goes wrong by chance."""

    def __init__(
        self,
        key: str,
        scale: float = 1.0,
        searches: int | None = None,
        throttle: int = 40,
        steady: bool = False,
        port: int = 0,
    ) -> None:
        self.key, self.scale, self.searches, self.throttle, self.steady = key, scale, searches, throttle, steady
        self.counts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._noise = random.Random(0)
        web = self

        class Handler(_Handler):
            def answer(self, path: str, query: dict[str, str], body: bytes) -> Reply:
                return web._answer(self, path, query, body)

        self._server = _Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FakeWeb:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes) -> Reply:
        if path == "/image":
            return self._upload(body)
        if path == "/search.json":
            return self._search(query)
        if path == "/account.json":
            return self._account(query)
        if path.endswith("/chat/completions"):
            return self._summarise(request, body)
        if path.startswith("/thumbs/"):
            return self._thumbnail(path)
        target = request.path.partition("/http")
        if target[1]:
            return self._read(request, "http" + target[2])
        return as_json(404, {"error": "nothing here"})

    def _count(self, name: str) -> int:
        """How often this was asked for, this time included."""
        with self._lock:
            self.counts[name] += 1
            return self.counts[name]

    def _take_time(self, kind: str) -> None:
        median, sigma = LATENCY[kind]
        with self._lock:
            drawn = self._noise.gauss(0.0, sigma)
        time.sleep(self.scale * median * math.exp(drawn))

    def _throttled(self, name: str) -> bool:
        return not self.steady and self._count(f"{name}_requests") % self.throttle == 0

    def _refusal(self, given: str | None) -> Reply | None:
        """What a wrong key is told: as some services do, with the key in it."""
        if given == self.key:
            return None
        return as_json(401, {"error": f"Invalid API key: {given}. Your key is at https://serpapi.com/manage"})

    def _upload(self, body: bytes) -> Reply:
        self._take_time("upload")
        if self.key.encode() not in body:
            return as_json(401, {"error": "Invalid API key. Your API key should be here: https://serpapi.com/manage"})
        found = re.search(rb'name="image".*?\r\n\r\n', body, re.DOTALL)
        picture = body[found.end() :].split(b"\r\n--")[0] if found else b""
        if len(picture) > 500_000 or picture[:2] != b"\xff\xd8" and picture[:4] not in (b"\x89PNG", b"RIFF"):
            return as_json(400, {"error": "The image must be a JPG, PNG or WebP of at most 500 KB."})
        self._count("uploads")
        return as_json(200, {"image_id": hashlib.sha256(picture).hexdigest()[:24]})

    def _search(self, query: dict[str, str]) -> Reply:
        lens = query.get("engine") == "google_lens"
        self._take_time("lens" if lens else "google")
        if refusal := self._refusal(query.get("api_key")):
            return refusal
        if self._throttled("serpapi"):
            return as_json(429, {"error": "You are exceeding your hourly throughput limit."}, **{"Retry-After": "1"})
        with self._lock:
            if self.searches is not None and self.searches <= 0:
                return as_json(429, {"error": "Your account has run out of searches."})
            self.searches = None if self.searches is None else self.searches - 1
        told = {"search_metadata": {"id": "0", "status": "Success"}, "search_parameters": {"engine": query["engine"]}}
        if lens:
            self._count("lens")
            name = query.get("image_id") or query.get("url") or ""
            return as_json(200, {**told, "visual_matches": pages.visual_matches(name, f"{self.url}/thumbs")})
        self._count("google")
        if pages.chance("empty", query.get("q")).random() < 0.03 and not self.steady:
            return as_json(200, {**told, "error": "Google hasn't returned any results for this query."})
        return as_json(200, {**told, "organic_results": pages.text_matches(query.get("q", ""))})

    def _account(self, query: dict[str, str]) -> Reply:
        self._take_time("account")
        if refusal := self._refusal(query.get("api_key")):
            return refusal
        left = 5000 if self.searches is None else self.searches
        spent = {"this_hour_searches": 17, "account_rate_limit_per_hour": 1000}
        return as_json(
            200, {"plan_name": "Developer", "total_searches_left": left, "plan_searches_left": left, **spent}
        )

    def _read(self, request: BaseHTTPRequestHandler, url: str) -> Reply:
        """Jina Reader. Of all addresses some are down once, some block readers, some show a CAPTCHA, some are gone."""
        self._take_time("reader")
        if refusal := self._refusal((request.headers.get("Authorization") or "").removeprefix("Bearer ")):
            return refusal
        if self._throttled("reader"):
            throttled = {"code": 429, "status": 42903, "message": "Rate limit exceeded"}
            return as_json(429, throttled, **{"Retry-After": "1"})
        url = unquote(url)
        article, fate = pages.by_url().get(url), pages.chance("fate", url).random()
        if article is None:
            return as_json(422, {"code": 422, "status": 42206, "message": "Failed to goto the page"})
        with self._lock:
            self._seen[url] += 1
            again = self._seen[url] > 1
        if not self.steady and fate < 0.10 and not again:
            return as_json(503, {"code": 503, "status": 50300, "message": "The upstream did not answer in time"})
        if not self.steady and 0.10 <= fate < 0.14:
            return as_json(451, {"code": 451, "status": 45102, "message": "Access to this domain is blocked"})
        data: dict[str, Any] = {"title": article.title, "url": url, "description": "", "content": article.markdown}
        data["usage"] = {"tokens": len(article.markdown) // 4}
        if not self.steady and 0.14 <= fate < 0.20:
            data |= {"content": "Just a moment...", "warning": "Target URL returned error 403: Forbidden"}
        elif not self.steady and 0.20 <= fate < 0.24:
            data |= {"content": "Verify you are human", "warning": "This page maybe requiring CAPTCHA"}
        self._count("pages")  # charged like any other, whatever the page says to its readers
        return as_json(200, {"code": 200, "status": 20000, "data": data})

    def _summarise(self, request: BaseHTTPRequestHandler, body: bytes) -> Reply:
        self._take_time("summary")
        if refusal := self._refusal(
            (request.headers.get("Authorization") or f"Bearer {self.key}").removeprefix("Bearer ")
        ):
            return refusal
        asked = json.loads(body)
        said = [message["content"] for message in asked["messages"]]
        prompt = "\n".join(said)
        if len(prompt) > LONGEST_PROMPT:
            return as_json(400, {"object": "error", "message": "This model's maximum context length is exceeded."})
        self._count("summaries")
        message = {"role": "assistant", "content": pages.summarised(said[-1])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 80, "total_tokens": len(prompt) // 4 + 80}
        told = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": asked["model"]}
        return as_json(200, {**told, "choices": [choice], "usage": usage})

    def _thumbnail(self, path: str) -> Reply:
        self._take_time("thumbnail")
        self._count("thumbnails")
        picture, fate = pages.thumbnail(path), pages.chance("thumbnail fate", path).random()
        if not self.steady and fate < 0.04:
            return Reply(404, b"not found", "text/plain")
        if not self.steady and fate < 0.07:
            return Reply(200, picture[: len(picture) // 2], "image/jpeg")  # whole to HTTP, but not to a decoder
        return Reply(200, picture, "image/jpeg", cut=not self.steady and fate < 0.09)


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def answer(self, path: str, query: dict[str, str], body: bytes) -> Reply:
        raise NotImplementedError

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        reply = self.answer(parts.path, {key: values[-1] for key, values in parse_qs(parts.query).items()}, body)
        self.send_response(reply.status)
        for name, value in {
            "Content-Type": reply.kind,
            "Content-Length": str(len(reply.body)),
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
        self.close_connection |= reply.cut

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: addresses hold keys."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Play SerpAPI, Jina Reader, a summariser and thumbnail hosts.")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--key", default="key", help="the key that all services ask for")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches all latencies")
    arguments = parser.parse_args()
    with FakeWeb(arguments.key, arguments.scale, port=arguments.port) as web:
        print(web.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
