"""Search by text in a local index of passages (tantivy, BM25).

A query is taken as a bag of words, never as query syntax: a model writes `title:foo`, an open quote or `C++ [1]` and
means words. The words are cut by the very analyzer that cut the passages and become a query term by term, so that no
string can be a syntax error (`parse_query` raises on such strings, and `parse_query_lenient` still reads a lone `*` as
"everything" and a hyphen as "not").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import tantivy
from tantivy import Filter, Occur, Query

from mmsr1.tools.base import in_thread
from mmsr1.tools.index_files import ContentHash, Manifest, best, building, read_manifest
from mmsr1.types import ToolItem, ToolName, ToolResult

KIND, VERSION = "text", 1
FIELDS = ("title", "text")
MAX_WORDS = 64  # of a query; more only costs time


@dataclass(frozen=True)
class Passage:
    """A piece of text that can be found."""

    id: str
    title: str
    text: str
    url: str


def build_text_index(directory: Path, passages: Iterable[Passage]) -> Manifest:
    """Write an index of the passages.

    Raises ValueError for a repeated id or no passages at all, FileExistsError if the directory exists.
    The directory appears complete or not at all.
    """
    content = ContentHash(KIND, str(VERSION))
    seen: set[str] = set()
    with building(Path(directory)) as scratch:
        (scratch / "tantivy").mkdir()
        index = tantivy.Index(_schema(), path=str(scratch / "tantivy"), reuse=False)
        index.register_tokenizer("english", _analyzer())
        writer = index.writer(num_threads=1)
        try:
            for passage in passages:
                if passage.id in seen:
                    raise ValueError(f"passage id {passage.id!r} occurs twice: ids must be unique")
                seen.add(passage.id)
                writer.add_document(tantivy.Document(**vars(passage)))
                content.add(passage.id, passage.title, passage.text, passage.url)
            if not seen:
                raise ValueError("no passages: an empty index would answer nothing")
            writer.commit()
        finally:
            writer.wait_merging_threads()  # after this no thread of tantivy's writes to the directory any more
        manifest = Manifest(KIND, VERSION, len(seen), content.hexdigest())
        manifest.write(scratch)
    return manifest


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for field in FIELDS:
        builder.add_text_field(field, stored=True, tokenizer_name="english", index_option="freq")
    for field in ("id", "url"):
        builder.add_text_field(field, stored=True, tokenizer_name="raw", index_option="basic")
    return builder.build()


def _analyzer() -> tantivy.TextAnalyzer:
    """Letters and digits, lower case, accents folded, English stop words dropped, Porter's stems."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(Filter.remove_long(64))
    for step in (Filter.lowercase(), Filter.ascii_fold(), Filter.stopword("english"), Filter.stemmer("english")):
        builder = builder.filter(step)
    return builder.build()


class LocalTextSearch:
    """`Tool[str]` over an index of `build_text_index`: the `topk` best passages by BM25 over title and text.

    `required_share` of the query's distinct words (rounded up, stop words aside) must occur in a passage for it to be
    a hit: 0 takes any word, as web search does; 1 demands all, so that a query about an unknown name finds nothing.
    The constructor raises FileNotFoundError or ValueError if the directory holds no index of this version.
    """

    name: ToolName = "text_search"
    price_usd: float = 0.0

    def __init__(self, directory: Path, topk: int = 5, required_share: float = 0.0) -> None:
        if topk < 1 or not 0.0 <= required_share <= 1.0:
            raise ValueError(f"topk={topk}, required_share={required_share}: need topk >= 1 and a share in [0, 1]")
        directory = Path(directory)
        manifest = read_manifest(directory, KIND, VERSION)
        self._topk, self._required_share = topk, required_share
        self._schema, self._analyzer = _schema(), _analyzer()
        self._searcher = tantivy.Index.open(str(directory / "tantivy")).searcher()
        if self._searcher.num_docs != manifest.count:
            raise ValueError(
                f"{directory}: {manifest.count} passages announced, {self._searcher.num_docs} found: build it again"
            )
        self.backend = f"local-text:{manifest.content}:topk={topk}:share={required_share:g}"

    async def __call__(self, query: str) -> ToolResult:
        if not query.strip():
            return ToolResult("malformed_call", detail="the text query is empty")
        return await in_thread(lambda: self._search(query))

    def _search(self, text: str) -> ToolResult:
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot cross into tantivy
        words = list(dict.fromkeys(self._analyzer.analyze(text)))[:MAX_WORDS]
        if not words:
            return ToolResult("empty", detail="the query has no word that can be searched")
        query = self._query(words)

        def fetch(limit: int) -> list[tuple[float, str, ToolItem]]:
            hits = self._searcher.search(query, limit=limit, count=False).hits
            return [(score, *self._read(address)) for score, address in hits]

        items = tuple(best(fetch, self._topk))
        return ToolResult("ok" if items else "empty", items)

    def _query(self, words: list[str]) -> Query:
        """Each word in title or text; as many words as `required_share` demands."""
        wanted = [
            Query.boolean_query([(Occur.Should, Query.term_query(self._schema, f, word, "freq")) for f in FIELDS])
            for word in words
        ]
        needed = max(1, ceil(self._required_share * len(words)))
        return Query.boolean_query([(Occur.Should, query) for query in wanted], minimum_number_should_match=needed)

    def _read(self, address: tantivy.DocAddress) -> tuple[str, ToolItem]:
        stored = self._searcher.doc(address)
        name, title, text, url = (stored[field][0] for field in ("id", "title", "text", "url"))
        return name, ToolItem(title, text, url)
