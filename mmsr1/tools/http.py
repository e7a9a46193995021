"""The one HTTP client of all providers: bounded in time and bytes, follows nothing, tells nobody what was asked.

Messages of `CallFailed` hold neither URL nor key nor body: a key may stand in a query string, and httpx puts the URL
into its exceptions and into its log.
"""

from __future__ import annotations

import asyncio
import codecs
import json as json_module
import logging
import re
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from mmsr1.tools.base import CallFailed, Cause
from mmsr1.tools.secrets import Secret, redact

MAX_BYTES = 8 * 2**20
CONNECT_S = 10.0
# One layer of what zlib can undo in bounded pieces; other methods turn a small piece into gigabytes at once.
ENCODINGS = ("gzip", "x-gzip", "deflate")
# What a page may be decoded by. Python knows more, and some of that (punycode) takes a time that grows as the square.
_CHARSETS = re.compile(
    r"utf-?8|utf-?16(-?[bl]e)?|us-ascii|ascii|iso-?8859-?\d{1,2}|latin-?\d{1,2}|(windows|cp)-?(125\d|8\d\d|9\d\d)"
    r"|gb2312|gbk|gb18030|shift-?jis|sjis|euc-?(jp|kr)|iso-2022-jp|big5(-hkscs)?|ks-c-5601(-1987)?|koi8-[rtu]|tis-620"
)
_PIECE = 2**16  # bytes that are decoded at a time: no other thread runs meanwhile

for _name in ("httpx", "httpcore"):  # at INFO the one logs URLs, at DEBUG the other headers: keys stand in both
    logging.getLogger(_name).setLevel(logging.WARNING)


class Unanswered(CallFailed):
    """The question was sent and no answer came: nobody knows whether it is on the bill."""

    def __init__(self, detail: str) -> None:
        super().__init__("transient", detail)


@dataclass(frozen=True)
class Reply:
    """What a server answered; the body is decompressed, header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        """Such as `text/html`; empty if the server did not say."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    @property
    def text(self) -> str:
        """The body in the character set that the server named, as by `decoded`."""
        _, _, parameter = self.headers.get("content-type", "").lower().partition("charset=")
        return decoded(self.body, parameter.split(";")[0].strip("\"' "))

    def json(self) -> Any:
        """The body as JSON. Raises CallFailed("broken") if it is none."""
        try:
            return json_module.loads(self.body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise CallFailed("broken", f"HTTP {self.status}, {len(self.body)} bytes that are no JSON") from None


def decoded(body: bytes, charset: str) -> str:
    """The text in `charset`, or in UTF-8 if that is none of those in use; what cannot be read becomes U+FFFD."""
    name = charset.lower().replace("_", "-")
    try:
        decoder = codecs.getincrementaldecoder(name if _CHARSETS.fullmatch(name) else "utf-8")("replace")
    except LookupError:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(body[start : start + _PIECE]) for start in range(0, len(body), _PIECE)]
    return "".join([*pieces, decoder.decode(b"", True)])


class Http:
    """Requests to one provider. Made on any thread, used on any event loop: each gets a client of its own.

    `timeout_s` bounds a whole exchange, `max_bytes` the decompressed body. `secrets` are taken out of what comes back,
    for it is cached and quoted. `transport` is for tests.
    """

    def __init__(
        self,
        name: str,
        timeout_s: float,
        max_bytes: int = MAX_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
        secrets: Sequence[Secret] = (),
    ) -> None:
        self.name, self.secrets = name, tuple(secrets)
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._clients = Clients(timeout_s, lambda: transport)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
        max_bytes: int | None = None,
    ) -> Reply:
        """The answer, whatever its status, redirects included. Raises CallFailed if there is none."""
        asked = {"params": params, "headers": headers, "json": json, "data": data, "files": files}
        async with failures(self._timeout_s):
            client = self._clients.here()
            request = client.build_request(method, url, **asked)
            response = await client.send(request, stream=True)
            reply = await read(response, self._max_bytes if max_bytes is None else max_bytes)
        found = {key: redact(value, self.secrets) for key, value in reply.headers.items()}
        return Reply(reply.status, found, redact(reply.body, self.secrets))

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._clients.aclose()


