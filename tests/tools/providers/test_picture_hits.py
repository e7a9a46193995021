"""Pictures for words: what each service is asked, and what is read in its answer."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.providers.picture_hits import PICTURES, PictureHit, picture_provider

URL = "http://localhost:1"
HIT = PictureHit("A tower", "https://b.example/1", "B", "https://t.example/1.jpg", "https://i.example/1.jpg")
RAW = {
    "serpapi": {"title": "A tower", "link": HIT.url, "source": "B", "original": HIT.picture_url},
    "serper": {"title": "A tower", "link": HIT.url, "source": "B", "imageUrl": HIT.picture_url},
    "searxng": {"title": "A tower", "url": HIT.url, "source": "B", "img_src": HIT.picture_url},
}
THUMBNAIL = {"serpapi": "thumbnail", "serper": "thumbnailUrl", "searxng": "thumbnail_src"}
BLOCK = {"serpapi": "images_results", "serper": "images", "searxng": "results"}
NAMES = sorted(PICTURES)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPAPI_API_KEY", "SERPER_API_KEY"):
        monkeypatch.setenv(name, "canary-key")


def answer(name: str, *hits: Any) -> str:
    return json.dumps({BLOCK[name]: list(hits)})


def full(name: str) -> dict[str, Any]:
    return {**RAW[name], THUMBNAIL[name]: HIT.thumbnail_url}


@pytest.mark.parametrize("name", NAMES)
def test_a_hit_names_page_picture_and_thumbnail(name: str) -> None:
    assert picture_provider(name, url=URL).parse(answer(name, full(name)), "tower") == (HIT,)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_picture_its_thumbnail_is_taken_and_without_either_there_is_no_hit(name: str) -> None:
    small = {**full(name)}
    del small[{"serpapi": "original", "serper": "imageUrl", "searxng": "img_src"}[name]]
    bare = {key: value for key, value in small.items() if key != THUMBNAIL[name]}
    (hit,) = picture_provider(name, url=URL).parse(answer(name, 7, bare, small, {"title": ["odd"]}), "tower")
    assert hit.picture_url == hit.thumbnail_url == HIT.thumbnail_url


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("raw", ["", "[]", '{"other": 1}', '{"images_results": 7, "images": 7, "results": 7}', "{"])
def test_what_is_no_answer_is_told_as_broken(name: str, raw: str) -> None:
    with pytest.raises(CallFailed) as error:
        picture_provider(name, url=URL).parse(raw, "tower")
    assert error.value.cause == "broken"


def test_nothing_found_is_an_answer() -> None:
    told = {"error": "Google hasn't returned any results for this query."}
    assert picture_provider("serpapi").parse(json.dumps(told), "tower") == ()
    assert picture_provider("serper").parse(json.dumps({"searchParameters": {"q": "tower"}}), "tower") == ()
    assert picture_provider("searxng", url=URL).parse(json.dumps({"results": []}), "tower") == ()
    with pytest.raises(CallFailed, match="did not answer"):
        picture_provider("searxng", url=URL).parse(json.dumps({"results": [], "unresponsive_engines": ["a"]}), "tower")


def test_the_licence_is_told_where_the_service_tells_it() -> None:
    hit = {**full("serpapi"), "license_details_url": "https://l.example/cc-by"}
    (found,) = picture_provider("serpapi").parse(answer("serpapi", hit), "tower")
    assert found.licence == "https://l.example/cc-by"


@pytest.mark.parametrize(
    ("name", "options", "path", "asked"),
    [
        ("serpapi", {"licenses": "cl"}, "/search.json", {"engine": "google_images", "q": "a tower", "licenses": "cl"}),
        ("serpapi", {}, "/search.json", {"engine": "google_images", "q": "a tower", "hl": "en"}),
        ("serper", {"gl": "fr"}, "/images", {"q": "a tower", "gl": "fr"}),
        ("searxng", {"engines": "bing images"}, "/search", {"categories": "images", "engines": "bing images"}),
    ],
)
def test_what_a_service_is_asked(name: str, options: dict, path: str, asked: dict[str, str]) -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, text=answer(name, full(name)))

    provider = picture_provider(name, url=URL, options=options, transport=httpx.MockTransport(respond))
    found = asyncio.run(provider.fetch("  a\ntower "))
    (request,) = seen
    given = dict(request.url.params) or json.loads(request.content)
    assert request.url.path == path and asked.items() <= given.items()
    assert ("licenses" in given) == ("licenses" in options)
    assert found.value is not None and provider.parse(found.value, "a tower") == (HIT,)


def test_mistakes_are_told_in_one_line() -> None:
    with pytest.raises(ValueError, match="provider=bing: no search for pictures; known: searxng, serpapi, serper"):
        picture_provider("bing")
    with pytest.raises(ValueError, match="options.size: serper_pictures knows no such option"):
        picture_provider("serper", options={"size": 3})
    with pytest.raises(ValueError, match="searxng"):
        picture_provider("searxng")
