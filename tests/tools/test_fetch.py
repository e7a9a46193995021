"""What strangers name is fetched from public addresses only, whatever they write, resolve to or redirect to."""

import asyncio
import gzip
import socket
from collections.abc import Sequence

import httpx
import pytest
from werkzeug import Request, Response

from mmsr1.tools.base import CallFailed
from mmsr1.tools.fetch import SafeFetch, is_public
from mmsr1.tools.http import Reply

PUBLIC = "93.184.216.34"


class Names:
    """A name service that counts its questions."""

    def __init__(self, **known: Sequence[str]) -> None:
        self.known, self.asked = {name.replace("_", "."): found for name, found in known.items()}, []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.known.get(host, [host])


class Web:
    """Answers instead of the network, and remembers what was asked of which address."""

    def __init__(self, **answers: httpx.Response) -> None:
        self.answers, self.asked = answers, []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, request.extensions["address"]))
        return self.answers.get(request.url.path.strip("/"), httpx.Response(200, text="page"))


def get(url: str, web: Web | None = None, accept: Sequence[str] = (), max_bytes: int = 1000, **options) -> Reply:
    transport = None if web is None else httpx.MockTransport(web)
    fetch = SafeFetch(5.0, transport=transport, **options)

    async def once() -> Reply:
        try:
            return await fetch.get(url, max_bytes, accept)
        finally:
            await fetch.aclose()

    return asyncio.run(once())


def refused(url: str, web: Web | None = None, **options) -> str:
    with pytest.raises(CallFailed) as caught:
        get(url, Web() if web is None else web, **options)
    assert caught.value.cause == "blocked", caught.value
    return caught.value.detail


ADDRESSES = (
    "127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 240.0.0.1 "
    "255.255.255.255 192.0.2.1 198.18.0.1 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fec0::1 ff02::1 2001:db8::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1:: 2001:0:7f00:1::8 x"
)


@pytest.mark.parametrize("address", ADDRESSES.split())
def test_no_address_of_our_own_networks_is_public(address):
    assert not is_public(address)
    web = Web()
    assert "not public" in refused("http://evil.test/", web, resolve=Names(evil_test=[PUBLIC, address]))
    assert web.asked == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST/",
        "https://169.254.169.254/latest/meta-data/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://127\u30020\u30020\u30021/",
    ],
)
def test_spellings_of_loopback_are_refused_by_the_real_name_service(url):
    web = Web()
    refused(url, web)
    assert web.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.test/",
        "gopher://a.test/",
        "data:text/html,x",
        "javascript:alert(1)",
        "//a.test/",
        "a.test",
        "",
        "http://",
        "http:///x",
        "http://[",
        "http://a.test:99999/",
        "http://a.test:x/",
        "http://user@a.test/",
        "http://user:password@a.test/",
        f"http://{'a' * 300}.test/",
        f"http://{'a.' * 200}test/",
        "http://a b.test/",
        "http://a.test\n/",
        "http://\ud800.test/",
        "http://xn--.test/",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url):
    web = Web()
    refused(url, web, resolve=Names(a_test=[PUBLIC]))
    assert web.asked == []


@pytest.mark.parametrize("port", [22, 8000, 6379, 8443])
def test_only_the_ports_of_the_web_are_asked(port):
    assert str(port) in refused(f"http://a.test:{port}/", resolve=Names(a_test=[PUBLIC]))


def test_the_connection_goes_to_the_address_that_was_checked_and_is_resolved_once():
    web, names = Web(), Names(a_test=[PUBLIC, "8.8.8.8"])
    assert get("https://a.test/x", web, resolve=names).text == "page"
    assert web.asked == [("a.test", PUBLIC)] and names.asked == ["a.test"]


def test_a_redirect_is_checked_again():
    away = {
        "private": httpx.Response(302, headers={"Location": "http://10.0.0.1/"}),
        "scheme": httpx.Response(301, headers={"Location": "file:///etc/passwd"}),
        "port": httpx.Response(307, headers={"Location": "http://a.test:22/"}),
        "user": httpx.Response(308, headers={"Location": "http://u:p@a.test/"}),
        "broken": httpx.Response(303, headers={"Location": "http://["}),
        "other": httpx.Response(302, headers={"Location": "//b.test/page"}),
        "here": httpx.Response(302, headers={"Location": "page"}),
        "round": httpx.Response(302, headers={"Location": "/round"}),
    }
    names = Names(a_test=[PUBLIC], b_test=["8.8.8.8"])
    for path in ("private", "scheme", "port", "user", "broken"):
        web = Web(**away)
        refused(f"http://a.test/{path}", web, resolve=names)
        assert web.asked == [("a.test", PUBLIC)]
    web = Web(**away)
    assert get("http://a.test/other", web, resolve=names).text == "page"
    assert web.asked == [("a.test", PUBLIC), ("b.test", "8.8.8.8")]
    assert get("http://a.test/here", web, resolve=names).text == "page"
    web = Web(**away)
    assert "redirects" in refused("http://a.test/round", web, resolve=names) and len(web.asked) == 6


