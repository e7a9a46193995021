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
from typing import Any, Protocol

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

PIECE = 500  # rows of a request
ATTEMPTS, LONGEST_WAIT_S = 6, 30.0
Row = Mapping[str, Any]


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
    that is none, a server that refuses; OSError if it cannot be reached.
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
            return sent, target.count()
        except CallFailed as error:
            raise ValueError(f"{to} at {url}: {error}; what was sent is there, the same command goes on") from None


def _send(target: _Target, directory: Path, manifest: Manifest, place: str, watch: Callable[[int, int], None]) -> int:
    note = directory / f"push-{place[:12]}.json"
    done = 0
    if note.is_file():
        noted = json.loads(note.read_text(encoding="utf-8"))
        done = noted["done"] if noted["content"] == manifest.content and target.there() else 0
    first = done
    target.create()
    rows = target.rows(done)
    watch(done, manifest.count)
    while piece := list(islice(rows, PIECE)):
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
    return done - first


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


class _Target(Protocol):
    def there(self) -> bool:
        """Whether there is something to go on with."""
        ...

    def create(self) -> None: ...

    def rows(self, done: int) -> Iterator[Row]:
        """Those after the first `done`, always in the same order."""
        ...

    def put(self, piece: Sequence[Row]) -> None: ...

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

    def rows(self, done: int) -> Iterator[Row]:
        return islice(passages(self._directory, self._manifest), done, None)

    def put(self, piece: Sequence[Row]) -> None:
        lines = []
        for row in piece:
            lines.append(json.dumps({"index": {"_id": row["id"]}}))
            lines.append(json.dumps({field: row[field] for field in ("title", "text", "url")}))
        headers = {**self._headers, "Content-Type": "application/x-ndjson"}
        content = ("\n".join(lines) + "\n").encode("ascii")
        answer = self._client.ask("POST", f"/{self._name}/_bulk", headers, content=content)
        statuses = [item["index"]["status"] for item in answer["items"]] if answer.get("errors") else []
        if 429 in statuses:
            raise CallFailed("throttled", "takes no more for now")
        if refused := [row["id"] for row, status in zip(piece, statuses, strict=False) if status >= 400]:
            raise CallFailed("refused", f"does not take {len(refused)} passages, the first {refused[0][:80]!r}")

    def count(self) -> int:
        self._client.ask("POST", f"/{self._name}/_refresh", self._headers)
        return self._client.ask("GET", f"/{self._name}/_count", self._headers)["count"]


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
        size = found["result"]["config"]["params"]["vectors"].get("size")
        if size != self._dimensions:
            raise ValueError(
                f"qdrant{self._path}: has vectors of {size} numbers, not {self._dimensions}: --name another"
            )

    def rows(self, done: int) -> Iterator[Row]:
        if self._manifest.kind == "text":
            for row in islice(passages(self._directory, self._manifest), done, None):
                number = row["row"]
                payload = {field: row[field] for field in ("id", "title", "text", "url")}
                yield {"id": number, "vector": self._vectors[number].tolist(), "payload": payload}
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
            yield {"id": number, "vector": self._vectors[number].tolist(), "payload": payload}

    def put(self, piece: Sequence[Row]) -> None:
        self._client.ask("PUT", f"{self._path}/points", self._headers, params={"wait": "true"}, json={"points": piece})

    def count(self) -> int:
        asked = self._client.ask("POST", f"{self._path}/points/count", self._headers, json={"exact": True})
        return asked["result"]["count"]


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
