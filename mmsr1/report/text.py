"""Names and errors of others as text that people can read, wherever it is shown."""

from __future__ import annotations


def one_line(text: object) -> str:
    """In one line, of characters that can be seen: a terminal or a file takes nothing in it for more than text."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
