"""The world on disk: built once, whole or not at all; its searches find what the questions need."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsr1.data.emblem import store as module
from mmsr1.data.emblem.questions import heldout_examples, train_examples
from mmsr1.data.emblem.store import EmblemStore, open_store
from mmsr1.data.emblem.world import World, WorldSpec
from mmsr1.data.formats import load_examples
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.types import Example, ToolResult
from tests.data.conftest import SMALL


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def open_small(root: Path, spec: WorldSpec = SMALL, train: int = 6, val: int = 12, edge: int = 28) -> EmblemStore:
    return open_store(root, spec, train, val, edge)


@pytest.fixture(scope="module")
def heldout(store: EmblemStore) -> list[Example]:
    return load_examples(store.split("heldout"))[0]


def test_the_files_hold_what_the_world_asks(store: EmblemStore, world: World, heldout: list[Example]) -> None:
    assert heldout == heldout_examples(world, 480)
    assert load_examples(store.split("train")) == (train_examples(world, 12), [])
    assert len(load_examples(store.split("graded"))[0]) == 48 * 3 * 2
    assert Counter(e.search_need for e in load_examples(store.split("shifted"))[0])["free"] == 240
    entities = [json.loads(line) for line in (store.root / "entities.jsonl").read_text().splitlines()]
    assert [e["name"] for e in entities] == [e.name for e in world.entities]
    assert len((store.root / "passages.jsonl").read_text().splitlines()) == 5 * len(entities)


def test_every_held_out_picture_finds_its_place_first(store: EmblemStore, world: World, heldout: list[Example]) -> None:
    tool = LocalImageSearch(store.image_index, topk=5, thumbnails=5)
    names = {f"emblem/{entity.id}": entity.name for entity in world.entities}

    async def search() -> list[ToolResult]:
        return [await tool(example.images[0]) for example in heldout]

    results = asyncio.run(search())
    hits = [names[e.source] in r.items[0].title for e, r in zip(heldout, results, strict=True)]
    assert np.mean(hits) >= 0.99
    assert all(len(r.items) == 5 and all(item.thumbnail for item in r.items) for r in results)
    shown = {e.images[0].digest for e in heldout}
    assert not shown & {item.thumbnail.digest for r in results for item in r.items if item.thumbnail}


def test_a_question_about_a_named_place_finds_its_fact_first(
    store: EmblemStore, world: World, heldout: list[Example]
) -> None:
    tool = LocalTextSearch(store.text_index, topk=5)
    entities = {f"emblem/{entity.id}": entity for entity in world.entities}
    asked = [e for e in heldout if e.search_need in ("text", "both")]
    facts = [next(f for f, value in entities[e.source].facts.items() if f" {f} " in e.question) for e in asked]

    async def search() -> list[ToolResult]:
        queries = [f"{fact} of {entities[e.source].name}" for e, fact in zip(asked, facts, strict=True)]
        return [await tool(query) for query in queries]

    results = asyncio.run(search())
    assert np.mean([e.answer in r.items[0].text for e, r in zip(asked, results, strict=True)]) >= 0.99


def test_a_fresh_place_is_in_neither_index(store: EmblemStore, world: World) -> None:
    """The warm-up shows fresh places; nothing that training could look up gives them away."""
    titles = (store.image_index / "entries.jsonl").read_text() + (store.root / "passages.jsonl").read_text()
    rng = np.random.default_rng(0)
    for fresh in (world.fresh(rng) for _ in range(50)):
        assert f"flag of {fresh.name}" not in titles and f" of {fresh.name} is" not in titles


def test_it_is_built_once_and_then_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_small(tmp_path)
    before = files_of(first.root)
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    assert open_small(tmp_path) == first and files_of(first.root) == before


def test_another_spec_is_another_folder(tmp_path: Path) -> None:
    stores = [open_small(tmp_path), open_small(tmp_path, replace(SMALL, seed=4)), open_small(tmp_path, train=9)]
    stores.append(open_small(tmp_path, edge=14))
    assert len({store.root for store in stores}) == 4
    assert all(store.split("train").is_file() for store in stores)


def test_two_builds_are_equal(tmp_path: Path) -> None:
    """Equal content means equal cache keys, so what was searched in one run is a hit in the next."""
    one, two = open_small(tmp_path / "a"), open_small(tmp_path / "b")
    assert one.root.name == two.root.name
    assert {n: c for n, c in files_of(one.root).items() if "tantivy" not in n} == {
        n: c for n, c in files_of(two.root).items() if "tantivy" not in n
    }
    assert LocalTextSearch(one.text_index).backend == LocalTextSearch(two.text_index).backend
    assert LocalImageSearch(one.image_index).backend == LocalImageSearch(two.image_index).backend


def test_a_build_that_breaks_off_leaves_nothing_to_be_mistaken_for_a_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(module, "build_image_index", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            open_small(tmp_path)
    assert not [f for f in tmp_path.iterdir() if f.is_dir() and not f.name.startswith(".")]
    store = open_small(tmp_path)
    assert LocalImageSearch(store.image_index).backend and load_examples(store.split("heldout"))[1] == []
    assert [f.name for f in tmp_path.iterdir() if f.is_dir()] == [store.root.name]
