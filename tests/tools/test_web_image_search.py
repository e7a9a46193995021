"""Similar pictures on the web: hits in order, thumbnails where they can be had, nothing hostile decoded."""

import asyncio
import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from mmsr1.tools.base import CallFailed, Outcome, Tool
from mmsr1.tools.blocklist import Blocklist
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.cache import PICTURE, CachedPart
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.image_search.web import WebImageSearch
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.tools.store import Store
from mmsr1.tools.thumbnails import MAX_BYTES, ThumbnailBackend
from mmsr1.tools.web_types import ImageHit
from mmsr1.types import Picture, ToolResult
from tests.tools.scripted import ScriptedPart, lost, ok, over

QUERY = encode_png(Image.new("RGB", (64, 48), "blue"))
SMALL = encode_png(Image.new("RGB", (28, 28), "red"))
POLICY = CallPolicy(attempts=2, timeout_s=5, deadline_s=10, rate_per_s=1000, concurrent=8, backoff_s=0)


def hits(count: int) -> tuple[ImageHit, ...]:
    return tuple(
        ImageHit(f"title {n}", f"https://{n}.example", f"site {n}", f"https://t.example/{n}") for n in range(count)
    )


def encoded(size: tuple[int, int] = (400, 300), kind: str = "JPEG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind, **more)
    return buffer.getvalue()


def ask(
    found: Outcome[Any], thumbnails: Any = lambda url: ok(SMALL), **options: Any
) -> tuple[ToolResult, ScriptedPart]:
    part = ScriptedPart("thumbnail", thumbnails)
    search = ScriptedPart("lens", lambda _: found, 0.01)
    tool = WebImageSearch(search, part, **{"topk": 3, "with_thumbnail": 2, **options})
    assert isinstance(tool, Tool) and tool.price_usd == 0.01
    result = asyncio.run(tool(QUERY))
    assert search.asked == [QUERY]
    return result, part


def test_hits_come_in_order_the_first_with_thumbnails() -> None:
    result, thumbnails = ask(ok(hits(7), 0.01))
    assert [(item.title, item.url, item.thumbnail) for item in result.items] == [
        ("title 0", "https://0.example", SMALL),
        ("title 1", "https://1.example", SMALL),
        ("title 2", "https://2.example", None),
    ]
    assert (result.status, result.complete, result.cost_usd, result.paid_usd) == ("ok", True, 0.01, 0.01)
    assert thumbnails.asked == ["https://t.example/0", "https://t.example/1"] and thumbnails.most_at_a_time == 2


@pytest.mark.parametrize(
    ("bad", "complete"), [(lost(), False), (Outcome("empty"), True), (Outcome("malformed_call"), True)]
)
def test_a_missing_thumbnail_leaves_the_title(bad: Outcome[Any], complete: bool) -> None:
    result, _ = ask(ok(hits(3)), lambda url: bad if url.endswith("0") else ok(SMALL))
    assert [item.thumbnail for item in result.items] == [None, SMALL, None]
    assert [item.title for item in result.items] == ["title 0", "title 1", "title 2"]
    assert result.status == "ok" and result.complete == complete


@pytest.mark.parametrize(
    "found", [lost(0.01), over(), Outcome("empty", cost_usd=0.01), Outcome("malformed_call"), ok(())]
)
def test_what_the_search_says_is_what_the_tool_says(found: Outcome[Any]) -> None:
    result, thumbnails = ask(found)
    assert result.status == ("empty" if found.value == () else found.status) and result.items == ()
    assert result.paid_usd == found.paid_usd and thumbnails.asked == []


def test_titles_are_shown_also_where_money_runs_out_before_the_thumbnails() -> None:
    result, _ = ask(ok(hits(3), 0.01), lambda url: over())
    assert result.status == "ok" and result.paid_usd == 0.01 and not result.complete
    assert len(result.items) == 3 and not any(item.thumbnail for item in result.items)


def test_a_bug_is_a_status() -> None:
    result, _ = ask(ok(hits(3), 0.01), lambda url: 1 / 0)
    assert result.status == "infrastructure_error" and result.paid_usd == 0.01


def test_blocked_hosts_are_left_out_and_a_hit_without_address_or_title_stays() -> None:
    found = (
        ImageHit("mirror", "https://www.mirror.example/x", "", ""),
        ImageHit("hidden mirror", "https://fine.example", "", "https://mirror.example/t.jpg"),
        ImageHit("no address", "", "", ""),
        ImageHit("", "https://a.example", "site", "data:image/png;base64,AAAA"),
    )
    result, thumbnails = ask(ok(found), blocklist=Blocklist(["mirror.example"]))
    assert [item.title for item in result.items] == ["no address", "site"]
    assert thumbnails.asked == ["data:image/png;base64,AAAA"]


def test_impossible_settings_are_refused() -> None:
    search = ScriptedPart("lens", lambda _: ok(()))
    for options in ({"topk": 0}, {"topk": 2, "with_thumbnail": 3}, {"with_thumbnail": 1}):
        with pytest.raises(ValueError, match="with_thumbnail"):
            WebImageSearch(search, **options)
    assert WebImageSearch(search, with_thumbnail=0).backend != WebImageSearch(search, topk=4, with_thumbnail=0).backend


class Host:
    """Answers requests for thumbnails at the transport, and counts them."""

    def __init__(self, answer: Any) -> None:
        self.asked = 0
        self._answer = answer

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        answer = (
            self._answer[min(self.asked, len(self._answer)) - 1] if isinstance(self._answer, list) else self._answer
        )
        kind = {"content-type": "image/jpeg"}
        return httpx.Response(200, content=answer, headers=kind) if isinstance(answer, bytes) else answer

    def backend(self, edge: int = 28) -> ThumbnailBackend:
        async def resolve(host: str) -> list[str]:
            return ["93.184.215.14"]

        return ThumbnailBackend(SafeFetch(transport=httpx.MockTransport(self), resolve=resolve), edge)


def fetched(answer: Any, url: str = "https://t.example/x", edge: int = 28) -> Picture | None:
    return asyncio.run(Host(answer).backend(edge).ask(url)).value


def cause(answer: Any, url: str = "https://t.example/x?key=canary") -> str:
    with pytest.raises(CallFailed) as caught:
        fetched(answer, url)
    assert "canary" not in str(caught.value) and "t.example" not in str(caught.value)
    return caught.value.cause


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_thumbnail_is_small_plain_and_the_same_each_time(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"  # the description of the image
    first = fetched(encoded(kind=kind, exif=exif), edge=100)
    assert first is not None and first == fetched(encoded(kind=kind), edge=100)
    image = decode(first)
    assert (image.format, image.mode, image.size) == (None, "RGB", (100, 75)) and first.data.startswith(b"\x89PNG")
    assert b"secret" not in first.data
    tiny = fetched(encoded((20, 20)), edge=100)
    assert tiny is not None and decode(tiny).size == (20, 20), "nothing is enlarged"


@pytest.mark.parametrize("size", [(4, 4), (400, 7), (2000, 150), (30, 400)])
def test_spacers_and_banners_are_nothing(size: tuple[int, int]) -> None:
    assert fetched(encoded(size, "PNG")) is None


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404),
        httpx.Response(410),
        httpx.Response(200, content=b"GIF89a...", headers={"content-type": "image/gif"}),
        httpx.Response(200, content=b"<svg/>", headers={"content-type": "image/svg+xml"}),
    ],
)
def test_what_is_no_picture_for_good_is_nothing(answer: httpx.Response) -> None:
    assert fetched(answer) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (encoded()[:600], "broken"),
        (encoded((9000, 9000), "PNG"), "broken"),
        (b"x" * (MAX_BYTES + 1), "broken"),
        (httpx.Response(200, content=b"<html>CAPTCHA", headers={"content-type": "text/html"}), "blocked"),
        (httpx.Response(200, content=b"junk", headers={"content-type": "application/octet-stream"}), "blocked"),
        (httpx.Response(403), "blocked"),
        (httpx.Response(405), "blocked"),
        (httpx.Response(429, headers={"retry-after": "7"}), "throttled"),
        (httpx.Response(503), "transient"),
        (httpx.Response(302, headers={"location": "http://127.0.0.1/x"}), "blocked"),
    ],
)
def test_failures_have_their_cause(answer: Any, expected: str) -> None:
    assert cause(answer) == expected


