"""The schema of `conf/tools` and `conf/faults`: who is asked, how often, for how much; what goes wrong on purpose."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from mmsr1.config.checks import at_least, check, one_of, positive

HERE = ("local", "replay")  # ask nobody
WHOLE = ("retrieve", "opensearch", "qdrant")  # answer with whole results, not with hits that lead to pages
IMAGE_SEARCH = (*HERE, "serpapi", "serper", "retrieve", "qdrant")
TEXT_SEARCH = (*HERE, "serpapi", "serper", "brave", "tavily", "searxng", *WHOLE)
READERS = ("none", "jina", "local")
SUMMARIZERS = ("none", "openai")
# Providers with one public address, or none at all; the others run where their users say.
OWN_ADDRESS = ("none", *HERE, "serpapi", "serper", "brave", "tavily", "jina")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass
class PartConfig:
    """One provider and how it may be asked. null is what the provider itself says: address, variable, list price.

    `key_env` is the *name* of the environment variable that holds the key, never the key. `timeout_s` bounds an
    attempt, `deadline_s` a call with all its attempts; `rate_per_s` is that of all processes together. `options` go
    to the provider (language, model, ...).
    """

    provider: str = "none"
    url: str | None = None
    key_env: str | None = None
    price_usd: float | None = None
    rate_per_s: float = 10.0
    concurrent: int = 32
    attempts: int = 4
    timeout_s: float = 30.0
    deadline_s: float = 90.0
    options: dict[str, Any] = field(default_factory=dict)

    def check_as(self, group: str, providers: tuple[str, ...]) -> None:
        """Raises ConfigError under `group`, the part's key in the configuration."""
        one_of(f"{group}.provider", self.provider, *providers)
        positive(group, self, "rate_per_s", "concurrent", "attempts", "timeout_s", "deadline_s")
        alone = self.provider in OWN_ADDRESS or self.url is not None
        remedy = f"say where the service for provider={self.provider} runs, e.g. http://localhost:8000"
        check(alone, f"{group}.url", self.url, remedy)
        web = self.url is None or self.url.startswith(("http://", "https://"))
        # What was given may hold a password: it is not repeated, here or in what follows.
        remedy = "holds a user or password; give the address alone, and the key's variable in key_env"
        check(not _has_user(self.url or ""), f"{group}.url", "***", remedy)
        check(web, f"{group}.url", self.url, "must begin with http:// or https://")
        named = self.key_env is None or bool(_VARIABLE.fullmatch(self.key_env))
        # What was given may be a key: it is not repeated.
        check(named, f"{group}.key_env", "***", "must be the name of an environment variable, such as SERPAPI_API_KEY")
        check(self.price_usd is None or self.price_usd >= 0, f"{group}.price_usd", self.price_usd, "must be 0 or more")


@dataclass
class BudgetConfig:
    """What searching may cost, in back-end calls and USD; null is no limit. A day is one of UTC and counts all runs
    that share `tools.cache_dir`. What is in the cache stays free.

    `when_spent` of a run: `tell` goes on and tells the model, `stop` ends the run after the step, to be resumed;
    so it does when the account of a service is spent or its key refused.
    """

    calls_per_run: int | None = None
    usd_per_run: float | None = None
    calls_per_day: int | None = None
    usd_per_day: float | None = None
    when_spent: str = "stop"

    def __post_init__(self) -> None:
        one_of("tools.budget.when_spent", self.when_spent, "stop", "tell")
        for name in ("calls_per_run", "usd_per_run", "calls_per_day", "usd_per_day"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"tools.budget.{name}", value, "must be 0 or more, or null for no limit")


