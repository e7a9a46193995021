"""A local HTTP server that says what it is told to, well-formed or not, and remembers what it was asked."""

import gzip
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Say:
    """An answer. `drip_s`: one byte at a time with this pause; `missing`: bytes that are announced and never sent."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0
    missing: int = 0

    @property
    def data(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()

    @property
    def kind(self) -> str:
        return "text/html; charset=utf-8" if isinstance(self.body, str) else "application/json"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeApi:
    """`says` maps paths to answers, or to lists of answers whose last one is repeated; "*" stands for all others."""

    def __init__(self) -> None:
        self.says: dict[str, Say | list[Say]] = {}
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def reset(self, **says: Say | list[Say]) -> None:
        """Forget everything; answer all paths with `everything`."""
        self.asked.clear()
        self.says = {"*": says["everything"]} if says else {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def _next(self, path: str) -> Say:
        said = self.says.get(path) or self.says.get("*") or Say("no such path", 404)
        if isinstance(said, list):
            return said.pop(0) if len(said) > 1 else said[0]
        return said

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                params = {name: values[0] for name, values in parse_qs(parts.query).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.asked.append(Asked(self.command, parts.path, params, headers, body))
                try:
                    self._say(api._next(parts.path))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_POST = do_GET

            def _say(self, said: Say) -> None:
                self.send_response(said.status)
                headers = {"Content-Type": said.kind, "Content-Length": str(len(said.data) + said.missing)}
                for name, value in {**headers, **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not said.drip_s:
                    self.wfile.write(said.data)
                for byte in said.data if said.drip_s else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(said.drip_s)
                if said.missing:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def gzip_bomb(megabytes: int) -> Say:
    """Blanks before an empty object: JSON, if anybody had the memory to read it."""
    packed = gzip.compress(b" " * (megabytes * 2**20) + b"{}", compresslevel=1)
    return Say(packed, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})
