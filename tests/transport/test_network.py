"""Dialling on real sockets: names, TLS good and bad, both families, errors under our names."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest
import trustme
from anyio.abc import SocketStream
from websockets.sync.server import ServerConnection, serve

from towline._exceptions import CertificateRejected, ConnectFailed, NameNotResolved
from towline.transport import Endpoint, SystemNetwork, connect_websocket, default_tls, open_websocket

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def serving(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """A real WebSocket server (the `websockets` package, in a thread) that echoes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    server = serve(echo, sock=listener, ssl=tls)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def echoed(url: str, **options: Any) -> None:
    with anyio.fail_after(20):
        async with open_websocket(url, **options) as socket_:
            for message in ("é" * 10, b"x" * 300_000, ""):
                await socket_.send(message)
                received: list[str | bytes] = []
                while not received:
                    received = await socket_.receive_batch()
                assert received == [message]


async def test_a_real_server() -> None:
    with serving() as port:
        await echoed(f"ws://127.0.0.1:{port}/")


async def test_localhost_is_the_machine_itself_in_either_family() -> None:
    hosts = ["127.0.0.1"]
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
            hosts.append("::1")
        except OSError:
            pass  # a machine without IPv6
    for host in hosts:
        with serving(host=host) as port:
            await echoed(f"ws://localhost:{port}/")
            await echoed(f"ws://[{host}]:{port}/" if ":" in host else f"ws://{host}:{port}/")


async def test_localhost_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*args: Any, **options: Any) -> Any:
        if args[0] not in {"::1", "127.0.0.1"}:
            raise AssertionError("a resolver was asked about localhost")
        return await real(*args, **options)

    real = anyio.getaddrinfo
    monkeypatch.setattr("anyio._core._sockets.getaddrinfo", resolve)
    with serving() as port:
        await echoed(f"ws://job.localhost:{port}/")


async def test_the_name_is_looked_up_anew_at_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("anyio._core._sockets.getaddrinfo", resolve)
    with serving() as port:
        url = f"ws://hub.example:{port}/"
        with pytest.raises(NameNotResolved, match=r"hub\.example"):
            await echoed(url, allow_insecure=True)
        await echoed(url, allow_insecure=True)
        await echoed(url, allow_insecure=True)
    assert asked == ["hub.example"] * 3


async def test_one_family_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The IPv6 address refuses or goes nowhere, IPv4 works."""

    async def resolve(host: str, port: int, **options: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr("anyio._core._sockets.getaddrinfo", resolve)
    with serving() as port:
        await echoed(f"ws://hub.example:{port}/", allow_insecure=True)


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed) as caught:
        await SystemNetwork().connect(Endpoint("127.0.0.1", port))
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)


async def test_a_name_without_an_address() -> None:
    with anyio.fail_after(20), pytest.raises(NameNotResolved, match=r"nothing\.invalid"):
        await SystemNetwork().connect(Endpoint("nothing.invalid", 443))


# --- TLS ---------------------------------------------------------------------------------------------------------


async def test_tls(authority: trustme.CA) -> None:
    with serving(server_context(authority, "127.0.0.1", "localhost")) as port:
        await echoed(f"wss://127.0.0.1:{port}/", ssl=trusting(authority))
        await echoed(f"wss://localhost:{port}/", ssl=trusting(authority))


async def rejected(port: int, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> CertificateRejected:
    with anyio.fail_after(20), pytest.raises(CertificateRejected) as caught:
        await connect_websocket(f"wss://{host}:{port}/?token=hunter2", ssl=context)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    return caught.value


async def test_an_unknown_authority_is_rejected_by_default(authority: trustme.CA) -> None:
    with serving(server_context(authority, "127.0.0.1")) as port:
        assert "issuer" in (await rejected(port, None)).problem


async def test_a_wrong_name_is_rejected(authority: trustme.CA) -> None:
    with serving(server_context(authority, "other.example")) as port:
        assert "127.0.0.1" in (await rejected(port, trusting(authority))).problem
        assert "localhost" in (await rejected(port, trusting(authority), "localhost")).problem


async def test_an_expired_certificate_is_rejected(authority: trustme.CA) -> None:
    import datetime

    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    with serving(server_context(authority, "127.0.0.1", not_after=past)) as port:
        assert "expired" in (await rejected(port, trusting(authority))).problem


async def test_a_self_signed_certificate_is_rejected(authority: trustme.CA, tmp_path: Path) -> None:
    pair = tmp_path / "pair.pem"
    pair.write_bytes(authority.private_key_pem.bytes() + authority.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    with serving(context) as port:
        assert "self" in (await rejected(port, None)).problem


def test_the_default_context_verifies_and_begins_with_1_2() -> None:
    context = default_tls()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert default_tls() is context


async def test_a_client_certificate(authority: trustme.CA) -> None:
    context = server_context(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    mine = trusting(authority)
    authority.issue_cert("me@example").configure_cert(mine)
    with serving(context) as port:
        await echoed(f"wss://127.0.0.1:{port}/", ssl=mine)


async def test_tls_to_a_server_that_speaks_none() -> None:
    with serving() as port, anyio.fail_after(20), pytest.raises(ConnectFailed, match="TLS"):
        await connect_websocket(f"wss://127.0.0.1:{port}/")


async def test_the_a_label_is_what_the_certificate_must_say(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("anyio._core._sockets.getaddrinfo", resolve)
    with serving(server_context(authority, "xn--strae-oqa.de")) as port:
        await echoed(f"wss://straße.de:{port}/", ssl=trusting(authority))
    assert asked == ["xn--strae-oqa.de"]


async def test_a_peer_that_hangs_up_while_it_is_dialled_is_a_failed_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reset comes between the connection and anyio's look at its peer: a matter of microseconds."""

    async def find_no_peer(dialled: socket.socket) -> NoReturn:
        raise ValueError("the socket must be connected")

    monkeypatch.setattr(SocketStream, "from_socket", find_no_peer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ConnectFailed, match="reset"):
            await SystemNetwork().connect(Endpoint("127.0.0.1", listener.getsockname()[1], tls=None))
