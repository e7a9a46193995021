"""A build touches nothing that is not its own, and one that fails leaves nothing behind."""

import gzip
import json

import pytest
from index_helpers import folder, killed, rows, run, task, written

from mmsr1.tools.index import building
from mmsr1.tools.index.building import Journal
from mmsr1.tools.index.folder import LOCK
from mmsr1.tools.index_files import JOURNAL, read_manifest
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.text_search.writing import TextWriter


def files_of(path):
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_folder_of_something_else_is_not_touched(tmp_path, kind):
    home = tmp_path / "home"
    (home / "tantivy-0.27").mkdir(parents=True)
    (home / "tantivy-1").mkdir()
    for name in ("graph-mine.faiss", "entries.jsonl", "fine.u8", "vectors.f32", "tantivy-1/x", "tantivy-0.27/y"):
        (home / name).write_text("mine")
    inside = written(home / "ids.u64.jsonl", rows(3)) if kind == "text" else folder(home / "pictures", 2)
    before = files_of(home)
    for restart in (False, True):
        with pytest.raises(ValueError, match="holds other files .* give a folder that is empty") as told:
            run(task(home, kind, inside, restart=restart))
        assert "\n" not in str(told.value) and files_of(home) == before
    (home / "manifest.json").write_text('{"name": "of some web page"}')
    with pytest.raises(ValueError, match="no manifest of an index"):
        run(task(home, kind, inside))
    (home / "journal.json").write_text('["of some research"]')
    (home / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no journal of an index"):
        run(task(home, kind, inside, restart=True))
    assert {name: data for name, data in files_of(home).items() if name in before} == before


def test_what_only_looks_like_a_part_stays(tmp_path):
    home = tmp_path / "index"
    run(task(home, "text", written(tmp_path / "a.jsonl", rows(3))))
    (home / "tantivy-notes").mkdir()
    (home / "graph-mine.faiss").write_text("mine")
    run(task(home, "text", written(tmp_path / "b.jsonl", rows(3, 3)), append=True))
    assert (home / "tantivy-notes").is_dir() and (home / "graph-mine.faiss").is_file()
    assert [path.name for path in home.glob("tantivy-[0-9]*")] == ["tantivy-2"]


def test_an_empty_folder_and_one_with_a_lock_will_do(tmp_path):
    file = written(tmp_path / "a.jsonl", rows(3))
    for name in ("empty", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "locked" / LOCK).touch()
    (tmp_path / "locked" / f".{JOURNAL}.new").write_text("{")
    assert {run(task(tmp_path / name, "text", file))[0].count for name in ("empty", "locked")} == {3}
    with pytest.raises(ValueError, match="is a file"):
        run(task(file, "text", file))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_build_that_fails_leaves_nothing(tmp_path, kind):
    bad = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in rows(400)).encode()
    bad.write_bytes(gzip.compress(lines)[:-600])
    (tmp_path / "there").mkdir()
    for name, left in (("new", False), ("there", True)):
        with pytest.raises(ValueError, match="damaged compression"):
            run(task(tmp_path / name, kind, bad))
        assert (tmp_path / name).exists() is left and not (left and any((tmp_path / name).iterdir()))


def test_an_append_that_fails_leaves_the_index_as_it_was(tmp_path):
    home = tmp_path / "index"
    run(task(home, "text", written(tmp_path / "a.jsonl", rows(5))))
    before = read_manifest(home)
    bad = tmp_path / "b.jsonl.gz"
    bad.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(400, 5)).encode())[:-600])
    with pytest.raises(ValueError, match="damaged compression"):
        run(task(home, "text", bad, append=True))
    assert read_manifest(home) == before and not (home / JOURNAL).exists() and not (home / "tantivy-2").exists()
    manifest, _ = run(task(home, "text", written(tmp_path / "c.jsonl", rows(5, 5)), append=True))
    assert manifest.count == 10


def test_what_is_safe_is_kept_when_a_build_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "COMMIT", 50)
    monkeypatch.setattr(building, "BATCH", 50)
    plain, packed = written(tmp_path / "a.jsonl", rows(100)), tmp_path / "b.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b\x08\x00abc")
    with pytest.raises(ValueError, match="damaged compression"):
        run(task(tmp_path / "index", "text", plain, packed))
    assert json.loads((tmp_path / "index" / JOURNAL).read_text())["done"]["count"] == 100


@pytest.mark.parametrize("after", [False, True])
def test_a_build_killed_before_its_writer_begins_goes_on(tmp_path, after):
    """The first line of the journal is written before anything else, so that the folder is known again."""

    def prepare(kill):
        real = Journal.write

        def dying(self, directory):
            real(self, directory)
            if self.opened is after:
                kill()

        Journal.write = dying

    home, one, two = (
        tmp_path / "index",
        written(tmp_path / "a.jsonl", rows(20)),
        written(tmp_path / "b.jsonl", rows(9, 20)),
    )
    killed(task(home, "text", one), prepare)
    assert run(task(home, "text", one))[0].count == 20
    killed(task(home, "text", two, append=True), prepare)
    assert run(task(home, "text", two, append=True))[0].count == 29
    assert [hit.id for hit in LocalTextSearch(home).find("n25")] == ["p25"]


def test_a_half_made_copy_is_made_again(tmp_path):
    home, one, two = (
        tmp_path / "index",
        written(tmp_path / "a.jsonl", rows(20)),
        written(tmp_path / "b.jsonl", rows(9, 20)),
    )
    run(task(home, "text", one))

    def prepare(kill):
        def dying(*arguments, **more):
            (home / "tantivy-2").mkdir()
            kill()

        TextWriter.__init__ = dying

    killed(task(home, "text", two, append=True), prepare)
    assert run(task(home, "text", two, append=True))[0].count == 29
