"""`python -m mmsr1.tools.index` as a researcher types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from index_helpers import folder, rows, written

from mmsr1.tools.index.__main__ import main

ROOT = Path(__file__).parents[3]


def told(capsys, *arguments):
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("error: ") and sum(line.startswith("error") for line in said) == 1
    return said[-1]


def test_build_append_search_info(tmp_path, capsys):
    index = tmp_path / "index"
    out = told(capsys, "build", "--kind", "text", "--out", index, written(tmp_path / "a.jsonl", rows(30)))
    assert f"{index}: 30 passages" in out and f"tools.text_index={index}" in out
    out = told(capsys, "append", index, written(tmp_path / "b.jsonl", rows(40)))
    assert "10 added, 40 passages" in out
    queries = [
        {"id": "a", "question": "n35"},
        {"query": "n3"},
        {"id": 7, "text": "nothing-of-it"},
        {"id": "b"},
        "{",
        {"id": "c", "text": "\ud800"},
    ]
    answers = [
        json.loads(line)
        for line in told(capsys, "search", index, "--queries", written(tmp_path / "q.jsonl", queries)).splitlines()
    ]
    assert [answer["id"] for answer in answers] == ["a", 2, 7, "b", 5, "c"]
    assert [hit["id"] for hit in answers[0]["hits"]] == ["p35"] and answers[0]["hits"][0]["score"] > 0
    assert answers[2] == {"id": 7, "hits": []}
    assert ["error" in answer for answer in answers] == [False, False, False, True, True, False]
    info = json.loads(told(capsys, "info", index))
    assert (info["kind"], info["count"], info["made"]["skipped"]) == ("text", 40, 30)


def test_pictures_are_searched_by_paths_beside_the_queries(tmp_path, capsys):
    pictures, index = folder(tmp_path / "pictures", 6), tmp_path / "index"
    told(capsys, "build", "--kind", "image", "--out", index, pictures)
    lines = [
        {"id": "q", "image": "pictures/004.png"},
        {"id": "r", "image": "none.png"},
        {"id": "s", "image": "a\u0000b"},
        {"id": "t"},
        {"id": "u", "image": "\ud800.png"},
        {"id": "v", "image": "../pictures/004.png"},
        {"id": "w", "image": "pictures/004.png"},
    ]
    out = told(capsys, "search", index, "--queries", written(tmp_path / "q.jsonl", lines), "--topk", "2")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [hit["id"] for hit in answers[0]["hits"]][0] == "004.png" and len(answers[0]["hits"]) == 2
    assert answers[0]["hits"][0]["score"] > 0.99
    assert all(answer["hits"] == [] and answer["error"] for answer in answers[1:-1])
    assert answers[-1]["hits"][0]["id"] == "004.png"  # none of them ended the search


def test_any_number_of_answers_may_be_asked_for(tmp_path, capsys):
    text, image = tmp_path / "text", tmp_path / "image"
    told(capsys, "build", "--kind", "text", "--out", text, written(tmp_path / "a.jsonl", rows(30)))
    told(capsys, "build", "--kind", "image", "--out", image, folder(tmp_path / "pictures", 6))
    told(
        capsys, "build", "--kind", "image", "--descriptor", "cells", "--out", tmp_path / "cells", tmp_path / "pictures"
    )
    asked = written(tmp_path / "q.jsonl", [{"text": "king", "image": "pictures/004.png"}])
    for index, least in ((text, 1), (image, 6), (tmp_path / "cells", 6)):
        out = told(capsys, "search", index, "--queries", asked, "--topk", str(10**9))
        assert len(json.loads(out)["hits"]) >= least


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    lines = written(tmp_path / "a.jsonl", rows(3))
    assert "no such file" in refused(
        capsys, "build", "--kind", "text", "--out", tmp_path / "i", tmp_path / "none.jsonl"
    )
    assert "no search index" in refused(capsys, "info", tmp_path / "none")
    assert "no search index" in refused(capsys, "append", tmp_path / "none", lines)
    told(capsys, "build", "--kind", "text", "--out", tmp_path / "i", lines)
    assert "append to it" in refused(capsys, "build", "--kind", "text", "--out", tmp_path / "i", lines)
    assert "--topk 0" in refused(capsys, "search", tmp_path / "i", "--queries", lines, "--topk", "0")
    assert "none.jsonl" in refused(capsys, "search", tmp_path / "i", "--queries", tmp_path / "none.jsonl")
    assert "no encoder" in refused(
        capsys, "build", "--kind", "text", "--out", tmp_path / "j", lines, "--embed", tmp_path
    )
    assert "made without a model" in refused(
        capsys, "search", tmp_path / "i", "--queries", lines, "--model", str(tmp_path)
    )
    assert "holds other files" in refused(capsys, "build", "--kind", "text", "--out", tmp_path, lines)
    assert not (tmp_path / "none").exists() and not (tmp_path / "j").exists()


def test_it_starts_as_a_module(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mmsr1.tools.index", "info", "none"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
