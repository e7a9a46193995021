"""The servers of a fleet: which are live, which is best for a request, and how those that are away come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from torch import Tensor

from mmsr1.rollout.engines.routing import Prefixes, choose
from mmsr1.rollout.engines.vllm_server_http import Answer, Server, ServerFault, Setup
from mmsr1.rollout.engines.vllm_server_start import PATIENCE_S, Say, listed
from mmsr1.rollout.engines.vllm_server_weights import STARTED, Fault, FollowedWeights, PushedWeights
from mmsr1.rollout.engines.weight_transfer import refusal

logger = logging.getLogger(__name__)

FIRST_KNOCK_S, LONGEST_KNOCK_S = 0.1, 2.0  # between two questions to a server that is away
LATECOMERS_S = 5.0  # how long a follower waits for the other servers once one has the new weights


@dataclass(eq=False)
class Machine:
    """A server, what is known of it, and the task that knocks while it is away."""

    server: Server
    live: bool = False
    in_flight: int = 0
    setup: Setup | None = None
    images: set[str] = field(default_factory=set)  # digests of those that it has
    uploads: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # of those that it is being sent
    prefixes: Prefixes = field(default_factory=Prefixes)
    fault: str = "not asked yet"
    told: bool = False  # whether it was said that it is away
    keeper: asyncio.Task[None] | None = None

    @contextmanager
    def serving(self, hashes: Sequence[int]) -> Iterator[None]:
        """Counts a request whose prompt has these block hashes."""
        self.prefixes.add(hashes)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @property
    def keeps_images(self) -> bool:
        return self.setup is not None and self.setup.keeps_images

    def leave(self) -> None:
        self.live = False
        self.images.clear()
        self.prefixes.clear()


class Fleet:
    """`check` raises `Refused` for a server that was not started as its clients need; `wait_s` is how long nobody
    live is put up with; `say` tells the user who goes and who comes. One event loop for its whole life."""

    def __init__(
        self,
        servers: Sequence[Server],
        weights: PushedWeights | FollowedWeights,
        check: Callable[[Setup], None],
        wait_s: float,
        say: Say,
    ) -> None:
        self._machines = [Machine(server) for server in servers]
        self._weights, self._check, self._wait_s, self._say = weights, check, wait_s, say
        self._told_waiting = False
        self._pushing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def start(self) -> None:
        """Look for the servers, if that has not begun."""
        for machine in self._machines:
            if machine.keeper is None:
                self._knock(machine)

    def missing(self, faults: Mapping[str, str]) -> None:
        """These addresses were not there at the start, and the user knows it."""
        for machine in self._machines:
            machine.fault = faults.get(machine.server.url, machine.fault)
            machine.told = machine.server.url in faults

    async def pick(self, hashes: Sequence[int]) -> Machine | None:
        """The best server for a prompt with these block hashes; None if there was none for `wait_s`."""
        with suppress(TimeoutError):
            await self._until_one_is_live()
        live = [machine for machine in self._machines if machine.live]
        if not live:
            return None
        return live[choose([m.in_flight for m in live], [m.prefixes.share(hashes) for m in live])]

    def lose(self, machine: Machine, fault: Exception) -> None:
        """Send nothing more to it until it has answered a knock; if it does so at once, the user is not bothered."""
        if machine.live:
            logger.warning("engine server %s failed: %s", machine.server.url, fault)
        machine.leave()
        machine.fault = str(fault)
        self._knock(machine)

    def check_answer(self, machine: Machine, answer: Answer) -> None:
        """Raises `ServerFault` if other weights than the current ones sampled it."""
        for label in answer.weights:
            if not self._weights.held_by(machine.server, label):
                raise ServerFault(f"it answered with weights {label[:40]!r}, which are not the current ones")

    async def sync(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> dict[Server, Exception]:
        """Make these the current weights and bring them to all servers that answer; nothing may be in flight.

        Returns the faults if all of these failed and not only for want of the servers, which may come back. Raises what
        reading `tensors` raises, and TimeoutError if no server was there for `wait_s`. Servers that take no part follow
        when they can.
        """
        async with self._pushing:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._weights.store, tensors, version)
            before = [machine for machine in self._machines if machine.live]
            for machine in self._machines:
                machine.leave()
            present = await self._present()
            faults = await self._weights.push([machine.server for machine in present]) if present else {}
            for machine in present:
                if machine.server in faults:
                    self.lose(machine, faults[machine.server])
                else:
                    await self._welcome(machine)
        for machine in self._machines:
            if not machine.live:
                self._knock(machine)
        follows = isinstance(self._weights, FollowedWeights)
        if faults and len(faults) == len(present) and any(map(_final, faults.values())):
            return faults
        await self._until_one_is_live()
        if follows:  # the pushing process brings them all their weights at about the same time
            with suppress(TimeoutError):
                await self._until(lambda: all(m.live for m in before if m in present), LATECOMERS_S)
        return {}

    def faults(self) -> str:
        """What is wrong with the servers that are away, as one line."""
        return listed({m.server.url: m.fault for m in self._machines if not m.live})

    async def close(self) -> None:
        keepers = [machine.keeper for machine in self._machines if machine.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _until_one_is_live(self) -> None:
        """Raises TimeoutError if that takes longer than `wait_s`; says after a while that everything waits for it."""

        def live() -> bool:
            return any(machine.live for machine in self._machines)

        patience = min(PATIENCE_S, self._wait_s / 2)
        try:
            await self._until(live, patience)
        except TimeoutError:
            if not self._told_waiting:
                self._told_waiting = True
                self._say(f"waiting for engine servers (up to {self._wait_s:g} s): {self.faults()}")
            await self._until(live, self._wait_s - patience)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def _present(self) -> list[Machine]:
        """The machines whose servers answer and were started rightly."""
        answers = await asyncio.gather(*map(self._look_at, self._machines), return_exceptions=True)
        present = []
        for machine, answer in zip(self._machines, answers, strict=True):
            if answer is None:
                present.append(machine)
            elif isinstance(answer, Fault):
                machine.fault = str(answer)
            else:
                raise answer
        return present

    async def _look_at(self, machine: Machine) -> None:
        """Is it there, and if it was started since it was last seen, rightly?"""
        label = await machine.server.weight_version()
        if label == STARTED or machine.setup is None:
            machine.setup = None
            setup = await machine.server.setup()  # takes seconds, the first time
            self._check(setup)
            machine.setup = setup

    async def _welcome(self, machine: Machine) -> None:
        machine.live, self._told_waiting = True, False
        if machine.told:
            machine.told = False
            self._say(f"engine server {machine.server.url} is there ({self._count()})")
        async with self._changed:
            self._changed.notify_all()

    def _knock(self, machine: Machine) -> None:
        if machine.keeper is None or machine.keeper.done():
            machine.keeper = asyncio.get_running_loop().create_task(self._keep(machine))

    async def _keep(self, machine: Machine) -> None:
        pause = 0.0
        while not machine.live:
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, FIRST_KNOCK_S), LONGEST_KNOCK_S)
            try:
                await self._bring_back(machine)
            except Fault as fault:
                self._note(machine, fault, str(fault))
            except Exception as error:  # this task must not end while the server is away
                logger.exception("looking after engine server %s failed", machine.server.url)
                self._note(machine, error, f"{type(error).__name__}: {error}")

    async def _bring_back(self, machine: Machine) -> None:
        await self._look_at(machine)  # not under the lock: a server that does not answer would hold up a sync
        async with self._pushing:
            if machine.live:
                return
            if not self._weights.held_by(machine.server, await machine.server.weight_version()):
                for fault in (await self._weights.push([machine.server])).values():
                    raise fault
            await self._welcome(machine)

    def _note(self, machine: Machine, fault: Exception, reason: str) -> None:
        """It is away, and why: on the terminal the first reason, and one that does not go away by waiting."""
        changed = reason != machine.fault
        machine.fault = reason
        if not machine.told or (changed and not isinstance(fault, ServerFault)):
            machine.told = True
            self._say(f"engine server {machine.server.url} is away ({self._count()} left): {reason}")
        elif changed:
            logger.info("engine server %s is still away: %s", machine.server.url, reason)

    def _count(self) -> str:
        there = sum(not machine.told for machine in self._machines)
        return f"{there} of {len(self._machines)}"


def _final(fault: Exception) -> bool:
    """Whether a push that failed so would fail again: the worker refused the weights, or the server is no such one."""
    return not isinstance(fault, ServerFault) or isinstance(refusal(fault), ValueError)
