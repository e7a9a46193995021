"""Providers by the names of a configuration; parsers that can be changed without asking again; layers of the cache."""

import asyncio
import json
import threading

import pytest
from adapters import ADAPTERS, ARTICLE, BY_NAME, CANARY, HTML, IMAGE_URL, PAGE, QUERY, Adapter, network
from fake_api import FakeApi, Say
from stack import Shelf, ask, part

from mmsr1.config.tools import HERE, IMAGE_SEARCH, READERS, SUMMARIZERS, TEXT_SEARCH
from mmsr1.tools.base import Outcome
from mmsr1.tools.cache import CachedPart
from mmsr1.tools.providers import image_provider, local_reader, reader_provider, summarizer_provider, text_provider
from mmsr1.tools.providers.base import Provider
from mmsr1.tools.providers.raw import RawBackend
from mmsr1.tools.providers.walls import is_wall
from mmsr1.tools.web_codecs import PAGE as PAGES
from mmsr1.tools.web_codecs import SUMMARY
from mmsr1.tools.web_types import Page, SummaryQuery

URL = "http://localhost:1"
HTML_TYPE = "text/html"
GBK = ("<html><head><meta charset=gbk></head><body><article><p>" + "\u5854\u5f88\u9ad8\u3002" * 80).encode("gbk")