class Clients:
    """An httpx client for every event loop that asks, made at the first use: connections belong to their loop.

    `transport` makes what a client sends through; None is httpx's own.
    """

    def __init__(self, timeout_s: float, transport: Callable[[], httpx.AsyncBaseTransport | None]) -> None:
        self._timeout_s, self._transport = timeout_s, transport
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def here(self) -> httpx.AsyncClient:
        """That of the running event loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(
                transport=self._transport(),
                timeout=httpx.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s)),
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
                headers={"User-Agent": "mmsr1", "Accept-Encoding": "gzip, deflate"},
                cookies=no_cookies(),
            )
        return client

    async def aclose(self) -> None:
        """Close the connections of the running event loop; those of loops that have ended are gone already."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


def no_cookies() -> CookieJar:
    """A jar that keeps nothing: an answer must not depend on what was asked before."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


async def read(response: httpx.Response, max_bytes: int) -> Reply:
    """The whole answer, and the response closed. Raises CallFailed("broken") beyond `max_bytes` decompressed."""
    try:
        size = 0
        pieces: list[bytes] = []
        async for piece in _decoded(response, max_bytes):
            size += len(piece)
            if size > max_bytes:
                raise CallFailed("broken", f"HTTP {response.status_code}, more than the {max_bytes} bytes allowed")
            pieces.append(piece)
    finally:
        await response.aclose()
    return Reply(response.status_code, dict(response.headers), b"".join(pieces))


async def _decoded(response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
    """The body, decompressed at most a little beyond `max_bytes`: httpx would unpack each piece as far as it goes."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    if encoding in ("identity", ""):
        async for piece in stream:
            yield piece
        return
    if encoding not in ENCODINGS:
        raise CallFailed("broken", f"HTTP {response.status_code}, compressed in a way that was not asked for")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the header says which of the two it is
    begun = False
    try:
        async for piece in stream:
            begun = begun or bool(piece)
            yield unpack.decompress(piece, max_bytes + 1)  # if that leaves some, the reader has more than it takes
    except zlib.error:
        raise CallFailed("broken", f"HTTP {response.status_code}, damaged compression") from None
    if begun and not unpack.eof:
        raise CallFailed("broken", f"HTTP {response.status_code}, the compressed body is cut short")


@asynccontextmanager
async def failures(timeout_s: float) -> AsyncIterator[None]:
    """Whatever goes wrong on the way becomes a `CallFailed` that tells nothing of the request."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise CallFailed("transient", _why_unconnected(error)) from None
    except httpx.ProxyError as error:  # the service has not been reached; the text begins with the proxy's status
        cause: Cause = "refused" if str(error)[:2] == "40" else "transient"
        raise CallFailed(cause, "the proxy does not let the request through: check HTTP_PROXY, HTTPS_PROXY") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError):
        raise CallFailed("invalid", "the request cannot be written as HTTP") from None
    except (TimeoutError, httpx.TimeoutException):
        raise Unanswered(f"no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        raise Unanswered(f"the connection was lost ({type(error).__name__})") from None


def _why_unconnected(error: BaseException) -> str:
    """The kind of a failure to connect, found among its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):  # one for each address that was tried
            seen = seen.exceptions[0]
        for kind, why in (
            (socket.gaierror, "the host name cannot be resolved"),
            (ssl.SSLError, "TLS failed"),
            (ConnectionRefusedError, "the connection was refused"),
        ):
            if isinstance(seen, kind):
                return why
        seen = seen.__cause__ or seen.__context__
    return "no connection in time" if isinstance(error, httpx.TimeoutException) else "cannot connect"


def raise_for(reply: Reply, detail: str = "") -> None:
    """Raise what a status means for most providers; return if it is 2xx. `detail` is one line that is fit for a log.

    429 throttled; 402 exhausted; 408, 425, 5xx transient; 413, 414 invalid, for the query alone can be too large; all
    other 4xx refused: key, address, option, plan or proxy, which no other query would change. Whoever knows that a
    service blames the query says so before (`providers/blame.py`). Anything else, a redirect among them, is no answer
    of a provider: broken.
    """
    status = reply.status
    if 200 <= status < 300:
        return
    said = f"HTTP {status}" + (f": {detail}" if detail else "")
    if status == 429:
        raise CallFailed("throttled", said, retry_after(reply))
    if status == 402:
        raise CallFailed("exhausted", said)
    if status in (408, 425) or 500 <= status < 600:
        raise CallFailed("transient", said, retry_after(reply))
    if status in (413, 414):
        raise CallFailed("invalid", said)
    if status not in (401, 403, 404, 405) and not detail:
        said += ": does not accept the request: check options, plan and proxy"
    raise CallFailed("refused" if 400 <= status < 500 else "broken", said)


def retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks to wait (given as seconds or as a date); None if it says nothing readable."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), 10**6))
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
