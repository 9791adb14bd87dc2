"""Through proxies: real TLS inside real tunnels, credentials kept apart, and every refusal under our names."""

import socket
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.sync.server import ServerConnection, serve, unix_serve

from towline._exceptions import (
    CertificateRejected,
    ConnectFailed,
    DeadlineExceeded,
    InvalidArgument,
    NameNotResolved,
    ProxyFailed,
)
from towline.testing import MemoryLink
from towline.transport import Network, connect_websocket, open_websocket, parse_url, resume_sessions
from towline.transport.net._network import endpoint_of
from towline.transport.net._proxy import Proxy, open_tunnel, parse_proxy, proxy_from_environment

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


# --- what a proxy is told and what the environment says -----------------------------------------------------------


def test_a_proxy() -> None:
    assert parse_proxy("http://Proxy.Example:3128") == Proxy("http", "proxy.example", 3128)
    assert parse_proxy("https://proxy/") == Proxy("https", "proxy", 443)
    assert parse_proxy("socks5h://[::1]") == Proxy("socks5h", "::1", 1080)
    assert parse_proxy("socks5://[fe80::1%25eth0]") == Proxy("socks5", "fe80::1", 1080, zone="eth0")
    full = parse_proxy("http://us%40er:hunter%3A2@proxy")
    assert full.username == "us@er"
    assert full.password is not None
    assert full.password.reveal() == "hunter:2"
    assert "hunter" not in repr(full)
    longest = parse_proxy(f"http://{'u' * 255}:{'p' * 255}@proxy")
    assert longest.username == "u" * 255


