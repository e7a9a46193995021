"""The services that can be asked, by the names that a configuration gives them.

Every function raises ValueError in one line: for a provider or option it does not know, or an address it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsr1.tools.providers.base import Access, WebProvider
from mmsr1.tools.providers.brave import BraveSearch
from mmsr1.tools.providers.jina import JinaReader
from mmsr1.tools.providers.local_reader import LocalReader
from mmsr1.tools.providers.opensearch import OpenSearch
from mmsr1.tools.providers.qdrant import QdrantImage, QdrantText
from mmsr1.tools.providers.retrieve import RetrieveImage, RetrieveText
from mmsr1.tools.providers.searxng import SearxngSearch
from mmsr1.tools.providers.serpapi import SerpApiLens, SerpApiSearch
from mmsr1.tools.providers.serper import SerperLens, SerperSearch
from mmsr1.tools.providers.summarizer import OpenAiSummarizer
from mmsr1.tools.providers.tavily import TavilySearch
from mmsr1.tools.web_types import ImageHit, Page, SummaryQuery, WebHit
from mmsr1.types import Picture, ToolItem

TEXT: Mapping[str, type[WebProvider[str, tuple[WebHit, ...]]]] = {
    "serpapi": SerpApiSearch,
    "serper": SerperSearch,
    "brave": BraveSearch,
    "tavily": TavilySearch,
    "searxng": SearxngSearch,
}


PASSAGES: Mapping[str, type[WebProvider[str, tuple[ToolItem, ...]]]] = {
    "retrieve": RetrieveText,
    "opensearch": OpenSearch,
    "qdrant": QdrantText,
}


def text_provider(
    name: str, **access: Any
) -> WebProvider[str, tuple[WebHit, ...]] | WebProvider[str, tuple[ToolItem, ...]]:
    """A text search; keywords are the fields of `Access`. Those of `PASSAGES` find passages, all others find pages."""
    if name in PASSAGES:
        return PASSAGES[name](Access(**access))
    if name not in TEXT:
        raise ValueError(f"provider={name}: no text search; known: {', '.join(sorted([*TEXT, *PASSAGES]))}")
    return TEXT[name](Access(**access))


def image_provider(
    name: str, *, image_url: str | None = None, thumbnail_edge: int = 280, **access: Any
) -> WebProvider[Picture, tuple[ImageHit, ...]] | RetrieveImage | QdrantImage:
    """An image search; other keywords are the fields of `Access`.

    `image_url` is where the pictures can be fetched by a service that takes an address only, with {digest} for the
    name. `thumbnail_edge` (pixels) bounds the thumbnails that `retrieve` sends along; its hits and those of `qdrant`
    are whole results, those of the others are pages.
    """
    if name == "serpapi":
        return SerpApiLens(Access(**access), image_url)
    if name == "serper":
        return SerperLens(Access(**access), image_url)
    if name == "retrieve":
        return RetrieveImage(Access(**access), thumbnail_edge)
    if name == "qdrant":
        return QdrantImage(Access(**access))
    raise ValueError(f"provider={name}: no image search; known: qdrant, retrieve, serpapi, serper")


def reader_provider(name: str, **access: Any) -> WebProvider[str, Page]:
    """A reader of pages; keywords are the fields of `Access`."""
    if name == "jina":
        return JinaReader(Access(**access))
    if name == "local":
        return LocalReader(Access(**access))
    raise ValueError(f"provider={name}: no reader; known: jina, local")


def summarizer_provider(
    name: str, *, sentences: int = 5, page_characters: int = 30_000, **access: Any
) -> WebProvider[SummaryQuery, str]:
    """A summariser: at most `sentences` of the first `page_characters` of a page; others are fields of `Access`."""
    if name == "openai":
        return OpenAiSummarizer(Access(**access), sentences, page_characters)
    raise ValueError(f"provider={name}: no summariser; known: openai")