def test_every_name_of_the_configuration_can_be_built() -> None:
    built = [text_provider(name, url=URL) for name in TEXT_SEARCH if name not in HERE]
    built += [image_provider(name, url=URL, image_url=IMAGE_URL) for name in IMAGE_SEARCH if name not in HERE]
    built += [reader_provider(name) for name in READERS if name != "none"]
    built += [summarizer_provider(name, url=URL, options={"model": "m"}) for name in SUMMARIZERS if name != "none"]
    assert len({provider.name for provider in built}) == len(built)
    for provider in built:
        assert isinstance(provider, Provider) and provider.price_usd >= 0
        assert json.loads(json.dumps(provider.settings)) == provider.settings
        backend = RawBackend(provider)
        assert isinstance(backend.backend, str) and backend.backend.startswith(provider.name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: text_provider("bing"), "provider=bing"),
        (lambda: image_provider("brave"), "provider=brave"),
        (lambda: reader_provider("none"), "provider=none"),
        (lambda: summarizer_provider("none"), "provider=none"),
        (lambda: text_provider("serpapi", options={"lang": "en"}), "options.lang: serpapi_search.*known: gl, hl"),
        (lambda: text_provider("serpapi", options={"hl": 7}), "options.hl=7.*str"),
        (lambda: text_provider("searxng"), "url=None"),
        (lambda: text_provider("retrieve"), "url=None"),
        (lambda: text_provider("searxng", url="localhost:8080"), "url: not what searxng"),
        (lambda: text_provider("searxng", url=f"http://u:{CANARY}@host"), "^((?!canary).)*$"),
        (lambda: text_provider("searxng", url=f"http://host/?key={CANARY}"), "^((?!canary).)*$"),
        (lambda: image_provider("serper"), "image_url=None"),
        (
            lambda: image_provider("serper", image_url="https://u:pw@h/{digest}"),
            "image_url: holds a user name(?!.*pw@)",
        ),
        (lambda: image_provider("serpapi", options={"by": "url"}), "image_url=None"),
        (lambda: image_provider("serpapi", options={"by": "mail"}), "options.by=mail"),
        (lambda: summarizer_provider("openai", url=URL), "options.model"),
    ],
)
def test_a_mistake_is_told_in_one_line(build, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        build()
    assert "\n" not in str(told.value)


def test_an_option_that_nobody_knows_is_not_repeated_for_it_may_be_a_key() -> None:
    with pytest.raises(ValueError) as told:
        text_provider("tavily", options={"api_key": CANARY})
    assert CANARY not in str(told.value)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_the_key_is_no_part_of_what_is_written(adapter: Adapter, shelf: Shelf) -> None:
    provider = adapter.make("http://localhost:1/x")
    written = f"{RawBackend(provider).backend}{part(provider, shelf).backend}{provider.settings}{provider!r}"
    assert "localhost:1/x" in written or adapter.name == "local_reader"
    assert CANARY not in written


@pytest.mark.parametrize("user", ["somebody:pass-word", "somebody", ":pass-word", "some%40body:pass-word", "a@b:c"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_an_address_with_a_password_is_refused_and_not_repeated(adapter: Adapter, user: str) -> None:
    with pytest.raises(ValueError, match="^url: holds a user name or password; .*key_env") as told:
        adapter.make(f"http://{user}@localhost:1/x")
    assert "\n" not in str(told.value) and not any(secret in str(told.value) for secret in ("somebody", "pass-word"))


def test_what_decides_the_answer_decides_the_key() -> None:
    def backend(**access) -> str:
        return RawBackend(text_provider("serpapi", **access)).backend

    assert len({backend(), backend(options={"hl": "de"}), backend(url=URL)}) == 3
    assert backend() == backend(key_env="OTHER_KEY", price_usd=1.0, timeout_s=1.0)
    assert RawBackend(text_provider("tavily", results=3)).backend != RawBackend(text_provider("tavily")).backend
    five, six = (
        RawBackend(summarizer_provider("openai", url=URL, sentences=n, options={"model": "m"})).backend for n in (5, 6)
    )
    assert five != six


def test_a_new_parser_reads_what_was_paid_for(api: FakeApi, shelf: Shelf) -> None:
    adapter = BY_NAME["serper_search"]
    api.reset(everything=Say(adapter.good))
    assert ask(adapter, api, shelf).status == "ok"

    async def with_another_parser() -> Outcome:
        provider = adapter.make(api.url, **network())
        provider.parse = lambda raw, query: json.loads(raw)["organic"][0]["position"]
        return await part(provider, shelf)(QUERY)

    outcome = asyncio.run(with_another_parser())
    assert (outcome.value, outcome.cached, len(api.asked)) == (1, True, 1)


def test_a_bug_in_a_parser_is_a_failure_and_nothing_is_kept(api: FakeApi, shelf: Shelf) -> None:
    adapter, kept = BY_NAME["serper_search"], shelf.rows
    api.reset(everything=Say(adapter.good))

    def make(url: str, **access):
        provider = adapter.make(url, **access)
        provider.parse = lambda raw, query: 1 // 0
        return provider

    outcome = ask(type(adapter)("buggy", make, adapter.good, None), api, shelf)
    assert (outcome.status, outcome.value, shelf.rows) == ("infrastructure_error", None, kept)


def test_pages_are_kept_as_pages_and_a_summary_belongs_to_the_text_it_was_made_of(shelf: Shelf) -> None:
    class Reader:
        name, backend, price_usd, asked = "reader", "b", 0.0, 0

        async def __call__(self, query: str) -> Outcome[Page]:
            self.asked += 1
            return Outcome("ok", Page(query, "T\ud800", "x" * 50_000), 0.1, 0.1)

    reader = Reader()

    async def twice() -> list[Outcome[Page]]:
        return [await CachedPart(reader, shelf.store, PAGES)("https://a.example") for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first.value == second.value and second.cached and reader.asked == 1
    assert (second.cost_usd, second.paid_usd) == (0.1, 0.0)
    asked = SUMMARY.asked(SummaryQuery("a  b", PAGE))
    assert asked == SUMMARY.asked(SummaryQuery("a b", Page("https://elsewhere.example", PAGE.title, PAGE.text)))
    assert asked != SUMMARY.asked(SummaryQuery("a b", Page(PAGE.url, PAGE.title, PAGE.text + ".")))
    assert ARTICLE not in json.dumps(asked)


@pytest.mark.parametrize(
    ("title", "text", "wall"),
    [
        ("Just a moment...", "example.org needs to review the security of your connection", True),
        ("Attention Required! | Cloudflare", "You have been blocked", True),
        ("403 Forbidden", "nginx", True),
        ("Access denied", "", True),
        ("", "Our systems have detected unusual traffic from your computer network.", True),
        ("The moment", "A short story about a tower.", False),
        ("Robot", "A robot is a machine. " * 300 + "Verify you are human.", False),
    ],
)
def test_walls_are_told_from_pages(title: str, text: str, wall: bool) -> None:
    assert is_wall(title, text) is wall


@pytest.mark.parametrize(
    ("body", "kind", "status", "text"),
    [
        (HTML, "text/html; charset=utf-8", "ok", ARTICLE.strip()),
        (HTML.encode("utf-16"), "text/html; charset=utf-16", "ok", ARTICLE.strip()),
        (GBK, "text/html", "ok", "\u5854\u5f88\u9ad8"),
        (HTML, "text/html; charset=punycode", "ok", ARTICLE.strip()),
        (HTML.replace("<head>", "<head><meta charset=punycode>"), "text/html", "ok", ARTICLE.strip()),
        (ARTICLE, "text/plain", "ok", ARTICLE.strip()),
        (HTML, "application/pdf", "infrastructure_error", "blocked"),
        (HTML, "image/png", "infrastructure_error", "blocked"),
        (b"\x1f\x8b" + b"x" * 500, "text/html", "infrastructure_error", "blocked"),
        ("<html><script>render()</script></html>", "text/html", "infrastructure_error", "blocked"),
        ("<div>" * 60_000, "text/html", "infrastructure_error", "blocked"),
        (" " * 4 * 2**20, "text/html", "infrastructure_error", "broken"),
    ],
)
def test_the_local_reader_takes_text_and_nothing_else(
    body, kind: str, status: str, text: str, api: FakeApi, shelf: Shelf
) -> None:
    api.reset(everything=Say(body, headers={"Content-Type": kind}))
    outcome = ask(BY_NAME["local_reader"], api, shelf)
    assert outcome.status == status, outcome
    assert text in (outcome.value.text if status == "ok" else outcome.detail)


def test_pages_are_decoded_and_read_beside_the_event_loop(
    api: FakeApi, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    for name in ("decoded", "_main_text"):
        work = getattr(local_reader, name)

        def watched(*given, work=work):
            thread = threading.current_thread()
            seen.append((work.__name__, thread.daemon and thread is not threading.main_thread()))
            return work(*given)

        monkeypatch.setattr(local_reader, name, watched)
    api.reset(everything=Say(HTML.replace("<head>", "<head><meta charset=utf-8>"), headers={"Content-Type": HTML_TYPE}))
    assert ask(BY_NAME["local_reader"], api, shelf).status == "ok"
    assert dict(seen) == {"decoded": True, "_main_text": True}


def test_the_local_reader_follows_redirects_on_the_web_and_none_into_the_house(
    api: FakeApi, private: FakeApi, shelf: Shelf
) -> None:
    api.says = {"/tower": Say(b"", 301, {"Location": "/moved"}), "/moved": Say(HTML)}
    assert ask(BY_NAME["local_reader"], api, shelf).value.url == f"{api.url}/tower"
    for target in ("http://169.254.169.254/latest", "file:///etc/passwd", f"{private.url}/x", "http://[::1]/"):
        api.says = {"*": Say(b"", 302, {"Location": target})}
        outcome = ask(BY_NAME["local_reader"], api, shelf, query=f"{api.url}/{len(target)}")
        assert outcome.status == "infrastructure_error" and outcome.detail.startswith("blocked: ")
    assert private.asked == []


def test_of_a_page_with_too_many_tags_the_beginning_is_read(
    api: FakeApi, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr1.tools.providers.local_reader.MAX_TAGS", 12)
    api.reset(everything=Say(f"<html><body><article><p>{ARTICLE}</p>{'<b>x</b>' * 9}<p>The end.</p></article>"))
    text = ask(BY_NAME["local_reader"], api, shelf).value.text
    assert text.startswith(ARTICLE.strip()) and "The end." not in text
