"""Serve the search tools of a configuration to many machines: one cache, one budget, one set of keys.

    python -m mmsr1.tools.gateway tools=web tools.summarizer.url=http://localhost:8000

Overrides are those of train.py. It listens on loopback; beyond it every client needs a token, and --token-env names
the environment variable that holds it. SIGTERM or Ctrl-C ends it once what is under way has been answered. Exit status
2 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from filelock import FileLock, Timeout
from rich.console import Console

from mmsr1 import __version__, cli
from mmsr1.assembly.services import ledger_folder
from mmsr1.assembly.tools import SearchTools, check_tools, search_tools
from mmsr1.cli import CommandParser, checked, refuse
from mmsr1.config import Config, ToolsConfig
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.report.searches import search_table, tool_table
from mmsr1.tools.base import CallFailed
from mmsr1.tools.gateway.app import MIB, Settings, create_app
from mmsr1.tools.gateway.service import Service
from mmsr1.tools.secrets import Secret

GRACE_S = 60  # for what is under way when the gateway is told to end
KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that it is they who close them
SHORTEST_TOKEN = 16
BACKLOG = 2048
PARTS = ("image_search", "text_search", "reader", "summarizer")


class _Server(uvicorn.Server):
    """Ends when it is told to, and leaves the signals to whoever runs it: uvicorn would die of them in the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def end(self) -> None:
        """Once: answer what is under way. Again: at once."""
        self.force_exit, self.should_exit = self.should_exit, True


def composed(overrides: list[str]) -> Config:
    """The configuration as train.py has it. Raises `USER_ERRORS`."""
    return checked(cli.composed(overrides))


def token_of(host: str, variable: str | None) -> Secret | None:
    """The token that clients need. Raises ValueError if there is none although others than this machine may ask."""
    if variable is None:
        if not on_loopback(host):
            raise ValueError(
                f"--host={host}: beyond loopback every client needs a token: put one into an environment variable and "
                "name that, --token-env MMSR1_GATEWAY_TOKEN"
            )
        return None
    token = Secret(variable)
    try:
        long_enough = len(token.value) >= SHORTEST_TOKEN
    except CallFailed as error:
        raise ValueError(f"--token-env={variable}: {error.detail}") from None
    if not long_enough:
        raise ValueError(f"--token-env={variable}: the token in it must have {SHORTEST_TOKEN} or more characters")
    return token


def on_loopback(host: str) -> bool:
    """Whether all addresses of a host are this machine's own. Raises ValueError for one that has none."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        raise ValueError(f"--host={host}: no such host; give an address of this machine") from None
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to that address. Raises ValueError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Of a socket that does not say it is TCP asyncio leaves Nagle's algorithm on: 40 ms for every answer.
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"--host={host} --port={port}: cannot listen there ({why}); give another --port") from None
    return opened


def backends(tools: ToolsConfig) -> dict[str, str]:
    """Who is asked, by part."""
    return {name: getattr(tools, name).provider for name in PARTS if getattr(tools, name).provider != "none"}


def for_trainers(tools: ToolsConfig, url: str, variable: str | None) -> list[str]:
    """The overrides with which a trainer sees what the gateway's own trainer would."""
    there = composed(["tools=retrieve", f"tools.text_search.url={url}"]).tools
    names = ("image_results", "thumbnails", "thumbnail_edge", "text_results")
    other = [f"tools.{name}={getattr(tools, name)}" for name in names if getattr(tools, name) != getattr(there, name)]
    keys = [f"tools.{name}.key_env={variable}" for name in ("text_search", "image_search") if variable]
    return ["tools=retrieve", f"tools.text_search.url={url}", *keys, *other]


