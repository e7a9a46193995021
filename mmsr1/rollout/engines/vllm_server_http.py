"""One vLLM server as its HTTP routes: every way in which a call can go wrong has a type, every answer has a bound.

The routes belong to vLLM 0.32: `/inference/v1/generate` (tokens in, tokens out) and those of its development mode for
weights and caches. `engines.serve` starts a server that has them all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import httpx

TOKEN_VARIABLE = "MMSR1_ENGINE_TOKEN"
CONNECT_S = 10.0
LOOK_S = 10.0  # for questions that a healthy server answers at once
SMALL_ANSWER = 2**20  # bytes; all but generated tokens
BYTES_PER_TOKEN = 512  # an answer names each token twice, with its log-prob and rank: about 200
VLLM_IMAGES = 999  # images of a prompt where a server was started without a limit
NO_LOGPROB = -9999.0  # what the server writes for NaN, minus infinity, or a log-prob it does not have


class ServerFault(Exception):
    """The server, not the request, is at fault; another one may answer.

    `sent` is False if it was not reached at all; `status` is that of its answer, if it gave one.
    """

    def __init__(self, message: str, sent: bool = True, status: int | None = None) -> None:
        super().__init__(message)
        self.sent, self.status = sent, status


class Refused(Exception):
    """The server says that this request is wrong; no other would take it. `status` is that of its answer, if any."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Malformed(Exception):
    """An answer that is not what the route promises."""


@dataclass(frozen=True)
class Answer:
    """Sampled ids, their log-probs, why sampling ended, and the labels of the weights that sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    weights: frozenset[str]


@dataclass(frozen=True)
class Setup:
    """How a server was started, as far as its clients must know."""

    dtype: str
    max_model_len: int
    logprobs_mode: str
    transfer: str | None
    workers: int
    raw_pixels: bool
    keeps_images: bool
    images_per_prompt: int


def check_url(url: str) -> str:
    """The address without a trailing slash. Raises ValueError unless it is plain `http(s)://host[:port][/path]`."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not an address of an engine server: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url!r} is not an address of an engine server, such as http://10.0.0.7:8000")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError(f"the address of an engine server holds no secret or query; put a token into {TOKEN_VARIABLE}")
    return url.rstrip("/")


def http_client(transport: httpx.AsyncBaseTransport | None, timeout_s: float) -> httpx.AsyncClient:
    """A client for any number of servers and requests, with the bearer token of the environment if there is one.

    No proxy of the environment is used, no redirect followed: both would send the token elsewhere. Idle connections
    are dropped before vLLM drops them (5 s), or a request might be sent into a closing one.
    """
    chatter = logging.getLogger("httpx")
    if chatter.level == logging.NOTSET:
        chatter.setLevel(logging.WARNING)  # else it logs a line for every request
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    if transport is None:
        transport = httpx.AsyncHTTPTransport(limits=limits, socket_options=_keepalive())
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
    return httpx.AsyncClient(transport=transport, headers=headers, timeout=timeout, trust_env=False)


