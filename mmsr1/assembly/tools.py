"""The search tools of a configuration: who is asked, and everything that stands around a call.

    replay      Metered( Rehearsed( Replayed( bundle )))
    local       Metered( Rehearsed( Recorded( CachedTool( tool ))))
    otherwise   Metered( Rehearsed( Recorded( pipeline of parts ))),
                each part  Parsed( Cached( Paid( Guarded( provider ))))

`Rehearsed` only where the configuration asks for faults, `Similar` inside `Recorded` where it asks for that.
docs/tools.md draws the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mmsr1.assembly.data import emblem_store
from mmsr1.assembly.services import NEVER, Services, check_key, provider_of, run_budget
from mmsr1.config import Config, ConfigError, FaultsConfig, PartConfig, ToolsConfig
from mmsr1.config.tools import HERE, WHOLE
from mmsr1.tools.base import Backend, Part, Tool
from mmsr1.tools.blocklist import Blocklist
from mmsr1.tools.breaker import Breaker
from mmsr1.tools.bundle.format import Bundle
from mmsr1.tools.bundle.record import FOLDER as SEARCHES
from mmsr1.tools.bundle.record import Recorded, Recorder
from mmsr1.tools.bundle.replay import Replayed
from mmsr1.tools.cache import PICTURE, TEXT, CachedPart, CachedTool, Codec
from mmsr1.tools.faults import FaultSpec, Rehearsed
from mmsr1.tools.fetch import SafeFetch
from mmsr1.tools.guard import CallPolicy, Guarded
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.image_search.web import WebImageSearch
from mmsr1.tools.index_files import MANIFEST
from mmsr1.tools.items import ItemsTool
from mmsr1.tools.meter import Row
from mmsr1.tools.metered import Metered
from mmsr1.tools.providers import image_provider, reader_provider, summarizer_provider, text_provider
from mmsr1.tools.providers.base import Provider
from mmsr1.tools.similar import Similar
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.text_search.web import WebTextSearch
from mmsr1.tools.thumbnails import ThumbnailBackend
from mmsr1.tools.web_codecs import PAGE, SUMMARY
from mmsr1.tools.web_types import Page
from mmsr1.types import Picture, ToolName

HITS = 10  # asked of a search engine: more than are shown, because some are blocked or cannot be read
# Thumbnails come from a search engine's own hosts, which bear more than its interface; they are worth little waiting.
THUMBNAILS = CallPolicy(attempts=2, timeout_s=10, deadline_s=20, rate_per_s=100, concurrent=64)
PATIENCE_S = 3600.0  # beyond what any tool allows itself
REHEARSED_PATIENCE_S = 2.0  # with an outage that is known to last


class SearchTools(dict[Any, Tool[Any]]):
    """The tools by name, and what a run wants to know of them."""

    def __init__(self, tools: Mapping[ToolName, Tool[Any]], services: Services) -> None:
        super().__init__(tools)
        self.services = services

    def rows(self) -> Mapping[str, Row]:
        """Figures of every tool and part since they were made."""
        return self.services.rows()

    def spent(self) -> str | None:
        """See `Services.spent`."""
        return self.services.spent()

    async def aclose(self) -> None:
        """See `Services.aclose`."""
        await self.services.aclose()


def search_tools(config: Config, run: Path, rank: int = 0, ranks: int = 1) -> SearchTools:
    """Image and text search for one of `ranks` processes of the run in folder `run`. Raises as `check_tools` does."""
    stack = _Stack(config, run, rank, ranks)
    tools: dict[ToolName, Tool[Any]] = {
        "image_search": Metered(stack.rehearsed(stack.image_search()), stack.services.meter),
        "text_search": Metered(stack.rehearsed(stack.text_search()), stack.services.meter),
    }
    return SearchTools(tools, stack.services)


def check_tools(config: Config, run: Path) -> None:
    """Whether the run in folder `run` can begin with these tools; quick, and asks nobody.

    Raises ConfigError for what a provider does not take, a key that is not there, or a budget too small for a search.
    """
    searches = []
    for name, provider in part_providers(config.tools):
        check_key(f"tools.{name}", provider)
        searches += [provider.price_usd] if name.endswith("_search") else []
    blocked(config)
    for name in ("text_index", "image_index"):
        local_index(config, name)
    frozen_web(config)
    told = run_budget(config.tools.budget, Path(config.tools.cache_dir), run).reached(min(searches, default=0.0))
    if told is not None and config.tools.budget.when_spent == "stop":
        raise ConfigError(told)


def part_providers(tools: ToolsConfig) -> Iterator[tuple[str, Provider[Any, Any]]]:
    """Every part of the configuration that asks a service, by its name in `tools`. Raises ConfigError."""
    pages = tools.reader.provider != "none"
    image_hits = tools.image_results if tools.image_search.provider in WHOLE else HITS
    text_hits = tools.text_results if tools.text_search.provider in WHOLE else max(HITS, tools.pages_tried * pages)
    summary = {"sentences": tools.summary_sentences, "page_characters": tools.page_characters}
    picture = {"image_url": tools.image_url, "thumbnail_edge": tools.thumbnail_edge, "results": image_hits}
    wanted: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("image_search", image_provider, picture),
        ("text_search", text_provider, {"results": text_hits}),
        ("reader", reader_provider, {}),
        ("summarizer", summarizer_provider, summary),
    )
    for name, make, settings in wanted:
        part: PartConfig = getattr(tools, name)
        asks = part.provider != "none" and (part.provider not in HERE or name == "reader")
        if asks and not (name in ("reader", "summarizer") and tools.text_search.provider in (*HERE, *WHOLE)):
            yield name, provider_of(f"tools.{name}", part, make, settings)


def blocked(config: Config) -> Blocklist:
    try:
        return Blocklist(config.tools.blocklist)
    except ValueError as error:
        raise ConfigError(f"tools.{error}") from error


def bundle(config: Config) -> Bundle | None:
    """The bundle that searches are replayed from, None if none is."""
    tools = config.tools
    if "replay" not in (tools.image_search.provider, tools.text_search.provider):
        return None
    try:
        return Bundle(Path(tools.bundle or ""))
    except (OSError, ValueError) as error:
        raise ConfigError(f"tools.bundle={tools.bundle}: {error}") from error


def frozen_web(config: Config) -> dict[str, str | None]:
    """What a run's record says of the bundle that it replays: its name, which covers all that is in it."""
    found = bundle(config)
    if found is None:
        return {}
    found.close()
    return {"bundle": found.manifest.hash}


