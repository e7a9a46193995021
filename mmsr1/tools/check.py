"""Try every configured part once, past the cache, and say what is wrong with it, before a run finds out.

    python -m mmsr1.tools.check tools=web tools.summarizer.url=http://localhost:8000
    python -m mmsr1.tools.check tools=local tools.text_index=wiki

Overrides are those of train.py. Exit status 1 if a part cannot be used as it is, 2 for a mistake in the configuration.
A part is asked once, a reader up to three times: one page or another refuses to be read. Indexes of one's own and
bundles are opened; the emblem world's indexes are made by a run itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from rich import box
from rich.console import Console
from rich.table import Column, Table

from mmsr1 import cli
from mmsr1.assembly.tools import part_providers
from mmsr1.cli import refuse
from mmsr1.config import ToolsConfig
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.tools.base import CallFailed
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.providers.base import Provider
from mmsr1.tools.providers.raw import RawBackend
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.thumbnails import ThumbnailBackend
from mmsr1.tools.web_types import ImageHit, Page, SummaryQuery, WebHit
from mmsr1.types import Picture

QUERY = "When was the Eiffel Tower built?"
PAGE = Page(
    "https://en.wikipedia.org/wiki/Eiffel_Tower",
    "Eiffel Tower",
    "The Eiffel Tower stands in Paris. It was built from 1887 to 1889 by the company of Gustave Eiffel.",
)
INDEXES: Mapping[str, Callable[[Path], Any]] = {"text_search": LocalTextSearch, "image_search": LocalImageSearch}
PAGES_TRIED = 3  # one page or another refuses to be read, whoever asks
REMEDIES: Mapping[str, str] = {
    "transient": "not reachable",
    "throttled": "asked too often just now",
    "exhausted": "no calls or credits left",
    "refused": "refused (key, address, option, plan or proxy)",
    "blocked": "refuses to be read",
    "broken": "answers what cannot be read",
    "invalid": "does not accept the request",
}


@dataclass(frozen=True)
class Finding:
    """What came of trying a part; `wrong` is empty if it can be used."""

    part: str
    provider: str
    seconds: float
    cost_usd: float
    said: str
    wrong: str = ""


async def tried(tools: ToolsConfig, image_searches: int = 1) -> list[Finding]:
    """A finding for each part, those of this disk first, then in the order in which a search uses them; none for an
    image search that no episode may make. Raises ConfigError."""
    found = await _of_this_disk(tools, image_searches)
    pictures, pages = [], [PAGE.url]
    for name, provider in part_providers(tools):
        if name == "image_search" and not image_searches:
            continue
        try:
            if name == "image_search":
                finding, hits = await _try(name, provider, _picture())
                pictures = [hit.thumbnail_url for hit in hits or () if isinstance(hit, ImageHit) and hit.thumbnail_url]
            elif name == "text_search":
                finding, hits = await _try(name, provider, QUERY)
                pages = [hit.url for hit in hits or () if isinstance(hit, WebHit)] or pages
            elif name == "reader":
                finding = await _first_good(name, provider, pages)
            else:
                finding, _ = await _try(name, provider, SummaryQuery(QUERY, PAGE))
            found.append(finding)
        finally:
            await provider.aclose()
        if name == "image_search" and tools.thumbnails and pictures:
            found.append(await _thumbnail(tools, pictures[0]))
    return found


async def _of_this_disk(tools: ToolsConfig, image_searches: int) -> list[Finding]:
    """A finding for each index of the user's own and each search that is replayed."""
    found = []
    wanted: tuple[tuple[str, str, str | None, str | Picture], ...] = (
        ("image_search", tools.image_search.provider, tools.image_index, _picture()),
        ("text_search", tools.text_search.provider, tools.text_index, QUERY),
    )
    for name, provider, index, query in wanted if image_searches else wanted[1:]:
        if provider == "replay":
            found.append(await _timed(name, "bundle", _in_bundle(Path(tools.bundle or ""), name)))
        elif provider == "local" and index is not None:
            found.append(await _timed(name, "local index", _in_index(Path(index), name, query)))
    return found


async def _timed(name: str, what: str, look: Awaitable[str]) -> Finding:
    start = time.perf_counter()
    try:
        said, wrong = await look, ""
    except (OSError, ValueError) as error:
        said, wrong = "not opened", " ".join(str(error).split())
    return Finding(name, what, time.perf_counter() - start, 0.0, said, wrong)


async def _in_index(folder: Path, name: str, query: str | Picture) -> str:
    """How much an index holds that answers. Raises OSError or ValueError for one that cannot be used."""
    tool = await asyncio.to_thread(INDEXES[name], folder)
    if (result := await tool(query)).status == "infrastructure_error":
        raise ValueError(f"{folder}: {result.detail}")
    return f"{tool.manifest.count} {'passages' if tool.manifest.kind == 'text' else 'pictures'}"


