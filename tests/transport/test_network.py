"""Dialling on real sockets: names, TLS good and bad, both families, errors under our names."""

import os
import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from websockets.sync.server import ServerConnection, serve

from towline._exceptions import (
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    DeadlineExceeded,
    InvalidArgument,
    NameNotResolved,
    NetworkError,
)
from towline.transport import (
    Endpoint,
    Network,
    connect_websocket,
    default_tls,
    open_websocket,
    parse_url,
)
from towline.transport.net._tls import resume_sessions

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextmanager
def serving(
    tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", handler: Callable[[ServerConnection], None] = echo
) -> Iterator[int]:
    """A real WebSocket server (the `websockets` package, in a thread) that echoes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    server = serve(handler, sock=listener, ssl=tls)
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


async def test_a_peer_is_held_back_while_nobody_takes_its_messages() -> None:
    """What it can send ahead is what the system's buffers hold; what we hold is one read."""
    message, most = bytes(60_000), 256 << 20
    sent, blocked, go_on = 0, threading.Event(), threading.Event()

    def flood(connection: ServerConnection) -> None:
        nonlocal sent
        connection.socket.settimeout(0.2)  # it sends past the library, whose own bookkeeping would count
        wire = b"\x82\x7e" + len(message).to_bytes(2, "big") + message
        while not go_on.is_set() and sent < most:
            try:
                sent += connection.socket.send(wire[sent % len(wire) :])
            except TimeoutError:
                blocked.set()
        connection.socket.settimeout(20)
        if sent % len(wire):
            connection.socket.sendall(wire[sent % len(wire) :])
            sent += len(wire) - sent % len(wire)

    with serving(handler=flood) as port, anyio.fail_after(20):
        async with open_websocket(f"ws://127.0.0.1:{port}/") as websocket:
            tracemalloc.start()
            try:
                await websocket.receive_batch()
                assert await anyio.to_thread.run_sync(blocked.wait, 15)
                assert sent < most / 4
                assert tracemalloc.get_traced_memory()[1] < 4 << 20
            finally:
                tracemalloc.stop()
            go_on.set()
            assert all([received == message async for received in websocket])
        assert websocket.statistics().bytes_received >= sent


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
    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    with serving() as port:
        await echoed(f"ws://job.localhost:{port}/")


async def test_the_name_is_looked_up_anew_at_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    with serving() as port:
        url = f"ws://hub.example:{port}/"
        with pytest.raises(NameNotResolved, match=r"hub\.example"):
            await echoed(url, network=Network(allow_insecure=True))
        await echoed(url, network=Network(allow_insecure=True))
        await echoed(url, network=Network(allow_insecure=True))
    assert asked == ["hub.example"] * 3


async def test_one_family_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The IPv6 address refuses or goes nowhere, IPv4 works."""

    async def resolve(host: str, port: int, **options: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    with serving() as port:
        await echoed(f"ws://hub.example:{port}/", network=Network(allow_insecure=True))


async def test_a_family_that_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The IPv6 address swallows every packet: IPv4 is dialled beside it, long before any deadline."""

    async def resolve(host: str, port: int, **options: Any) -> Any:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    with serving() as port, ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6, backlog=0))
        except OSError:
            pytest.skip("no IPv6 loopback here, or its port is taken")
        # Nobody accepts, and once its queue is full Linux drops what asks for more.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(socket.AF_INET6))
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        await anyio.sleep(0.05)
        with anyio.move_on_after(0.1) as scope, suppress(OSError):
            await (await anyio.connect_tcp("::1", port)).aclose()
        if not scope.cancelled_caught:
            pytest.skip("a full queue does not swallow packets here")
        await echoed(f"ws://hub.example:{port}/", network=Network(allow_insecure=True), deadline=5)


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed) as caught:
        await Network().connect(Endpoint("127.0.0.1", port))
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)


async def test_a_name_without_an_address() -> None:
    with anyio.fail_after(20), pytest.raises(NameNotResolved, match=r"nothing\.invalid"):
        await Network().connect(Endpoint("nothing.invalid", 443))


# --- TLS ---------------------------------------------------------------------------------------------------------