@pytest.mark.parametrize(
    "text",
    [
        *["", "proxy:3128", "ftp://proxy", "http://", "http://proxy:x", "http://proxy/path", "http://proxy?x=hunter2"],
        "http://u:hunter2%0d%0a@proxy",
        "http://" + "u" * 256 + ":hunter2@proxy",
        "http://u:hunter2" + "p" * 249 + "@proxy",
        "http://u:hunter2@pro xy",
        "http://[::1",
    ],
)
def test_no_proxy_at_all(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_proxy(text)
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("environment", "host", "proxied"),
    [
        ({}, "api.example", None),
        ({"https_proxy": "http://p:1"}, "api.example", "p"),
        ({"HTTPS_PROXY": "http://p:1"}, "api.example", "p"),
        ({"https_proxy": "p:1"}, "api.example", "p"),
        ({"ALL_PROXY": "socks5://s"}, "api.example", "s"),
        ({"all_proxy": "socks5://s", "https_proxy": "http://p"}, "api.example", "p"),
        ({"http_proxy": "http://p"}, "api.example", None),
        ({"https_proxy": ""}, "api.example", None),
        ({"https_proxy": "http://p"}, "localhost", None),
        ({"https_proxy": "http://p"}, "127.3.2.1", None),
        ({"https_proxy": "http://p"}, "::1", None),
        ({"https_proxy": "http://p", "no_proxy": "*"}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "other,.example"}, "api.example", None),
        ({"https_proxy": "http://p", "NO_PROXY": " API.example "}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "*.example"}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "pi.example"}, "api.example", "p"),
        ({"https_proxy": "http://p", "no_proxy": "api.example:443"}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "api.example:444"}, "api.example", "p"),
        ({"https_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "10.1.2.3", None),
        ({"https_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "11.1.2.3", "p"),
        ({"https_proxy": "http://p", "no_proxy": "[2001:db8::]/32,2001:db8::5"}, "2001:db8::5", None),
        ({"https_proxy": "http://p", "no_proxy": "[2001:db8::5]:443"}, "2001:db8::5", None),
        ({"https_proxy": "http://p", "no_proxy": ",,:,x:y"}, "api.example", "p"),
        # What `str.isdigit` calls a digit, and what `int` finds too long, is no port.
        ({"https_proxy": "http://p", "no_proxy": f"api.example:¹,api.example:{'4' * 5000}"}, "api.example", "p"),
        ({"https_proxy": "http://p", "no_proxy": "api.example:00443"}, "api.example", None),
        # As desktops, shells and administrators write them.
        ({"all_proxy": "socks://s:1/"}, "api.example", "s"),
        ({"ALL_PROXY": "SOCKS://s"}, "api.example", "s"),
        ({"https_proxy": "//p:1"}, "api.example", "p"),
        ({"https_proxy": " http://p:1 \n"}, "api.example", "p"),
        ({"https_proxy": " ", "HTTPS_PROXY": "http://p"}, "api.example", "p"),
        ({"https_proxy": " ", "all_proxy": "http://p"}, "api.example", "p"),
        ({"https_proxy": "http://p.:1"}, "api.example", "p"),
        ({"https_proxy": "http://p", "no_proxy": "api.example."}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": ".example."}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "api.example.:443"}, "api.example", None),
        ({"https_proxy": "http://p", "no_proxy": "localhost api.example"}, "api.example", None),
    ],
)
def test_the_environment(environment: dict[str, str], host: str, proxied: str | None) -> None:
    proxy = proxy_from_environment(host, 443, environment)
    assert (None if proxy is None else proxy.host) == proxied


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("http://p:1/proxy.pac", "without a path"),
        ("http://u:hunter2/x@p", "%2F"),
        ("http://u:hunter2?x@p", "%3F"),
        ("http://u:hunter2#x@p", "%23"),
        ("http://", "must be a URL"),
        ("//", "must be a URL"),
        ("socks4://p", "http, https or socks5"),
        ("http://u:hunter2@pro xy", "without spaces"),
        ("http://u:hunter2@-p-", "host is not a valid name"),
        ("http://u:hunter2%0d%0a@p", "user name or password"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, value: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        proxy_from_environment("api.example", 443, {variable: value})
    assert caught.value.name == variable
    assert words in caught.value.problem
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_socks_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(InvalidArgument, match=r"^proxy: SOCKS5 needs an extra: pip install 'towline\[socks\]'$"):
        Network(proxy="socks5://p")
    with pytest.raises(InvalidArgument, match=r"^all_proxy: SOCKS5 needs an extra"):
        proxy_from_environment("api.example", 443, {"all_proxy": "socks://p"})


@given(st.text())
def test_any_text_is_a_proxy_or_a_typed_refusal(text: str) -> None:
    with suppress(InvalidArgument):
        proxy_from_environment("api.example", 443, {"https_proxy": text})


@given(st.text())
def test_no_list_of_exceptions_breaks_it(listed: str) -> None:
    for host in ("api.example", "10.1.2.3", "2001:db8::5"):
        proxy_from_environment(host, 443, {"https_proxy": "http://p", "no_proxy": listed})


# --- real tunnels ------------------------------------------------------------------------------------------------


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class RealProxy:
    """A proxy on loopback that tunnels every host to one port, and keeps what it was told in the clear."""

    def __init__(
        self, target: int, talk: Callable[["RealProxy", socket.socket], bool], tls: ssl.SSLContext | None = None
    ):
        self.target = target
        self.talk = talk
        self.tls = tls
        self.told = b""
        self.tunnelled = bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.run)]
        self.threads[0].start()

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(connection,)))
                self.threads[-1].start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                if not self.talk(self, connection):
                    return
                with socket.create_connection(("127.0.0.1", self.target)) as onward:
                    first = connection.recv(65536)
                    self.tunnelled += first
                    onward.sendall(first)
                    back = threading.Thread(target=pump, args=(onward, connection))
                    back.start()
                    pump(connection, onward)
                    back.join(10)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


def talks_http(proxy: RealProxy, connection: socket.socket) -> bool:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(65536)
    proxy.told += head
    if b"Basic " + b64encode(b"user:pass") not in head:
        connection.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        return False
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    return True


def talks_openly(proxy: RealProxy, connection: socket.socket) -> bool:
    """SOCKS5 for everybody."""
    proxy.told += connection.recv(100)
    connection.sendall(b"\x05\x00")
    proxy.told += connection.recv(1000)
    connection.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
    return True


