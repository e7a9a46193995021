"""Hosts whose pages are never shown: mirrors of the data sets would hand the model the answers it is tested on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import urlsplit

_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


class Blocklist:
    """Blocks the hosts and all their subdomains. Raises ValueError for an entry that is no host name."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self.hosts = tuple(sorted({_listed(host) for host in hosts}))
        self._endings = tuple(f".{host}" for host in self.hosts)

    def blocks(self, url: str) -> bool:
        """Whether `url` leads to one of the hosts. An address that cannot be read is blocked, an empty one is not.

        >>> Blocklist(["example.org"]).blocks("https://data.example.org/mirror")
        True
        """
        if not self.hosts or not url.strip():
            return False
        try:
            # Browsers, and readers that act like them, take \ for /; and an address may leave out the scheme's name.
            host = urlsplit(url.strip().replace("\\", "/"), scheme="http").hostname or ""
            return f".{_plain(host)}".endswith(self._endings)
        except ValueError:
            return True


def _plain(host: str) -> str:
    """A host name as DNS is asked for it: lower case, ASCII, without the dot of the root. Raises ValueError."""
    name = unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().rstrip(".")
    return name if name.isascii() else name.encode("idna").decode("ascii")


def _listed(entry: str) -> str:
    try:
        host = _plain(entry.strip().removeprefix("*").removeprefix("."))
    except ValueError:
        host = ""
    if not _HOST.fullmatch(host):
        raise ValueError(f"blocklist: {entry!r} received; give host names such as example.org, without scheme or path")
    return host
