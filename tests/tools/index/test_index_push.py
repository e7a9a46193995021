"""Handing an index over: against servers that keep what they are sent, and have bad days."""

import base64
import json

import httpx
import numpy as np
import pytest
from index_helpers import folder, rows, run, task, written

from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.index import push as pushing
from mmsr1.tools.index.push import push

URL = "http://localhost:9200"


class OpenSearch:
    """Enough of it for a push; `troubles` are answered first."""

    def __init__(self, *troubles: httpx.Response) -> None:
        self.troubles, self.kept, self.mappings, self.asked = list(troubles), {}, None, []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path, request.headers.get("authorization")))
        action = request.url.path.rpartition("/")[2]
        if action == "_bulk":
            return self.troubles.pop(0) if self.troubles else self.bulk(request.content)
        if action == "_count":
            return httpx.Response(200, json={"count": len(self.kept)})
        if request.method == "PUT":
            self.mappings = json.loads(request.content)
        there = self.mappings is not None or action == "_refresh"
        return httpx.Response(200 if there else 404, json={})

    def bulk(self, content: bytes) -> httpx.Response:
        lines = [json.loads(line) for line in content.splitlines()]
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            self.kept[action["index"]["_id"]] = document
        items = [{"index": {"_id": action["index"]["_id"], "status": 201}} for action in lines[::2]]
        return httpx.Response(200, json={"errors": False, "items": items})


