"""How texts are cut into what is searched for. Whatever changes here is a new version of the index."""

from __future__ import annotations

import re
import unicodedata

import tantivy
from tantivy import Filter

ANALYZER = 3  # of new indexes; 2 does not compose letters and accents, and gives rows no number to sort by
FIELDS = ("title", "text")
GRAMS = "grams"  # the field of scripts that are written without spaces, title and text together
# Thai, Lao, Burmese, Khmer, Japanese, Chinese, and Korean, whose words carry their particles with them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)


def composed(text: str, analyzer: int) -> str:
    """Letters that are written as a letter and an accent become one; else the accent would end the word."""
    return text if analyzer < 3 or text.isascii() else unicodedata.normalize("NFC", text)


def schema(analyzer: int, vectors: bool) -> tantivy.Schema:
    """Each passage knows its row, in order of the input: of its vector if it has one, and to sort by."""
    builder = tantivy.SchemaBuilder()
    for field in FIELDS:
        builder.add_text_field(field, stored=True, tokenizer_name="english", index_option="freq")
    for field in ("id", "url"):
        builder.add_text_field(field, stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field(GRAMS, stored=False, tokenizer_name="spaced", index_option="freq")
    if analyzer >= 3 or vectors:
        builder.add_unsigned_field("row", stored=True, indexed=vectors, fast=analyzer >= 3)
    return builder.build()


def english() -> tantivy.TextAnalyzer:
    """Letters and digits, lower case, accents folded, English stop words dropped, Porter's stems."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(Filter.remove_long(64))
    for step in (Filter.lowercase(), Filter.ascii_fold(), Filter.stopword("english"), Filter.stemmer("english")):
        builder = builder.filter(step)
    return builder.build()


def register(index: tantivy.Index) -> None:
    """The analyzers that the schema names; a writer needs them."""
    index.register_tokenizer("english", english())
    index.register_tokenizer("spaced", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())


def passage_grams(text: str) -> str:
    """Single characters and pairs of neighbours in scripts without spaces, with spaces; empty for all other text."""
    runs = _runs(text)
    return " ".join([*(piece for run in runs for piece in run), *(pair for run in runs for pair in _pairs(run))])


def query_grams(text: str) -> list[str]:
    """The pairs in a query; a character that stands alone is one itself."""
    return [piece for run in _runs(text) for piece in (_pairs(run) or [run])]


def _runs(text: str) -> list[str]:
    return [] if text.isascii() else _UNSPACED.findall(unicodedata.normalize("NFKC", text))


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]
