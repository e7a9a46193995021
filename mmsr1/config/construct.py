"""The schema of `conf/construct.yaml`: what `python -m mmsr1.data.construct` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from mmsr1.config.checks import at_least, check, one_of, positive
from mmsr1.config.tools import HERE, WHOLE, PartConfig, ToolsConfig

PICTURES = ("serpapi", "serper", "searxng")
CHATS = ("openai",)


@dataclass
class PageConfig:
    """For a concept at most `tried` pictures are looked at and `tried` pages read; the model is shown the first
    `characters` of a page. A picture is kept with at most `edge` pixels, and not used with a side below `least_edge`.
    `hosts` limits where pictures are fetched from (a leading dot admits subdomains); null: any public host.
    """

    tried: int = 5
    characters: int = 8_000
    edge: int = 1_024
    least_edge: int = 160
    hosts: list[str] | None = None

    def __post_init__(self) -> None:
        positive("web", self, "tried", "characters", "least_edge")
        remedy = f"must be {self.least_edge} (web.least_edge) or more"
        check(self.edge >= self.least_edge, "web.edge", self.edge, remedy)


@dataclass
class FilterConfig:
    """When a question is dropped. `guesses` answers are given without the picture; more than `guesses_allowed` right
    ones are too many. `title_leak`: an answer in a title is a leak always (`all`), unless it names what the picture
    shows (`facts`), or never (`none`). `likeness` is the share of words in common (0 to 1) from which two questions
    with an answer in common are one; `per_picture` questions may share a picture.
    """

    question_words: int = 40
    question_characters: int = 300
    answer_words: int = 8
    answer_characters: int = 80
    guesses: int = 3
    guesses_allowed: int = 0
    title_leak: str = "facts"
    likeness: float = 0.7
    per_picture: int = 1

    def __post_init__(self) -> None:
        positive("filters", self, "question_words", "question_characters", "answer_words", "answer_characters")
        positive("filters", self, "guesses", "per_picture")
        at_least(0, "filters", self, "guesses_allowed")
        fits = self.guesses_allowed < self.guesses
        check(fits, "filters.guesses_allowed", self.guesses_allowed, "must be below filters.guesses")
        one_of("filters.title_leak", self.title_leak, "all", "facts", "none")
        check(0 < self.likeness <= 1, "filters.likeness", self.likeness, "must be above 0, at most 1")


@dataclass
class ConstructConfig:
    """`out` is the folder that everything is written to, and gone on with. Of the list in `concepts` the first `head`
    and last `tail` are taken (both null: all), of each file in `rows` the first `rows_limit` questions. Nothing that is
    in a file of `against` gets in. `tries` bounds how often the model is asked again for a reply that can be used;
    `concurrent` items are worked on at a time; `give_up` drops what a service still fails for. `taxonomy` are the
    classes, each with what belongs to it.
    """

    out: str | None = None
    concepts: str | None = None
    head: int | None = None
    tail: int | None = None
    rows: list[str] = field(default_factory=list)
    rows_limit: int | None = None
    against: list[str] = field(default_factory=list)
    language: str = MISSING
    seed: int = 0
    give_up: bool = False
    concurrent: int = MISSING
    tries: int = MISSING
    reply_tokens: int = MISSING
    tools: ToolsConfig = MISSING
    pictures: PartConfig = MISSING
    llm: PartConfig = MISSING
    web: PageConfig = field(default_factory=PageConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    taxonomy: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(bool(self.out), "out", self.out, "name the folder to write to, e.g. out=outputs/my-set")
        given = bool(self.concepts or self.rows)
        check(given, "concepts", self.concepts, "give a file with one concept a line, or rows=[FILE] of questions")
        for name in ("head", "tail", "rows_limit"):
            value = getattr(self, name)
            check(value is None or value >= 0, name, value, "must be 0 or more, or null for all")
        check(0 <= self.seed < 2**32, "seed", self.seed, "must be in [0, 2^32)")
        for name in ("concurrent", "tries", "reply_tokens"):
            check(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        check(bool(self.taxonomy), "taxonomy", self.taxonomy, "needs at least one class")
        self.llm.check_as("llm", CHATS)
        if self.concepts:
            self.pictures.check_as("pictures", PICTURES)
        engine, reader = self.tools.text_search.provider, self.tools.reader.provider
        remedy = (
            "pages are read here, so it must be a search engine of the web: serpapi, serper, brave, tavily, searxng"
        )
        check(engine not in (*HERE, *WHOLE), "tools.text_search.provider", engine, remedy)
        check(reader != "none", "tools.reader.provider", reader, "pages are read here: give jina or local")


def register() -> None:
    """Make the schema known to Hydra, beside those of train.py."""
    ConfigStore.instance().store(name="construct_schema", node=ConstructConfig)
