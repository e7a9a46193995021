"""Does a short answer match the truth? Normalisation and matching as in SQuAD (Rajpurkar et al., 2016).

MMSearch-R1 scores answers the same way (arXiv 2506.20670, section 3.3). Two things differ from the SQuAD script.
Punctuation is any Unicode punctuation, not ASCII alone, and invisible format characters (direction marks, zero-width
joiners) are dropped, for truths come from Wikidata in many scripts. And an answer of which nothing is left after
normalisation ("+", "The The") is compared as it was written, so that emptiness never matches emptiness.
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces; may be empty.

    >>> normalise("The  Foot-and-mouth\u2019s!")
    'footandmouths'
    """
    kept = "".join(c for c in _visible(text).lower() if not _is_punctuation(c))
    # Composed once more: what stood between a letter and its accent may be gone.
    return " ".join(word for word in unicodedata.normalize("NFC", kept).split() if word not in _ARTICLES)


def exact_match(prediction: str, truths: Sequence[str]) -> bool:
    """True if the prediction equals any of the truths after normalisation; an empty one equals nothing."""
    return any(_equal(prediction, truth) for truth in truths)


def substring_match(prediction: str, truths: Sequence[str]) -> bool:
    """True if any of the truths stands in the prediction as a run of whole words, after normalisation.

    A truth that normalises to nothing must equal the prediction: searching it for "A" or "+" would match at random.
    """
    return any(_equal(prediction, truth) or _within(prediction, truth) for truth in truths)


def grade(prediction: str, truths: Sequence[str]) -> float:
    """As a lenient judge would: 1 for an exact match, half the words' F1 otherwise (0 to 1/2), the best of the truths.

    >>> grade("the Thames in London", ["Thames"])
    0.25
    """
    if exact_match(prediction, truths):
        return 1.0
    said = normalise(prediction).split()
    return max((token_f1(said, normalise(truth).split()) for truth in truths), default=0.0) / 2


def token_f1(said: Sequence[str], truth: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it stands there."""
    common = (Counter(said) & Counter(truth)).total()
    return 2 * common / (len(said) + len(truth)) if common else 0.0


def _equal(prediction: str, truth: str) -> bool:
    left, right = normalise(prediction), normalise(truth)
    if left and right:
        return left == right
    left, right = _visible(prediction).strip().casefold(), _visible(truth).strip().casefold()
    return left == right != ""


def _within(prediction: str, truth: str) -> bool:
    needle = normalise(truth)
    return needle != "" and f" {needle} " in f" {normalise(prediction)} "


def _visible(text: str) -> str:
    """The text in canonical composition (NFC: one form per accented letter) without format characters (Cf)."""
    return "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")


def _is_punctuation(character: str) -> bool:
    # string.punctuation also holds $+<=>^`|~, which Unicode counts as symbols and SQuAD strips.
    return character in string.punctuation or unicodedata.category(character).startswith("P")
