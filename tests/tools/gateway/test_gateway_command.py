"""`python -m mmsr1.tools.gateway`: mistakes in one line, a server that can be asked, and an end that loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

from acceptance._fake_web import FakeWeb
from mmsr1.tools.gateway.__main__ import composed, for_trainers, main, on_loopback

ROOT = Path(__file__).parents[3]
KEY = "canary-key-of-the-gateway"
PARTS = ("image_search", "text_search", "reader", "summarizer")


def refused(capsys, *arguments: str) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said.removeprefix("error: ")


def test_beyond_loopback_without_a_token_it_does_not_start(capsys, monkeypatch, tmp_path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        assert refused(capsys, "--host", host).startswith(f"--host={host}: ")
    monkeypatch.delenv("GATEWAY_TEST_TOKEN", raising=False)
    named = ("--host", "0.0.0.0", "--token-env", "GATEWAY_TEST_TOKEN")
    assert "GATEWAY_TEST_TOKEN is not set" in refused(capsys, *named)
    monkeypatch.setenv("GATEWAY_TEST_TOKEN", "tooshort")
    said = refused(capsys, *named)
    assert "16" in said and "tooshort" not in said
    assert on_loopback("127.0.0.1") and on_loopback("::1") and on_loopback("localhost") and not on_loopback("0.0.0.0")


def test_mistakes_are_told_before_it_listens(capsys, monkeypatch, tmp_path) -> None:
    folder = ("--folder", str(tmp_path), f"tools.cache_dir={tmp_path / 'cache'}")
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    web = ("tools=web", "tools.summarizer.url=http://localhost:1")
    assert "tools.image_search.key_env=SERPAPI_API_KEY" in refused(capsys, *folder, *web)
    assert "tools.text_search.rate" in refused(capsys, *folder, "tools.text_search.rate=3")
    assert refused(capsys, *folder, "tools=wib").startswith("tools=wib: there is no such option")
    assert refused(capsys, "--in-flight", "0").startswith("--in-flight=0: ")
    assert refused(capsys, "--max-body-mb", "0").startswith("--max-body-mb=0")
    assert "--port" in refused(capsys, "--port", "many")
    with FileLock(tmp_path / "gateway.lock"):
        assert "another gateway uses it" in refused(capsys, *folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port={port}: cannot listen there" in refused(capsys, *folder, "--port", str(port))


def test_trainers_are_told_what_differs_from_their_own_settings() -> None:
    url = "http://10.0.0.7:8100"
    assert for_trainers(composed([]).tools, url, None) == ["tools=retrieve", f"tools.text_search.url={url}"]
    told = for_trainers(composed(["tools.thumbnail_edge=280", "tools.text_results=3"]).tools, url, "TOKEN_OF_OURS")
    assert told[2:] == [
        "tools.text_search.key_env=TOKEN_OF_OURS",
        "tools.image_search.key_env=TOKEN_OF_OURS",
        "tools.thumbnail_edge=280",
        "tools.text_results=3",
    ]
    assert composed(told).tools.image_search.key_env == "TOKEN_OF_OURS"


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb(KEY, scale=0.3, steady=True) as served:
        yield served


def test_a_served_search_outlives_its_client_and_the_signal(web, tmp_path) -> None:
    """One process, for it takes seconds to start: asked, left alone, told to end with a search under way."""
    arguments = [sys.executable, "-m", "mmsr1.tools.gateway", "--port", "0", "--folder", str(tmp_path / "gateway")]
    arguments += ["tools=web", "tools.thumbnails=0", f"tools.cache_dir={tmp_path / 'cache'}"]
    arguments += [f"tools.{part}.url={web.url}" for part in PARTS]
    keys = {"SERPAPI_API_KEY": KEY, "JINA_API_KEY": KEY}
    process = subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, **keys}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        address = re.match(r"gateway at (http://127\.0\.0\.1:\d+): image_search serpapi, text_search serpapi", first)
        assert address is not None and f"tools=retrieve tools.text_search.url={address[1]}" in second
        url = address[1]
        with pytest.raises(httpx.TimeoutException):  # a client that does not wait
            httpx.post(f"{url}/retrieve", json={"queries": ["left behind"]}, timeout=0.2)
        answers: list[httpx.Response] = []
        body = {"queries": ["asked at the end"], "return_scores": True}
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/retrieve", json=body, timeout=60)))
        asking.start()
        while web.counts["google"] < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert answers[0].status_code == 200 and answers[0].json()["result"][0]
    assert process.returncode == 0 and "Traceback" not in errors
    *table, ended = said.splitlines()
    assert re.match(r"gateway ended: .* 2 searches, 0 hits, 0 failed; (0\.030\d) USD paid of \1; calls in ", ended)
    assert any(line.split()[:3] == ["text", "search", "2"] for line in table)
    rows = [
        json.loads(line)
        for file in (tmp_path / "gateway/ledger").iterdir()
        for line in file.read_text().split("\n")
        if line
    ]
    ended = [row["state"] for row in rows if row["state"] != "started"]
    assert ended == ["answered"] * len(ended) and len(rows) == 2 * len(ended)
    assert KEY not in said + errors + first + second
