"""The tools behind the gateway: a bounded number of searches at a time, and pictures that are looked at first."""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mmsr1.tools.base import EndOfRun, Tool
from mmsr1.tools.gateway.wire import Refused
from mmsr1.tools.pictures import BadPicture, decode
from mmsr1.types import Picture, ToolName, ToolResult

MOST_QUERIES = 8_192  # of a request: Search-R1 sends whole batches
AT_A_TIME = 2  # pictures that are decoded; one takes up to 160 MiB
REMEMBERED = 65_536  # digests of pictures that are sound


class Service:
    """Searches of many clients. At most `in_flight` are at work, of one request a quarter of them; a request waits
    `wait_s` for its first one to begin, and once it has begun all of it is answered. On one event loop."""

    def __init__(self, tools: Mapping[ToolName, Tool[Any]], in_flight: int, wait_s: float) -> None:
        self.tools, self.in_flight = tools, in_flight
        self.at_work = 0
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(in_flight)
        self._decoders = threading.BoundedSemaphore(AT_A_TIME)
        self._sound: dict[str, None] = {}
        self._ending = False

    def end(self) -> None:
        """Begin no more searches; what is at work goes on."""
        self._ending = True

    async def search(self, name: ToolName, queries: Sequence[Any]) -> list[ToolResult]:
        """Results in the order of the queries. All are waited for, also when one fails: what they find is kept. They go
        on if whoever waits is cancelled.

        Raises Refused if there is no place in time.
        """
        if not queries:
            return []
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            detail = f"{self.in_flight} searches are at work and others wait; come back later"
            raise Refused(429, "throttled", detail, retry_s=max(1, round(self._wait_s))) from None
        first = asyncio.ensure_future(self._counted(name, queries[0]))
        first.add_done_callback(lambda _: self._places.release())  # also of one that is cancelled before it begins
        found: dict[int, ToolResult] = {}
        rest = iter(enumerate(queries[1:], 1))

        async def lane() -> None:
            for number, query in rest:
                async with self._places:
                    found[number] = await self._counted(name, query)

        async def first_of_all() -> None:
            found[0] = await first

        # No more than these stand in line for places at a time, so a large batch lets others pass.
        lanes = [lane() for _ in range(min(len(queries) - 1, max(1, self.in_flight // 4)))]
        await asyncio.shield(asyncio.gather(first_of_all(), *lanes))
        return [found[number] for number in range(len(queries))]

    async def picture(self, encoded: str) -> Picture:
        """The picture in a base64 text, looked at as a whole unless it is known. Raises Refused for what is none."""
        try:
            picture = Picture(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise Refused(400, "invalid", "a picture is no base64 of a file") from None
        if picture.digest not in self._sound:
            try:
                await asyncio.to_thread(self._decode, picture)
            except BadPicture as error:
                raise Refused(400, "invalid", f"a picture {error}") from None
            while len(self._sound) >= REMEMBERED:
                del self._sound[next(iter(self._sound))]
            self._sound[picture.digest] = None
        return picture

    def _decode(self, picture: Picture) -> None:
        with self._decoders:
            decode(picture)

    async def _counted(self, name: ToolName, query: Any) -> ToolResult:
        if self._ending:
            raise Refused(503, "transient", "the gateway is ending", retry_s=1)
        self.at_work += 1
        try:
            return await self.tools[name](query)
        except EndOfRun as error:  # a trainer ends its run for that as it does for a spent account
            raise Refused(503, "exhausted", str(error)) from None
        finally:
            self.at_work -= 1
