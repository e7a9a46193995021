"""Where the examples come from, and in what mix and order they are asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from mmsr1.config.checks import at_least, check, one_of, positive


@dataclass
class WorldConfig:
    """Size of the emblem world; see `mmsr1.data.emblem.world.WorldSpec`."""

    seed: int = 0
    known_train: int = 48
    known_heldout: int = 48
    unknown_train: int = 960
    unknown_heldout: int = 64
    graded: int = 48

    def __post_init__(self) -> None:
        positive("data.world", self, "known_train", "known_heldout", "unknown_train", "unknown_heldout")
        at_least(0, "data.world", self, "seed", "graded")


@dataclass
class SharesConfig:
    """What share of the prompts comes from each pool; only their proportions count. `required` is any search."""

    free: float = 0.0
    required: float = 0.0
    image: float = 0.0
    text: float = 0.0
    both: float = 0.0
    all: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, "data.mix.shares", self, *vars(self))
        total = sum(vars(self).values())
        check(0 < total < math.inf, "data.mix.shares", total, "give one of them a share, e.g. data.mix.shares.all=1")


@dataclass
class MixConfig:
    """See `mmsr1.data.mixtures.Mix`. `curriculum` null asks in no order of difficulty."""

    name: str = MISSING
    shares: SharesConfig = MISSING
    curriculum: str | None = None
    curriculum_steps: int = 0

    def __post_init__(self) -> None:
        at_least(0, "data.mix", self, "curriculum_steps")
        if self.curriculum is not None:
            one_of("data.mix.curriculum", self.curriculum, "easy_first", "hard_first")
            remedy = f"over how many steps is {self.curriculum} to hold? give data.mix.curriculum_steps"
            check(self.curriculum_steps > 0, "data.mix.curriculum_steps", self.curriculum_steps, remedy)


@dataclass
class SourceConfig:
    """One of several files; `weight` is its share of the prompts of each pool."""

    path: str = MISSING
    weight: float = 1.0


@dataclass
class DataConfig:
    """`kind` emblem: the built-in world under `root`; fvqa: files of the published format, parquet or JSONL.

    The training file is `train_path`, or there are several in `sources`. `cache_dir` holds what was read from files, so
    that it need not be read again. `train_size` is the number of search-free questions of the built-in world, and of
    search-required ones.
    """

    kind: str = MISSING
    root: str = MISSING
    cache_dir: str = MISSING
    train_path: str | None = MISSING
    sources: list[SourceConfig] | None = MISSING
    val_path: str | None = MISSING
    mix: MixConfig = MISSING
    train_size: int = MISSING
    val_size: int = MISSING
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        one_of("data.kind", self.kind, "emblem", "fvqa")
        at_least(0, "data", self, "train_size")
        at_least(6 if self.kind == "emblem" else 1, "data", self, "val_size")  # half free, the rest in thirds
        remedy = "name a parquet or JSONL file, e.g. data.train_path=fvqa_train.parquet, or several in data.sources"
        check(self.kind != "fvqa" or bool(self.files), "data.train_path", self.train_path, remedy)
        both = bool(self.train_path) and bool(self.sources)
        check(not both, "data.train_path", self.train_path, "give either this or data.sources")
        named: set[str] = set()
        for key, source in zip(self.files, self.sources or (), strict=False):
            positive_weight = 0 < source.weight < math.inf
            check(positive_weight, key.replace(".path", ".weight"), source.weight, "must be positive")
            check(source.path not in named, key, source.path, "is given twice; give it once, with a larger weight")
            named.add(source.path)

    @property
    def files(self) -> dict[str, str]:
        """The training files that were named, by their keys."""
        if self.train_path:
            return {"data.train_path": self.train_path}
        return {f"data.sources[{number}].path": source.path for number, source in enumerate(self.sources or ())}
