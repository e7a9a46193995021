"""How each benchmark scores a short answer by rule. Pure functions: texts and labels in, numbers out.

`score` judges one answer, `summarise` makes the figures of a set from that. Every metric gives `em` and `subem` too.
What a judge says is another matter (`mmsr1.evaluation.judge`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr1.evaluation import mmlongbench
from mmsr1.rewards.answer import exact_match, substring_match, token_f1

Scores = dict[str, float]
Rows = Sequence[tuple[Mapping[str, Any], Mapping[str, float]]]


@dataclass(frozen=True)
class Metric:
    """`score` takes what was said, the truths and the labels; `figures` sums up rows of (labels, scores)."""

    score: Callable[[str, Sequence[str], Mapping[str, Any]], Scores]
    figures: Callable[[Rows], Scores]


def score(metric: str, said: str | None, truths: Sequence[str], labels: Mapping[str, Any]) -> Scores:
    """The scores of one answer, from 0 to 1; None, no answer, is scored as an empty one.

    Raises ValueError for a metric that there is not.
    """
    answer = said or ""
    plain = {"em": float(exact_match(answer, truths)), "subem": float(substring_match(answer, truths))}
    return plain | _metric(metric).score(answer, truths, labels)


def summarise(metric: str, rows: Rows) -> Scores:
    """The figures of a set of answers from their (labels, scores); none that nobody has a score for.

    Raises ValueError for a metric that there is not.
    """
    return means(rows, ("em", "subem")) | _metric(metric).figures(rows)


def means(rows: Rows, names: Sequence[str]) -> Scores:
    """Of each score over the rows that have it."""
    columns = {name: [scores[name] for _, scores in rows if name in scores] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"metric: {name!r} received; choose one of {', '.join(METRICS)}")
    return METRICS[name]


def _em(said: str, truths: Sequence[str], labels: Mapping[str, Any]) -> Scores:
    return {}


def _mmsearch(said: str, truths: Sequence[str], labels: Mapping[str, Any]) -> Scores:
    """F1 of the words against the nearest truth (MMSearch, arXiv 2409.12959: its end-to-end score)."""
    words = _ascii_words(said)
    return {"mmsearch_f1": max((token_f1(words, _ascii_words(truth)) for truth in truths), default=0.0)}


def _ascii_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", _without_punctuation(text.lower())).split()


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _slidevqa(said: str, truths: Sequence[str], labels: Mapping[str, Any]) -> Scores:
    """Exact match and F1 of the words as in the script of SlideVQA (arXiv 2301.04883, section 5.2)."""
    question = str(labels.get("question", ""))
    words, expected = slide_words(said, question), [slide_words(truth, question) for truth in truths]
    return {
        "slidevqa_em": float(any(words == truth for truth in expected if truth)),
        "slidevqa_f1": max((token_f1(words, truth) for truth in expected), default=0.0),
    }


# In the order in which the script replaces them, inside words too: both sides are treated alike.
_SLIDE_REPLACED = (
    ("this is ", ""),
    ("it is ", ""),
    ("&", ","),
    ("and", ","),
    ("percent", ""),
    ("organisation", "organization"),
    ("because of", ""),
    ("because", ""),
    ("due to", ""),
    ("hours", "hrs"),
    ("minites", "min"),
)
_SLIDE_NUMBERS = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19},
}


def slide_words(text: str, question: str) -> list[str]:
    """The words that SlideVQA's script compares.

    Dropped are the unit that the question names (the word after "how many" or "which", which the script looks for in
    lower case only), punctuation and articles; of an answer that begins with yes or no only the first word counts.

    >>> slide_words("The twelve countries", "how many countries are shown?")
    ['12']
    """
    text = text.lower()
    for old, new in _SLIDE_REPLACED:
        text = text.replace(old, new)
    for asking in ("how many", "which"):
        before, found, after = question.partition(asking)
        if found and after.split():
            text = text.replace(after.split()[0], "")
    text = re.sub(r"\b(a|an|the)\b", " ", _without_punctuation(text))
    words = text.split()
    if text.startswith(("yes", "no")):
        words = words[:1]
    return [str(_SLIDE_NUMBERS.get(word, word)) for word in words]


METRICS: Mapping[str, Metric] = {
    "em": Metric(_em, lambda rows: {}),
    "mmsearch": Metric(_mmsearch, lambda rows: means(rows, ("mmsearch_f1",))),
    "slidevqa": Metric(_slidevqa, lambda rows: means(rows, ("slidevqa_em", "slidevqa_f1"))),
    "mmlongbench": Metric(mmlongbench.score, mmlongbench.figures),
}
