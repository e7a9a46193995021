"""The world, the examples and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mmsr1.config import Config, ConfigError
from mmsr1.data.emblem.store import EmblemStore, open_store
from mmsr1.data.emblem.world import WorldSpec
from mmsr1.data.fvqa import BadRow, load_fvqa
from mmsr1.data.mixtures import PromptSchedule
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


def examples(path: Path, key: str) -> tuple[list[Example], list[BadRow]]:
    """A parquet file's usable and skipped rows. Raises ConfigError naming the key."""
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file; give a parquet file in the FVQA format")
    try:
        return load_fvqa(path)
    except ValueError as error:
        raise ConfigError(f"{key}={error}") from error


def training_examples(config: Config) -> tuple[list[Example], list[Example], list[BadRow]]:
    """(training examples, validation examples, rows skipped). FVQA without data.val_path validates on its own rows."""
    data = config.data
    if data.kind == "emblem":
        store = emblem_store(config)
        train, val = Path(data.train_path or store.split("train")), Path(data.val_path or store.split("heldout"))
    else:
        train, val = Path(data.train_path or ""), Path(data.val_path or data.train_path or "")
    found, bad = examples(train, "data.train_path")
    held_out, bad_val = (found, []) if val == train else examples(val, "data.val_path")
    return found, held_out[: data.val_size], bad + bad_val


def skipped_rows(bad: Sequence[BadRow]) -> Iterator[str]:
    """One line for people about each of the first ten skipped rows, and a count."""
    for row in bad[:10]:
        yield f"skipped row {row.row} ({row.id}): {row.cause}"
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
        if mixture(config, found) != data.mixture:
            yield f"data.mixture={data.mixture}: no row says whether it needs a search, so rows are drawn as they come"
        if not data.val_path:
            yield "data.val_path is not given: validation asks the training questions, so nothing is held out"


def mixture(config: Config, found: Sequence[Example]) -> str:
    """The mixture to draw by: rows of which none is labelled cannot be balanced, and are drawn as they come."""
    unlabelled = all(example.is_free is None for example in found)
    return "natural" if config.data.mixture == "balanced" and unlabelled else config.data.mixture


def prompt_schedule(config: Config, found: Sequence[Example]) -> PromptSchedule:
    try:
        return PromptSchedule(
            found,
            mixture(config, found),  # type: ignore[arg-type]  (checked by the schema)
            config.algorithm.prompts_per_step,
            config.trainer.max_steps,
            config.seed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
