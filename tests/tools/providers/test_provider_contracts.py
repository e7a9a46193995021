"""What every adapter must do with the answer that its service documents, and with everything that is none.

Whatever comes back, the outcome is typed, nothing of a failure is kept, and the key is seen by the service alone.
"""

import socket
from dataclasses import replace

import pytest
from adapters import ADAPTERS, CANARY, Adapter
from fake_api import FakeApi, Say, gzip_bomb
from stack import Shelf, ask

from mmsr1.tools.base import Outcome

WALL = "<html><title>Just a moment...</title><body>Verify you are human by completing the CAPTCHA.</body></html>"
NESTED = b'{"result":' + b"[" * 200_000
# What any service may do: the answer, and the causes that it may be called. Pages have rules of their own.
PAGE = {"Content-Type": "text/html"}
DISTINCT = [adapter for adapter in ADAPTERS if adapter.name != "serpapi_lens_by_url"]  # which differs in what it sends
FAULTS = {
    "unauthorised": (Say({"error": "bad key"}, 401), "refused"),
    "forbidden": (Say({"error": "bad key"}, 403), "refused"),
    "payment_required": (Say({"error": "pay"}, 402), "exhausted"),
    "wrong_path": (Say({"error": "?"}, 404), "refused"),
    "throttled": (Say({"error": "slow down"}, 429, {"Retry-After": "60"}), "throttled"),
    "server_error": (Say(WALL, 500), "transient"),
    "unavailable": (Say(b"", 503, {"Retry-After": "60"}), "transient"),
    "slow_drip": (Say(b"{" + b" " * 10_000, headers=PAGE, drip_s=0.02), "transient"),
    "cut_connection": (Say(b'{"results": [', headers=PAGE, missing=1_000), "transient"),
    "truncated_json": (Say(b'{"results": [{"title": "The tow'), "broken"),
    "empty_body": (Say(b""), "broken"),
    "captcha_page": (Say(WALL), "broken"),
    "not_utf8": (Say(b"\xff\xfe\x00\x01"), "broken"),
    "list": (Say([]), "broken"),
    "null": (Say(None), "broken"),
    "other_object": (Say({"hello": "world"}), "broken"),
    "nested": (Say(NESTED), "broken"),
    "gzip_bomb": (gzip_bomb(64), "broken"),
    "not_gzip": (Say(b"{}", headers={**PAGE, "Content-Encoding": "gzip"}), "broken"),
    "unknown_compression": (Say(b"{}", headers={**PAGE, "Content-Encoding": "br"}), "broken"),
    "redirect": (Say(b"", 302), "broken"),
}
PAGE_FAULTS = {
    "wrong_path": None,  # a page that is not there is an answer
    "unauthorised": "blocked",
    "forbidden": "blocked",
    "payment_required": "blocked",
    "throttled": "blocked",
    "captcha_page": "blocked",
    "redirect": "blocked",
    **dict.fromkeys(("truncated_json", "empty_body", "list", "null", "other_object", "nested", "not_utf8"), "blocked"),
}
JINA_FAULTS = {"wrong_path": "blocked"}
OWN_RULES = {"local_reader": PAGE_FAULTS, "jina_reader": JINA_FAULTS}


def expected(adapter: Adapter, fault: str) -> str | None:
    return OWN_RULES.get(adapter.name, {}).get(fault, FAULTS[fault][1])


def answers_well(adapter: Adapter, api: FakeApi, shelf: Shelf) -> Outcome:
    """The service is sound again, so what is asked next is answered by it and by no cache."""
    api.reset(everything=Say(adapter.good))
    api.says |= adapter.also
    outcome = ask(adapter, api, shelf)
    assert (outcome.status, outcome.value, outcome.cached) == ("ok", adapter.expected(api.url), False)
    return outcome


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_the_documented_answer_is_read_and_kept(adapter: Adapter, api: FakeApi, shelf: Shelf, caplog) -> None:
    caplog.set_level("DEBUG")
    kept = shelf.rows
    first = answers_well(adapter, api, shelf)
    assert shelf.rows == kept + 1
    asked = len(api.asked)
    second = ask(adapter, api, shelf)
    assert (second.status, second.value, second.cached, second.paid_usd) == ("ok", first.value, True, 0.0)
    assert second.cost_usd == first.cost_usd
    assert len(api.asked) == asked
    assert not shelf.shows_the_key and CANARY not in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("adapter", DISTINCT, ids=lambda adapter: adapter.name)
