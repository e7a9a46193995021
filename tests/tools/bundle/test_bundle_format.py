"""A bundle is what it says, whole, and cannot be made to hold anything else."""

import hashlib
import io
import json
import os
import random
import shutil
from dataclasses import replace

import pytest
from frozen import FLAG, MAP, Answers, bundled, found, picture, web
from PIL import Image

from mmsr1.tools.bundle import format as format_module
from mmsr1.tools.bundle.export import merge
from mmsr1.tools.bundle.format import FILES, MANIFEST, Bundle, read_manifest, verify, written
from mmsr1.tools.bundle.rows import call_key, read_row
from mmsr1.tools.bundle.table import Damaged, TableWriter
from mmsr1.tools.codecs import canonical
from mmsr1.types import ToolResult

TEXT, IMAGE = "text_search", "image_search"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    bundled(folder, *web())
    return folder / "bundle"


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "bundle")


def test_what_was_recorded_is_found_and_nothing_else(bundle):
    opened, manifest = Bundle(bundle), verify(bundle)
    assert opened.manifest == manifest and (manifest.rows, manifest.blobs) == (6, 2)
    assert manifest.tools == {
        IMAGE: {"ok": 2},
        TEXT: {"ok": 1, "empty": 1, "infrastructure_error": 1, "malformed_call": 1},
    }
    row = opened.find(call_key(IMAGE, {"image": FLAG.digest}))
    result = row.result(opened.picture)
    assert result == ToolResult("ok", found("a flag", MAP).items, 0.01, 0.25, True) and result.items[0].thumbnail == MAP
    assert opened.find(call_key(TEXT, {"text": FLAG.digest})) is None
    assert manifest.backends[row.backend] == "web:v1" and manifest.dates == "2026-09-21"


def test_the_same_searches_make_the_same_bundle_byte_for_byte(tmp_path, bundle):
    image, text = web()
    bundled(tmp_path / "again", text, image)
    for name in (MANIFEST, *FILES):
        assert (tmp_path / "again" / "bundle" / name).read_bytes() == (bundle / name).read_bytes()


