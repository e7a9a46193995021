"""The HTTP client: bounded, deaf to redirects, and nothing of a request shows in what goes wrong with it."""

import asyncio
import gzip
import logging
import socket
import threading
import time
import zlib
from email.utils import formatdate

import httpx
import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.http import Http, Reply, Unanswered, decoded, raise_for, retry_after
from mmsr1.tools.secrets import Secret

CANARY = "canary-5ecret/key+x"


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("TEST_KEY", CANARY)
    return Secret("TEST_KEY")


def ask(url: str = "http://provider.test/search", handler=None, **options) -> Reply:
    client = {key: options.pop(key) for key in ("timeout_s", "max_bytes", "secrets") if key in options}
    transport = None if handler is None else httpx.MockTransport(handler)
    http = Http("test", **({"timeout_s": 5.0} | client), transport=transport)

    async def once() -> Reply:
        try:
            return await http.request("GET", url, **options)
        finally:
            await http.aclose()

    return asyncio.run(once())


def failure(*args, **options) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        ask(*args, **options)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.fixture
def raw_server():
    """A server that sends given bytes and then waits or closes; yields a function that returns its URL."""
    listeners = []

    def serve(answer: bytes, hold: threading.Event | None = None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                if hold is not None:
                    hold.wait(10)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/search?key={CANARY}"

    yield serve
    for listener in listeners:
        listener.close()


def test_what_is_asked_arrives_and_what_is_answered_comes_back(httpserver):
    httpserver.expect_request("/search", query_string={"q": "a b"}, headers={"X-Key": "k"}).respond_with_json({"a": 1})
    reply = ask(httpserver.url_for("/search"), params={"q": "a b"}, headers={"X-Key": "k"})
    assert reply.status == 200 and reply.json() == {"a": 1} and reply.media_type == "application/json"


def test_one_client_serves_several_event_loops(httpserver):
    httpserver.expect_request("/").respond_with_data("hello")
    http = Http("test", 5.0)
    for _ in range(3):
        assert asyncio.run(http.request("GET", httpserver.url_for("/"))).text == "hello"


def test_redirects_are_not_followed_and_cookies_not_kept():
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.headers.get("cookie")))
        return httpx.Response(302, headers={"Location": "http://10.0.0.1/", "Set-Cookie": "a=b"})

    http = Http("test", 5.0, transport=httpx.MockTransport(handler))

    async def twice() -> Reply:
        await http.request("GET", "http://provider.test/1")
        return await http.request("GET", "http://provider.test/2")

    reply = asyncio.run(twice())
    assert reply.status == 302 and reply.headers["location"] == "http://10.0.0.1/"
    assert seen == [("/1", None), ("/2", None)]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", None])
def test_bodies_are_decompressed_up_to_the_cap(encoding):
    plain = b"x" * 5000
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, None: bytes}[encoding](plain)
    headers = {} if encoding is None else {"Content-Encoding": encoding}

    def handler(request: httpx.Request) -> httpx.Response:
        # As from the network: httpx would unpack the content of a finished response itself.
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(packed))

    assert ask(handler=handler, max_bytes=5000).body == plain
    error = failure(handler=handler, max_bytes=4999)
    assert error.cause == "broken" and "4999 bytes" in error.detail


def test_a_bomb_is_never_unpacked_beyond_the_cap(httpserver, monkeypatch):
    layer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = b"".join(layer.compress(bytes(2**20)) for _ in range(32)) + layer.flush()
    httpserver.expect_request("/").respond_with_data(bomb, headers={"Content-Encoding": "gzip"})
    unpacked = []
    real = zlib.decompressobj

    def watched(wbits: int):
        inner = real(wbits)

        class Watched:
            eof = False

            def decompress(self, data: bytes, most: int) -> bytes:
                unpacked.append(inner.decompress(data, most))
                return unpacked[-1]

        return Watched()

    monkeypatch.setattr(zlib, "decompressobj", watched)
    assert failure(httpserver.url_for("/"), max_bytes=10_000).cause == "broken"
    assert sum(map(len, unpacked)) <= 2 * 10_001


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_other_and_repeated_compression_is_refused(encoding):
    packed = gzip.compress(gzip.compress(b"x"))

    def handler(request: httpx.Request) -> httpx.Response:
        response = httpx.Response(200, stream=httpx.ByteStream(packed))
        response.headers["Content-Encoding"] = encoding
        return response

    assert failure(handler=handler).cause == "broken"


