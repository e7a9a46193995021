"""The command that starts a server of a fleet: what vLLM is told, and who is let in."""

import asyncio
import json
import os

import httpx
import pytest

from mmsr1.rollout.engines import serve
from mmsr1.rollout.engines.vllm_child import PARENT
from mmsr1.rollout.engines.vllm_server_http import TOKEN_VARIABLE


@pytest.fixture
def started(monkeypatch):
    """The command line and environment of the vLLM that these arguments start."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def start(*arguments, vllm="0.32.0"):
        calls = []
        monkeypatch.setattr(serve.importlib.metadata, "version", lambda name: {"vllm": vllm}[name])
        monkeypatch.setattr(os, "execve", lambda path, words, environment: calls.append((words, environment)))
        serve.main(["folder", "--port", "8123", *arguments])
        return calls[0]

    return start


def value(words, flag):
    return words[words.index(flag) + 1]


def test_one_short_command_gives_all_that_the_engine_needs(started):
    words, environment = started()
    assert (value(words, "--model"), value(words, "--port"), value(words, "--host")) == ("folder", "8123", "127.0.0.1")
    assert json.loads(value(words, "--weight-transfer-config")) == {"backend": "mmsr1_shm"}
    assert json.loads(value(words, "--limit-mm-per-prompt")) == {"image": 8, "video": 0}
    assert {"--enable-scale-out", "--no-enable-chunked-prefill", "--enforce-eager"} <= set(words)
    assert environment["VLLM_SERVER_DEV_MODE"] == "1" and environment[PARENT] == str(os.getpid())
    assert "--middleware" not in words
    assert "--kv-cache-memory-bytes" not in words and "OMP_NUM_THREADS" not in environment


def test_on_a_cpu_it_takes_little(started):
    words, environment = started(vllm="0.32.0+cpu")
    assert value(words, "--kv-cache-memory-bytes") == str(2**28) and environment["OMP_NUM_THREADS"] == "1"
    words, environment = started("--kv-cache-gib", "2", "--cpu-threads", "3", vllm="0.32.0+cpu")
    assert value(words, "--kv-cache-memory-bytes") == str(2**31) and environment["OMP_NUM_THREADS"] == "3"


def test_the_help_has_the_lines_to_copy(capsys):
    with pytest.raises(SystemExit):
        serve.parse(["--help"])
    help = capsys.readouterr().out
    for line in ("starting_policy --port 8000", "--dtype bfloat16 --max-model-len 12288 --transfer nccl"):
        assert line in help


def test_it_says_how_to_train_with_it(started, capsys):
    started()
    assert """'rollout.server.urls=["http://127.0.0.1:8123"]'""" in capsys.readouterr().err


def test_flags_of_vllm_go_through_and_come_last(started):
    words, _ = started("--enable-chunked-prefill", "--gpu-memory-utilization", "0.8", "--max-model-len", "512")
    assert words[-3:] == ["--enable-chunked-prefill", "--gpu-memory-utilization", "0.8"]
    assert value(words, "--max-model-len") == "512"


def test_what_the_server_cannot_do_without_wins_over_the_users_environment(started, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    words, environment = started("--cpu-threads", "2", "--compile")
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1" and environment["VLLM_NO_USAGE_STATS"] == "0"
    assert environment["OMP_NUM_THREADS"] == "2" and "--enforce-eager" not in words


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "machine"])
def test_other_machines_are_let_in_with_a_token_only(started, monkeypatch, host, capsys):
    with pytest.raises(SystemExit):
        started("--host", host)
    assert TOKEN_VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame")
    words, _ = started("--host", host)
    assert value(words, "--middleware") == f"{serve.__name__}.{serve.RequireToken.__name__}"
    assert "sesame" not in words


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer sesame"}, 200),
        ({}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer sesame2"}, 401),
        ({"Authorization": "Basic sesame"}, 401),
    ],
)
def test_the_token_guards_every_route(monkeypatch, headers, status):
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(serve.RequireToken(app))) as client:
            return [await client.post(f"http://s{path}", headers=headers) for path in ("/update_weights", "/health")]

    assert [answer.status_code for answer in asyncio.run(main())] == [status, status]
