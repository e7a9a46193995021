"""Who comes in, and with how much: the token, the size and time of a body, the number of requests; and what was let in
is counted and always answered. Pure ASGI, in front of everything, so that no route can be reached past it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsr1.tools.base import CallFailed
from mmsr1.tools.gateway.metrics import Metrics
from mmsr1.tools.gateway.wire import Refused
from mmsr1.tools.guard import describe_bug
from mmsr1.tools.secrets import Secret

logger = logging.getLogger(__name__)

OPEN = "/healthz"  # needs no token
BODY_S = 60.0  # for a request's body to arrive
DRAINED = 4  # times the limit: what of a body that is too large is read all the same, for its sender to hear the answer
GONE = 499  # counted for a client that left before it had sent all of its request


class _Gone(Exception):
    """The client has left."""


class Gate:
    """ASGI middleware. `most` requests at a time, each of at most `max_body` bytes; all but `OPEN` need the `token`."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: Collection[str], max_body: int, most: int, token: Secret | None
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self._max_body, self._most, self._token = max_body, most, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, answer = time.perf_counter(), _Watched(send)
        self._metrics.inside += 1
        try:
            await self._let_in(scope, receive, answer)
        except _Gone:
            answer.status = GONE
        except Refused as refused:
            await refused.response()(scope, receive, answer)
        except asyncio.CancelledError:  # the time for what was under way at the end is over
            if not answer.begun:
                await Refused(503, "transient", "the gateway is ending", retry_s=1).response()(scope, receive, answer)
        except Exception as error:
            # Its text may hold a query, and nobody outside can do anything about a bug.
            logger.error("a request failed: %s", describe_bug(error))
            if not answer.begun:
                await Refused(500, "transient", describe_bug(error)).response()(scope, receive, answer)
        finally:
            self._metrics.inside -= 1
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.count(route, answer.status, time.perf_counter() - start)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != OPEN and self._token is not None:
            self._check_token(scope, self._token)
        if self._metrics.inside > self._most:
            raise Refused(429, "throttled", f"{self._most} requests are at work; come back later", retry_s=1)
        body = await self._body(scope, receive)
        await self._app(scope, _replayed(body, receive), send)

    def _check_token(self, scope: Scope, token: Secret) -> None:
        """Raises Refused unless the request carries the token; takes the same time whatever is wrong with it."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, value = given.partition(b" ")
        try:
            wanted = token.value.encode("ascii")
        except CallFailed as error:
            raise Refused(401, "refused", error.detail) from None
        if not hmac.compare_digest(value.strip(), wanted) or scheme.lower() != b"bearer":
            raise Refused(401, "refused", "the token is missing or wrong: send it as Authorization: Bearer")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises Refused beyond the limit, whatever Content-Length says, and if it takes too long."""
        most, read = self._max_body, 0
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        announced = int(told) if told.isdigit() else 0
        if announced > (1 + DRAINED) * most:
            raise self._too_large()
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    piece = message.get("body", b"")
                    read += len(piece)
                    if read > (1 + DRAINED) * most:
                        raise self._too_large()
                    if read <= most:
                        pieces.append(piece)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(408, "transient", f"the request took more than {BODY_S:g} s to arrive", close=True) from None
        if read > most:
            raise self._too_large()
        return b"".join(pieces)

    def _too_large(self) -> Refused:
        return Refused(413, "invalid", f"the request is larger than {self._max_body} bytes (--max-body-mb)", close=True)


class _Watched:
    """`send`, which remembers what was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun, self.status = False, 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body in one piece first; then whatever else comes, as that the client has left."""
    told = False

    async def next_message() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
