"""Our client in front of our gateway: what comes out is what the gateway's tools found, and what they said of it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from PIL import Image

from mmsr1.tools.base import Answer, CallFailed, Outcome
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.gateway.app import Settings, create_app
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.providers import image_provider, text_provider
from mmsr1.tools.providers.raw import ParsedPart, RawBackend
from mmsr1.types import Picture, ToolItem, ToolResult

THUMBNAIL, PHOTO = (encode_png(Image.new("RGB", (28, 20), colour)) for colour in ("teal", "orchid"))
ITEMS = (
    ToolItem('The "tower"', "It was built\nin 1889.", "https://a.example/1", None),
    ToolItem("", "without a title", ""),
    ToolItem("without a text", "", "https://a.example/3"),
)
POLICY = CallPolicy(attempts=1, timeout_s=10, deadline_s=10, rate_per_s=1e4, concurrent=8)


class Fixed:
    """A tool with one answer."""

    backend, price_usd = "fixed", 0.0

    def __init__(self, name: Any, result: ToolResult) -> None:
        self.name, self._result = name, result

    async def __call__(self, query: Any) -> ToolResult:
        return self._result


def through(result: ToolResult, query: str | Picture) -> Outcome[Any]:
    """The outcome at a trainer whose gateway's tools say `result`."""
    tools = {name: Fixed(name, result) for name in ("text_search", "image_search")}
    return asked(httpx.ASGITransport(create_app(tools, dict, Settings())), query)


def asked(transport: httpx.AsyncBaseTransport, query: str | Picture, **access: Any) -> Outcome[Any]:
    access |= {"url": "http://gateway", "transport": transport, "results": 5}
    provider = text_provider("retrieve", **access) if isinstance(query, str) else image_provider("retrieve", **access)

    async def once() -> Outcome[Any]:
        try:
            return await ParsedPart(Guarded(RawBackend(provider), POLICY, Breaker()), provider)(query)
        finally:
            await provider.aclose()

    return asyncio.run(once())


def said(status: int, body: Any, **headers: str) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(status, json=body, headers=headers))


def test_what_was_found_arrives_unchanged_with_what_it_costs_and_what_was_paid() -> None:
    outcome = through(ToolResult("ok", ITEMS, cost_usd=0.03, paid_usd=0.01), "tower")
    assert (outcome.status, outcome.value) == ("ok", ITEMS)
    assert (outcome.cost_usd, outcome.paid_usd) == (0.03, 0.01)
    pictures = (ToolItem("A tower", "", "https://a.example/1", THUMBNAIL), ToolItem("No thumbnail"))
    outcome = through(ToolResult("ok", pictures, cost_usd=0.02, cached=True), PHOTO)
    assert (outcome.value, outcome.cost_usd, outcome.paid_usd) == (pictures, 0.02, 0.0)
    assert through(ToolResult("empty", cost_usd=0.02), "tower").status == "empty"


@pytest.mark.parametrize(
    ("result", "status", "cause"),
    [
        (
            ToolResult("infrastructure_error", detail="serper: exhausted: no credits"),
            "infrastructure_error",
            "exhausted",
        ),
        (ToolResult("infrastructure_error", detail="serper: refused: HTTP 401"), "infrastructure_error", "refused"),
        (ToolResult("infrastructure_error", detail="it broke"), "infrastructure_error", "transient"),
        (ToolResult("over_budget", detail="tools.budget is reached"), "infrastructure_error", "exhausted"),
        (ToolResult("malformed_call", detail="invalid: too long"), "malformed_call", "invalid"),
    ],
)
def test_a_failure_keeps_its_cause(result, status, cause) -> None:
    outcome = through(result, "tower")
    assert outcome.status == status and outcome.detail.startswith(f"{cause}: HTTP ")


def test_what_a_failed_request_has_cost_all_the_same_is_counted() -> None:
    result = ToolResult("infrastructure_error", detail="transient: HTTP 503", paid_usd=0.004)
    assert through(result, "tower").paid_usd == pytest.approx(0.004)
    broken = ToolResult("infrastructure_error", detail="broken: no JSON", paid_usd=0.004)
    assert through(broken, "tower").paid_usd == pytest.approx(0.004)


def test_a_picture_that_is_not_accepted_is_nobody_s_fault_at_the_trainer() -> None:
    outcome = through(ToolResult("malformed_call", detail="invalid: too dark"), PHOTO)
    assert outcome.status == "infrastructure_error" and outcome.detail.startswith("blocked: ")


HITS = {"result": [[{"document": {"contents": '"T"\nt'}, "score": 1.0}]]}


@pytest.mark.parametrize(
    "costs",
    [None, [], 7, [{}], [{"cost_usd": -1, "paid_usd": 0}], [{"cost_usd": True, "paid_usd": 0}], [{"cost_usd": 1}] * 2],
)
def test_without_costs_that_can_be_read_the_price_is_that_of_the_configuration(costs) -> None:
    body = HITS if costs is None else {**HITS, "costs": costs}
    outcome = asked(said(200, body), "tower", price_usd=0.25)
    assert (outcome.status, outcome.cost_usd, outcome.paid_usd) == ("ok", 0.25, 0.25)


@pytest.mark.parametrize(
    "body",
    [{"error": "a text"}, {"error": {"cause": "unheard of"}}, {"error": {"cause": ["transient"]}}, ["error"], 7],
)
def test_an_error_of_another_server_means_what_its_status_means(body) -> None:
    assert asked(said(503, body), "tower").detail.startswith("transient: HTTP 503")
    assert asked(said(422, body), "tower").detail.startswith("refused: HTTP 422")


def test_a_cause_is_believed_of_errors_only_and_asks_to_wait_as_long_as_it_says() -> None:
    told = {"error": {"cause": "throttled", "detail": "come\nback"}}
    assert asked(said(200, {**HITS, **told}), "tower").status == "ok"
    provider = text_provider("retrieve", url="http://gateway", transport=said(429, told, **{"Retry-After": "7"}))

    async def once() -> Answer[str]:
        try:
            return await provider.fetch("tower")
        finally:
            await provider.aclose()

    with pytest.raises(CallFailed, match="throttled: HTTP 429: come back") as failure:
        asyncio.run(once())
    assert failure.value.retry_after_s == 7


def test_title_and_text_count_before_contents_and_contents_where_they_are_alone() -> None:
    both = {"result": [[{"contents": '"Other"\nother', "title": "T", "text": "t\nt"}]]}
    assert asked(said(200, both), "tower").value == (ToolItem("T", "t\nt"),)
    titled = {"result": [[{"contents": '"T"\nt', "title": "T"}]]}
    assert asked(said(200, titled), "tower").value == (ToolItem("T", '"T"\nt'),)
