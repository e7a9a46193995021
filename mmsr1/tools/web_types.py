"""What passes between the parts of web search. All text and all addresses are untrusted and as they came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WebHit:
    """A hit of a text search; `snippet` is what the search engine quotes of the page."""

    title: str
    url: str
    snippet: str


@dataclass(frozen=True)
class ImageHit:
    """A page that shows a similar picture. `source` names its site; `thumbnail_url` is http(s), data: or empty."""

    title: str
    url: str
    source: str
    thumbnail_url: str


@dataclass(frozen=True)
class Page:
    """What a reader made of a page; `url` is the one that was asked for, `text` plain text or markdown."""

    url: str
    title: str
    text: str


@dataclass(frozen=True)
class SummaryQuery:
    """Summarise `page` for somebody who searched for `query`."""

    query: str
    page: Page
