"""The world, the examples and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mmsr1.config import Config, ConfigError
from mmsr1.data.emblem.store import EmblemStore, open_store
from mmsr1.data.emblem.world import WorldSpec
from mmsr1.data.mixtures import NATURAL, Mix, PromptSchedule
from mmsr1.data.rows import BadRow
from mmsr1.data.table import ExampleTable, Labels, Watch, lay_down
from mmsr1.types import Example


def world_spec(config: Config) -> WorldSpec:
    try:
        return WorldSpec(**asdict(config.data.world))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def emblem_store(config: Config) -> EmblemStore:
    """The built-in world on disk; with other data it still backs the local search tools."""
    data = config.data
    train_size = data.train_size or 1200
    return open_store(Path(data.root), world_spec(config), train_size, data.val_size, config.tools.thumbnail_edge)


def examples(config: Config, files: Mapping[str, str | Path], watch: Watch | None = None) -> ExampleTable:
    """The rows of the files under these keys. Raises ConfigError naming the key."""
    folders = []
    for key, path in files.items():
        if not Path(path).is_file():
            raise ConfigError(f"{key}={path}: no such file; give a parquet or JSONL file in the FVQA format")
        try:
            folders.append(lay_down(Path(path), Path(config.data.cache_dir), watch))
        except ValueError as error:
            raise ConfigError(f"{key}={error}") from error
        except OSError as error:
            what = error.strerror or type(error).__name__
            remedy = f"{what}; {path} is laid down there, give a folder with room for it"
            raise ConfigError(f"data.cache_dir={config.data.cache_dir}: {remedy}") from error
    try:
        return ExampleTable(folders)
    except ValueError as error:
        raise ConfigError(f"data.cache_dir={config.data.cache_dir}: {error}") from error


def training_examples(
    config: Config, watch: Watch | None = None
) -> tuple[ExampleTable, list[Example], tuple[BadRow, ...]]:
    """(training examples, validation examples, rows skipped). FVQA without data.val_path validates on its own rows.

    `watch` is told of files that are read for the first time.
    """
    data = config.data
    train: Mapping[str, str | Path] = data.files
    val: str | Path | None = data.val_path
    if data.kind == "emblem":
        store = emblem_store(config)
        train, val = train or {"data.train_path": store.split("train")}, val or store.split("heldout")
    found = examples(config, train, watch)
    held_out = examples(config, {"data.val_path": val}, watch) if val and [val] != list(train.values()) else found
    bad = found.bad if held_out is found else found.bad + held_out.bad
    return found, held_out[: data.val_size], bad


def skipped_rows(bad: Sequence[BadRow]) -> Iterator[str]:
    """One line for people about each of the first ten skipped rows, and a count."""
    for row in bad[:10]:
        yield f"skipped row {row.row} of {row.file} ({row.id}): {row.cause}"
    if bad:
        yield f"{len(bad)} rows skipped in all"


def remarks(config: Config, found: Sequence[Example]) -> Iterator[str]:
    """What a user should know of this configuration before its run."""
    data, tools = config.data, config.tools
    if data.kind == "fvqa":
        local = [name for name in ("image_search", "text_search") if getattr(tools, name).provider == "local"]
        if local:
            which = "both searches look" if len(local) == 2 else f"{local[0]} looks"
            yield f"tools: {which} into the built-in emblem world, which knows nothing of other data"
        if mixture(config, found).name != data.mix.name:
            yield f"data/mix={data.mix.name}: no row says whether it needs a search, so rows are drawn as they come"
        if data.mix.curriculum and Labels.of(found).untried:
            yield f"data.mix.curriculum={data.mix.curriculum}: no row says how difficult it is, so any order is as good"
        if not data.val_path:
            yield "data.val_path is not given: validation asks the training questions, so nothing is held out"


def mixture(config: Config, found: Sequence[Example]) -> Mix:
    """The mix to draw by: rows of which none is labelled cannot be balanced, and are drawn as they come."""
    wanted = config.data.mix
    curriculum, steps = wanted.curriculum, wanted.curriculum_steps
    if wanted.name == "balanced" and Labels.of(found).unlabelled:
        return replace(NATURAL, curriculum=curriculum, curriculum_steps=steps)  # type: ignore[arg-type]
    return Mix(wanted.name, vars(wanted.shares), curriculum, steps)  # type: ignore[arg-type]  (checked by the schema)


def prompt_schedule(config: Config, found: Sequence[Example]) -> PromptSchedule:
    try:
        return PromptSchedule(
            found,
            mixture(config, found),
            config.algorithm.prompts_per_step,
            config.trainer.max_steps,
            config.seed,
            [source.weight for source in config.data.sources or ()] or [1.0],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