def test_any_flipped_byte_is_found(bundle):
    draw = random.Random(0)
    for name in (MANIFEST, *FILES):
        data = (bundle / name).read_bytes()
        places = range(len(data)) if name == MANIFEST else draw.sample(range(len(data)), min(150, len(data)))
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << draw.randrange(8)
            (bundle / name).write_bytes(flipped)
            with pytest.raises(Damaged):
                verify(bundle)
        (bundle / name).write_bytes(data)
    verify(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_or_longer_is_found(bundle, name):
    data = (bundle / name).read_bytes()
    for other in (data[:-1], data + b"\n", b""):
        (bundle / name).write_bytes(other)
        with pytest.raises(Damaged):
            verify(bundle)


def test_a_replay_serves_no_changed_byte_even_without_verify(bundle):
    opened, row = Bundle(bundle), call_key(IMAGE, {"image": FLAG.digest})
    data = (bundle / "rows.jsonl").read_bytes()
    (bundle / "rows.jsonl").write_bytes(data.replace(b"About a flag", b"About a frog"))
    with pytest.raises(Damaged, match=r"rows\.jsonl was changed"):
        opened.find(row)
    (bundle / "rows.jsonl").write_bytes(data)
    blobs = bytearray((bundle / "blobs.bin").read_bytes())
    blobs[len(blobs) // 4] ^= 1
    blobs[-len(blobs) // 4] ^= 1
    (bundle / "blobs.bin").write_bytes(blobs)
    with pytest.raises(Damaged, match=r"blobs\.bin was changed"):
        opened.find(row).result(opened.picture)


def rewritten(bundle, **changes):
    """The manifest with these changes and a hash that fits."""
    content = json.loads((bundle / MANIFEST).read_text()) | changes
    content.pop("hash")
    content["hash"] = hashlib.sha256(canonical(content).encode()).hexdigest()
    (bundle / MANIFEST).write_text(canonical(content) + "\n")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_outside_of_the_bundle_is_refused(bundle, tmp_path):
    (tmp_path / "secret").write_text("of somebody else")
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    rewritten(bundle, files=files | {"../secret": sha(tmp_path / "secret")})
    for use in (Bundle, verify):
        with pytest.raises(Damaged, match=r"names files that no bundle has: \['../secret'\]"):
            use(bundle)
    rewritten(bundle, files=files)
    verify(bundle)
    for name in FILES:
        shutil.move(bundle / name, tmp_path / name)
        os.symlink(tmp_path / name, bundle / name)
        for use in (Bundle, verify):
            with pytest.raises(Damaged, match="leads out of the bundle"):
                use(bundle)
        (bundle / name).unlink()
        shutil.move(tmp_path / name, bundle / name)
    (bundle / "more.pkl").write_bytes(b"x")
    with pytest.raises(Damaged, match=r"more\.pkl: not part of a bundle"):
        verify(bundle)


def test_a_huge_blob_is_refused_before_it_is_read(bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(format_module, "BLOB_BYTES", 20)
    with pytest.raises(Damaged, match="more than the 20 that are read"):
        verify(bundle)
    opened = Bundle(bundle)
    with pytest.raises(Damaged, match="more than the 20"):
        opened.find(call_key(IMAGE, {"image": FLAG.digest})).result(opened.picture)
    with pytest.raises(ValueError, match="more than 20 bytes"):
        bundled(tmp_path / "another", Answers(IMAGE, {FLAG: found("x", MAP)}))
    assert not (tmp_path / "another" / "bundle").exists()


def forged(bundle, lines):
    """A bundle with these rows, all hashes fitting."""
    rows = TableWriter(bundle / "rows.jsonl", bundle / "rows.idx")
    for key, line in sorted(lines):
        rows.add(key, line)
    rows.close()
    files = {name: sha(bundle / name) for name in FILES}
    rewritten(bundle, files=files, rows=len(lines))


LINE = {"asked": {"text": "q"}, "at": None, "backend": "b" * 16, "cost_usd": 0.0, "detail": "", "items": []}
LINE |= {"latency_s": 0.0, "status": "empty", "tool": TEXT}
ITEM = {"title": "t", "text": "", "url": "", "thumbnail": None}


@pytest.mark.parametrize(
    "change",
    [
        {"tool": "shell"},
        {"status": "over_budget"},
        {"cost_usd": -1.0},
        {"latency_s": "1"},
        {"asked": {"text": 3}},
        {"asked": {"image": "../../etc/passwd"}},
        {"asked": {"text": "q", "image": "0" * 64}},
        {"status": "ok", "items": [ITEM | {"thumbnail": "../x"}]},
        {"status": "ok", "items": [ITEM | {"more": 1}]},
        {"items": [ITEM]},
        {"at": 1.5},
        {"more": 1},
        {"detail": None},
    ],
)
def test_a_row_of_any_other_form_is_refused_though_all_hashes_fit(bundle, change):
    line = canonical(LINE | change)
    with pytest.raises(ValueError, match="not a recorded search"):
        read_row(line)
    forged(bundle, [(call_key(TEXT, {"text": "q"}), f"{line}\n".encode())])
    with pytest.raises(Damaged):
        verify(bundle)
    with pytest.raises(Damaged):
        Bundle(bundle).find(call_key(TEXT, {"text": "q"}))


def test_a_row_under_another_key_or_with_another_thumbnail_is_refused(bundle):
    backends = {"b" * 16: "forged"}
    forged(bundle, [(call_key(TEXT, {"text": "another"}), f"{canonical(LINE)}\n".encode())])
    rewritten(bundle, backends=backends)
    with pytest.raises(Damaged, match="not what its key says"):
        Bundle(bundle).find(call_key(TEXT, {"text": "another"}))
    line = canonical(LINE | {"status": "ok", "items": [ITEM | {"thumbnail": picture(77).digest}]})
    forged(bundle, [(call_key(TEXT, {"text": "q"}), f"{line}\n".encode())])
    rewritten(bundle, backends=backends, tools={TEXT: {"ok": 1}}, as_of=None)
    with pytest.raises(Damaged, match="is missing"):
        verify(bundle)
    with pytest.raises(Damaged, match="missing"):
        opened = Bundle(bundle)
        opened.find(call_key(TEXT, {"text": "q"})).result(opened.picture)


def test_a_bundle_is_there_whole_or_not_at_all(tmp_path, whole):
    with pytest.raises(RuntimeError), written(tmp_path / "bundle", lambda digest: b"") as writer:
        row = next(Bundle(whole).rows())
        writer.add(row, "web:v1")
        raise RuntimeError("killed, so to speak")
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(FileExistsError), written(whole, lambda digest: b""):
        pass


def test_a_bundle_of_two_has_what_both_have_and_the_first_decides(tmp_path):
    down = ToolResult("infrastructure_error", detail="down")
    bundled(tmp_path / "a", Answers(TEXT, {"q": found("first"), "p": down, "a": found("a")}))
    bundled(tmp_path / "b", Answers(TEXT, {"q": found("second"), "p": found("p")}, "other:v2"), at=1_800_000_000)
    bundled(tmp_path / "c", Answers(IMAGE, {FLAG: found("flag", MAP)}))
    done = merge([tmp_path / name / "bundle" for name in "abc"], tmp_path / "all")
    manifest, opened = verify(tmp_path / "all"), Bundle(tmp_path / "all")
    assert (manifest.rows, done.replaced) == (4, 2) and sorted(manifest.backends.values()) == ["other:v2", "web:v1"]
    title = {q: opened.find(call_key(TEXT, {"text": q})).items[0].title for q in "qpa"}
    assert title == {"q": "About first", "p": "About p", "a": "About a"}
    assert opened.find(call_key(IMAGE, {"image": FLAG.digest})).result(opened.picture).items[0].thumbnail == MAP
    assert manifest.as_of == (1_790_000_000, 1_800_000_000) and manifest.dates == "2026-09-21 to 2027-01-15"
    merge([tmp_path / "all"], tmp_path / "copy")
    assert (tmp_path / "copy" / MANIFEST).read_bytes() == (tmp_path / "all" / MANIFEST).read_bytes()


@pytest.mark.parametrize("data", [b"hello, no picture", "bomb"])
def test_a_thumbnail_that_is_no_small_picture_is_refused(tmp_path, whole, data):
    """All hashes fit: the bundle was made so."""
    if data == "bomb":
        image = io.BytesIO()
        Image.new("1", (13_000, 13_000)).save(image, "PNG")
        data = image.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    with written(tmp_path / "bundle", lambda _: data) as writer:
        for row in Bundle(whole).rows():
            writer.add(replace(row, items=tuple(replace(item, thumbnail=digest) for item in row.items)), "web:v1")
    with pytest.raises(Damaged, match=f"thumbnail {digest} is none"):
        verify(tmp_path / "bundle")
    opened = Bundle(tmp_path / "bundle")
    with pytest.raises(Damaged, match="is none"):
        opened.find(call_key(IMAGE, {"image": FLAG.digest})).result(opened.picture)


@pytest.mark.parametrize(
    "change",
    [
        {"tools": {"[/bold]oops": {"ok": 1}}},
        {"tools": {IMAGE: 5}},
        {"tools": {IMAGE: {"ok": "many"}}},
        {"tools": {IMAGE: {"over_budget": 1}}},
        {"as_of": [-(10**30), 10**30]},
        {"as_of": [1]},
        {"rows": -1},
        {"blobs": "2"},
        {"backends": {"0" * 16: 5}},
        {"backends": {"x": "y"}},
        {"version": 2},
    ],
)
def test_a_manifest_of_any_other_form_is_refused_though_its_hash_fits(bundle, change):
    rewritten(bundle, **change)
    with pytest.raises(Damaged):
        read_manifest(bundle)
