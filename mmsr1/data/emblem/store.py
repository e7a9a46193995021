"""The emblem world on disk: question files, passages, and the two search indexes, built once and then only read.

<root>/<hash of spec>/  entities.jsonl passages.jsonl train|heldout|graded|shifted.parquet image_index/ text_index/
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from mmsr1.data.emblem.drawing import Jitter, draw
from mmsr1.data.emblem.questions import graded_examples, heldout_examples, shifted_examples, train_examples
from mmsr1.data.emblem.world import World, WorldSpec, image_title, passages
from mmsr1.data.fvqa import write_fvqa
from mmsr1.tools.image_search.local import ImageEntry, build_image_index
from mmsr1.tools.text_search.local import Passage, build_text_index

_LAYOUT = 2  # raise when what is written changes, so that old folders are left alone


@dataclass(frozen=True)
class EmblemStore:
    """Paths of a world that is complete on disk."""

    root: Path

    def split(self, name: str) -> Path:
        return self.root / f"{name}.parquet"

    @property
    def image_index(self) -> Path:
        return self.root / "image_index"

    @property
    def text_index(self) -> Path:
        return self.root / "text_index"


def open_store(
    root: Path,
    spec: WorldSpec,
    train_size: int,
    val_size: int,
    thumbnail_edge: int,
) -> EmblemStore:
    """The world of `spec`, built now if it is not there yet; several processes may ask at once."""
    key = json.dumps([_LAYOUT, asdict(spec), train_size, val_size, thumbnail_edge])
    target = root / hashlib.sha256(key.encode()).hexdigest()[:12]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{target.name}.lock"):
        if not target.exists():
            scratch = root / f".{target.name}.building"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            _build(EmblemStore(scratch), spec, train_size, val_size, thumbnail_edge)
            scratch.rename(target)
    return EmblemStore(target)


def _build(store: EmblemStore, spec: WorldSpec, train_size: int, val_size: int, edge: int) -> None:
    world = World(spec)
    splits = {
        "train": train_examples(world, train_size),
        "heldout": heldout_examples(world, val_size),
        "graded": graded_examples(world, per_attribute=2),
        "shifted": shifted_examples(world, val_size),
    }
    for name, examples in splits.items():
        write_fvqa(store.split(name), examples)
    with (store.root / "entities.jsonl").open("w") as out:
        out.writelines(json.dumps(asdict(entity)) + "\n" for entity in world.entities)
    found = [Passage(*row) for entity in world.entities for row in passages(entity)]
    with (store.root / "passages.jsonl").open("w") as out:
        out.writelines(json.dumps(asdict(passage)) + "\n" for passage in found)
    build_text_index(store.text_index, found)
    rng = np.random.default_rng([spec.seed, 6])
    entries = [
        ImageEntry(e.id, image_title(e), f"https://emblems.example/{e.id}", draw(e.emblem, rng, Jitter()))
        for e in world.entities
    ]
    build_image_index(store.image_index, entries, thumbnail_px=edge)