def test_a_picture_inside_its_address() -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(encoded()).decode()}"
    shown = fetched(b"", url)
    assert shown is not None and decode(shown).size == (28, 21) and Host(b"").asked == 0
    assert fetched(b"", f"data:image/gif;base64,{base64.b64encode(b'GIF89a').decode()}") is None
    for bad in (
        "data:text/html,canary",
        "data:image/png;base64,canary*",
        "data:image/png,canary",
        url[: len(url) // 2 // 4 * 4],
    ):
        assert cause(b"", bad) == "invalid"
    assert cause(b"", "data:image/png;base64," + "A" * 2 * MAX_BYTES) == "invalid"
    assert cause(b"", "file:///etc/canary") == "blocked"


def test_through_the_stack_it_is_fetched_again_where_that_helps_and_then_kept(store: Store) -> None:
    host = Host([encoded()[:600], encoded()])
    part = CachedPart(Guarded(host.backend(), POLICY, Breaker()), store, PICTURE)
    first, second = (asyncio.run(part("https://t.example/x")) for _ in range(2))
    assert first.status == second.status == "ok" and first.value == second.value and host.asked == 2
    assert not first.cached and second.cached


def test_a_truncated_thumbnail_is_never_kept(store: Store) -> None:
    host = Host(encoded()[:600])
    part = CachedPart(Guarded(host.backend(), POLICY, Breaker()), store, PICTURE)
    outcomes = [asyncio.run(part("https://t.example/x")) for _ in range(2)]
    assert [o.status for o in outcomes] == ["infrastructure_error"] * 2 and host.asked == 4