async def _in_bundle(folder: Path, name: str) -> str:
    """How many searches of this kind a bundle answers. Raises OSError or ValueError for one that cannot be used."""
    try:
        bundle = await asyncio.to_thread(Bundle, folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from error
    bundle.close()
    return f"{sum(bundle.manifest.tools.get(name, {}).values())} searches"


async def _try(name: str, provider: Provider[Any, Any], query: Any) -> tuple[Finding, Any]:
    """(finding, what was found); one attempt, without anything around it."""
    if provider.secret is not None and provider.secret.missing:
        wrong = f"key missing: put it into the environment variable {provider.secret.env}"
        return Finding(name, provider.name, 0.0, 0.0, "not asked", wrong), None
    start = time.perf_counter()
    try:
        answer = await RawBackend(provider).ask(query)
        value = None if answer.value is None else provider.parse(answer.value, query)
    except CallFailed as error:
        seconds = time.perf_counter() - start
        return Finding(name, provider.name, seconds, error.cost_usd, error.cause, _wrong(error, provider)), None
    seconds = time.perf_counter() - start
    return Finding(name, provider.name, seconds, answer.cost_usd, _summary_of(value)), value


async def _first_good(name: str, provider: Provider[Any, Any], pages: list[str]) -> Finding:
    """The first page that can be read, or why the last one that was tried cannot."""
    finding, cost_usd = None, 0.0
    for page in pages[:PAGES_TRIED]:
        finding, value = await _try(name, provider, page)
        cost_usd += finding.cost_usd
        if value is not None or not finding.wrong.startswith(REMEDIES["blocked"]):
            break
    assert finding is not None
    return Finding(finding.part, finding.provider, finding.seconds, cost_usd, finding.said, finding.wrong)


async def _thumbnail(tools: ToolsConfig, url: str) -> Finding:
    fetch, start = SafeFetch(10.0, tools.thumbnail_hosts), time.perf_counter()
    try:
        answer = await ThumbnailBackend(fetch, tools.thumbnail_edge).ask(url)
        said, wrong = _summary_of(answer.value), ""
    except CallFailed as error:
        said, wrong = error.cause, f"{_wrong(error)} (only tools.thumbnail_hosts are asked, at the ports of the web)"
    finally:
        await fetch.aclose()
    return Finding("thumbnails", "search engine's hosts", time.perf_counter() - start, 0.0, said, wrong)


def _wrong(error: CallFailed, provider: Provider[Any, Any] | None = None) -> str:
    secret = None if provider is None else provider.secret
    key = f" (the key is in {secret.env})" if error.cause == "refused" and secret is not None else ""
    return f"{REMEDIES[error.cause]}: {error.detail}{key}"


def _summary_of(value: Any) -> str:
    """What was found, without quoting it."""
    if isinstance(value, Picture):
        return f"{len(value.data)} bytes"
    if isinstance(value, Page):
        return f"{len(value.text)} characters"
    if isinstance(value, str) and value:
        return f"{len(value)} characters"
    return f"{len(value)} results" if value else "nothing found"


def _picture() -> Picture:
    """Something to search by: a tower of sorts."""
    image = Image.new("RGB", (200, 280), "lightskyblue")
    ImageDraw.Draw(image).polygon([(100, 20), (60, 260), (140, 260)], fill="saddlebrown")
    return encode_png(image)


def table(found: list[Finding]) -> Table:
    """Narrow enough for 80 columns; what is wrong stands below it in full (see `main`)."""
    headings = ("part", "provider", "status", "seconds", "USD", "what")
    shown = Table(*(Column(heading, no_wrap=heading != "provider") for heading in headings), box=box.SIMPLE_HEAD)
    for one in found:
        status = "WRONG" if one.wrong else "ok"
        provider = one.provider.replace("_", " ")
        shown.add_row(one.part, provider, status, f"{one.seconds:.2f}", f"{one.cost_usd:.4f}", one.said)
    seconds, cost_usd = (sum(figures) for figures in zip(*((one.seconds, one.cost_usd) for one in found), strict=True))
    shown.add_row("total", "", "", f"{seconds:.2f}", f"{cost_usd:.4f}", "")
    return shown


def composed(overrides: list[str]) -> tuple[ToolsConfig, int]:
    """The tools of train.py's configuration, and the image searches an episode may make; the rest need not make sense
    yet."""
    raw = cli.composed(overrides)
    found: Any = OmegaConf.to_object(raw.tools)
    return found, int(raw.rollout.image_searches)


def main(arguments: list[str], console: Callable[[], Console] = Console) -> int:
    """Print what was found; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mmsr1.tools.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as train.py takes them, e.g. tools=web")
    try:
        found = asyncio.run(tried(*composed(parser.parse_args(arguments).overrides)))
    except USER_ERRORS as error:
        refuse(explain(error))
    if not found:
        sys.stdout.write("all tools are the emblem world's own indexes: there is nobody to ask\n")
        return 0
    screen = console()
    screen.print(table(found))
    for one in found:
        if one.wrong:  # one line each, which the terminal may break, so that names in it can be copied
            screen.print(f"{one.part}: {one.wrong}", highlight=False, markup=False, soft_wrap=True)
    return 1 if any(one.wrong for one in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