def test_damaged_and_truncated_compression_is_broken(httpserver):
    whole = gzip.compress(bytes(range(256)) * 20)
    for path, body in (("/cut", whole[:-20]), ("/noise", b"not gzip at all")):
        httpserver.expect_request(path).respond_with_data(body, headers={"Content-Encoding": "gzip"})
        assert failure(httpserver.url_for(path)).cause == "broken"
    httpserver.expect_request("/none").respond_with_data(b"", headers={"Content-Encoding": "gzip"})
    assert ask(httpserver.url_for("/none")).body == b""


@pytest.mark.parametrize(
    "body", [b'{"a": ', b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b""]
)
def test_what_is_no_json_is_broken_and_not_quoted(body):
    with pytest.raises(CallFailed) as caught:
        Reply(200, {}, body).json()
    assert caught.value.cause == "broken" and "html" not in caught.value.detail


def test_text_is_read_in_the_announced_character_set():
    assert Reply(200, {"content-type": "text/html; charset=ISO-8859-1"}, "ä".encode("latin-1")).text == "ä"
    assert Reply(200, {"content-type": 'text/html; charset="utf-8"; x=y'}, "ä".encode()).text == "ä"
    for strange in ("nonsense", "base64", "idna", ""):
        assert "b" in Reply(200, {"content-type": f"text/html; charset={strange}"}, b"\xe4b").text


@pytest.mark.parametrize(
    "charset",
    [
        "UTF-8",
        "utf8",
        "utf-16",
        "UTF-16LE",
        "us-ascii",
        "ISO-8859-1",
        "iso8859_15",
        "latin1",
        "windows-1251",
        "cp1252",
        "cp866",
        "gb2312",
        "GBK",
        "gb18030",
        "Shift_JIS",
        "sjis",
        "cp932",
        "euc-jp",
        "EUC_KR",
        "cp949",
        "iso-2022-jp",
        "big5",
        "Big5-HKSCS",
        "koi8-r",
        "ks_c_5601-1987",
        "tis-620",
    ],
)
def test_character_sets_that_pages_use_are_known_and_read_across_the_pieces(charset):
    text = {"utf": "\u5854", "gb": "\u5854", "big": "\u5854", "koi": "\u0431", "win": "\u0431", "euc-jp": "\u5854"}
    said = next((letters for begins, letters in text.items() if charset.lower().startswith(begins)), "e") * 70_001
    assert decoded(said.encode(charset), charset) == said


@pytest.mark.parametrize(
    "charset", ["punycode", "utf-7", "idna", "unicode_escape", "rot13", "hex", "utf-8\0", "x" * 99]
)
def test_no_other_codec_of_python_is_used_whatever_a_page_says(charset):
    body = b"caf\xc3\xa9 \\u0041 +AEE- \xff" + b"-a" * 50_000  # by punycode this would take most of a second
    assert decoded(body, charset) == body.decode("utf-8", "replace")
    assert Reply(200, {"content-type": f"text/html; charset={charset}"}, body).text == body.decode("utf-8", "replace")


def test_a_slow_drip_ends_at_the_time_limit(raw_server):
    hold = threading.Event()
    url = raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", hold)
    error = failure(url, timeout_s=0.2)
    hold.set()
    assert isinstance(error, Unanswered) and "0.2 s" in error.detail


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", b"SSH-2.0\r\n\r\n"])
def test_a_lost_or_strange_connection_may_have_cost_something(raw_server, answer):
    error = failure(raw_server(answer))
    assert isinstance(error, Unanswered) and error.cause == "transient" and CANARY not in str(error)


