"""Every adapter with the answer that its service documents, for the tests that all of them must pass."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from fake_api import Say
from PIL import Image

from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.providers import image_provider, reader_provider, summarizer_provider, text_provider
from mmsr1.tools.providers.base import Access
from mmsr1.tools.providers.local_reader import LocalReader
from mmsr1.tools.web_types import ImageHit, Page, SummaryQuery, WebHit
from mmsr1.types import Picture, ToolItem

CANARY = "sk-canary-0123456789/+abcdef"
QUERY = "who built the tower"
IMAGE_URL = "https://images.example/{digest}.png"
HIT = {"title": "The tower", "link": "https://a.example/tower", "snippet": "It was built in 1889.", "position": 1}
LENS_HIT = {"title": "A tower", "link": "https://b.example/1", "source": "B", "thumbnail": "https://t.example/1.jpg"}
WEB = (WebHit("The tower", "https://a.example/tower", "It was built in 1889."),)
LENS = (ImageHit("A tower", "https://b.example/1", "B", "https://t.example/1.jpg"),)
ARTICLE = "The tower was built by a company of engineers between 1887 and 1889 for the world fair. " * 8
HTML = (
    "<html><head><title>The tower</title></head><body><nav><a href='/'>Home</a></nav>"
    f"<article><h1>The tower</h1><p>{ARTICLE}</p></article><footer>imprint</footer></body></html>"
)


def photo(width: int = 64, height: int = 48, noise: bool = False) -> Picture:
    """Stripes, or noise that hardly compresses."""
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        pixels = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()
    return encode_png(Image.fromarray(pixels))


PHOTO = photo()
PAGE = Page("https://a.example/tower", "The tower", ARTICLE)
THUMBNAIL = encode_png(Image.new("RGB", (20, 10), "teal"))
SMALL = encode_png(Image.new("RGB", (10, 5), "teal"))


def network(**options: Any) -> dict[str, Any]:
    """The real network, without the 20 ms that reading the CA certificates takes."""
    return {"transport": httpx.AsyncHTTPTransport(verify=False), "timeout_s": 5.0, **options}


def loopback(access: Access) -> LocalReader:
    """A reader for which this machine's loopback is the web, at the given port only."""
    port = httpx.URL(access.url or "").port
    fetch = SafeFetch(access.timeout_s, allow=lambda ip, asked: ip == "127.0.0.1" and asked == port)
    return LocalReader(access, fetch)


@dataclass(frozen=True)
class Adapter:
    """`make(url, **access)` builds the provider; `good` is what its service answers, `value` what is read in that.

    `block` is the path of keys to the list of hits in `good`; `spoiled` puts something else there. `nothing` are
    answers that mean that there is nothing.
    """

    name: str
    make: Callable[..., Any]
    good: Any
    value: Any
    query: Any = QUERY
    block: tuple[str | int, ...] = ()
    nothing: tuple[Any, ...] = ()
    also: dict[str, Say] = field(default_factory=dict)
    key_env: str | None = None

    def ask_for(self, url: str) -> Any:
        """The query; that of the local reader is an address of the server itself."""
        return f"{url}/tower" if self.name == "local_reader" else self.query

    def expected(self, url: str) -> Any:
        return Page(f"{url}/tower", "The tower", self.value) if self.name == "local_reader" else self.value

    def spoiled(self, wrong: Any) -> Any:
        """The good answer with something else in place of its hits."""

        def replaced(value: Any, path: tuple[str | int, ...]) -> Any:
            if not path:
                return wrong
            if isinstance(value, list):
                return [replaced(item, path[1:]) if at == path[0] else item for at, item in enumerate(value)]
            return {**value, path[0]: replaced(value[path[0]], path[1:])}

        return replaced(self.good, self.block)


def _text(name: str) -> Callable[..., Any]:
    return lambda url, **access: text_provider(name, url=url, **access)


def _image(name: str, **more: Any) -> Callable[..., Any]:
    return lambda url, **access: image_provider(name, url=url, image_url=IMAGE_URL, **{**more, **access})


