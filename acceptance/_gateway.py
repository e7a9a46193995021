"""Issue E, line 6: a gateway in front of a web that fails, and many clients behind it."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from acceptance._gateway_load import Client, FaultyWeb, Tally, in_order, many, search_r1, text_urls, verl
from acceptance.lines import OUTPUT, ROOT, Check, at_least, at_most, command, holds
from acceptance.scale import rigged

KEY, TOKEN = "key-of-the-gateways-services", "token-of-the-acceptance-run"
SHARE = 0.2  # of all upstream answers are faults
CLIENTS, KNOWN = 200, 150  # clients; texts that all of them ask for
HITS, AT_A_TIME = 2000, 4  # of the measurement of hits
PARTS = ("image_search", "text_search", "reader", "summarizer")


@dataclass
class Running:
    """A gateway process and its address."""

    process: subprocess.Popen[str]
    url: str

    @property
    def resident(self) -> float:
        """MiB that it holds in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ended(self) -> tuple[int, str, float]:
        """Told to end: (exit status, its last lines, seconds)."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=90)
        return self.process.returncode, said, time.monotonic() - start


def gateway(seconds: float = 60.0, clients: int = CLIENTS) -> list[Check]:
    """Line 6."""
    folder = OUTPUT / "gateway"
    shutil.rmtree(folder, ignore_errors=True)
    tally = Tally()
    with FaultyWeb(KEY, SHARE, scale=0.02) as web, running(web, folder / "one") as served:
        warm, end = asyncio.run(_load(served, tally, seconds, clients))
        load = Tally(tally.answers.copy(), tally.causes.copy(), tally.lost.copy(), list(tally.wrong))
        p99, whole = asyncio.run(_hits(served.url, tally))
        styles = _styles(served.url, tally)
        elsewhere = _from_elsewhere(web, folder / "two")
        closing = asyncio.run(_ended_in_traffic(served, tally))
        faults = web.faults / web.asked
    told = ", ".join(f"{cause}: {n}" for cause, n in sorted(load.causes.items())) or "none"
    return [
        at_least("6", f"requests answered, {clients} clients for {seconds:g} s", load.answers.total(), clients),
        holds("6", "upstream answers that were faults", 0.17 < faults < 0.23, f"{faults:.3f} of {web.asked}"),
        at_most("6", "5xx of its own making", load.own_5xx, 0),
        holds("6", "upstream failures after all retries, told as such", True, told),
        holds("6", "asked to come back later (429)", True, str(load.answers[429])),
        at_most("6", f"lost calls{_first(load.lost)}", load.lost.total(), 0),
        at_most("6", f"wrong answers{': ' + load.wrong[0] if load.wrong else ''}", len(load.wrong), 0),
        holds("6", "resident memory after a third, at the end (MiB)", True, f"{warm:.0f}, {end:.0f}"),
        at_most("6", "resident memory, end over a third", end / warm, 1.1),
        at_most("6", f"p99 of {HITS} whole hits, {AT_A_TIME} in flight (ms)", p99, 50),
        holds("6", "of these all hits", whole),
        *styles,
        *elsewhere,
        *closing,
    ]


@contextmanager
def running(web: FaultyWeb, folder: Path, *options: str) -> Iterator[Running]:
    """A gateway process in front of `web`, with a cache of its own."""
    arguments = [sys.executable, "-m", "mmsr1.tools.gateway", "--port", "0", "--folder", str(folder), *options]
    arguments += _overrides(web, folder / "cache")
    folder.mkdir(parents=True)
    with (folder / "stderr.txt").open("w") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, env=_env(), stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        address = re.search(r"gateway at (http://\S+?:\d+)", process.stdout.readline())
        if address is None:
            raise RuntimeError(f"the gateway ended with {process.wait()} before it listened")
        process.stdout.readline()
        _wait_for(process, address[1])
        yield Running(process, address[1])
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(f"http://127.0.0.1:{httpx.URL(url).port}/healthz", trust_env=False)
            return
        except httpx.TransportError:
            if process.poll() is not None:
                raise RuntimeError(f"the gateway ended with {process.returncode}") from None
            time.sleep(0.1)
    raise RuntimeError("the gateway does not answer")


def _overrides(web: FaultyWeb, cache: Path) -> list[str]:
    return [
        "tools=web",
        *(f"tools.{part}.url={web.url}" for part in PARTS),
        *(f"tools.{part}.{limit}" for part in PARTS for limit in ("rate_per_s=2000", "concurrent=256")),
        "tools.summarizer.key_env=SUMMARIZER_KEY",
        "tools.thumbnail_hosts=[127.0.0.1]",
        "tools.budget.usd_per_run=null",
        f"tools.cache_dir={cache}",
    ]


def _env() -> dict[str, str]:
    keys = {name: KEY for name in ("SERPAPI_API_KEY", "JINA_API_KEY", "SUMMARIZER_KEY")}
    return {**os.environ, **keys, **rigged(loopback=True), "MMSR1_GATEWAY_TOKEN": TOKEN}


async def _load(served: Running, tally: Tally, seconds: float, clients: int) -> tuple[float, float]:
    """All clients without a pause; resident memory after a third of the time, and at the end."""
    end = time.monotonic() + seconds
    asking = [Client(served.url, tally, number, KNOWN).ask_until(end) for number in range(clients)]
    load = asyncio.gather(*asking, return_exceptions=True)
    await asyncio.sleep(seconds / 3)
    warm = served.resident
    await load
    return warm, served.resident


async def _hits(url: str, tally: Tally) -> tuple[float, bool]:
    """(99th percentile in ms of whole requests that the cache answers, whether all were such), a few at a time."""
    queries = [f"what is known about number {number}" for number in range(KNOWN)]
    found: list[tuple[float, bool]] = []

    async def ask(http: httpx.AsyncClient, query: str) -> None:
        start = time.perf_counter()
        reply = await http.post(f"{url}/retrieve", json={"queries": [query], "topk": 5, "return_scores": True})
        seconds = time.perf_counter() - start
        tally.answers[reply.status_code] += 1
        paid = reply.json()["costs"][0]["paid_usd"] if reply.status_code == 200 else 1.0
        found.append((seconds, paid == 0.0))

    async def lane(http: httpx.AsyncClient, numbers: Sequence[int]) -> None:
        for number in numbers:
            await ask(http, queries[number % KNOWN])

    async with many(AT_A_TIME) as http:
        for query in queries:  # what the load has not asked for, or what failed then
            for _ in range(3):
                await ask(http, query)
        found.clear()
        gc.collect()
        gc.freeze()  # or it would be this process that is measured
        await asyncio.gather(*(lane(http, range(n, HITS, AT_A_TIME)) for n in range(AT_A_TIME)))
    milliseconds = sorted(1000 * seconds for seconds, _ in found)
    return milliseconds[int(0.99 * len(milliseconds))], all(hit for _, hit in found)


def _styles(url: str, tally: Tally) -> list[Check]:
    """Clients of other projects, unchanged: a batch, one query, and the empty list that Search-R1 sends as well."""
    queries = [f"what is known about number {number}" for number in range(12)]
    texts, none = search_r1(url, queries), search_r1(url, [])
    passages = [verl(url, [query])[0] for query in queries]
    tally.answers[200] += 2 + len(queries)
    read = all(text.startswith('Doc 1(Title: "') and "Doc 3(Title: " in text for text in texts)
    titled = all(len(found) == 3 and all(text.startswith('"') and "\n" in text for text in found) for found in passages)
    fresh = verl(url, ["what only veRL has asked for"])
    tally.answers[200] += 1
    return [
        holds("6", f"Search-R1: a batch of {len(queries)}, and an empty one", len(texts) == 12 and read and none == []),
        holds(
            "6", "veRL: the same one by one, and what was never asked", titled and len(fresh) == 1 and bool(fresh[0])
        ),
    ]


def _from_elsewhere(web: FaultyWeb, folder: Path) -> list[Check]:
    """Beyond loopback: not without a token, neither to be started nor to be asked."""
    start = [sys.executable, "-m", "mmsr1.tools.gateway", "--host", "0.0.0.0", *_overrides(web, folder / "cache")]
    refused, _ = command(*start, env=_env(), check=False)
    one_line = refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--token-env" in refused.stderr
    with running(web, folder, "--host", "0.0.0.0", "--token-env", "MMSR1_GATEWAY_TOKEN") as served:
        address = f"http://{own_address()}:{httpx.URL(served.url).port}"
        query = "what is known about number 1"
        given = (None, "Bearer something-else-altogether", f"Bearer {TOKEN}")
        replies = [_asked(address, query, token) for token in given]
        known = httpx.get(f"{address}/metrics", trust_env=False).status_code
        urls = [hit["document"]["url"] for hit in replies[2].json()["result"][0]]
    asked = [reply.status_code for reply in replies]
    return [
        holds("6", "--host 0.0.0.0 without --token-env: refused in one line", one_line, refused.stderr.strip()[:90]),
        holds("6", f"from {own_address()}: without a token, a wrong one", asked[:2] == [401, 401], f"{asked[:2]}"),
        holds("6", "with the token: answered", asked[2] == 200 and in_order(urls, text_urls(query)), f"{asked[2]}"),
        holds("6", "metrics without a token: refused", known == 401, f"{known}"),
    ]


def _asked(address: str, query: str, token: str | None) -> httpx.Response:
    """Asked again while the web fails."""
    headers = {} if token is None else {"Authorization": token}
    body = {"queries": [query], "return_scores": True}
    for _ in range(5):
        reply = httpx.post(f"{address}/retrieve", json=body, headers=headers, timeout=60, trust_env=False)
        if reply.status_code != 503:
            break
    return reply


def own_address() -> str:
    """An address of this machine that is not loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return probe.getsockname()[0]