def _keepalive() -> list[tuple[int, int, int]]:
    """A machine that lost its power is noticed after a minute, not at the end of the request's time."""
    import socket

    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class Server:
    """The routes of one server. Every method raises `ServerFault`, `Refused` or `Malformed`, and nothing else.

    `timeout_s` bounds a whole exchange, `answer_bytes` what is read of generated tokens.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, timeout_s: float, answer_bytes: int) -> None:
        self.url, self._client, self._timeout_s, self._answer_bytes = url, client, timeout_s, answer_bytes

    async def generate(self, body: bytes) -> Answer:
        return parse_answer(await self._exchange("POST", "/inference/v1/generate", body, limit=self._answer_bytes))

    async def weight_version(self) -> str:
        """The label of the weights that it holds. Goes through the engine process, so it proves that this is alive."""
        found = await self._call("GET", "/weight_info", timeout_s=LOOK_S)
        if not isinstance(found, dict) or not isinstance(found.get("weight_version"), str):
            raise Malformed("no weight version")
        return found["weight_version"]

    async def setup(self) -> Setup:
        found = await self._call("GET", "/server_info?config_format=json")
        try:
            return parse_setup(found["vllm_config"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(f"unknown form of /server_info: {error!r}") from error

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call a route that changes something; its answer, None if empty."""
        return await self._call("POST", path, None if body is None else json.dumps(body).encode())

    async def _call(self, method: str, path: str, content: bytes | None = None, timeout_s: float | None = None) -> Any:
        # On a connection of its own: after an error in one of these routes, vLLM closes it without saying so.
        headers = {"Connection": "close"}
        raw = await self._exchange(method, path, content, limit=SMALL_ANSWER, timeout_s=timeout_s, headers=headers)
        return _load(raw) if raw else None

    async def _exchange(
        self,
        method: str,
        path: str,
        content: bytes | None,
        *,
        limit: int,
        timeout_s: float | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        """The body of a successful answer, of at most `limit` bytes."""
        seconds = min(timeout_s or self._timeout_s, self._timeout_s)
        headers = {"Content-Type": "application/json", **headers}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > limit:
                        raise Malformed(f"more than {limit} bytes")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerFault(f"cannot be reached ({type(error).__name__})", sent=False) from error
        except TimeoutError as error:
            raise ServerFault(f"no answer within {seconds:g} s") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise ServerFault(f"broke off ({type(error).__name__})") from error
        status = response.status_code
        if status == 429 or status >= 500:
            raise ServerFault(f"HTTP {status}{_reason(bytes(body))}", status=status)
        if status != 200:
            raise Refused(f"HTTP {status}{_reason(bytes(body))}", status)
        return bytes(body)


def parse_answer(raw: bytes) -> Answer:
    """Raises `Malformed` unless ids, log-probs and weight labels are all there and fit each other; `ServerFault` if
    the server itself broke the request off."""
    found = _load(raw)
    try:
        (choice,) = found["choices"]
        ids, entries, spans = choice["token_ids"], choice["logprobs"]["content"], choice["weight_versions"]
        finish = choice["finish_reason"]
        logprobs = [entry["logprob"] for entry in entries]
        named = [entry["token_id"] for entry in entries]
        weights = [span["version"] for span in spans]
        covered = sum(span["end"] - span["start"] for span in spans)
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"unknown form: {error!r}") from error
    if finish == "abort":
        raise ServerFault("it aborted the request")
    if finish not in ("stop", "length"):
        raise Malformed(f"unknown finish reason {str(finish)[:40]!r}")
    if not isinstance(ids, list) or not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise Malformed("its token ids are not a list of numbers")
    if named != ids:
        raise Malformed(f"{len(ids)} tokens but the log-probs of {len(named)}, or of others")
    if not all(type(value) in (int, float) and NO_LOGPROB < value < math.inf for value in logprobs):
        raise Malformed("a token has no log-prob")
    if covered != len(ids) or not all(isinstance(label, str) for label in weights):
        raise Malformed("it does not say which weights sampled each token")
    return Answer(tuple(ids), tuple(map(float, logprobs)), finish, frozenset(weights))


def parse_setup(config: Mapping[str, Any]) -> Setup:
    """From vLLM's whole configuration. Raises KeyError or TypeError if it does not look like one."""
    model, parallel = config["model_config"], config["parallel_config"]
    images, transfer = model["multimodal_config"] or {}, config.get("weight_transfer_config") or {}
    # Only this cache answers an image that it has lost with an error; others let the engine process die of it.
    keeps = images.get("mm_processor_cache_gb", 0) > 0 and images.get("mm_processor_cache_type") == "lru"
    alone = parallel["_api_process_count"] == 1 and parallel["data_parallel_size"] == 1
    return Setup(
        dtype=str(model["dtype"]).removeprefix("torch."),
        max_model_len=int(model["max_model_len"]),
        logprobs_mode=str(model["logprobs_mode"]),
        transfer=transfer.get("backend"),
        workers=int(parallel["world_size"]) * int(parallel["data_parallel_size"]),
        raw_pixels=bool(images.get("mm_device_do_normalize")),
        keeps_images=keeps and alone,
        images_per_prompt=int(images.get("limit_per_prompt", {}).get("image", {}).get("count", VLLM_IMAGES)),
    )


def _load(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error


def _reason(body: bytes) -> str:
    """The server's own words about an error, as one short line."""
    try:
        found = json.loads(body[:SMALL_ANSWER])
        error = found["error"]
        words = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    line = " ".join(str(words).split())[:300]
    return ": " + "".join(character for character in line if character.isprintable())