async def serve(server: _Server, opened: socket.socket, tools: SearchTools, service: Service) -> int:
    """Until a signal. How many searches were still under way when the time for them was over."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    await server.serve(sockets=[opened])
    # What nobody waits for any more is paid for all the same, and its answer belongs into the cache.
    service.end()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=0 if server.force_exit else GRACE_S)
    cut = service.at_work
    await tools.aclose()
    return cut


def summary(answered: int, refused: int, tools: SearchTools) -> str:
    """One line on what was done since the start."""
    rows = [row for name, row in tools.rows().items() if name in tools]
    calls, hits, failed, paid, cost = (
        sum(row.get(figure, 0) for row in rows) for figure in ("calls", "hits", "failures", "paid_usd", "cost_usd")
    )
    return (
        f"{answered} requests answered, {refused} of them refused while too many were at work; {calls:.0f} searches, "
        f"{hits:.0f} hits, {failed:.0f} failed; {paid:.4f} USD paid of {cost:.4f}"
    )


def main(arguments: list[str]) -> int:
    """Serve; the exit status."""
    asked = _arguments(arguments)
    try:
        token = token_of(asked.host, asked.token_env)
        config, folder = composed(asked.overrides), Path(asked.folder)
        folder.mkdir(parents=True, exist_ok=True)
        check_tools(config, folder)
        with FileLock(folder / "gateway.lock", timeout=0), listening(asked.host, asked.port) as opened:
            tools = search_tools(config, folder)
            max_body = round(asked.max_body_mb * MIB)
            face = {"mcp": asked.mcp, "host": asked.host, "version": __version__}
            settings = Settings(backends(config.tools), max_body, asked.in_flight, token=token, **face)
            app = create_app(tools, tools.rows, settings)
            return _run(app, opened, tools, config, asked)
    except Timeout:
        refuse(f"--folder={asked.folder}: another gateway uses it; give each a folder of its own")
    except (*USER_ERRORS, ValueError, OSError) as error:
        refuse(explain(error))


def _run(app: Any, opened: socket.socket, tools: SearchTools, config: Config, asked: argparse.Namespace) -> int:
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            server_header=False,
        )
    )
    port = opened.getsockname()[1]
    name = asked.host if on_loopback(asked.host) or not _any(asked.host) else socket.gethostname()
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
    behind = ", ".join(f"{part} {provider}" for part, provider in backends(config.tools).items())
    opened.listen(BACKLOG)  # whoever reads the next line may ask at once
    _say(f"gateway at {url}{' (and /mcp)' if asked.mcp else ''}: {behind}; cache {config.tools.cache_dir}")
    _say(f"trainers: {' '.join(for_trainers(config.tools, url, asked.token_env))}")
    gc.collect()
    gc.freeze()  # a million objects of libraries that stay: looking through them again takes 0.1 s each time
    cut = asyncio.run(serve(server, opened, tools, app.state.service))
    answered = app.state.metrics.answered
    done = summary(answered.total(), answered[429], tools)
    if (table := search_table(tool_table(tools.rows()))) is not None:
        Console().print(table)
    _say(f"gateway ended: {done}; calls in {ledger_folder(Path(asked.folder))}")
    if cut:
        _say(f"{cut} searches had not ended after {GRACE_S} s and were cut; the ledger counts them at their price")
    return 0


def _any(host: str) -> bool:
    """Whether a host stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m mmsr1.tools.gateway", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; beyond loopback with a token only")
    parser.add_argument("--port", type=int, default=8100, help="0 takes a free one")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable that holds the clients' token")
    parser.add_argument("--max-body-mb", type=float, default=16.0, help="largest request, in MiB")
    parser.add_argument("--in-flight", type=int, default=256, help="searches at work at a time")
    parser.add_argument(
        "--folder", default="outputs/gateway", help="where the ledger and the budget's figures are kept"
    )
    parser.add_argument("--mcp", action="store_true", help="serve the Model Context Protocol, too, at /mcp")
    parser.add_argument("overrides", nargs="*", help="as train.py takes them, e.g. tools=web")
    asked = parser.parse_intermixed_args(arguments)
    if not 0 <= asked.port <= 65535:
        refuse(f"--port={asked.port}: must be between 0 and 65535")
    for name, option in (("in_flight", "--in-flight"), ("max_body_mb", "--max-body-mb")):
        if not getattr(asked, name) > 0:
            refuse(f"{option}={getattr(asked, name)}: must be more than 0")
    return asked


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
