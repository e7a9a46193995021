"""Search by text in a local index of passages (tantivy, BM25; with a model also by vectors).

A query is taken as a bag of words, never as query syntax: a model writes `title:foo`, an open quote or `C++ [1]` and
means words. The words are cut by the very analyzer that cut the passages and become a query term by term, so that no
string can be a syntax error (`parse_query` raises on such strings, and `parse_query_lenient` still reads a lone `*` as
"everything" and a hyphen as "not").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log
from pathlib import Path
from typing import Any

import tantivy
from tantivy import Occur, Query

from mmsr1.tools.base import in_thread
from mmsr1.tools.embedding import TextEncoder, encoder_of
from mmsr1.tools.index.building import build_at_once
from mmsr1.tools.index.vectors import FILE as VECTORS
from mmsr1.tools.index.vectors import Nearest
from mmsr1.tools.index_files import Manifest, best, opened
from mmsr1.tools.text_search.proximity import CANDIDATES, CHARACTERS, bonus
from mmsr1.tools.text_search.words import FIELDS, GRAMS, composed, english, query_grams
from mmsr1.tools.text_search.writing import Passage, TextWriter
from mmsr1.types import ToolItem, ToolName, ToolResult

KIND = "text"
MAX_WORDS = 64  # of a query; more only costs time
_POOL = 50  # the least number of passages that a model sorts, or that each of two rankings brings in
_RANK = 60  # of reciprocal rank fusion: how little the very first places count above those after them

__all__ = ["LocalTextSearch", "Passage", "TextHit", "build_text_index"]


@dataclass(frozen=True)
class TextHit:
    """A passage that was found; `score` compares hits of one query only, `row` is its number if the index has such."""

    id: str
    score: float
    item: ToolItem
    row: int | None = None


def build_text_index(directory: Path, passages: Iterable[Passage]) -> Manifest:
    """Write an index of the passages that is searched by BM25 alone.

    The analyzer stays the second one: so the emblem world keeps its content hash, and what is cached under it.

    Raises ValueError for a repeated id or no passages at all, FileExistsError if the directory exists.
    The directory appears complete or not at all.
    """

    settings = TextWriter.settings(proximity=False, analyzer=2)

    def writer(scratch: Path) -> TextWriter:
        return TextWriter(scratch, settings, None, resumed=False, threads=1)

    return build_at_once(Path(directory), writer, settings, passages)


class LocalTextSearch:
    """`Tool[str]` over a text index: the `topk` best passages by BM25 over title and text.

    An index with a model answers as it was built to: `hybrid` joins the rankings by words and by vectors (reciprocal
    rank fusion), `rerank` sorts the best by words anew by their vectors.
    `required_share` of the query's distinct words (rounded up, stop words aside) must occur in a passage for it to be
    a hit by words: 0 takes any word, as web search does; 1 demands all, so that a query about an unknown name finds
    nothing. `model` is where the index's model lies now, if it was moved.
    The constructor raises FileNotFoundError or ValueError if the directory holds no index of this version.
    """

    name: ToolName = "text_search"
    price_usd: float = 0.0

    def __init__(self, directory: Path, topk: int = 5, required_share: float = 0.0, model: str | None = None) -> None:
        if topk < 1 or not 0.0 <= required_share <= 1.0:
            raise ValueError(f"topk={topk}, required_share={required_share}: need topk >= 1 and a share in [0, 1]")
        self._topk, self._required_share = topk, required_share
        self._analyzer = english()
        self._encode: TextEncoder | None = None
        opened(Path(directory), KIND, lambda manifest: self._open(Path(directory), manifest))
        if "encoder" in self.manifest.settings:
            self._encode = encoder_of(TextEncoder, Path(directory), self.manifest.settings, model)
        self.backend = f"local-text:{self.manifest.content}:topk={topk}:share={required_share:g}"

    def _open(self, directory: Path, manifest: Manifest) -> None:
        index = tantivy.Index.open(str(directory / manifest.parts.get("tantivy", "tantivy")))
        index.config_reader("manual")  # this tool answers from what it has opened, whoever appends
        self.manifest, self._schema, self._searcher = manifest, index.schema, index.searcher()
        self._cut = manifest.settings.get("analyzer", 1)
        if self._searcher.num_docs != manifest.count:
            raise ValueError(f"{manifest.count} passages announced, {self._searcher.num_docs} found")
        if "encoder" in manifest.settings:
            dimensions = manifest.sizes[VECTORS] // (4 * manifest.count)
            self._nearest = Nearest(directory, manifest.parts, manifest.count, dimensions)

    async def __call__(self, query: str) -> ToolResult:
        if not query.strip():
            return ToolResult("malformed_call", detail="the text query is empty")
        return await in_thread(lambda: self._result(query))

    def _result(self, query: str) -> ToolResult:
        hits = self.find(query)
        if not hits and not self._terms(self._words(query)):
            return ToolResult("empty", detail="the query has no word that can be searched")
        return ToolResult("ok" if hits else "empty", tuple(hit.item for hit in hits))

    def find(self, query: str) -> list[TextHit]:
        """The hits, best first; none for a query without words. Blocks; no string is an error."""
        text = self._words(query)
        if self._encode is None:
            return self._by_words(text, self._topk)
        if not text.strip():
            return []
        vector = self._encode([text], query=True)[0]
        pool = max(_POOL, 4 * self._topk)
        by_words = self._by_words(text, pool)
        if self.manifest.settings["mode"] == "rerank":
            rows = self._nearest.rows
            scored = [(float(rows[hit.row] @ vector), hit) for hit in by_words if hit.row is not None]
        else:
            scored = _fused(by_words, [self._at_row(row, score) for score, row in self._nearest.search(vector, pool)])
        scored.sort(key=lambda one: (-round(one[0], 6), one[1].id))
        return [TextHit(hit.id, score, hit.item) for score, hit in scored[: self._topk]]

    def _by_words(self, text: str, limit: int) -> list[TextHit]:
        terms = self._terms(text)
        if not terms:
            return []
        query, near = self._query(terms), self.manifest.settings.get("proximity")

        def fetch(limit: int) -> Sequence[tuple[float, tantivy.DocAddress]]:
            return self._searcher.search(query, limit=limit, count=False).hits

        found = best(fetch, self._order, max(limit, CANDIDATES) if near else limit, self.manifest.count)
        hits = [self._read(address, score) for score, address in found]
        if not near:
            return hits
        hits = self._nearer(text, hits)
        return sorted(hits, key=lambda hit: (-round(hit.score, 4), hit.id))[:limit]

    def _order(self, addresses: Sequence[tantivy.DocAddress]) -> Sequence[Any]:
        """What equally good passages are sorted by: their rows; in older indexes their ids, for which all are read."""
        if self._cut < 3:
            return [self._searcher.doc(address)["id"][0] for address in addresses]
        return self._searcher.fast_field_values("row", list(addresses))

    def _nearer(self, text: str, hits: list[TextHit]) -> list[TextHit]:
        """The hits with a bonus for words that stand together."""
        words = self._analyzer.analyze(text)[:MAX_WORDS]
        rarity = {word: self._rarity(word) for word in set(words)}
        analyze = self._analyzer.analyze
        return [
            replace(hit, score=hit.score + bonus(words, analyze(hit.item.text[:CHARACTERS]), rarity)) for hit in hits
        ]

    def _rarity(self, word: str) -> float:
        """The inverse document frequency of BM25."""
        found = self._searcher.doc_freq("text", word)
        return log(1 + (self._searcher.num_docs - found + 0.5) / (found + 0.5))

    def _terms(self, text: str) -> list[tuple[str, tuple[str, ...]]]:
        """Each distinct word with the fields that it may stand in."""
        terms: list[tuple[str, tuple[str, ...]]] = [
            (word, FIELDS) for word in dict.fromkeys(self._analyzer.analyze(text))
        ]
        if "analyzer" in self.manifest.settings:
            terms += [(gram, (GRAMS,)) for gram in dict.fromkeys(query_grams(text))]
        return terms[:MAX_WORDS]

    def _query(self, terms: list[tuple[str, tuple[str, ...]]]) -> Query:
        """Each word in any of its fields; as many words as `required_share` demands."""
        wanted = [
            Query.boolean_query([(Occur.Should, Query.term_query(self._schema, f, word, "freq")) for f in fields])
            for word, fields in terms
        ]
        needed = max(1, ceil(self._required_share * len(terms)))
        return Query.boolean_query([(Occur.Should, query) for query in wanted], minimum_number_should_match=needed)

    def _read(self, address: tantivy.DocAddress, score: float) -> TextHit:
        stored = self._searcher.doc(address)
        name, title, text, url = (stored[field][0] for field in ("id", "title", "text", "url"))
        return TextHit(name, score, ToolItem(title, text, url), stored.get_first("row"))

    def _at_row(self, row: int, score: float) -> TextHit:
        query = Query.term_query(self._schema, "row", row)
        return self._read(self._searcher.search(query, limit=1, count=False).hits[0][1], score)

    def _words(self, query: str) -> str:
        """As the passages were written; a lone surrogate cannot cross into tantivy."""
        return composed(query.encode("utf-8", "replace").decode(), self._cut)


def _fused(*rankings: list[TextHit]) -> list[tuple[float, TextHit]]:
    """Each hit with the sum, over the rankings that have it, of 1 / (60 + its place)."""
    sums: dict[str, float] = {}
    hits: dict[str, TextHit] = {}
    for ranking in rankings:
        for place, hit in enumerate(ranking, 1):
            sums[hit.id] = sums.get(hit.id, 0.0) + 1 / (_RANK + place)
            hits.setdefault(hit.id, hit)
    return [(score, hits[name]) for name, score in sums.items()]