async def test_tls(authority: trustme.CA) -> None:
    with serving(server_context(authority, "127.0.0.1", "localhost")) as port:
        await echoed(f"wss://127.0.0.1:{port}/", network=Network(tls=trusting(authority)))
        await echoed(f"wss://localhost:{port}/", network=Network(tls=trusting(authority)))


async def rejected(port: int, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> CertificateRejected:
    with anyio.fail_after(20), pytest.raises(CertificateRejected) as caught:
        await connect_websocket(f"wss://{host}:{port}/?token=hunter2", network=Network(tls=context))
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    return caught.value


async def test_an_unknown_authority_is_rejected_by_default(authority: trustme.CA) -> None:
    with serving(server_context(authority, "127.0.0.1")) as port:
        assert "issuer" in (await rejected(port, None)).problem


async def test_a_wrong_name_is_rejected(authority: trustme.CA) -> None:
    with serving(server_context(authority, "other.example")) as port:
        assert "127.0.0.1" in (await rejected(port, trusting(authority))).problem
        assert "localhost" in (await rejected(port, trusting(authority), "localhost")).problem


async def test_a_rejected_certificate_is_that_of_the_name_and_not_of_the_way(authority: trustme.CA) -> None:
    """As where a proxy of one's own, or a fault proxy, is dialled in the server's place."""
    with serving(server_context(authority, "other.example")) as port:
        there = Endpoint("127.0.0.1", port, tls=trusting(authority), server_name="hub.example")
        with anyio.fail_after(20), pytest.raises(CertificateRejected) as caught:
            await Network().connect(there)
    assert caught.value.host == "hub.example"


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


async def test_an_older_tls_is_refused(authority: trustme.CA) -> None:
    context = server_context(authority, "127.0.0.1")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(context) as port:
        with anyio.fail_after(20), pytest.raises(ConnectFailed, match="TLS"):
            await connect_websocket(f"wss://127.0.0.1:{port}/", network=Network(tls=trusting(authority)))
        # That it is the version, and not the server: who insists gets through.
        insists = trusting(authority)
        insists.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            insists.minimum_version = ssl.TLSVersion.TLSv1_1
        await echoed(f"wss://127.0.0.1:{port}/", network=Network(tls=insists))


async def test_a_session_is_resumed(authority: trustme.CA) -> None:
    with serving(server_context(authority, "127.0.0.1")) as port:
        tls, reused = resume_sessions(trusting(authority)), []
        for _ in range(3):
            websocket = await connect_websocket(f"wss://127.0.0.1:{port}/", network=Network(tls=tls))
            tls_object = websocket._stream._tls.object
            reused.append((tls_object.version(), tls_object.session_reused))
            await websocket.aclose()
        assert reused == [("TLSv1.3", False), ("TLSv1.3", True), ("TLSv1.3", True)]


async def test_a_client_certificate(authority: trustme.CA) -> None:
    context = server_context(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    mine = trusting(authority)
    authority.issue_cert("me@example").configure_cert(mine)
    with serving(context) as port:
        await echoed(f"wss://127.0.0.1:{port}/", network=Network(tls=mine))
        # In TLS 1.3 the server misses it only after our side of the handshake is done; a reset may overtake its word.
        with anyio.fail_after(20), pytest.raises(ConnectionBroken):
            await connect_websocket(f"wss://127.0.0.1:{port}/", network=Network(tls=trusting(authority)))


async def test_tls_to_a_server_that_speaks_none() -> None:
    with serving() as port, anyio.fail_after(20), pytest.raises(ConnectFailed, match="TLS"):
        await connect_websocket(f"wss://127.0.0.1:{port}/")


async def test_a_server_that_hangs_up_in_the_tls_handshake_and_one_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"wss://127.0.0.1:{listener.getsockname()[1]}/"

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with anyio.fail_after(20), pytest.raises(ConnectFailed, match="TLS"):
            await connect_websocket(url)
        thread.join(10)
        with pytest.raises(DeadlineExceeded):
            await connect_websocket(url, deadline=0.1)
        # It has hung up then, as the server sees.
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            with suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass


async def test_the_a_label_is_looked_up_asked_for_and_told_and_is_what_the_certificate_must_say(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    context = server_context(authority, "xn--strae-oqa.de")
    named: list[str] = []
    context.sni_callback = lambda tls, name, context: named.append(name)
    told: list[str] = []

    def tell_host(connection: ServerConnection) -> None:
        assert connection.request is not None
        told.append(connection.request.headers["Host"])
        echo(connection)

    with serving(context, handler=tell_host) as port:
        await echoed(f"wss://straße.de:{port}/", network=Network(tls=trusting(authority)))
    assert (asked, named, told) == (["xn--strae-oqa.de"], ["xn--strae-oqa.de"], [f"xn--strae-oqa.de:{port}"])
    assert str(parse_url("wss://straße.de/").origin) == "https://xn--strae-oqa.de:443"


async def test_a_peer_that_hangs_up_while_it_is_dialled() -> None:
    """The reset comes at any moment from the connection on: always an error of the network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(20):
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        for _ in range(20):
            with anyio.fail_after(20), pytest.raises(NetworkError):
                await connect_websocket(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join(10)


async def test_whoever_meets_itself_has_met_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port dialled is free, and the system gives it to the dialler: that connects, to itself."""

    class Unlucky(socket.socket):
        def connect_ex(self, place: Any) -> int:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(place)
            return super().connect_ex(place)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(socket, "socket", Unlucky)
    with anyio.fail_after(20), pytest.raises(ConnectFailed, match="refused"):
        await Network().connect(Endpoint("127.0.0.1", port))


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have every name mean these addresses."""

    async def resolve(host: str, port: int, **options: Any) -> Any:
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr("anyio.getaddrinfo", resolve)


async def test_every_address_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    with anyio.fail_after(20), pytest.raises(ConnectFailed, match="refused") as caught:
        await Network().connect(Endpoint("hub.example", port))
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value.__cause__.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.__cause__.exceptions) == 2


async def test_a_name_without_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch)
    with pytest.raises(NameNotResolved):
        await Network().connect(Endpoint("hub.example", 80))


async def test_an_address_that_answers_nothing_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address's queue of connections is full, so that it neither accepts nor refuses."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        port = silent.getsockname()[1]
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
        resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
        with anyio.fail_after(20):
            stream = await Network().connect(Endpoint("hub.example", port))
            await stream.aclose()
            resolving(monkeypatch, "127.0.0.2", "127.0.0.2")
        with anyio.move_on_after(0.6) as scope:
            await Network().connect(Endpoint("hub.example", port))
        assert scope.cancelled_caught


async def test_a_name_with_its_final_dot_is_looked_up_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def resolve(host: str, *_: object, **__: object) -> object:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    for text in ("ws://hub.svc./", "ws://hub.svc/"):
        with pytest.raises(NameNotResolved):
            await open_socket(text)
    assert asked == ["hub.svc.", "hub.svc"]


async def open_socket(text: str) -> None:
    async with open_websocket(text, network=Network(allow_insecure=True)):
        pass


# --- what the environment says of TLS -----------------------------------------------------------------------------


@pytest.fixture
def fresh_default() -> Iterator[None]:
    """The default context is made anew."""
    default_tls.cache_clear()
    yield
    default_tls.cache_clear()


@pytest.mark.usefixtures("fresh_default")
@pytest.mark.parametrize("variable", ["SSLKEYLOGFILE", "SSL_CERT_FILE"])
def test_a_file_of_the_environment_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for value in (tmp_path / "no" / "file", tmp_path):
        monkeypatch.setenv(variable, str(value))
        with pytest.raises(InvalidArgument) as caught:
            default_tls()
        assert caught.value.name == variable
        assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.delenv(variable)
    default_tls()


@pytest.mark.usefixtures("fresh_default")
def test_a_file_without_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("<html>")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(InvalidArgument, match=r"^SSL_CERT_FILE: no certificates can be read from the file"):
        default_tls()


@pytest.mark.usefixtures("fresh_default")
def test_a_folder_of_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    assert default_tls().cert_store_stats()["x509_ca"] == 1  # the file is enough
    default_tls.cache_clear()
    monkeypatch.delenv("SSL_CERT_FILE")
    if not ssl.create_default_context().cert_store_stats()["x509_ca"]:
        with pytest.raises(InvalidArgument, match=r"^SSL_CERT_DIR: there is no such folder"):
            default_tls()
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path}")
    default_tls()
