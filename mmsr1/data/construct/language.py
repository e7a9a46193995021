"""Is a text written in the script of a language? A cheap look before a model is asked which language it is."""

from __future__ import annotations

import unicodedata

LEAST = 0.35  # share of the letters; names of people and products come in a script of their own, and are long
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "ur": ("ARABIC",),
    "bg": ("CYRILLIC",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "sr": ("CYRILLIC", "LATIN"),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
    "th": ("THAI",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "zh": ("CJK",),
    "ko": ("HANGUL", "CJK"),
}


def in_script(text: str, language: str) -> bool:
    """Whether most letters are of a script that the language (ISO 639-1) is written in; Latin where none is known.

    >>> in_script("Who built it?", "en"), in_script("Who built it?", "ja")
    (True, False)
    """
    letters = [character for character in unicodedata.normalize("NFC", text) if character.isalpha()]
    scripts = _SCRIPTS.get(language, ("LATIN",))
    own = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    return bool(letters) and own >= LEAST * len(letters)
