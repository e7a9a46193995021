"""OpenSearch: what it is asked, whom its refusals blame, and what of an answer is none."""

import base64

import pytest
from adapters import BULK, BY_NAME, CANARY, KEPT
from fake_api import FakeApi, Say
from stack import Shelf, ask

from mmsr1.tools.providers import text_provider

FOUND = BY_NAME["opensearch"]


def refusal(kind: str) -> dict:
    return {"error": {"root_cause": [{"type": kind, "reason": "..."}], "type": kind}, "status": 400}


def test_the_query_is_words_and_never_syntax(api: FakeApi, shelf: Shelf) -> None:
    api.reset(everything=Say(FOUND.good))
    options = {"index": "wiki-18", "title_weight": 2.5}
    outcome = ask(FOUND, api, shelf, query='title:"a"\n tower \ud800', options=options, results=3)
    assert outcome.status == "ok"
    (asked,) = api.asked
    assert (asked.method, asked.path) == ("POST", "/wiki-18/_search")
    assert asked.json["size"] == 3
    matching = asked.json["query"]["multi_match"]
    assert matching == {"query": 'title:"a" tower', "fields": ["title^2.5", "text"], "type": "most_fields"}


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        (f"user:{CANARY}", "Basic " + base64.b64encode(f"user:{CANARY}".encode()).decode()),
        (CANARY, f"ApiKey {CANARY}"),
    ],
)
def test_a_user_or_an_api_key_is_sent(api: FakeApi, shelf: Shelf, monkeypatch, key: str, sent: str) -> None:
    monkeypatch.setenv("SEARCH_KEY", key)
    api.reset(everything=Say(FOUND.good))
    assert ask(FOUND, api, shelf, key_env="SEARCH_KEY").status == "ok"
    assert api.asked[0].headers["authorization"] == sent


@pytest.mark.parametrize(
    ("said", "status", "detail"),
    [
        (Say(refusal("too_many_clauses"), 400), "malformed_call", ""),
        (Say(refusal("parsing_exception"), 400), "infrastructure_error", "refused: "),
        (Say(refusal("index_not_found_exception"), 404), "infrastructure_error", "refused: "),
        (Say(refusal("circuit_breaking_exception"), 429), "infrastructure_error", "throttled: "),
        (Say({**FOUND.good, "timed_out": True}), "infrastructure_error", "broken: a part of the index"),
        (Say({**FOUND.good, "_shards": {"total": 2, "failed": 1}}), "infrastructure_error", "broken: a part"),
    ],
)
def test_errors_are_typed(api: FakeApi, shelf: Shelf, said: Say, status: str, detail: str) -> None:
    api.reset(everything=said)
    outcome = ask(FOUND, api, shelf)
    assert outcome.status == status and outcome.detail.startswith(detail)


def test_a_passage_without_text_is_left_out(api: FakeApi, shelf: Shelf) -> None:
    hits = [{"_source": {**KEPT, "text": ""}}, {"_source": KEPT}, {"_source": {"text": "untitled"}}]
    api.reset(everything=Say({**BULK, "hits": {"hits": hits}}))
    outcome = ask(FOUND, api, shelf)
    assert [item.text for item in outcome.value or ()] == [KEPT["text"], "untitled"]


@pytest.mark.parametrize("options", [{"index": "a/b"}, {"index": ""}, {"title_weight": 0.0}, {"index": "..", "x": 1}])
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(ValueError, match="options") as told:
        text_provider("opensearch", url="http://localhost:1", options=options)
    assert "\n" not in str(told.value)
