"""Text from outside can never become a control token or a structural tag.

A web page may contain `<|im_end|>`, `</information>` or a disguise of them: full-width letters, accents, zero-width
characters in between. Reading happens on a *shadow* of the text in which such disguises are undone; writing happens on
the text itself, where only the brackets and pipes of what was found are exchanged: `</answer>` becomes `(/answer)`,
`<|im_end|>` becomes `(:im_end:)`. All other characters stay, so ordinary text comes through untouched.

Why no tag can come about later:
- Nothing is removed after the search (control characters go before it), so no two halves can meet, and a bracket is
  only ever exchanged for a character that is part of no tag. So one pass is enough, and a second changes nothing.
- A `<` is also exchanged when the text *ends* before it is clear what it opens ("<", "</", "<ans"). So safe texts can
  be joined in any order: no text begins a tag that the next could finish. Cut text first and neutralise it
  afterwards: a cut makes a new end.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from mmsr1.rollout.protocol import TAGS

_NAMES = "|".join((*TAGS, "tool_response"))
# From every name all its beginnings, so that a text's end can be recognised as a half-written tag.
_BEGINNINGS = "|".join(sorted({name[:n] for name in _NAMES.split("|") for n in range(1, len(name) + 1)}, reverse=True))

# Possessive quantifiers (`*+`) keep the search linear on hostile input such as "<" and a megabyte of spaces.
_OPENING = re.compile(rf"<[\s/\\]*+(?:(?:{_NAMES})(?![a-z0-9_])|(?:{_BEGINNINGS})?\Z)|<\|")
_TAG_CLOSING = re.compile(r"[^<>]{0,200}+>")
_TOKEN_CLOSING = re.compile(r"[^<>|]{0,100}+\|>")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_EXCHANGE = {"<": "(", ">": ")", "|": ":"}
# Look-alikes that Unicode's compatibility forms do not know: Cyrillic, Greek and dotless letters, brackets, bars.
_LOOK_ALIKES = dict(
    zip(
        "асеһіӏкморгѕтԝхпαεικορτχηωıɡƒ‹⟨〈❬❰˂ᐸ›⟩〉❭❱˃ᐳ∣ǀ│❘￨∕⁄⧸",
        "acehilkmoprstwxnaeikoptxnwigf<<<<<<<>>>>>>>|||||///",
        strict=True,
    )
)
# Fillers and selectors that are drawn as nothing although Unicode counts them as letters.
_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def neutralise(text: str) -> str:
    """The text without control tokens, structural tags (open, closed, half open, with attributes) and look-alikes.

    Control characters other than newline and tab are dropped, carriage returns become newlines, and lone surrogates,
    which no tokenizer can encode, are dropped too. Idempotent, and safe under joining (see the module's docstring).

    >>> neutralise("see </information><|im_end|> if x < 3 and y > 2")
    'see (/information)(:im_end:) if x < 3 and y > 2'
    """
    text = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    shadow, places = _shadow(text)
    characters = list(text)
    for opening in _OPENING.finditer(shadow):
        found = [opening.start()]
        if opening.group().endswith("|"):
            found.append(opening.end() - 1)
            closing = _TOKEN_CLOSING.match(shadow, opening.end())
            found += [closing.end() - 2, closing.end() - 1] if closing else []
        else:
            closing = _TAG_CLOSING.match(shadow, opening.end())
            found += [closing.end() - 1] if closing else []
        for at in found:
            characters[places[at]] = _EXCHANGE[shadow[at]]
    return "".join(characters)


def _shadow(text: str) -> tuple[str, range | list[int]]:
    """The text with disguises undone, and for each of its characters the place in `text` that it comes from."""
    if text.isascii():
        return text.lower(), range(len(text))
    folded = [_fold(character) for character in text]
    places = [place for place, part in enumerate(folded) for _ in part]
    return "".join(folded), places


@lru_cache(maxsize=2**14)
def _fold(character: str) -> str:
    """What one character is taken for: decomposed, without marks and invisible characters, lower case."""
    if character in _INVISIBLE:
        return ""
    parts = unicodedata.normalize("NFKD", character).casefold()
    plain = (part for part in parts if part not in _INVISIBLE and unicodedata.category(part) not in ("Cf", "Mn", "Me"))
    return "".join(_LOOK_ALIKES.get(part, part) for part in plain)