def test_who_cannot_be_reached_has_charged_nothing(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failure(f"http://127.0.0.1:{port}/{CANARY}")
    assert error.cause == "transient" and not isinstance(error, Unanswered) and "refused" in error.detail

    def nowhere(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, CANARY)

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    error = failure(f"http://nowhere.test/{CANARY}")
    assert error.detail == "the host name cannot be resolved"


@pytest.mark.parametrize("url", ["http://a:x/", "ftp://a/b", "http://", f"http://a\n{CANARY}/"])
def test_what_is_no_address_is_invalid(url):
    error = failure(url)
    assert error.cause == "invalid" and CANARY not in str(error)


def test_a_header_that_cannot_be_sent_does_not_show_in_the_message(httpserver):
    for value in (f"{CANARY}\nx", f"{CANARY}ä"):
        error = failure(httpserver.url_for("/"), headers={"X-Key": value})
        assert error.cause == "invalid" and CANARY not in str(error)


def test_the_key_is_taken_out_of_what_comes_back(secret):
    def handler(request: httpx.Request) -> httpx.Response:
        echo = str(request.url)
        return httpx.Response(200, headers={"X-Next": echo}, json={"next": echo, "key": CANARY})

    reply = ask(params={"api_key": CANARY}, handler=handler, secrets=(secret,))
    for part in ("canary", "5ecret"):
        assert part not in reply.text and part not in str(reply.headers)
    assert reply.json()["key"] == "***"


def test_nothing_is_logged_of_a_request(httpserver, caplog):
    caplog.set_level(logging.DEBUG)
    httpserver.expect_request("/").respond_with_data("x")
    ask(httpserver.url_for("/"), params={"api_key": CANARY}, headers={"X-Key": CANARY})
    said = [record for record in caplog.records if record.name.startswith(("httpx", "httpcore", "mmsr1"))]
    assert said == []


STATUS = {
    429: "throttled",
    401: "refused",
    403: "refused",
    404: "refused",
    402: "exhausted",
    408: "transient",
    425: "transient",
    500: "transient",
    503: "transient",
    599: "transient",
    400: "refused",
    407: "refused",
    418: "refused",
    422: "refused",
    451: "refused",
    413: "invalid",
    414: "invalid",
    302: "broken",
    100: "broken",
}


@pytest.mark.parametrize(("status", "cause"), STATUS.items())
def test_a_status_is_a_cause(status, cause):
    with pytest.raises(CallFailed) as caught:
        raise_for(Reply(status, {"retry-after": "7"}, CANARY.encode()), "why")
    assert caught.value.cause == cause and caught.value.detail == f"HTTP {status}: why"
    assert caught.value.retry_after_s == (7.0 if cause in ("throttled", "transient") else None)


@pytest.mark.parametrize(("said", "cause"), [("407 Proxy Authentication Required", "refused"), ("502 no", "transient")])
def test_a_proxy_that_refuses_is_no_bill_and_names_itself(said, cause):
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ProxyError(said)

    error = failure(handler=refuse)
    assert error.cause == cause and not isinstance(error, Unanswered) and "HTTPS_PROXY" in error.detail


def test_success_raises_nothing():
    raise_for(Reply(204, {}, b""))


def test_retry_after_in_seconds_and_as_a_date():
    def after(text: str) -> float | None:
        return retry_after(Reply(429, {"retry-after": text}, b""))

    assert after("0") == 0.0 and after(" 12 ") == 12.0
    assert 90 < after(formatdate(time.time() + 100, usegmt=True)) <= 100
    assert after(formatdate(time.time() - 100, usegmt=True)) == 0.0
    assert after("9" * 5000) == 10**6
    for nonsense in ("", "soon", "-5", "٣", "1e3", "Mon, 99 Foo 2020"):
        assert after(nonsense) is None
