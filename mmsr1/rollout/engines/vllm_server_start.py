"""Before anything is sampled: are a fleet's servers there, and were they started as the trainer needs?

A server that cannot be reached may be starting, so it is waited for. One that answers and was started wrongly, or is
something else, will not become right by waiting.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from mmsr1.rollout.engines.vllm_server_http import (
    TOKEN_VARIABLE,
    Malformed,
    Refused,
    Server,
    ServerFault,
    Setup,
)

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0  # how long nobody is told that there is no server
PAUSE_S = 1.0  # between two looks
NAMED = 3  # servers that a message tells of

Say = Callable[[str], None]
COMMAND = "python -m mmsr1.rollout.engines.serve"
FLAGS = {"dtype": "--dtype", "transfer": "--transfer"}


class NoServer(Exception):
    """There is no server to work with; the message says in one line why, and what to do."""


def tell(text: str) -> None:
    """One line for the person at the terminal, where a progress bar may be."""
    logger.info(text)
    sys.stderr.write(f"{text}\n")


def check_setup(setup: Setup, max_model_len: int, images_per_prompt: int, **wanted: object) -> None:
    """Raises `Refused` if a server was started with what would give wrong answers, or none."""
    for name, value in {"logprobs_mode": "raw_logprobs", **wanted}.items():
        if (found := getattr(setup, name)) != value:
            remedy = f"start it with {FLAGS[name]} {value}" if name in FLAGS else f"start it with {COMMAND}"
            raise Refused(f"it was started with {name}={found}, not {value}; {remedy}")
    for name, least in (("max_model_len", max_model_len), ("images_per_prompt", images_per_prompt)):
        if (found := getattr(setup, name)) < least:
            flag = f"--{name.replace('_', '-')} {least}"
            raise Refused(f"it was started with {name}={found}, not {least} or more; start it with {flag}")


async def find(servers: Sequence[Server], check: Callable[[Setup], None], wait_s: float, say: Say) -> dict[str, str]:
    """Wait until one of the servers is there, and say how many are. Returns what is wrong with the others, by address.

    Raises `NoServer` if none is there for `wait_s`, and at once if one of them is not what it should be.
    """
    begun, told = time.monotonic(), False
    while True:
        found = await asyncio.gather(*(_fault(server, check) for server in servers))
        faults = {server.url: fault for server, fault in zip(servers, found, strict=True) if fault is not None}
        if len(faults) < len(servers):
            missing = f"; not there: {listed(faults)}" if faults else ""
            say(f"{len(servers) - len(faults)} of {len(servers)} engine servers{missing}")
            return faults
        waited = time.monotonic() - begun
        if waited >= wait_s:
            raise NoServer(f"no engine server for {wait_s:g} s: {listed(faults)}; start one with {COMMAND}")
        if not told and waited >= min(PATIENCE_S, wait_s / 2):
            told = True
            say(f"waiting for engine servers (up to {wait_s:g} s): {listed(faults)}")
        await asyncio.sleep(min(PAUSE_S, wait_s / 4))


def listed(faults: Mapping[str, str]) -> str:
    """Servers and what is wrong with them, as one line of bearable length."""
    parts = [f"{url}: {fault}" for url, fault in faults.items()]
    more = [f"and {len(parts) - NAMED} more"] if len(parts) > NAMED else []
    return "; ".join(parts[:NAMED] + more)


async def _fault(server: Server, check: Callable[[Setup], None]) -> str | None:
    """Why the server is not there, if it is not. Raises `NoServer` if it is there and unfit."""
    try:
        await server.weight_version()
        check(await server.setup())
    except ServerFault as fault:
        return str(fault)
    except Refused as refused:
        remedy = _REMEDIES.get(refused.status or 0)
        raise NoServer(f"{server.url}: {refused}" + (f"; {remedy}" if remedy else "")) from refused
    except Malformed as malformed:
        raise NoServer(f"{server.url}: {malformed}; {_OTHER}") from malformed
    return None


_OTHER = f"it is no server that {COMMAND} started"
_TOKEN = f"give it and the trainer the same {TOKEN_VARIABLE}"
_REMEDIES = {401: _TOKEN, 403: _TOKEN, 404: _OTHER, 405: _OTHER}
