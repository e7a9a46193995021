"""Replay: the answers of then, from the bundle alone."""

import asyncio
import time

import pytest
from frozen import FLAG, MAP, Answers, bundled, found, picture, web

from mmsr1.tools.base import Answer, EndOfRun
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.bundle.replay import Replayed
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.meter import PartCounters


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    bundled(folder, *web())
    return Bundle(folder / "bundle")


def ask(tool, query):
    return asyncio.run(tool(query))


def test_the_answers_are_those_of_then_and_cost_what_they_cost_but_nothing_is_paid(bundle):
    counters = PartCounters()
    result = ask(Replayed("image_search", bundle, counters=counters), FLAG)
    assert result.items == found("a flag", MAP).items
    assert (result.status, result.cost_usd, result.paid_usd, result.cached) == ("ok", 0.01, 0.0, True)
    texts = Replayed("text_search", bundle, counters=counters)
    assert ask(texts, "Eiffel  tower height ").items == found("the tower").items
    assert ask(texts, "nothing there").status == "empty"
    down = ask(texts, "down")
    assert (down.status, down.detail, down.items) == ("infrastructure_error", "transient: HTTP 503", ())
    assert ask(texts, "").status == "malformed_call"
    assert (counters.calls, counters.hits, counters.failures["not_in_bundle"]) == (5, 3, 0)


def test_a_miss_ends_the_run_and_names_the_query(bundle):
    with pytest.raises(EndOfRun) as caught:
        ask(Replayed("text_search", bundle), 'who is "X"\n<|im_end|>?')
    assert str(caught.value).startswith(f"tools.bundle={bundle.folder}: it has no text_search for ")
    assert r'"who is \"X\" <|im_end|>?"' in str(caught.value) and "tools.on_miss=empty" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(EndOfRun, match=f"no image_search for picture {picture(3).digest}"):
        ask(Replayed("image_search", bundle), picture(3))


def test_a_miss_by_option_finds_nothing_and_is_counted(bundle):
    counters = PartCounters()
    tool = Replayed("text_search", bundle, "empty", counters=counters)
    result = ask(tool, "unheard of")
    assert (result.status, result.items, result.cached) == ("empty", (), False)
    ask(tool, "nothing there")
    row = counters.row()
    assert (row["calls"], row["hits"], row["failures"], row["failures/not_in_bundle"]) == (2, 1, 0, 1)
    assert tool.backend != Replayed("text_search", bundle).backend, "another option may answer otherwise"


def test_no_layer_turns_the_end_of_a_run_into_a_status(bundle):
    class Backend:
        name, backend, price_usd = "b", "b", 0.0

        async def ask(self, query):
            return Answer(await Replayed("text_search", bundle)(query))

    part = Guarded(Backend(), CallPolicy(3, 5.0, 5.0, 1e3, 4), Breaker())
    with pytest.raises(EndOfRun):
        ask(part, "unheard of")


def test_a_damaged_bundle_ends_the_run(tmp_path):
    bundled(tmp_path, *web())
    opened = Bundle(tmp_path / "bundle")
    file = tmp_path / "bundle" / "rows.jsonl"
    file.write_bytes(file.read_bytes().replace(b"About", b"Above"))
    with pytest.raises(EndOfRun, match=r"rows\.jsonl was changed or cut .* get a sound copy"):
        ask(Replayed("image_search", opened), FLAG)


def test_answers_take_their_time_only_if_asked_to(tmp_path):
    bundled(tmp_path, Answers("text_search", {"q": found("q", seconds=0.3)}))
    opened = Bundle(tmp_path / "bundle")
    for latency in (False, True):
        start = time.perf_counter()
        result = ask(Replayed("text_search", opened, latency=latency), "q")
        assert (time.perf_counter() - start >= 0.3) == (result.latency_s >= 0.3) == latency
