"""Handing an index over to a search server, in pieces, each of which may be sent again.

How far it came is noted beside the index: the same command goes on there. What is sent twice is there once, because
each row has the same name every time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import numpy as np
import tantivy
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from mmsr1.tools.base import AGAIN, CallFailed
from mmsr1.tools.http import Reply, raise_for
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.index.growing import array
from mmsr1.tools.index.vectors import FILE as VECTORS
from mmsr1.tools.index_files import Manifest, read_manifest, write_json
from mmsr1.tools.providers.fields import web_url, without_password
from mmsr1.tools.providers.opensearch import authorization, named
from mmsr1.tools.secrets import Secret

PIECE, PIECE_BYTES = 500, 8 * 2**20  # the most rows and bytes of a request, a single row aside
ATTEMPTS, LONGEST_WAIT_S = 6, 30.0
T = TypeVar("T", int, list, dict)
_ANOTHER = "give another --name, or delete what is there and push again"


def push(
    directory: Path,
    to: str,
    url: str,
    name: str,
    key_env: str | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
    transport: httpx.BaseTransport | None = None,
) -> tuple[int, int]:
    """Rows sent by this call, and rows there afterwards. `watch(done, total)` is called after every piece.

    Raises FileNotFoundError or ValueError, in one line, for an index that is not there or cannot live there, an address
    that is none, a server that refuses, or that holds something else under this name.
    """
    manifest = read_manifest(directory)
    named("name", name)
    without_password("--url", url)
    if not web_url(url):
        raise ValueError(f"--url {url}: give http(s)://host:port")
    secret = Secret(key_env) if key_env else None
    with httpx.Client(timeout=60.0, transport=transport, base_url=url.rstrip("/")) as client:
        try:
            target = PUSHES[to](_Client(client, secret), name, directory, manifest)
            sent = _send(target, directory, manifest, hashlib.sha256(f"{to} {url} {name}".encode()).hexdigest(), watch)
            there = target.count()
        except CallFailed as error:
            raise ValueError(f"{to} at {url}: {error}; what was sent is there, the same command goes on") from None
    if there != manifest.count:
        raise ValueError(f"{to} at {url}: all {manifest.count} rows were sent, {there} are there: {_ANOTHER}")
    return sent, there


def _send(target: _Target, directory: Path, manifest: Manifest, place: str, watch: Callable[[int, int], None]) -> int:
    note = directory / f"push-{place[:12]}.json"
    there, noted = target.there(), _noted(note)
    if there and noted is None and (others := target.count()):
        raise ValueError(f"{others} rows are there already that were not pushed from {directory}: {_ANOTHER}")
    done = noted[1] if there and noted is not None and noted[0] == manifest.content else 0
    first = done
    write_json(note, {"content": manifest.content, "done": done})  # from now on what is there is this index
    target.create()
    rows = _pieces(target, done)
    watch(done, manifest.count)
    for piece in rows:
        for attempt in Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.cause in AGAIN),
            wait=wait_random_exponential(0.2, LONGEST_WAIT_S),
            stop=stop_after_attempt(ATTEMPTS),
            reraise=True,
        ):
            with attempt:
                target.put(piece)
        done += len(piece)
        write_json(note, {"content": manifest.content, "done": done})
        watch(done, manifest.count)
    if done != manifest.count:
        raise ValueError(f"{directory}: {done} of its {manifest.count} rows can be read: build it again")
    return done - first


def _noted(note: Path) -> tuple[str, int] | None:
    """Content and number of the rows that were sent, None if nothing was from here."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return str(found["content"]), int(found["done"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _pieces(target: _Target, done: int) -> Iterator[list[tuple[str, bytes]]]:
    """What is left, as many rows at a time as a request may have."""
    piece: list[tuple[str, bytes]] = []
    size = 0
    for row in target.rows(done):
        if piece and (len(piece) >= PIECE or size + len(row[1]) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += len(row[1])
    if piece:
        yield piece


class _Client:
    """Requests to one server; failures are those of a provider."""

    def __init__(self, client: httpx.Client, secret: Secret | None) -> None:
        self._client, self.secret = client, secret

    def ask(self, method: str, path: str, headers: Mapping[str, str], allowed: Sequence[int] = (), **body: Any) -> Any:
        """The JSON of the answer, or None for one of the `allowed` statuses. Raises CallFailed."""
        try:
            response = self._client.request(method, path, headers=dict(headers), **body)
        except httpx.HTTPError as error:
            raise CallFailed("transient", f"no answer ({type(error).__name__})") from None
        if response.status_code in allowed:
            return None
        reply = Reply(response.status_code, dict(response.headers), response.content)
        raise_for(reply)
        return reply.json()


def _field(answer: Any, kind: type[T], *names: str) -> T:
    """What stands in an answer under these names, one in the other. Raises CallFailed("broken") if it does not."""
    for name in names:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(answer, kind) or isinstance(answer, bool):
        raise CallFailed("broken", f"the answer has no {'.'.join(names)}: is that the right server?")
    return answer


class _Target(Protocol):
    def there(self) -> bool:
        """Whether there is something to go on with."""
        ...

    def create(self) -> None: ...

    def rows(self, done: int) -> Iterator[tuple[str, bytes]]:
        """Id and form of those after the first `done`, always in the same order."""
        ...

    def put(self, piece: Sequence[tuple[str, bytes]]) -> None: ...

    def count(self) -> int: ...


class _OpenSearch:
    """Text for BM25."""

    def __init__(self, client: _Client, name: str, directory: Path, manifest: Manifest) -> None:
        if manifest.kind != "text":
            raise ValueError(f"{directory}: opensearch takes passages, pictures go to qdrant")
        self._client, self._name = client, name
        self._headers = {} if client.secret is None else authorization(client.secret)
        self._directory, self._manifest = directory, manifest

    def there(self) -> bool:
        return self._client.ask("GET", f"/{self._name}", self._headers, (404,)) is not None

    def create(self) -> None:
        if self.there():
            return
        english = {"type": "text", "analyzer": "english"}
        kept = {"type": "keyword", "index": False, "doc_values": False}
        mappings = {"properties": {"title": english, "text": english, "url": kept}}
        self._client.ask("PUT", f"/{self._name}", self._headers, json={"mappings": mappings})

    def rows(self, done: int) -> Iterator[tuple[str, bytes]]:
        for row in islice(passages(self._directory, self._manifest), done, None):
            action = json.dumps({"index": {"_id": row["id"]}})
            document = json.dumps({field: row[field] for field in ("title", "text", "url")})
            yield row["id"], f"{action}\n{document}\n".encode("ascii")

    def put(self, piece: Sequence[tuple[str, bytes]]) -> None:
        headers = {**self._headers, "Content-Type": "application/x-ndjson"}
        content = b"".join(row for _, row in piece)
        items = _field(self._client.ask("POST", f"/{self._name}/_bulk", headers, content=content), list, "items")
        statuses = [_field(item, int, "index", "status") for item in items]
        if len(statuses) != len(piece):
            raise CallFailed("broken", f"{len(piece)} passages were sent, {len(statuses)} answered for")
        if 429 in statuses:
            raise CallFailed("throttled", "takes no more for now")
        if refused := [name for (name, _), status in zip(piece, statuses, strict=True) if not 200 <= status < 300]:
            raise CallFailed("refused", f"does not take {len(refused)} passages, the first {refused[0][:80]!r}")

    def count(self) -> int:
        self._client.ask("POST", f"/{self._name}/_refresh", self._headers)
        return _field(self._client.ask("GET", f"/{self._name}/_count", self._headers), int, "count")


class _Qdrant:
    """Vectors: of pictures, or of passages of an index with a model."""

    def __init__(self, client: _Client, name: str, directory: Path, manifest: Manifest) -> None:
        if VECTORS not in manifest.sizes:
            raise ValueError(f"{directory}: has no vectors; build it with --embed, or push it to opensearch")
        self._client, self._path = client, f"/collections/{name}"
        self._headers = {} if client.secret is None else {"api-key": client.secret.value}
        self._directory, self._manifest = directory, manifest
        self._dimensions = manifest.sizes[VECTORS] // (4 * manifest.count)
        self._vectors = array(directory / VECTORS, (manifest.count, self._dimensions), "float32")

    def there(self) -> bool:
        return self._client.ask("GET", self._path, self._headers, (404,)) is not None

    def create(self) -> None:
        """Raises ValueError if what is there holds vectors of another length."""
        found = self._client.ask("GET", self._path, self._headers, (404,))
        if found is None:
            vectors = {"size": self._dimensions, "distance": "Dot"}
            self._client.ask("PUT", self._path, self._headers, json={"vectors": vectors})
            return
        size = _field(found, int, "result", "config", "params", "vectors", "size")
        if size != self._dimensions:
            raise ValueError(
                f"qdrant{self._path}: has vectors of {size} numbers, not {self._dimensions}: --name another"
            )

    def rows(self, done: int) -> Iterator[tuple[str, bytes]]:
        if self._manifest.kind == "text":
            for row in islice(passages(self._directory, self._manifest), done, None):
                yield self._point(row["row"], {field: row[field] for field in ("id", "title", "text", "url")})
            return
        index = LocalImageSearch(self._directory)
        close = None
        if self._manifest.settings.get("descriptor") == "fine":
            close = array(self._directory / fine.FILE, (self._manifest.count, fine.BYTES), "uint8")
        for number in range(done, self._manifest.count):
            row = index.row(number)
            payload = {"id": row.id, "title": row.title, "url": row.url}
            if close is not None:
                payload["fine"] = base64.b64encode(np.asarray(close[number]).tobytes()).decode("ascii")
            yield self._point(number, payload)

    def _point(self, number: int, payload: Mapping[str, str]) -> tuple[str, bytes]:
        point = {"id": number, "vector": self._vectors[number].tolist(), "payload": payload}
        return payload["id"], json.dumps(point).encode("ascii")

    def put(self, piece: Sequence[tuple[str, bytes]]) -> None:
        content = b'{"points":[' + b",".join(row for _, row in piece) + b"]}"
        headers = {**self._headers, "Content-Type": "application/json"}
        answer = self._client.ask("PUT", f"{self._path}/points", headers, params={"wait": "true"}, content=content)
        _field(answer, dict, "result")

    def count(self) -> int:
        asked = self._client.ask("POST", f"{self._path}/points/count", self._headers, json={"exact": True})
        return _field(asked, int, "result", "count")


PUSHES: Mapping[str, Callable[[_Client, str, Path, Manifest], _Target]] = {"opensearch": _OpenSearch, "qdrant": _Qdrant}


def passages(directory: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """All passages of a text index as they lie, which is the same order every time."""
    index = tantivy.Index.open(str(directory / manifest.parts.get("tantivy", "tantivy")))
    index.config_reader("manual")
    searcher = index.searcher()
    for segment in range(searcher.num_segments):
        number = 0
        while (stored := _stored(searcher, segment, number)) is not None:
            yield stored
            number += 1


def _stored(searcher: tantivy.Searcher, segment: int, number: int) -> dict[str, Any] | None:
    """What is kept of a passage, None beyond the last: tantivy's Python face does not say how many there are."""
    try:
        found = searcher.doc(tantivy.DocAddress(segment, number))
    except ValueError:
        return None
    return {field: values[0] for field, values in found.to_dict().items()}