CHAT = {"choices": [{"message": {"role": "assistant", "content": "It was built in 1889."}, "finish_reason": "stop"}]}
PASSAGE = {"document": {"id": "7", "contents": '"The tower"\nIt was built in 1889.'}, "score": 0.5}
SHOWN = {
    "document": {"id": 7, "title": "A tower", "url": "https://b.example/1"},
    "thumbnail": base64.b64encode(THUMBNAIL.data).decode(),
    "score": 0.9,
}
BULK = {"took": 2, "timed_out": False, "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0}}
KEPT = {"title": "The tower", "text": "It was built in 1889.", "url": "https://a.example/tower"}
POINT = {"id": 7, "version": 3, "score": 0.9, "payload": {"id": "x", "title": "A tower", "url": "https://b.example/1"}}
NO_RESULTS = {"error": "Google hasn't returned any results for this query.", "search_metadata": {"status": "Success"}}
FINE = {"search_metadata": {"status": "Success"}}
UPLOADED = {"/image": Say({"image_id": "img-1"})}

ADAPTERS = (
    Adapter(
        "serpapi_search",
        _text("serpapi"),
        {**FINE, "organic_results": [HIT]},
        WEB,
        block=("organic_results",),
        nothing=(NO_RESULTS, FINE, {**FINE, "organic_results": []}),
        key_env="SERPAPI_API_KEY",
    ),
    Adapter(
        "serpapi_lens",
        _image("serpapi"),
        {**FINE, "visual_matches": [LENS_HIT]},
        LENS,
        PHOTO,
        ("visual_matches",),
        nothing=(NO_RESULTS, FINE),
        also=UPLOADED,
        key_env="SERPAPI_API_KEY",
    ),
    Adapter(
        "serpapi_lens_by_url",
        _image("serpapi", options={"by": "url"}),
        {**FINE, "visual_matches": [LENS_HIT]},
        LENS,
        PHOTO,
        ("visual_matches",),
        nothing=(NO_RESULTS,),
        key_env="SERPAPI_API_KEY",
    ),
    Adapter(
        "serper_search",
        _text("serper"),
        {"searchParameters": {"q": QUERY}, "organic": [HIT]},
        WEB,
        block=("organic",),
        nothing=({"searchParameters": {"q": QUERY}}, {"organic": []}),
        key_env="SERPER_API_KEY",
    ),
    Adapter(
        "serper_lens",
        _image("serper"),
        {"organic": [{**LENS_HIT, "thumbnailUrl": LENS_HIT["thumbnail"], "imageUrl": "https://i.example/1.jpg"}]},
        LENS,
        PHOTO,
        ("organic",),
        nothing=({"organic": []},),
        key_env="SERPER_API_KEY",
    ),
    Adapter(
        "brave",
        _text("brave"),
        {
            "type": "search",
            "web": {
                "results": [
                    {"title": "The tower", "url": HIT["link"], "description": "It was <strong>built</strong> in 1889."}
                ]
            },
        },
        WEB,
        block=("web", "results"),
        nothing=({"type": "search"}, {"type": "search", "web": {"results": []}}),
        key_env="BRAVE_API_KEY",
    ),
    Adapter(
        "tavily",
        _text("tavily"),
        {"results": [{"title": "The tower", "url": HIT["link"], "content": HIT["snippet"], "score": 0.9}]},
        WEB,
        block=("results",),
        nothing=({"results": []},),
        key_env="TAVILY_API_KEY",
    ),
    Adapter(
        "searxng",
        _text("searxng"),
        {"results": [{"title": "The tower", "url": HIT["link"], "content": HIT["snippet"]}]},
        WEB,
        block=("results",),
        nothing=({"results": []}, {"results": [], "unresponsive_engines": []}),
    ),
    Adapter(
        "jina_reader",
        lambda url, **access: reader_provider("jina", url=url, **access),
        {
            "code": 200,
            "status": 20000,
            "data": {"url": PAGE.url, "title": "The tower", "content": ARTICLE, "usage": {"tokens": 150}},
        },
        Page(PAGE.url, "The tower", ARTICLE.strip()),
        PAGE.url,
        ("data", "content"),
        key_env="JINA_API_KEY",
    ),
    Adapter(
        "local_reader",
        lambda url, **access: loopback(Access(url=url, **access)),
        HTML,
        f"The tower\n{ARTICLE.strip()}",
    ),
    Adapter(
        "openai_summarizer",
        lambda url, **access: summarizer_provider(
            "openai", url=url, **{"options": {"model": "m"}, "key_env": "SUMMARY_KEY", **access}
        ),
        CHAT,
        "It was built in 1889.",
        SummaryQuery(QUERY, PAGE),
        ("choices",),
        nothing=({"choices": [{"message": {"content": "<think>no</think>\nNone."}}]},),
        key_env="SUMMARY_KEY",
    ),
    Adapter(
        "retrieve_text",
        _text("retrieve"),
        {"result": [[PASSAGE]]},
        (ToolItem("The tower", "It was built in 1889."),),
        block=("result", 0),
        nothing=({"result": [[]]},),
    ),
    Adapter(
        "retrieve_image",
        lambda url, **access: image_provider("retrieve", url=url, thumbnail_edge=10, **access),
        {"result": [[SHOWN]]},
        (ToolItem("A tower", "", "https://b.example/1", SMALL),),
        PHOTO,
        ("result", 0),
        nothing=({"result": [[]]},),
    ),
    Adapter(
        "opensearch",
        _text("opensearch"),
        {**BULK, "hits": {"max_score": 3.0, "hits": [{"_id": "x", "_score": 3.0, "_source": KEPT}]}},
        (ToolItem("The tower", "It was built in 1889.", "https://a.example/tower"),),
        block=("hits", "hits"),
        nothing=({**BULK, "hits": {"max_score": None, "hits": []}},),
    ),
    Adapter(
        "qdrant_image",
        _image("qdrant"),
        {"status": "ok", "time": 0.001, "result": {"points": [POINT]}},
        (ToolItem("A tower", "", "https://b.example/1"),),
        PHOTO,
        ("result", "points"),
        nothing=({"status": "ok", "result": {"points": []}},),
    ),
)
BY_NAME = {adapter.name: adapter for adapter in ADAPTERS}
