"""The command: what it says, and one line and status 2 for what cannot be done."""

import pickle

import pytest
from frozen import FLAG, Answers, bundled, found, recorded, web

from mmsr1.data.fvqa import write_fvqa
from mmsr1.tools.bundle.__main__ import main
from mmsr1.tools.bundle.format import read_manifest
from mmsr1.types import Example


@pytest.fixture
def run(tmp_path):
    recorded(tmp_path / "run", tmp_path / "cache", *web())
    (tmp_path / "run" / "config.yaml").write_text(f"tools: {{cache_dir: '{tmp_path / 'cache'}'}}")
    return tmp_path / "run"


def said(capsys, *arguments):
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The one line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert caught.value.code == 2 and told.err.startswith("error: ") and told.err.count("\n") == 1
    return told.err


def test_a_run_becomes_a_bundle_and_every_step_says_what_comes_next(run, tmp_path, capsys):
    out = tmp_path / "bundle"
    told = said(capsys, "export", run, "--out", out)
    name = read_manifest(out).hash
    assert (
        "searches 6, thumbnails 2, recorded 2026-09-21" in told
        and f"tools=replay tools.bundle={out}" in told
        and name in told
    )
    assert f"{out}: whole; searches 6" in said(capsys, "verify", out, "--hash", name)
    told = said(capsys, "info", out)
    assert name in told and "web:v1" in told
    (texts,) = [line.split() for line in told.splitlines() if line.strip().startswith("text_search")]
    assert texts == ["text_search", "4", "1", "1", "1", "1"]
    assert "searches 6" in said(capsys, "merge", out, out, "--out", tmp_path / "both")
    assert read_manifest(tmp_path / "both").hash == name


def test_what_cannot_be_done_is_one_line(run, tmp_path, capsys):
    out = tmp_path / "bundle"
    main(["export", str(run), "--out", str(out)])
    capsys.readouterr()
    assert f"{out} exists" in refused(capsys, "export", run, "--out", out)
    assert "neither a run" in refused(capsys, "export", tmp_path / "nothing", "--out", tmp_path / "b")
    assert "no bundle there" in refused(capsys, "verify", tmp_path / "nothing")
    assert "no bundle there" in refused(capsys, "info", run)
    assert "it is whole, but another one" in refused(capsys, "verify", out, "--hash", "0" * 64)
    (out / "blobs.bin").write_bytes(b"")
    told = refused(capsys, "verify", out)
    assert f"{out}: blobs.bin was changed" in told
    assert "nothing there was answered by it" in refused(
        capsys, "export", run, "--backend", "foo", "--out", tmp_path / "b"
    )
    assert "no bundle there" in refused(capsys, "merge", out, tmp_path / "nothing", "--out", tmp_path / "b")
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert "say with --cache" in refused(capsys, "export", run, "--out", tmp_path / "b")
    main(["export", str(run), "--cache", str(tmp_path / "moved"), "--out", str(tmp_path / "b")])


def test_the_released_caches_are_imported_for_the_questions_of_a_parquet_file(tmp_path, capsys):
    write_fvqa(tmp_path / "fvqa.parquet", [Example("fvqa_train_0", "what?", (FLAG,), "a", (), "free", "fvqa")])
    search = {"tool_returned_web_title_list": ["A page"], "tool_returned_images_urls": ["https://a.example/1.jpg"]}
    (tmp_path / "cache.pkl").write_bytes(pickle.dumps({"fvqa_train_0": search, "fvqa_train_1": search}))
    given = ("import-fvqa", tmp_path / "cache.pkl", "--data", tmp_path / "fvqa.parquet", "--out", tmp_path / "bundle")
    told = said(capsys, *given)
    assert "searches 1," in told and "left out: 1 searches for questions that are not in the data" in told
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(print))
    assert "builtins.print" in refused(capsys, "import-fvqa", tmp_path / "bad.pkl", *given[2:5], tmp_path / "another")


def test_nothing_in_a_bundle_steers_the_terminal(tmp_path, capsys):
    steering = Answers("text_search", {"q": found("q")}, "\x1b]0;PWNED\x07\x1b[31mred")
    bundled(tmp_path, steering)
    told = said(capsys, "info", tmp_path / "bundle")
    assert "\x1b" not in told and "\x07" not in told and "PWNED" in told