class Qdrant:
    """Likewise."""

    def __init__(self) -> None:
        self.size, self.points = None, {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if request.url.path.endswith("/points/count"):
            return httpx.Response(200, json={"result": {"count": len(self.points)}})
        if request.url.path.endswith("/points"):
            self.points |= {point["id"]: point for point in body["points"]}
        elif request.method == "PUT":
            self.size = body["vectors"]["size"]
        elif self.size is None:
            return httpx.Response(404, json={"status": {"error": "Not found"}})
        config = {"params": {"vectors": {"size": self.size, "distance": "Dot"}}}
        return httpx.Response(200, json={"result": {"config": config}})


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pushing, "PIECE", 10)
    monkeypatch.setattr(pushing, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def text(tmp_path):
    run(task(tmp_path / "text", "text", written(tmp_path / "a.jsonl", rows(45))))
    return tmp_path / "text"


def sent(directory, server, to="opensearch", **more):
    return push(directory, to, URL, "mmsr1", transport=httpx.MockTransport(server), **more)


def test_all_passages_arrive_whole(text, monkeypatch):
    server, seen = OpenSearch(), []
    monkeypatch.setenv("PUSH_KEY", "user:password")
    assert sent(text, server, key_env="PUSH_KEY", watch=lambda *at: seen.append(at)) == (45, 45)
    wanted = {row["id"]: {name: row[name] for name in ("title", "text", "url")} for row in rows(45)}
    assert server.kept == wanted
    assert server.mappings["mappings"]["properties"]["text"]["type"] == "text"
    assert seen[0] == (0, 45) and seen[-1] == (45, 45)
    assert {auth for _, _, auth in server.asked} == {"Basic dXNlcjpwYXNzd29yZA=="}


def test_a_bad_day_is_sat_out_and_a_lost_push_goes_on(text):
    full = {"errors": True, "items": [{"index": {"status": 429}}] * 10}
    server = OpenSearch(httpx.Response(503), httpx.Response(200, json=full), httpx.Response(429))
    assert sent(text, server) == (45, 45)
    broken = OpenSearch()
    real, calls = broken.bulk, []

    def third_fails(content):
        calls.append(content)
        return httpx.Response(403) if len(calls) == 3 else real(content)

    broken.bulk = third_fails
    other = text.rename(text.parent / "other")
    for note in other.glob("push-*"):
        note.unlink()
    with pytest.raises(ValueError, match="the same command goes on") as told:
        sent(other, broken)
    assert "\n" not in str(told.value) and len(broken.kept) == 20
    broken.bulk = real
    assert sent(other, broken) == (25, 45)
    assert sent(other, OpenSearch()) == (45, 45)  # a server that has lost it all is given all


def test_what_a_server_does_not_take_is_told(text):
    items = [{"index": {"status": 201}}] * 9 + [{"index": {"status": 400}}]
    with pytest.raises(ValueError, match="does not take 1 passages, the first 'p"):
        sent(text, OpenSearch(httpx.Response(200, json={"errors": True, "items": items})))


@pytest.mark.parametrize("said", [{}, {"errors": False}, {"errors": False, "items": [{}] * 10}, {"items": []}, []])
def test_what_is_no_answer_to_a_push_is_no_success(text, monkeypatch, said):
    monkeypatch.setattr(pushing, "ATTEMPTS", 2)
    server = OpenSearch(*[httpx.Response(200, json=said)] * 2)
    with pytest.raises(ValueError, match="broken: ") as told:
        sent(text, server)
    assert "\n" not in str(told.value) and server.kept == {}
    assert sent(text, OpenSearch()) == (45, 45)


def test_a_server_of_another_kind_is_told_in_one_line(text, tmp_path):
    run(task(tmp_path / "image", "image", folder(tmp_path / "pictures", 2)))
    for directory, to in ((text, "opensearch"), (tmp_path / "image", "qdrant")):
        with pytest.raises(ValueError, match="is that the right server") as told:
            sent(directory, lambda request: httpx.Response(200, json={}), to)
        assert "\n" not in str(told.value)


def test_what_another_index_left_there_is_not_mixed_with_this_one(text, tmp_path):
    server = OpenSearch()
    sent(text, server)
    run(task(tmp_path / "small", "text", written(tmp_path / "b.jsonl", rows(3))))
    with pytest.raises(ValueError, match="45 rows are there already .* give another --name"):
        sent(tmp_path / "small", server)
    assert len(server.kept) == 45
    run(task(text, "text", written(tmp_path / "c.jsonl", rows(5, 45)), append=True))
    assert sent(text, server) == (50, 50)  # what has grown is sent again
    server.kept |= {"from somewhere else": {}}
    with pytest.raises(ValueError, match="all 50 rows were sent, 51 are there"):
        sent(text, server)


def test_requests_are_cut_by_their_bytes_too(text, monkeypatch):
    monkeypatch.setattr(pushing, "PIECE_BYTES", 600)
    server, sizes = OpenSearch(), []
    real = server.bulk
    server.bulk = lambda content: (sizes.append(len(content)), real(content))[1]
    assert sent(text, server) == (45, 45)
    assert max(sizes) <= 600 and len(sizes) > 9
    monkeypatch.setattr(pushing, "PIECE_BYTES", 10)  # a row that is larger goes alone
    for note in text.glob("push-*"):
        note.unlink()
    other = OpenSearch()
    assert sent(text, other) == (45, 45) and [path for _, path, _ in other.asked].count("/mmsr1/_bulk") == 45


def test_an_index_of_which_not_all_can_be_read_is_told(text, monkeypatch):
    real = pushing.passages
    monkeypatch.setattr(pushing, "passages", lambda *given: list(real(*given))[:30])
    with pytest.raises(ValueError, match="30 of its 45 rows can be read"):
        sent(text, OpenSearch())


def test_pictures_arrive_with_vector_and_close_look(tmp_path):
    run(task(tmp_path / "index", "image", folder(tmp_path / "pictures", 23)))
    server = Qdrant()
    assert sent(tmp_path / "index", server, "qdrant") == (23, 23)
    tool = LocalImageSearch(tmp_path / "index")
    assert server.size == 360 and sorted(server.points) == list(range(23))
    point = server.points[4]
    assert point["payload"]["id"] == "004.png" == tool.row(4).id
    assert np.linalg.norm(point["vector"]) == pytest.approx(1, abs=1e-4)
    assert len(base64.b64decode(point["payload"]["fine"])) == fine.BYTES
    server.size = 5
    with pytest.raises(ValueError, match="vectors of 5 numbers, not 360"):
        sent(tmp_path / "index", server, "qdrant")


def test_what_cannot_live_there_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="has no vectors; build it with --embed"):
        sent(text, Qdrant(), "qdrant")
    run(task(tmp_path / "image", "image", folder(tmp_path / "pictures", 2)))
    with pytest.raises(ValueError, match="pictures go to qdrant"):
        sent(tmp_path / "image", OpenSearch())
    for url in ("localhost:9200", "http://user:secret@host"):
        with pytest.raises(ValueError, match="--url") as told:
            push(text, "opensearch", url, "mmsr1")
        assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="name"):
        push(text, "opensearch", URL, "a/b")
