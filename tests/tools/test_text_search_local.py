"""Local text search: what is found, in which order, and that no string is an error."""

import asyncio
import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr1.tools import index_files
from mmsr1.tools.index.building import build_at_once
from mmsr1.tools.text_search.local import LocalTextSearch, Passage, build_text_index
from mmsr1.tools.text_search.writing import TextWriter

FACTS = [
    Passage("1", "Capital of Ban Dab", "the capital of Ban Dab is Lok Gin .", "local://1"),
    Passage("2", "River of Ban Dab", "the river of Ban Dab is Kel Bub .", "local://2"),
    Passage("3", "Capital of Gon Lib", "the capital of Gon Lib is Deb Kon .", "local://3"),
    Passage("4", "Düsseldorf", "Düsseldorf lies on the Rhine; ships were running there daily.", "local://4"),
    Passage("5", "C++", "C++ was designed by Bjarne Stroustrup.", ""),
]
ODD = [
    '"an open quote capital',
    "title:capital",
    "nofield:capital",
    "C++ [1] capital",
    "capital -river +{",
    "(capital OR",
    "capital AND NOT",
    "capital^",
    "capital~2 [a TO",
    "capital 😀🏳️‍🌈",
    "capital \ud800",
    "capital\x00\x1b[0m",
    "capital " * 1250,
    "<answer>capital</answer>",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text") / "index"
    build_text_index(directory, FACTS)
    return directory


def found(tool: LocalTextSearch, query: str) -> list[str]:
    return [item.url.removeprefix("local://") for item in asyncio.run(tool(query)).items]


def test_the_matching_fact_comes_first_with_its_text(index):
    result = asyncio.run(LocalTextSearch(index, topk=2)("What is the capital of Ban Dab?"))
    assert result.status == "ok" and len(result.items) == 2
    first = result.items[0]
    assert (first.title, first.text, first.url) == (FACTS[0].title, FACTS[0].text, FACTS[0].url)
    assert 0 < result.latency_s < 5 and result.cost_usd == 0 and not result.cached


def test_english_forms_case_and_accents_match(index):
    tool = LocalTextSearch(index, topk=1)
    assert found(tool, "DUSSELDORF ship run") == ["4"]
    assert found(tool, "designing c") == [""]


@pytest.mark.parametrize("query", ODD)
def test_query_syntax_means_words(index, query):
    assert {"1", "3"} <= set(found(LocalTextSearch(index), query))


def test_a_lone_star_is_not_everything(index):
    assert asyncio.run(LocalTextSearch(index)("*")).status == "empty"
    assert asyncio.run(LocalTextSearch(index)("zzz")).status == "empty"


@pytest.mark.parametrize("query", ["", "  \n\t "])
def test_an_empty_query_is_a_malformed_call(index, query):
    assert asyncio.run(LocalTextSearch(index)(query)).status == "malformed_call"


@settings(max_examples=60, deadline=None)
@given(query=st.text() | st.text(alphabet='"+-:()[]{}^~*?\\/<>|& aTO', max_size=40))
def test_no_string_is_an_error(index, query):
    assert asyncio.run(LocalTextSearch(index)(query)).status in ("ok", "empty", "malformed_call")


def test_required_share_lets_an_unknown_name_find_nothing(index):
    strict = LocalTextSearch(index, required_share=1.0)
    assert found(strict, "the capital of Ban Dab") == ["1"]
    assert found(strict, "the capital of Zum Zum") == []
    assert found(LocalTextSearch(index), "the capital of Zum Zum") == ["1", "3"]


def test_equal_scores_come_in_order_of_id_beyond_the_cut(tmp_path):
    names = [f"{n:04d}" for n in range(500)]
    random.Random(0).shuffle(names)
    build_text_index(tmp_path / "index", [Passage(n, "same", "same words", f"local://{n}") for n in names])
    assert found(LocalTextSearch(tmp_path / "index", topk=3), "words") == ["0000", "0001", "0002"]


def test_a_long_run_of_equal_scores_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "TIES", 50)
    build_text_index(tmp_path / "old", [Passage(f"{n:04d}", "same", "same words", "") for n in range(500)])
    tool, read = LocalTextSearch(tmp_path / "old", topk=3), []
    real = tool._searcher

    class Counting:
        def doc(self, address):
            read.append(address)
            return real.doc(address)

        def __getattr__(self, name):
            return getattr(real, name)

    tool._searcher = Counting()
    first = [hit.id for hit in tool.find("words")]
    assert len(first) == 3 and len(read) <= 53
    assert [hit.id for hit in tool.find("words")] == first
    make = partial(TextWriter, settings=(settings := TextWriter.settings(proximity=False)), base=None, resumed=False)
    build_at_once(tmp_path / "new", make, settings, [Passage(f"{500 - n}", "", "same words", "") for n in range(40)])
    tool = LocalTextSearch(tmp_path / "new", topk=3)
    real, tool._searcher = tool._searcher, Counting()
    read.clear()
    assert [hit.id for hit in tool.find("words")] == ["500", "499", "498"] and len(read) == 3


def test_the_back_end_names_content_and_settings(index, tmp_path):
    build_text_index(tmp_path / "same", FACTS)
    build_text_index(tmp_path / "other", FACTS[:-1])
    backend = LocalTextSearch(index).backend
    assert LocalTextSearch(tmp_path / "same").backend == backend
    assert LocalTextSearch(tmp_path / "other").backend != backend
    assert LocalTextSearch(index, topk=2).backend != backend
    assert LocalTextSearch(index, required_share=0.5).backend != backend


def test_an_index_is_complete_or_absent(tmp_path):
    def breaks():
        yield FACTS[0]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        build_text_index(tmp_path / "index", breaks())
    with pytest.raises(ValueError, match="'1' occurs twice"):
        build_text_index(tmp_path / "index", [FACTS[0], FACTS[0]])
    with pytest.raises(ValueError, match="no passages"):
        build_text_index(tmp_path / "index", [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="build_text_index"):
        LocalTextSearch(tmp_path / "index")
    build_text_index(tmp_path / "index", FACTS)
    with pytest.raises(FileExistsError, match="never changed"):
        build_text_index(tmp_path / "index", FACTS)


def test_an_index_of_another_version_is_refused(tmp_path):
    build_text_index(tmp_path / "index", FACTS)
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 0'))
    with pytest.raises(ValueError, match="build it again"):
        LocalTextSearch(tmp_path / "index")
