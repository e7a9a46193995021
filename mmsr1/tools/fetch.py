"""Fetching what strangers name: pages and thumbnails, from public addresses only.

A URL in a search result may point into our own network (server-side request forgery). So a host name is resolved once,
every address it has must be public, and the connection goes to the very address that was checked, with the name in
Host and TLS as usual. Each redirect is a new URL and passes the same checks. Proxies of the environment are not used:
they would resolve the name a second time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

from mmsr1.tools.base import CallFailed
from mmsr1.tools.http import Clients, Reply, failures, read

PORTS = (80, 443)
REDIRECTS = 5
ADDRESSES_TRIED = 3
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the IPv4 internet, seen from an IPv6 network

Resolve = Callable[[str], Awaitable[Sequence[str]]]
Allow = Callable[[str, int], bool]


class SafeFetch:
    """GET of untrusted URLs. Made on any thread, used on any event loop: each gets a client of its own.

    `timeout_s` bounds a whole fetch with its redirects. `hosts`, where given, are the only ones asked; a leading dot
    admits all subdomains. For tests: `transport` answers instead of the network (it sees the URL as it was asked),
    `resolve` stands for the name service, `allow` opens an address and port that are refused otherwise.
    """

    def __init__(
        self,
        timeout_s: float = 30.0,
        hosts: Sequence[str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
        allow: Allow | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._hosts = None if hosts is None else tuple(host.lower() for host in hosts)
        self._resolve, self._allow = resolve or _resolve, allow
        self._clients = Clients(timeout_s, lambda: transport or _Pinned())

    async def get(self, url: str, max_bytes: int, accept: Sequence[str] = ()) -> Reply:
        """The answer at the end of the redirects, whatever its status.

        `accept`: media types (`text/html`) or their beginnings (`image/`) that a 2xx answer may have.
        Raises CallFailed("blocked") for what must not be fetched or is of another type, and as `Http.request` does.
        """
        try:
            async with failures(self._timeout_s):
                return await self._follow(url, max_bytes, accept)
        except CallFailed as error:
            if error.cause == "invalid":  # the fault of whoever published the URL, not of whoever asks for it
                raise CallFailed("blocked", error.detail) from None
            raise

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._clients.aclose()

    async def _follow(self, url: str, max_bytes: int, accept: Sequence[str]) -> Reply:
        target = httpx.URL(url)
        for _ in range(REDIRECTS + 1):
            response = await self._send(target, accept)
            if response.has_redirect_location:
                await response.aclose()
                target = target.join(response.headers["location"])
                continue
            kind = response.headers.get("content-type", "").strip().lower()
            if response.is_success and kind and accept and not kind.startswith(tuple(accept)):
                await response.aclose()
                raise CallFailed("blocked", "a media type that is not wanted here")
            return await read(response, max_bytes)
        raise CallFailed("blocked", f"more than {REDIRECTS} redirects")

    async def _send(self, url: httpx.URL, accept: Sequence[str]) -> httpx.Response:
        """Ask one of the addresses of the URL's host, none of which was refused."""
        addresses = await self._checked(url)
        types = ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in accept) or "*/*"
        client = self._clients.here()
        for number, address in enumerate(addresses, 1):
            request = client.build_request("GET", url, headers={"Accept": types}, extensions={"address": address})
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise CallFailed("blocked", "the host has no address")

    async def _checked(self, url: httpx.URL) -> list[str]:
        """The addresses to try. Raises CallFailed("blocked") for a URL that must not be fetched."""
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        port = url.port or (443 if url.scheme == "https" else 80)
        if url.scheme not in ("http", "https") or not host:
            raise CallFailed("blocked", "not an http or https address")
        if url.userinfo:
            raise CallFailed("blocked", "the address carries a user name")
        if self._hosts is not None and not any(_matches(host, known) for known in self._hosts):
            raise CallFailed("blocked", "the host is not on the list of those that may be asked")
        addresses = await self._resolve(host)
        for address in addresses:
            if self._allow is not None and self._allow(address, port):
                continue
            if port not in PORTS:
                raise CallFailed("blocked", f"port {port} is not one of the web")
            if not is_public(address):
                raise CallFailed("blocked", "the host has an address that is not public")
        return list(addresses)[:ADDRESSES_TRIED]


class _Pinned(httpx.AsyncBaseTransport):
    """Connects to the address that was checked, in the name of the host that was asked for.

    No connection is kept: it would be found again by its address, and serve another host whose certificate nobody saw.
    """

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=256, max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        extensions = dict(request.extensions)
        url = request.url.copy_with(host=extensions.pop("address"))
        extensions["sni_hostname"] = request.url.raw_host.decode("ascii")
        return await self._inner.handle_async_request(
            httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_public(address: str) -> bool:
    """Whether the address, and any IPv4 address inside it, belongs to the public internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a scope id, for one: fe80::1%eth0
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped
        if carried is not None:
            return is_public(str(carried))
        if ip.is_site_local or not all(is_public(str(end)) for end in (ip.sixtofour, *(ip.teredo or ())) if end):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _matches(host: str, known: str) -> bool:
    return host == known.removeprefix(".") or (known.startswith(".") and host.endswith(known))


async def _resolve(host: str) -> Sequence[str]:
    """All addresses of a host, IPv4 first. Raises CallFailed: blocked for a name that does not exist."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise CallFailed("transient", "the name service does not answer") from None
        raise CallFailed("blocked", "the host name cannot be resolved") from None
    addresses = dict.fromkeys(str(entry[4][0]) for entry in sorted(found, key=lambda entry: entry[0]))
    return list(addresses)
