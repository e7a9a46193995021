"""A build or an append that is killed anywhere goes on, and ends as if nothing had been."""

import json

import pytest
from index_helpers import folder, killed, rows, run, task, written

from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.image_search.writing import ImageWriter
from mmsr1.tools.index import building
from mmsr1.tools.index_files import JOURNAL, read_manifest
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.text_search.writing import TextWriter
from mmsr1.types import Picture

BAD = ["{", json.dumps({"id": "p3", "text": "twice"}), json.dumps({"id": "x"})]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(building, "COMMIT", 100)
    monkeypatch.setattr(building, "COMMIT_SLOW", 8)
    monkeypatch.setattr(building, "BATCH", 4)


def at_call(owner, name, number, after=False):
    """Die at the n-th call of a method, before or after its work."""

    def prepare(kill):
        real, calls = getattr(owner, name), []

        def dying(*arguments, **more):
            calls.append(1)
            if len(calls) == number and not after:
                kill()
            result = real(*arguments, **more)
            if len(calls) == number:
                kill()
            return result

        setattr(owner, name, dying)

    return prepare


TEXT_DEATHS = {
    "first batch": at_call(TextWriter, "add", 1),
    "between commits": at_call(TextWriter, "add", 60),
    "before a commit": at_call(TextWriter, "commit", 2),
    "after a commit, before the journal": at_call(TextWriter, "commit", 2, after=True),
    "before the manifest": at_call(building.Manifest, "write", 1),
    "after the manifest": at_call(building.Manifest, "write", 1, after=True),
}


def found(directory):
    tool = LocalTextSearch(directory, topk=5)
    return [
        [(hit.id, round(hit.score, 3)) for hit in tool.find(q)] for q in ("n250", "king of stone", "salt paper bird")
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    home = tmp_path_factory.mktemp("corpus")
    lines = rows(330)
    lines[50:50] = BAD
    one, two = written(home / "one.jsonl", lines), written(home / "two.jsonl", rows(70, 330))
    _, done = run(task(home / "whole", "text", one, two))
    assert (done.skipped, done.count) == (3, 400)
    return home, one, two


@pytest.mark.parametrize("death", TEXT_DEATHS)
def test_a_killed_text_build_ends_like_one_that_was_not(corpus, tmp_path, death):
    home, one, two = corpus
    target = tmp_path / "index"
    killed(task(target, "text", one, two), TEXT_DEATHS[death])
    if death != "after the manifest":
        with pytest.raises(FileNotFoundError, match="run the same build command again"):
            LocalTextSearch(target)
    manifest, done = run(task(target, "text", one, two))
    whole = read_manifest(home / "whole")
    assert (manifest.content, manifest.count, done.skipped) == (whole.content, 400, 3)
    assert found(target) == found(home / "whole")
    assert not (target / JOURNAL).exists()


def test_a_build_killed_again_and_again_gets_there(corpus, tmp_path):
    home, one, two = corpus
    target = tmp_path / "index"
    for number in (30, 20, 30):
        killed(task(target, "text", one, two), at_call(TextWriter, "add", number))
    manifest, _ = run(task(target, "text", one, two))
    assert manifest.content == read_manifest(home / "whole").content
    assert found(target) == found(home / "whole")


@pytest.mark.parametrize("death", ("between commits", "after a commit, before the journal", "after the manifest"))
def test_a_killed_append_leaves_the_old_index_and_goes_on(corpus, tmp_path, death):
    home, one, two = corpus
    target = tmp_path / "index"
    run(task(target, "text", one))
    before = read_manifest(target)
    more = written(tmp_path / "more.jsonl", rows(300, 400))
    old = found(target)
    killed(task(target, "text", two, more, append=True), TEXT_DEATHS[death])
    if death != "after the manifest":
        assert read_manifest(target) == before and found(target) == old
    manifest, _ = run(task(target, "text", two, more, append=True))
    once, _ = run(task(tmp_path / "once", "text", one, two, more))
    assert (manifest.content, manifest.count) == (once.content, 700)
    assert found(target) == found(tmp_path / "once")


IMAGE_DEATHS = {
    "first batch": at_call(ImageWriter, "add", 1),
    "between commits": at_call(ImageWriter, "add", 6),
    "while committing": at_call(ImageWriter, "sync", 2, after=True),
    "before the manifest": at_call(building.Manifest, "write", 1),
    "after the manifest": at_call(building.Manifest, "write", 1, after=True),
}


@pytest.mark.parametrize("death", IMAGE_DEATHS)
def test_a_killed_image_build_ends_like_one_that_was_not(tmp_path, death):
    pictures = folder(tmp_path / "pictures", 30)
    (pictures / "005.png").write_bytes(b"no picture")
    killed(task(tmp_path / "index", "image", pictures), IMAGE_DEATHS[death])
    manifest, done = run(task(tmp_path / "index", "image", pictures))
    whole, _ = run(task(tmp_path / "whole", "image", pictures))
    assert (manifest.content, manifest.sizes, done.skipped) == (whole.content, whole.sizes, 1)
    for name in whole.sizes:
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    query = Picture((pictures / "017.png").read_bytes())
    assert [hit.id for hit in LocalImageSearch(tmp_path / "index").find(query)][0] == "017.png"


def test_an_unfinished_build_is_not_mixed_with_another(corpus, tmp_path):
    _, one, two = corpus
    target = tmp_path / "index"
    killed(task(target, "text", one), at_call(TextWriter, "add", 30))
    with pytest.raises(ValueError, match="unfinished build of other inputs.*--restart"):
        run(task(target, "text", two))
    manifest, _ = run(task(target, "text", two, restart=True))
    assert manifest.count == 70
    assert manifest.content == run(task(tmp_path / "fresh", "text", two))[0].content


def test_a_restarted_append_forgets_what_was_not_finished(corpus, tmp_path):
    _, one, two = corpus
    target = tmp_path / "index"
    run(task(target, "text", one))
    killed(
        task(target, "text", written(tmp_path / "x.jsonl", rows(200, 900)), append=True), at_call(TextWriter, "add", 40)
    )
    manifest, _ = run(task(target, "text", two, append=True, restart=True))
    assert manifest.content == run(task(tmp_path / "once", "text", one, two))[0].content
    assert LocalTextSearch(target).find("n950") == []
