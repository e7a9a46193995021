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
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mmsr1.rollout.protocol import TAGS

# Not all of them are tokens of the small tokenizer, so not all stand among the protocol's tags.
_NAMES = "|".join((*TAGS, "crop", "tool_response"))
# From every name all its beginnings, so that a text's end can be recognised as a half-written tag.
_BEGINNINGS = "|".join(sorted({name[:n] for name in _NAMES.split("|") for n in range(1, len(name) + 1)}, reverse=True))

# Possessive quantifiers (`*+`) keep the search linear on hostile input such as "<" and a megabyte of spaces.
_OPENING = re.compile(rf"<[\s/\\]*+(?:(?:{_NAMES})(?![a-z0-9_])|(?:{_BEGINNINGS})?\Z)|<\|")
_TAG_CLOSING = re.compile(r"[^<>]{0,200}+>")
_TOKEN_CLOSING = re.compile(r"[^<>|]{0,100}+\|>")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_EXCHANGE = {"<": "(", ">": ")", "|": ":"}
# Look-alikes that Unicode's compatibility forms do not know: other scripts, small capitals, strokes, brackets, bars.
# Capitals stand here where their small letters look like something else.
_DRAWN_ALIKE = {
    "a": "\u0430\u03b1\u0251\u1d00\u13aa\u2c65",
    "c": "\u0441\u03c2\u1d04\u13df\ua793\u00a2\u0188\u1466",
    "d": "\u0501\u1d05\u0111\u0257\u0256\u13a0\u00f0\u13e7",
    "e": "\u0435\u03b5\u1d07\u13ac\u0247\u0454\u025b\u04bd\u212e\u0259",
    "f": "\u0192\ua730\u0584\u03dd",
    "g": "\u0261\u0262\u0581\u13c0\u01e5\u0260",
    "h": "\u04bb\u029c\u0570\u13bb\u0127\u0397\u041d\u0266\u045b",
    "i": "\u0456\u03b9\u0131\u026a\u13a5\u0268\u0269\ua647",
    "k": "\u043a\u03ba\u1d0b\u13e6\ua741\u0199",
    "l": "\u029f\u13de\u0142\u019a\u04cf\u04c0\u2c61\u026b\u217c",
    "m": "\u043c\u1d0d\u13b7\u039c\u0271",
    "n": "\u0578\u057c\u03b7\u0274\u043f\u039d\u014b\u019e\u0273\u03c0",
    "o": "\u043e\u03bf\u1d0f\u0585\u00f8\u03c3\u0d20\u101d\u2134\u0275",
    "p": "\u0440\u03c1\u1d18\u13e2\u1d7d\u00fe\u01a5",
    "r": "\u0433\u0280\u13a1\u13d2\u027d\u024d\u027c",
    "s": "\u0455\ua731\u13da\u054f\u0282\u01bd",
    "t": "\u0442\u03c4\u1d1b\u13a2\u0167\u01ad\u0288",
    "w": "\u051d\u1d21\u13b3\u13d4\u03c9\u0448\u0561\u2c73",
    "x": "\u0445\u03c7\u04b3\u166e\u157d\u00d7",
    "_": "\u203f\u02cd",
    "<": "\u2039\u27e8\u3008\u276c\u2770\u276e\u02c2\u1438\u27ea\u300a\u29fc\u226a\u227a\u22d6\u16b2\U0001d236",
    ">": "\u203a\u27e9\u3009\u276d\u2771\u276f\u02c3\u1433\u27eb\u300b\u29fd\u226b\u227b\u22d7\U0001d237",
    "|": "\u2223\u01c0\u2502\u2758\u00a6\u2016\u2225\u2503\u23d0\u2759\u275a\u23b8\u23b9\u0964\u05c0\u258f\u2595\u4e28",
    "/": "\u2215\u2044\u29f8\u2571\u27cb",
    "\\": "\u2216\u29f5\u2572\u27cd\u29f9",
}
_LOOK_ALIKES = {alike: plain for plain, alikes in _DRAWN_ALIKE.items() for alike in alikes}
# Letters in filled squares and circles, and those that flags are spelt with.
_LOOK_ALIKES |= {chr(start + n): chr(ord("a") + n) for start in (0x1F150, 0x1F170, 0x1F1E6) for n in range(26)}
# Fillers and selectors that are drawn as nothing although Unicode counts them as letters or symbols.
_INVISIBLE = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Format characters, marks, and code points that are not assigned: fonts draw nothing, or only on another character.
_UNDRAWN = ("Cf", "Mn", "Me", "Cn")


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


def one_line(text: str) -> str:
    """The text without line breaks. Results are listed by lines, and so none can pretend to be several."""
    return " ".join(line for line in text.splitlines() if line)


def unknown_tokens(tokens: Iterable[str]) -> tuple[str, ...]:
    """Those of a tokenizer's added tokens that `neutralise` leaves as they are, longest first."""
    return tuple(sorted((token for token in tokens if token in neutralise(token)), key=len, reverse=True))


def break_tokens(text: str, tokens: Sequence[str]) -> str:
    """The text with a space inside each of these tokens, or in the place of one that is a single character."""
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}" if len(token) > 1 else " ")
    return text


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
    parts = unicodedata.normalize("NFKD", character)
    drawn = (part for part in parts if part not in _INVISIBLE and unicodedata.category(part) not in _UNDRAWN)
    return "".join(_plain(part) for part in drawn)


def _plain(character: str) -> str:
    alike = _LOOK_ALIKES.get(character)
    return alike or "".join(_LOOK_ALIKES.get(part, part) for part in character.casefold())