def test_a_name_that_changes_its_address_meanwhile_is_checked_again():
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str) -> Sequence[str]:
        return next(answers)

    web = Web(again=httpx.Response(302, headers={"Location": "/"}))
    assert "not public" in refused("http://a.test/again", web, resolve=rebinding)
    assert web.asked == [("a.test", PUBLIC)]


def test_the_list_of_hosts_holds_for_redirects_as_well():
    names = Names(**{name: [PUBLIC] for name in ("a_test", "x_b_test", "b_test", "evilb_test", "a_test_evil_test")})
    listed = {"hosts": ["A.test", ".b.test"], "resolve": names}
    for host in ("a.test", "A.TEST", "a.test.", "b.test", "x.b.test"):
        assert get(f"http://{host}/", Web(), **listed).status == 200
    for host in ("x.a.test", "evilb.test", "a.test.evil.test"):
        assert "list" in refused(f"http://{host}/", **listed)
    away = Web(away=httpx.Response(302, headers={"Location": "http://evilb.test/"}))
    assert "list" in refused("http://a.test/away", away, **listed)


def test_other_media_types_are_not_read():
    answers = {
        "html": httpx.Response(200, html="<p>"),
        "pdf": httpx.Response(200, headers={"Content-Type": "application/pdf"}, content=b"x"),
        "missing": httpx.Response(404, headers={"Content-Type": "application/json"}, content=b"{}"),
    }
    options = {"resolve": Names(a_test=[PUBLIC]), "accept": ("text/html", "image/")}
    assert get("http://a.test/html", Web(**answers), **options).text == "<p>"
    assert get("http://a.test/missing", Web(**answers), **options).status == 404
    assert "media type" in refused("http://a.test/pdf", Web(**answers), **options)


def test_a_whole_fetch_over_the_network(httpserver):
    """Against a real server, whose address and port a test may open: Host, redirects, compression, the cap."""
    seen = []

    def page(request: Request) -> Response:
        seen.append((request.headers["Host"], request.headers["Accept"]))
        return Response(gzip.compress(b"x" * 900), headers={"Content-Encoding": "gzip", "Content-Type": "text/html"})

    httpserver.expect_request("/go").respond_with_data("", 302, headers={"Location": "/page"})
    httpserver.expect_request("/page").respond_with_handler(page)
    port = httpserver.port
    options = {
        "resolve": Names(a_test=["127.0.0.1"]),
        "allow": lambda address, to: (address, to) == ("127.0.0.1", port),
        "accept": ("text/html", "image/"),
    }
    assert get(f"http://a.test:{port}/go", **options).body == b"x" * 900
    assert seen == [(f"a.test:{port}", "text/html, image/*")]
    with pytest.raises(CallFailed, match="broken.*more than the 899 bytes"):
        get(f"http://a.test:{port}/page", max_bytes=899, **options)
    assert "port" in refused(f"http://a.test:{port + 1}/", **options)


def test_the_next_address_is_tried_if_one_does_not_answer(httpserver):
    httpserver.expect_request("/").respond_with_data("page")
    names = Names(a_test=["127.0.0.2", "127.0.0.1"])  # the server listens on the second one only
    fetched = get(f"http://a.test:{httpserver.port}/", resolve=names, allow=lambda address, to: True)
    assert fetched.text == "page"


def test_proxies_of_the_environment_are_not_used(httpserver, monkeypatch):
    """A proxy would resolve the name again, where nobody checks it."""
    httpserver.expect_request("/").respond_with_data("page")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    names = Names(a_test=["127.0.0.1"])
    fetched = get(f"http://a.test:{httpserver.port}/", resolve=names, allow=lambda address, to: True)
    assert fetched.text == "page"


def test_a_name_that_does_not_exist_is_not_asked_again(monkeypatch):
    def fails(errno: int):
        def getaddrinfo(*args, **kwargs):
            raise socket.gaierror(errno, "secret.test")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_NONAME))
    assert refused("http://secret.test/") == "the host name cannot be resolved"
    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_AGAIN))
    with pytest.raises(CallFailed) as caught:
        get("http://secret.test/", Web())
    assert caught.value.cause == "transient" and "secret" not in caught.value.detail