@dataclass
class ToolsConfig:
    """How many results come back, how many image hits carry a thumbnail, where answers are cached, and who gives them.

    `pages_tried` bounds the URLs that are read until `text_results` succeed; a summary has at most
    `summary_sentences` of a page's first `page_characters`. `image_url` is where the pictures of the data can be
    fetched by providers that take no upload, with {digest} for the name. `thumbnail_hosts` may be asked for
    thumbnails (a leading dot admits subdomains); results from hosts of `blocklist` are dropped.

    `text_index` and `image_index` are folders of `python -m mmsr1.tools.index` for the provider `local`; null is the
    built-in emblem world. `bundle` is the folder that `replay` answers from: a search that is not in it ends the run
    (`on_miss` fail) or finds nothing (empty); `replay_latency` gives answers the time they took when recorded.
    `similar`: text searches of a group whose words are that much alike (0 to 1) share a call; null: none do.
    """

    image_results: int = MISSING
    thumbnails: int = MISSING
    thumbnail_edge: int = MISSING
    text_results: int = MISSING
    cache_dir: str = MISSING
    image_search: PartConfig = field(default_factory=lambda: PartConfig("local"))
    text_search: PartConfig = field(default_factory=lambda: PartConfig("local"))
    reader: PartConfig = field(default_factory=PartConfig)
    summarizer: PartConfig = field(default_factory=PartConfig)
    pages_tried: int = 10
    page_characters: int = 30_000
    summary_sentences: int = 5
    image_url: str | None = None
    thumbnail_hosts: list[str] = field(default_factory=list)
    blocklist: list[str] = field(default_factory=list)
    text_index: str | None = None
    image_index: str | None = None
    bundle: str | None = None
    on_miss: str = "fail"
    replay_latency: bool = False
    similar: float | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        positive("tools", self, "image_results", "text_results", "thumbnail_edge")
        positive("tools", self, "pages_tried", "page_characters", "summary_sentences")
        fits = 0 <= self.thumbnails <= self.image_results
        check(fits, "tools.thumbnails", self.thumbnails, "must be between 0 and tools.image_results")
        # First: tools=retrieve takes the image search's from it.
        self.text_search.check_as("tools.text_search", TEXT_SEARCH)
        self.image_search.check_as("tools.image_search", IMAGE_SEARCH)
        self.reader.check_as("tools.reader", READERS)
        self.summarizer.check_as("tools.summarizer", SUMMARIZERS)
        read = self.summarizer.provider == "none" or self.reader.provider != "none"
        remedy = "needs pages: set tools.reader.provider too, or tools.summarizer.provider=none"
        check(read, "tools.summarizer.provider", self.summarizer.provider, remedy)
        self._check_web()
        self._check_here()

    @property
    def asks_the_web(self) -> bool:
        """Whether anything beyond this machine's own indexes and bundles is asked."""
        return not {self.image_search.provider, self.text_search.provider} <= {*HERE}

    def _check_here(self) -> None:
        """What lies on this disk."""
        one_of("tools.on_miss", self.on_miss, "fail", "empty")
        replays = "replay" in (self.image_search.provider, self.text_search.provider)
        remedy = "give the folder of a bundle; python -m mmsr1.tools.bundle export makes one of a run"
        check(not replays or self.bundle is not None, "tools.bundle", self.bundle, remedy)
        alike = self.similar is None or 0 < self.similar <= 1
        check(alike, "tools.similar", self.similar, "must be above 0, at most 1, or null for no sharing")

    def _check_web(self) -> None:
        """What a pipeline over services needs."""
        tried = self.reader.provider == "none" or self.pages_tried >= self.text_results
        check(tried, "tools.pages_tried", self.pages_tried, "must be at least tools.text_results")
        by_address = self.image_search.provider == "serper" or self.image_search.options.get("by") == "url"
        shown = self.image_url is None and not by_address or "{digest}" in (self.image_url or "")
        remedy = "must say where the pictures of the data can be fetched, with {digest} for the name"
        check(shown, "tools.image_url", self.image_url, remedy)
        fetched = self.image_search.provider not in (*HERE, *WHOLE) and self.thumbnails > 0
        remedy = "name the hosts that may be asked for thumbnails, or give tools.thumbnails=0"
        check(not fetched or bool(self.thumbnail_hosts), "tools.thumbnail_hosts", self.thumbnail_hosts, remedy)


@dataclass
class FaultsConfig:
    """Faults of the tools on purpose. `share` of the attempts fail, in one of the ways that the web knows; the tools
    named in `outage` fail always. Every attempt takes `latency_s` (median) first, one that times out `timeout_s`.
    """

    share: float = 0.0
    outage: list[str] = field(default_factory=list)
    latency_s: float = 0.0
    timeout_s: float = 1.0
    attempts: int = 4

    def __post_init__(self) -> None:
        check(0 <= self.share <= 1, "faults.share", self.share, "must be between 0 and 1 (of all attempts)")
        at_least(0, "faults", self, "latency_s", "timeout_s")
        positive("faults", self, "attempts")
        for tool in self.outage:
            one_of("faults.outage", tool, "image_search", "text_search")


def _has_user(url: str) -> bool:
    """Whether an address names a user, with or without a scheme before it."""
    return "@" in re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
