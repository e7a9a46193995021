"""Whatever a service sends, a parser returns its own type or says that this is no answer."""

import copy
import json
from typing import Any

import pytest
from adapters import ADAPTERS, Adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsr1.tools.base import CallFailed
from mmsr1.tools.web_types import ImageHit, Page, WebHit
from mmsr1.types import ToolItem

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "https://a.b/c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PARSED = [adapter for adapter in ADAPTERS if adapter.name not in ("serpapi_lens_by_url", "local_reader")]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything inside a JSON value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def changed(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return value


def well_typed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, WebHit | ImageHit | ToolItem) and well_typed(item) for item in value)
    if isinstance(value, WebHit | ImageHit | ToolItem | Page):
        fields = [field for name, field in vars(value).items() if name != "thumbnail"]
        return all(isinstance(field, str) and field.encode("utf-8") is not None for field in fields)
    return isinstance(value, str)


@pytest.mark.parametrize("adapter", PARSED, ids=lambda adapter: adapter.name)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_parser_returns_its_type_or_says_that_this_is_no_answer(adapter: Adapter, data: st.DataObject) -> None:
    provider = adapter.make("http://localhost:1")
    raw = json.dumps(changed(adapter.good, data.draw(st.sampled_from(places(adapter.good))), data.draw(VALUES)))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))]
    try:
        assert well_typed(provider.parse(raw, adapter.ask_for("http://localhost:1")))
    except CallFailed as error:
        assert error.cause in ("broken", "blocked", "exhausted")


@pytest.mark.parametrize("adapter", PARSED, ids=lambda adapter: adapter.name)
def test_one_odd_hit_does_not_cost_the_others(adapter: Adapter) -> None:
    if not isinstance(adapter.value, tuple):
        pytest.skip("no list of hits")
    provider = adapter.make("http://localhost:1")
    hits = adapter.good
    for key in adapter.block:
        hits = hits[key]
    raw = json.dumps(adapter.spoiled([7, {"title": ["a"], "contents": 1, "url": 2}, *hits, None]))
    assert provider.parse(raw, adapter.query) == adapter.value
