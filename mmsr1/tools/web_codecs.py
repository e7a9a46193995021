"""How pages and summaries are named and kept: what decides them, and nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

from mmsr1.tools.codecs import TEXT, Codec, asked, typed
from mmsr1.tools.store import Store
from mmsr1.tools.web_types import Page, SummaryQuery


def _dump_page(page: Page, store: Store) -> Any:
    return {"url": page.url, "title": page.title, "text": TEXT.dump(page.text, store)}


def _load_page(entry: Any, store: Store) -> Page:
    return Page(typed(entry["url"], str), typed(entry["title"], str), TEXT.load(entry["text"], store))


def _asked_summary(query: SummaryQuery) -> Any:
    """A page by what it says, not by where it was found; the same page may be read for several queries."""
    page = hashlib.sha256(f"{query.page.title}\n{query.page.text}".encode("utf-8", "surrogatepass")).hexdigest()
    return {**asked(query.query), "page": page}


PAGE: Codec[str, Page] = Codec(asked, _dump_page, _load_page)
SUMMARY: Codec[SummaryQuery, str] = Codec(_asked_summary, TEXT.dump, TEXT.load)