def test_a_fault_is_typed_and_never_kept(
    adapter: Adapter, fault: str, api: FakeApi, private: FakeApi, shelf: Shelf, caplog
) -> None:
    caplog.set_level("DEBUG")
    said, cause, kept = FAULTS[fault][0], expected(adapter, fault), shelf.rows
    if said.status == 302:
        said = replace(said, headers={"Location": f"{private.url}/latest/meta-data"})
    api.reset(everything=said)
    outcome = ask(adapter, api, shelf, timeout_s=0.2 if said.drip_s else 5.0)
    assert private.asked == []
    if cause is None:
        assert (outcome.status, outcome.value) == ("empty", None)
        return
    assert (outcome.status, outcome.value) == ("infrastructure_error", None), outcome
    assert outcome.detail.startswith(f"{cause}: "), outcome.detail
    assert shelf.rows == kept
    assert CANARY not in f"{outcome}{caplog.text}"
    answers_well(adapter, api, shelf)


SEARCHES = [adapter for adapter in DISTINCT if adapter.block]
WRONG = {
    "text": "none",
    "number": 7,
    "object": {"0": {}},
    "numbers": [1, 2],
    "nulls": [None],
    "lists": [[]],
    "wrong_fields": [{"title": 1, "link": 2, "url": 3, "document": 4, "message": 5, "contents": 6}],
    "no_address": [{"title": "a", "link": "javascript:alert(1)", "url": "file:///etc/passwd", "message": {}}],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("adapter", SEARCHES, ids=lambda adapter: adapter.name)
def test_hits_of_wrong_types_are_no_answer(adapter: Adapter, wrong: str, api: FakeApi, shelf: Shelf) -> None:
    if adapter.name == "jina_reader" and wrong == "text":
        pytest.skip("text is what it sends")
    if adapter.name == "retrieve_image" and wrong == "no_address":
        pytest.skip("titled pictures need no address")
    api.reset(everything=Say(adapter.spoiled(WRONG[wrong])))
    api.says |= adapter.also
    kept = shelf.rows
    outcome = ask(adapter, api, shelf)
    assert (outcome.status, outcome.value) == ("infrastructure_error", None)
    assert outcome.detail.startswith("broken: ")
    assert shelf.rows == kept
    answers_well(adapter, api, shelf)


EMPTY = [(adapter, number) for adapter in ADAPTERS for number in range(len(adapter.nothing))]


@pytest.mark.parametrize(("adapter", "number"), EMPTY, ids=[f"{adapter.name}-{number}" for adapter, number in EMPTY])
def test_finding_nothing_is_an_answer_and_kept(adapter: Adapter, number: int, api: FakeApi, shelf: Shelf) -> None:
    api.reset(everything=Say(adapter.nothing[number]))
    api.says |= adapter.also
    first = ask(adapter, api, shelf)
    assert (first.status, first.value, first.cached) == ("empty", None, False)
    asked = len(api.asked)
    again = ask(adapter, api, shelf)
    assert (again.status, again.cached, len(api.asked)) == ("empty", True, asked)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_a_service_that_is_not_there_is_a_failure(adapter: Adapter, api: FakeApi, shelf: Shelf) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        if adapter.name == "local_reader":
            pytest.skip("asks the page's host, not a service")
        outcome = ask(adapter, api, shelf, url=url, timeout_s=1.0)
    assert outcome.status == "infrastructure_error"
    assert outcome.detail.startswith("transient: ")


@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a.key_env], ids=lambda adapter: adapter.name)
def test_without_its_key_a_service_is_not_asked(
    adapter: Adapter, api: FakeApi, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter.key_env is not None
    monkeypatch.delenv(adapter.key_env)
    outcome = ask(adapter, api, shelf)
    assert outcome.status == "infrastructure_error"
    assert outcome.detail.startswith("refused: ") and adapter.key_env in outcome.detail
    assert api.asked == []


@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a.key_env], ids=lambda adapter: adapter.name)
def test_a_service_that_repeats_the_key_does_not_get_it_onto_the_disk(
    adapter: Adapter, api: FakeApi, shelf: Shelf
) -> None:
    api.reset(everything=Say({**adapter.good, "your_key": CANARY}))
    api.says |= adapter.also
    assert ask(adapter, api, shelf).status == "ok"
    assert not shelf.shows_the_key


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_a_failure_that_passes_is_made_good_by_another_attempt(adapter: Adapter, api: FakeApi, shelf: Shelf) -> None:
    api.reset(everything=[Say(b"", 503), Say(adapter.good)])
    api.says |= adapter.also
    outcome = ask(adapter, api, shelf, attempts=2)
    assert (outcome.status, outcome.value) == ("ok", adapter.expected(api.url))


def test_after_all_this_no_key_lies_on_the_disk(shelf: Shelf) -> None:
    assert not shelf.shows_the_key
