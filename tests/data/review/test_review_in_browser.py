"""The page in a real browser, with real keys."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from acceptance._browser import PROGRAM, Browser, Tab
from acceptance._review import HOSTILE, OWNED, Server, decided, do, edit, hostile, opened, plain, shown, states, visited
from acceptance.lines import free_port
from mmsr1.data.formats import write_examples
from mmsr1.data.review.app import create_app
from mmsr1.data.review.decisions import DecisionLog
from mmsr1.data.review.session import Review
from mmsr1.data.table import ExampleTable, lay_down

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs chromium on the PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_examples(tmp_path / "set.parquet", map(plain, range(6)))
    return tmp_path / "set.parquet"


@dataclass(frozen=True)
class Here:
    """The page's server in this process, which starts faster than the command."""

    url: str
    decisions: Path


@contextmanager
def serving(file: Path, reviewer: str = "anna") -> Iterator[Here]:
    log = DecisionLog(Path(f"{file}.review.{reviewer}.jsonl"))
    table = ExampleTable([lay_down(file, file.parent / "cache")])
    app = create_app(Review(table, log), {"file": file.name, "reviewer": reviewer})
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    opened = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield Here(f"http://127.0.0.1:{opened.getsockname()[1]}", log.path)
    finally:
        server.should_exit = True
        thread.join()
        log.close()
        opened.close()


def message(tab: Tab) -> str:
    return tab.run("at('message').textContent")


def test_keys_decide_edit_and_undo_and_a_reload_loses_nothing(chromium: Browser, file: Path) -> None:
    with serving(file) as server:
        tab = opened(chromium, server.url)
        assert tab.run("at('question').textContent") == "Which number is row 0?"
        assert tab.until("document.querySelector('#pictures img').naturalWidth") == 320
        do(tab, "a", "r")
        edit(tab, "two", ["zwei", "deux"])
        do(tab, "f", "f", "u")
        row = decided(server.decisions)["row-2"]
        assert (row["state"], row["answer"], row["aliases"]) == ("accepted", "two", ["zwei", "deux"])
        wanted = {"row-0": "accepted", "row-1": "rejected", "row-2": "accepted", "row-3": "flagged", "row-4": "open"}
        assert states(server.decisions) == wanted
        tab.reload()
        shown(tab)
        assert tab.run("[overview.counts, row.position]") == [
            {"open": 2, "accepted": 2, "rejected": 1, "flagged": 1}, 4,
        ]  # fmt: skip
        do(tab, "u", "k")  # the flag of row 3, though the page is new
        assert states(server.decisions)["row-3"] == "open" and tab.run("at('answer').textContent") == "two"
        do(tab, "3")
        assert tab.run("location.hash") == "#row=2&state=rejected"
        do(tab, "j")
        assert "only row" in message(tab) and tab.errors() == []
        assert tab.run("at('reviewer').textContent") == "reviewed by anna"


def test_a_form_that_is_left_changes_nothing_and_its_keys_are_text(chromium: Browser, file: Path) -> None:
    with serving(file) as server:
        tab = opened(chromium, server.url)
        do(tab, "e", "a", "r", "u", "?")
        assert tab.run("at('edit-answer').value") == "0aru?"
        assert tab.run("[...at('actions').children].every((button) => button.disabled)")
        do(tab, "Escape")
        assert tab.run("at('answer').textContent") == "0" and states(server.decisions) == {}
        do(tab, "n")
        tab.write("look again")
        do(tab, "Enter")
        row = decided(server.decisions)["row-0"]
        assert (row["state"], row["note"], row["answer"]) == ("open", "look again", None)
        do(tab, "r", "k", "n")
        tab.write("no answer in it")
        do(tab, "Enter")
        row = decided(server.decisions)["row-0"]
        assert (row["state"], row["note"]) == ("rejected", "no answer in it")
        do(tab, "e")
        tab.write(" ")
        do(tab, "Enter")
        assert "the answer is empty" in message(tab) and tab.run("!at('form').hidden")


def test_the_second_of_two_tabs_is_told_and_then_sees_the_first(chromium: Browser, file: Path) -> None:
    with serving(file) as server:
        tab, other = opened(chromium, server.url), opened(chromium, server.url)
        do(other, "r")
        tab.run("act(DO.accepted)")  # a key would go to the tab in front
        assert "another tab" in message(tab) and tab.run("at('state').textContent") == "Rejected"
        assert states(server.decisions) == {"row-0": "rejected"}
        tab.run("act(DO.accepted)")
        assert states(server.decisions) == {"row-0": "accepted"}


def test_a_decision_waits_for_a_server_that_was_killed(chromium: Browser, file: Path) -> None:
    port = free_port()
    with Server(file, "anna", port) as server:
        tab = opened(chromium, server.url)
        do(tab, "a")
        server.kill()
        tab.press("r")
        tab.until("at('message').textContent.includes('Trying again')")
    with Server(file, "anna", port) as server:
        shown(tab)
        assert states(server.decisions) == {"row-0": "accepted", "row-1": "rejected"}
        assert tab.run("row.position") == 2


def test_hostile_text_stays_text_even_without_the_policy(chromium: Browser, tmp_path: Path) -> None:
    write_examples(tmp_path / "set.parquet", map(hostile, range(len(HOSTILE))))
    with serving(tmp_path / "set.parquet") as server:
        tab = chromium.tab("about:blank")
        tab.call("Page.setBypassCSP", enabled=True)
        tab.open(server.url)
        for number in range(len(HOSTILE)):
            assert visited(tab, number) == {"strange": 0, "links": 1, "text": 1}
            link = tab.run("['href', 'rel', 'target'].map((name) => document.querySelector('a')[name])")
            assert link == ["https://a.example/page?q=1#part", "noopener noreferrer", "_blank"]
        assert not tab.run(f"window.{OWNED} === 1 || document.title === '{OWNED}'")


def test_the_policy_is_in_force(chromium: Browser, file: Path) -> None:
    with serving(file) as server:
        tab = opened(chromium, server.url)
        tab.run(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
        )
        assert tab.run("window.ran") is None


def test_a_page_of_another_origin_can_neither_read_nor_decide(chromium: Browser, file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_examples(tmp_path / "elsewhere" / "set.parquet", [plain(0)])
    with serving(file) as server, serving(tmp_path / "elsewhere" / "set.parquet", "eve") as evil:
        tab = chromium.tab("about:blank")
        tab.call("Page.setBypassCSP", enabled=True)
        tab.open(evil.url)
        shown(tab)
        content = tab.run("row.content")  # of the same row, which eve happens to know
        for more in ("", ", mode: 'no-cors'"):
            sent = (
                f"{{method: 'POST', body: JSON.stringify({{state: 'rejected', seen: 0, content: '{content}'}}){more}}}"
            )
            tab.run(f"fetch('{server.url}/api/rows/0', {sent}).then((r) => r.text()).catch(() => 0)")
        assert tab.run(f"fetch('{server.url}/api/rows/0').then((r) => r.text()).catch(() => 'kept')") == "kept"
        assert states(server.decisions) == {}