def local_index(config: Config, name: str) -> Path | None:
    """The folder of a local index of the user's own, None for the emblem world's."""
    folder = getattr(config.tools, name)
    if folder is not None and not Path(folder, MANIFEST).is_file():
        remedy = "no index there; python -m mmsr1.tools.index build makes one"
        raise ConfigError(f"tools.{name}={folder}: {remedy}")
    return None if folder is None else Path(folder)


@dataclass
class _Stack:
    """What the tools of one process are made of."""

    config: Config
    run: Path
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        tools = self.config.tools
        self.services = Services(Path(tools.cache_dir), tools.budget, self.run, self.config.seed, self.rank, self.ranks)
        for name in get_args(ToolName):  # first in every table
            self.services.meter.part(name)
        self.bundle = bundle(self.config)
        self.recorder = Recorder(self.services.cache, self.run / SEARCHES / f"rank{self.rank}.jsonl")
        self._providers = dict(part_providers(tools))
        self.services.closing += [provider.aclose for provider in self._providers.values()]

    def image_search(self) -> Tool[Picture]:
        if self.config.tools.image_search.provider == "replay":
            return self._replayed("image_search")
        return self._recorded(self._image_search())

    def text_search(self) -> Tool[str]:
        if self.config.tools.text_search.provider == "replay":
            return self._replayed("text_search")
        alike, search = self.config.tools.similar, self._text_search()
        return self._recorded(search if alike is None else Similar(search, alike))

    def _image_search(self) -> Tool[Picture]:
        tools = self.config.tools
        if tools.image_search.provider == "local":
            index = local_index(self.config, "image_index") or emblem_store(self.config).image_index
            return self._cached(
                self._opened("image_index", LocalImageSearch, index, tools.image_results, tools.thumbnails)
            )
        search = self._part("image_search", TEXT)
        if tools.image_search.provider in WHOLE:
            return ItemsTool("image_search", search)
        blocklist, shown = blocked(self.config), tools.thumbnails
        return WebImageSearch(search, self._thumbnails() if shown else None, tools.image_results, shown, blocklist)

    def _text_search(self) -> Tool[str]:
        tools = self.config.tools
        if tools.text_search.provider == "local":
            index = local_index(self.config, "text_index") or emblem_store(self.config).text_index
            return self._cached(self._opened("text_index", LocalTextSearch, index, tools.text_results))
        search = self._part("text_search", TEXT)
        if tools.text_search.provider in WHOLE:
            return ItemsTool("text_search", search)
        summarizer = self._part("summarizer", SUMMARY) if "summarizer" in self._providers else None
        reader = self._pages() if "reader" in self._providers else None
        blocklist = blocked(self.config)
        return WebTextSearch(search, reader, summarizer, tools.text_results, tools.pages_tried, blocklist)

    def rehearsed(self, tool: Tool[Any]) -> Tool[Any]:
        """The tool with the faults that the configuration asks for."""
        faults = self.config.faults
        spec = fault_spec(faults, tool.name)
        if not spec.any:
            return tool

        def guard(backend: Backend[Any, Any]) -> Part[Any, Any]:
            policy = CallPolicy(faults.attempts, PATIENCE_S, PATIENCE_S, 1e6, 10_000, backoff_s=faults.latency_s)
            breaker = Breaker(patience_s=REHEARSED_PATIENCE_S)
            return Guarded(backend, policy, breaker, self.services.meter, self.config.seed)

        return Rehearsed(tool, spec, self.config.seed, guard)

    def _replayed(self, name: ToolName) -> Tool[Any]:
        assert self.bundle is not None
        tools, counters = self.config.tools, self.services.meter.part(f"{name}_bundle")
        return Replayed(name, self.bundle, tools.on_miss, tools.replay_latency, counters)  # type: ignore[arg-type]

    def _recorded(self, tool: Tool[Any]) -> Tool[Any]:
        return Recorded(tool, self.recorder, self.services.meter.part(tool.name))

    def _opened(self, key: str, make: Callable[..., Tool[Any]], *arguments: Any) -> Tool[Any]:
        """An index of this disk. Raises ConfigError for one that this code cannot read."""
        try:
            return make(*arguments)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tools.{key}={getattr(self.config.tools, key)}: {error}") from error

    def _cached(self, tool: Tool[Any]) -> Tool[Any]:
        return CachedTool(tool, self.services.cache, ledger=self.services.ledger)

    def _part(self, name: str, codec: Codec[Any, str], counted: bool = True) -> Part[Any, Any]:
        part: PartConfig = getattr(self.config.tools, name)
        many_hosts = name == "reader" and part.provider == "local"
        return self.services.part(self._providers[name], part, codec, counted, many_hosts)

    def _pages(self) -> Part[str, Page]:
        """Pages as they were read, kept beside the raw answers: reading one again takes its time."""
        return CachedPart(
            self._part("reader", TEXT, counted=False), self.services.cache, PAGE, meter=self.services.meter
        )

    def _thumbnails(self) -> Part[str, Picture]:
        tools = self.config.tools
        fetch = SafeFetch(THUMBNAILS.timeout_s, tools.thumbnail_hosts)
        self.services.closing.append(fetch.aclose)
        backend = ThumbnailBackend(fetch, tools.thumbnail_edge)
        guarded = Guarded(backend, THUMBNAILS, Breaker(failures=NEVER), self.services.meter, self.config.seed)
        return CachedPart(guarded, self.services.cache, PICTURE, meter=self.services.meter)


def fault_spec(faults: FaultsConfig, tool: ToolName) -> FaultSpec:
    return FaultSpec(faults.share, tool in faults.outage, faults.latency_s, faults.timeout_s)
