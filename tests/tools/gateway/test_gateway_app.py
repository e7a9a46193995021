"""The routes of the gateway: what a client of Search-R1's kind reads, what a failure looks like, what is counted."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import pytest
from gateway_helpers import FOUND, PHOTO, THUMBNAIL, Stand, error

from mmsr1.tools.base import EndOfRun
from mmsr1.types import ToolResult


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_batch_is_answered_in_order_and_cut_to_topk() -> None:
    stand = Stand(lambda query: ToolResult("ok", FOUND.items[:2]) if query == "two" else FOUND)
    reply = stand.post("/retrieve", {"queries": ["three", "two"], "topk": 9, "return_scores": True})
    assert reply.status_code == 200
    first, second = reply.json()["result"]
    assert (len(first), len(second)) == (3, 2)
    assert [hit["score"] for hit in first] == sorted((hit["score"] for hit in first), reverse=True)
    title, _, text = first[0]["document"]["contents"].partition("\n")
    assert title == '"The "tower""' and text.startswith("It was built\nin 1889.")
    assert stand.post("/retrieve", {"queries": ["a"], "topk": 1}).json()["result"][0][0]["title"] == 'The "tower"'
    assert stand.text.asked[:2] == ["three", "two"]


def test_without_scores_documents_come_bare_as_from_search_r1() -> None:
    documents = Stand().post("/retrieve", {"queries": ["a"], "topk": 2}).json()["result"][0]
    assert len(documents) == 2 and all("contents" in document and "score" not in document for document in documents)


def test_the_empty_list_of_search_r1_and_the_single_query_of_skyrl() -> None:
    stand = Stand()
    assert stand.post("/retrieve", {"queries": [], "topk": 3, "return_scores": True}).json()["result"] == []
    assert len(stand.post("/retrieve", {"query": "a", "return_scores": True}).json()["result"]) == 1
    assert stand.text.asked == ["a"]


def test_every_query_says_what_it_costs_and_what_was_paid() -> None:
    assert (
        Stand().post("/retrieve", {"queries": ["a", "b"]}).json()["costs"]
        == [{"cost_usd": 0.015, "paid_usd": 0.005, "cached": False}] * 2
    )


def test_pictures_come_with_their_thumbnails() -> None:
    stand = Stand()
    reply = stand.post("/retrieve_image", {"images": [b64(PHOTO.data)], "topk": 2}).json()
    hits = reply["result"][0]
    assert base64.b64decode(hits[0]["thumbnail"]) == THUMBNAIL.data and hits[1]["thumbnail"] is None
    assert hits[0]["document"]["title"] == 'The "tower"' and len(hits) == 2
    assert stand.image.asked == [PHOTO] and reply["costs"][0]["paid_usd"] == 0.005


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ToolResult("infrastructure_error", detail="serpapi_search: exhausted: no searches left"), (503, "exhausted")),
        (ToolResult("infrastructure_error", detail="refused: HTTP 401"), (503, "refused")),
        (ToolResult("infrastructure_error", detail="bug: KeyError at x.py:3"), (503, "transient")),
        (ToolResult("infrastructure_error", detail="no cause: at all"), (503, "transient")),
        (ToolResult("over_budget", detail="tools.budget.usd_per_run=1 is reached"), (402, "exhausted")),
        (ToolResult("malformed_call", detail="invalid: does not accept the query"), (400, "invalid")),
    ],
)
def test_a_failure_says_its_cause_and_never_looks_as_if_nothing_was_found(result, expected) -> None:
    stand = Stand(lambda query: result if query == "bad" else FOUND)
    reply = stand.post("/retrieve", {"queries": ["good", "bad", "good too"]})
    assert error(reply) == expected and "result" not in reply.json()
    assert reply.json()["error"]["detail"].startswith("query 2 of 3: ")
    assert reply.json()["error"]["paid_usd"] == pytest.approx(0.01)
    assert sorted(stand.text.asked) == ["bad", "good", "good too"]  # the others are kept for the next try
    assert ("retry-after" in reply.headers) == (expected == (503, "transient"))


def test_nothing_found_is_an_empty_list() -> None:
    assert Stand(lambda _: ToolResult("empty")).post("/retrieve", {"queries": ["a"]}).json()["result"] == [[]]


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises ten thousand million pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + io.BytesIO().getvalue()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/retrieve", {"queries": [""]}, (400, "invalid")),
        ("/retrieve", {"queries": ["fine", " \n\t"]}, (400, "invalid")),
        ("/retrieve", {"queries": "a text"}, (422, "refused")),
        ("/retrieve", {"queries": [7]}, (422, "refused")),
        ("/retrieve", {"queries": ["a"], "topk": -1}, (422, "refused")),
        ("/retrieve", {"queries": ["a"], "topk": "many"}, (422, "refused")),
        ("/retrieve", {"queries": ["a"], "query": "b"}, (422, "refused")),
        ("/retrieve", {}, (422, "refused")),
        ("/retrieve", ["a"], (422, "refused")),
        ("/retrieve", {"queries": ["a"] * 9000}, (413, "invalid")),
        ("/retrieve_image", {"images": ["no base64!"]}, (400, "invalid")),
        ("/retrieve_image", {"images": ["\u00e4"]}, (400, "invalid")),
        ("/retrieve_image", {"images": [b64(b"no picture")]}, (400, "invalid")),
        ("/retrieve_image", {"images": [b64(PHOTO.data[:60])]}, (400, "invalid")),
        ("/retrieve_image", {"images": [b64(bomb())]}, (400, "invalid")),
        ("/retrieve_image", {"images": [None]}, (422, "refused")),
        ("/nothing", {}, (404, "refused")),
        ("/metrics", {}, (405, "refused")),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_shape(path, body, expected) -> None:
    stand = Stand()
    assert error(stand.post(path, body)) == expected
    assert not stand.text.asked and not stand.image.asked


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'{"queries": ["a"]}', "text/plain", 415),
        (b"", "application/json", 422),
    ],
)
def test_what_is_no_json_is_refused_and_not_repeated(content, kind, status) -> None:
    reply = Stand().post("/retrieve", content=content, headers={"content-type": kind})
    assert error(reply)[0] == status and reply.json()["error"]["cause"] == "refused"


def test_a_bug_in_a_tool_is_told_without_its_text(caplog) -> None:
    def broken(query: str) -> ToolResult:
        raise KeyError(f"secret of {query}")

    reply = Stand(broken).post("/retrieve", {"queries": ["my query"]})
    assert error(reply) == (500, "transient") and "KeyError" in reply.text
    assert "secret" not in reply.text + caplog.text and "my query" not in reply.text + caplog.text


def test_the_end_of_a_run_ends_that_of_the_trainer() -> None:
    def missing(query: str) -> ToolResult:
        raise EndOfRun("not in the bundle")

    assert error(Stand(missing).post("/retrieve", {"queries": ["a"]})) == (503, "exhausted")


def test_health_names_version_and_back_ends_alone() -> None:
    told = Stand(backends={"text_search": "serpapi"}, version="0.1.0").get("/healthz").json()
    assert told == {"ready": True, "version": "0.1.0", "backends": {"text_search": "serpapi"}}


def test_metrics_count_requests_by_route_and_status_and_show_the_table_of_tools() -> None:
    row = {
        "calls": 3,
        "hits": 2,
        "paid_usd": 0.5,
        "latency_s": 1.0,
        "failures": 1,
        "failures/throttled": 4,
        "latency/9": 3,
    }
    stand, other = Stand(rows={"serper_search": row}), Stand()
    stand.post("/retrieve", {"queries": ["a"]})
    stand.post("/retrieve", {"queries": [""]})
    stand.post("/some/where/else", {})
    told = stand.get("/metrics").text
    for line in (
        'mmsr1_gateway_requests_total{route="/retrieve",status="200"} 1.0',
        'mmsr1_gateway_requests_total{route="/retrieve",status="400"} 1.0',
        'mmsr1_gateway_requests_total{route="other",status="404"} 1.0',
        'mmsr1_gateway_request_seconds_count{route="/retrieve"} 2.0',
        "mmsr1_gateway_searches_in_flight 0.0",
        "mmsr1_gateway_requests_in_flight 1.0",
        "mmsr1_gateway_refused_total 0.0",
        'mmsr1_tool_hits_total{part="serper_search"} 2.0',
        'mmsr1_tool_paid_usd_total{part="serper_search"} 0.5',
        'mmsr1_tool_failures_total{kind="throttled",part="serper_search"} 4.0',
    ):
        assert line in told.splitlines()
    assert 'route="/retrieve"' not in other.get("/metrics").text


def test_half_a_character_never_reaches_a_tool() -> None:
    stand = Stand()
    body, kind = b'{"queries": ["a\\ud83d b"]}', {"content-type": "application/json"}
    assert stand.post("/retrieve", content=body, headers=kind).status_code == 200
    assert stand.text.asked == ["a b"]
    assert error(stand.post("/retrieve", content=b'{"queries": ["\\ud83d"]}', headers=kind)) == (400, "invalid")


def test_an_answer_is_plain_ascii_json_whatever_a_page_holds() -> None:
    reply = Stand().post("/retrieve", {"queries": ["a"], "return_scores": True})
    assert reply.content.isascii() and json.loads(reply.content)["result"][0][0]["document"]["text"].endswith("\ud800")