def talks_socks(proxy: RealProxy, connection: socket.socket) -> bool:
    proxy.told += connection.recv(100)
    if b"\x02" not in proxy.told[2:]:
        connection.sendall(b"\x05\xff")
        return False
    connection.sendall(b"\x05\x02")
    login = connection.recv(1000)
    proxy.told += login
    if login != b"\x01\x04user\x04pass":
        connection.sendall(b"\x01\x01")
        return False
    connection.sendall(b"\x01\x00")
    proxy.told += connection.recv(1000)
    for byte in b"\x05\x00\x00\x03\x04name\x00\x50":  # an answer with a name in it, byte by byte
        connection.sendall(bytes([byte]))
    return True


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def upgrades() -> list[Headers]:
    """What the hub was told at each upgrade."""
    return []


@pytest.fixture
def hub(authority: trustme.CA, upgrades: list[Headers]) -> Iterator[int]:
    """A WebSocket server with a certificate for a name that no resolver knows."""

    def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        upgrades.append(connection.request.headers)
        echo(connection)

    listener = socket.create_server(("127.0.0.1", 0))
    server = serve(handle, sock=listener, ssl=server_context(authority, "hub.example"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.socket.getsockname()[1]
    server.shutdown()
    thread.join(10)


@contextmanager
def proxying(hub: int, talk: Any, tls: ssl.SSLContext | None = None) -> Iterator[RealProxy]:
    proxy = RealProxy(hub, talk, tls)
    try:
        yield proxy
    finally:
        proxy.close()


async def echoed(url: str, **options: Any) -> None:
    with anyio.fail_after(20):
        async with open_websocket(url, headers={"Authorization": "Bearer hunter2"}, **options) as websocket:
            await websocket.send("é")
            assert await websocket.receive_batch() == ["é"]


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_through_a_proxy_it_is_really_tls(
    authority: trustme.CA, hub: int, upgrades: list[Headers], scheme: str
) -> None:
    talk = talks_socks if scheme == "socks5" else talks_http
    tls = server_context(authority, "127.0.0.1") if scheme == "https" else None
    with proxying(hub, talk, tls) as proxy:
        trusted = trusting(authority)
        network = Network(proxy=f"{scheme}://user:pass@127.0.0.1:{proxy.port}", proxy_tls=trusted, tls=trusted)
        await echoed("wss://hub.example/ws", network=network)
        assert b"hub.example" in proxy.told
        assert b"hunter2" not in proxy.told
        assert proxy.tunnelled.startswith(b"\x16\x03"), "what goes through is a TLS handshake"
        assert b"pass" not in proxy.tunnelled
        (told,) = upgrades
        assert told["Authorization"] == "Bearer hunter2"
        assert "Proxy-Authorization" not in told
        assert not [value for value in told.values() if "pass" in value or b64encode(b"user:pass").decode() in value]
        with pytest.raises(CertificateRejected):
            await connect_websocket("wss://other.example/", network=network)


async def test_a_proxy_that_asks_for_no_credentials(authority: trustme.CA, hub: int) -> None:
    with proxying(hub, talks_openly) as proxy:
        network = Network(proxy=f"socks5://127.0.0.1:{proxy.port}", tls=trusting(authority))
        await echoed("wss://hub.example/ws", network=network)
        assert proxy.told == b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0bhub.example\x01\xbb"


@pytest.mark.parametrize(
    ("scheme", "credentials"), [("http", ""), ("http", "user:wrong@"), ("socks5", ""), ("socks5", "user:wrong@")]
)
async def test_without_the_right_credentials(hub: int, scheme: str, credentials: str) -> None:
    with proxying(hub, talks_socks if scheme == "socks5" else talks_http) as proxy, anyio.fail_after(20):
        network = Network(proxy=f"{scheme}://{credentials}127.0.0.1:{proxy.port}")
        with pytest.raises(ProxyFailed) as caught:
            await connect_websocket("wss://hub.example/", network=network)
        assert caught.value.status == (407 if scheme == "http" else None)
        assert "wrong" not in f"{caught.value} {caught.value!r}"


async def test_the_environments_proxy(authority: trustme.CA, hub: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxying(hub, talks_http) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@127.0.0.1:{proxy.port}")
        await echoed("wss://hub.example/ws", network=Network(tls=trusting(authority)))
        monkeypatch.setenv("NO_PROXY", "hub.example")
        for network in (Network(), Network(trust_environment=False)):
            with pytest.raises(Exception, match=r"hub\.example"), anyio.fail_after(20):
                await connect_websocket("wss://hub.example/", network=network)


async def test_a_plain_line_goes_through_no_proxy() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = serve(echo, sock=listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.socket.getsockname()[1]
        await echoed(f"ws://127.0.0.1:{port}/", network=Network(proxy="http://127.0.0.1:1"))
    finally:
        server.shutdown()
        thread.join(10)


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "hub"
    server = unix_serve(echo, str(path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        await echoed("ws://localhost/", network=Network(unix_socket=path))
    finally:
        server.shutdown()
        thread.join(10)


def link_local() -> tuple[str, str]:
    """An IPv6 address of this machine that needs its zone, and that zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []
    for digits, _, _, scope, _, zone in (line.split() for line in lines):
        if scope == "20":
            return ":".join(digits[i : i + 4] for i in range(0, 32, 4)), zone
    pytest.skip("no link-local address here")


async def test_a_zone_is_dialled() -> None:
    address, zone = link_local()
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        url = parse_url(f"ws://[{address}%25{zone}]:{listener.getsockname()[1]}/", allow_insecure=True)
        stream = await Network().connect(endpoint_of(url, None))
        await stream.aclose()


async def test_a_zone_that_is_not_there_is_named() -> None:
    url = parse_url("ws://[fe80::1%25nowhere]:9/", allow_insecure=True)
    with pytest.raises(ConnectFailed, match="this machine has no interface nowhere"):
        await Network().connect(endpoint_of(url, None))


async def test_a_proxy_in_a_zone_is_reached() -> None:
    address, zone = link_local()
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        listener.settimeout(10)

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 403 No\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        network = Network(proxy=f"http://[{address}%25{zone}]:{listener.getsockname()[1]}")
        with anyio.fail_after(20), pytest.raises(ProxyFailed, match="403"):
            await connect_websocket("wss://hub.example/", network=network)
        thread.join(10)


async def test_the_unix_socket_changes_no_name(authority: trustme.CA, tmp_path: Path) -> None:
    path = tmp_path / "hub"
    server = unix_serve(echo, str(path), ssl=server_context(authority, "hub.example"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        network = Network(unix_socket=path, proxy="http://127.0.0.1:1", tls=trusting(authority))
        await echoed("wss://hub.example/", network=network)
        with pytest.raises(CertificateRejected):
            await connect_websocket("wss://other.example/", network=network)
    finally:
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_session_is_resumed_through_a_proxy(authority: trustme.CA, hub: int, scheme: str) -> None:
    talk = talks_socks if scheme == "socks5" else talks_http
    with proxying(hub, talk) as proxy, anyio.fail_after(20):
        tls = resume_sessions(trusting(authority))
        network = Network(proxy=f"{scheme}://user:pass@127.0.0.1:{proxy.port}", tls=tls)
        reused = []
        for _ in range(3):
            websocket = await connect_websocket("wss://hub.example/", network=network)
            reused.append(websocket._stream._tls.object.session_reused)
            await websocket.aclose_forcefully()
        assert reused == [False, True, True]


# --- what a proxy is told, to the byte --------------------------------------------------------------------------------

BASIC = b"Proxy-Authorization: Basic " + b64encode(b"us:er:pass") + b"\r\n"


@pytest.mark.parametrize(
    ("host", "authority", "socks_address"),
    [
        ("hub.example", b"hub.example:443", b"\x03\x0bhub.example"),
        ("xn--strae-oqa.de", b"xn--strae-oqa.de:443", b"\x03\x10xn--strae-oqa.de"),
        ("10.1.2.3", b"10.1.2.3:443", b"\x01\x0a\x01\x02\x03"),
        ("2001:db8::5", b"[2001:db8::5]:443", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x05"),
    ],
)
@pytest.mark.parametrize("credentials", ["", "us%3Aer:pass@"])
async def test_what_a_proxy_is_told(host: str, authority: bytes, socks_address: bytes, credentials: str) -> None:
    for scheme, answer in (
        ("http", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("socks5", (b"\x05\x02\x01\x00" if credentials else b"\x05\x00") + b"\x05\x00\x00\x01" + bytes(6)),
    ):
        link = MemoryLink()
        await link.server.send(answer)
        await open_tunnel(link.client, parse_proxy(f"{scheme}://{credentials}proxy"), host, 443)
        told = await link.server.receive()
        if scheme == "http":
            basic = BASIC if credentials else b""
            assert told == b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n" + basic + b"\r\n"
        else:
            login = b"\x05\x02\x00\x02\x01\x05us:er\x04pass" if credentials else b"\x05\x01\x00"
            assert told == login + b"\x05\x01\x00" + socks_address + b"\x01\xbb"


# --- a proxy that refuses, and one that talks nonsense --------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nhunter2 hunter2: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhunter2",
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n",
        b"HTTP/1.1 101 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000,
        b"\x05\x00\x05\x00\x00\x09\x00",
        b"\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x00\x05\x77\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x00\x04\x00\x00\x01\x00\x00\x00\x00\x00\x00",
        b"\x05\x02",
        b"\x05\x77",
        b"\x04\x00",
    ],
)
async def test_nonsense(scheme: str, answer: bytes) -> None:
    link = MemoryLink()
    if answer:
        await link.server.send(answer)
    await link.server.send_eof()
    with pytest.raises(ProxyFailed) as caught:
        await open_tunnel(link.client, parse_proxy(f"{scheme}://proxy"), "hub.example", 443)
    error = caught.value
    assert "hunter2" not in f"{error} {error!r} {error.__cause__!r}"


async def tunnelled_by(answer: bytes, scheme: str = "http") -> None:
    link = MemoryLink()
    for place in range(0, len(answer), 4096):
        await link.server.send(answer[place : place + 4096])
    await link.server.send_eof()
    await open_tunnel(link.client, parse_proxy(f"{scheme}://proxy"), "hub.example", 443)


@pytest.mark.parametrize("status", [301, 400, 403, 407, 502, 503, 504])
async def test_a_refusal_says_its_status(status: int) -> None:
    with pytest.raises(ProxyFailed, match=str(status)) as caught:
        await tunnelled_by(b"HTTP/1.1 %d x\r\nContent-Length: 14\r\n\r\n<html> hunter2" % status)
    assert caught.value.status == status


@pytest.mark.parametrize("reply", range(1, 9))
async def test_a_socks_refusal_says_why(reply: int) -> None:
    with pytest.raises(ProxyFailed, match=r"SOCKS5: [a-z ]+"):
        await tunnelled_by(b"\x05\x00\x05" + bytes([reply, 0, 1]) + bytes(6), "socks5")


async def test_what_a_proxy_may_say_before_it_answers() -> None:
    early, yes = b"HTTP/1.1 103 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "
    await tunnelled_by(early * 16 + yes + b"\r\n\r\n")
    with pytest.raises(ProxyFailed, match="not HTTP"):
        await tunnelled_by(early * 17 + yes + b"\r\n\r\n")
    room = (16 << 10) - len(yes) - 4
    await tunnelled_by(yes + b"a" * room + b"\r\n\r\n")
    with pytest.raises(ProxyFailed, match="not HTTP"):
        await tunnelled_by(yes + b"a" * (room + 1) + b"\r\n\r\n")


async def test_a_proxy_that_cannot_be_reached(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = listener.getsockname()[1]
    with pytest.raises(ConnectFailed) as failed:
        await connect_websocket("wss://hub.example/", network=Network(proxy=f"http://127.0.0.1:{gone}"))
    assert (failed.value.host, failed.value.port) == ("127.0.0.1", gone)

    async def resolve(host: str, port: int, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    for scheme in ("http", "socks5"):
        with pytest.raises(NameNotResolved, match=r"proxy\.example"):
            await connect_websocket("wss://hub.example/", network=Network(proxy=f"{scheme}://proxy.example"))
    with proxying(0, talks_http, server_context(authority, "other.example")) as proxy:
        network = Network(proxy=f"https://user:pass@127.0.0.1:{proxy.port}", proxy_tls=trusting(authority))
        with pytest.raises(CertificateRejected) as rejected:
            await connect_websocket("wss://hub.example/", network=network)
        assert rejected.value.host == "127.0.0.1"
        assert proxy.told == b"", "who is not the proxy hears no credentials"


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_silent_proxy_is_within_the_deadline(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        network = Network(proxy=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(DeadlineExceeded):
            await connect_websocket("wss://hub.example/", network=network, deadline=0.2)