async def _ended_in_traffic(served: Running, tally: Tally) -> list[Check]:
    """SIGTERM while many ask: whoever was let in gets the answer, and the count of both sides is the same."""
    late = Tally()
    clients = [Client(served.url, late, 1000 + number, KNOWN) for number in range(50)]
    asking = [asyncio.create_task(client.ask_until(time.monotonic() + 120)) for client in clients]
    await asyncio.sleep(2)
    status, said, seconds = await asyncio.to_thread(served.ended)
    await asyncio.gather(*asking, return_exceptions=True)
    received = tally.answers.total() + late.answers.total()
    count = re.search(r"gateway ended: (\d+) requests answered", said)
    answered = int(count[1]) - 1 if count else -1  # one was asked for its health
    return [
        at_least("6", "SIGTERM in traffic: answers of the last seconds", late.answers.total(), 50),
        holds(
            "6", "requests let in and answers received, since the start", answered == received, f"{answered} {received}"
        ),
        at_most("6", "of these wrong, or 5xx of its own", len(late.wrong) + late.own_5xx, 0),
        holds("6", "exit status 0, a summary at the end", status == 0 and bool(count), f"{status}"),
        holds("6", "seconds until it had ended", True, f"{seconds:.1f}"),
    ]


def _first(lost: object) -> str:
    return f" {lost}" if lost else ""
