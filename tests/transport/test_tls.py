"""TLS on real sockets, against OpenSSL's own server side: faults are typed, and every end is seen."""

import array
import fcntl
import shutil
import socket
import ssl
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from towline import CertificateRejected, ConnectFailed, ConnectionBroken
from towline.transport import Endpoint, Network, WebSocket, resume_sessions
from towline.transport.net._network import broken, is_quiet

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def theirs(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    # So that a connection of ours that ends without close_notify is an error there.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


@pytest.fixture
def ours(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


class Server:
    """Accepts connections in a thread, and runs `handle` on each; keeps what that raised."""

    def __init__(self, context: ssl.SSLContext, handle: Callable[[ssl.SSLSocket], None], count: int = 1) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.problems: list[Exception] = []
        self.thread = threading.Thread(target=self.run, args=(context, handle, count))
        self.thread.start()

    def run(self, context: ssl.SSLContext, handle: Callable[[ssl.SSLSocket], None], count: int) -> None:
        for _ in range(count):
            raw, _ = self.listener.accept()
            raw.settimeout(20)
            try:
                with context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False) as connection:
                    handle(connection)
            except Exception as error:
                self.problems.append(error)
            raw.close()


@contextmanager
def serving(context: ssl.SSLContext, handle: Callable[[ssl.SSLSocket], None], count: int = 1) -> Iterator[Server]:
    server = Server(context, handle, count)
    try:
        yield server
    finally:
        server.thread.join(20)
        server.listener.close()
    assert not server.thread.is_alive()


async def connect(port: int, context: ssl.SSLContext) -> ByteStream:
    return await Network().connect(Endpoint("127.0.0.1", port, tls=context))


async def read_until(stream: ByteStream, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        got += await stream.receive()
    return got


def bare(connection: ssl.SSLSocket) -> socket.socket:
    """The TCP socket below, to say what TLS would not."""
    raw = socket.socket(fileno=connection.detach())
    raw.settimeout(20)
    return raw


# --- how it ends ----------------------------------------------------------------------------------------------------


async def test_our_close_is_announced(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    seen: list[bytes] = []

    def handle(connection: ssl.SSLSocket) -> None:
        seen.append(connection.recv(10))
        seen.append(connection.recv(10))  # raises without a close_notify

    with anyio.fail_after(20), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        await stream.send(b"x")
        await stream.aclose()
        await stream.aclose()
    assert (seen, server.problems) == ([b"x", b""], [])


async def test_our_end_is_announced_and_the_peers_bytes_still_come(
    theirs: ssl.SSLContext, ours: ssl.SSLContext
) -> None:
    def handle(connection: ssl.SSLSocket) -> None:
        assert connection.recv(10) == b"x"
        assert connection.recv(10) == b""
        connection.send(b"y")

    with anyio.fail_after(20), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        await stream.send(b"x")
        await stream.send_eof()
        assert await stream.receive() == b"y"
        await stream.aclose()
    assert server.problems == []


async def test_close_notify_is_the_end_even_if_tcp_stays_open(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    closed = threading.Event()

    def handle(connection: ssl.SSLSocket) -> None:
        connection.send(b"last")
        raw = connection.unwrap()  # sends close_notify; returns once ours has come
        closed.wait(120)
        raw.close()

    with anyio.fail_after(20), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        try:
            assert await read_until(stream, b"last") == b"last"
            for _ in range(3):
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            assert not is_quiet(stream)
            await stream.aclose()
        finally:
            closed.set()
    assert server.problems == []


@pytest.mark.parametrize("half", [False, True], ids=["between records", "inside a record"])
async def test_truncation_ends_the_websocket_with_a_typed_error(
    theirs: ssl.SSLContext, ours: ssl.SSLContext, half: bool
) -> None:
    def handle(connection: ssl.SSLSocket) -> None:
        connection.send(b"\x81\x02hi")
        raw = bare(connection)
        if half:
            raw.send(b"\x17\x03\x03\x01\x00abc")
        raw.close()

    with anyio.fail_after(20), serving(theirs, handle) as server:
        websocket = WebSocket(await connect(server.port, ours))
        assert await websocket.receive_batch() == ["hi"]
        with pytest.raises(ConnectionBroken, match="without a close frame"):
            await websocket.receive_batch()


async def test_forged_bytes_break_it_and_the_server_learns_why(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    said: list[bytes] = []

    def handle(connection: ssl.SSLSocket) -> None:
        connection.send(b"\x81\x02hi")
        raw = bare(connection)
        raw.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        said.append(raw.recv(100))
        raw.close()

    with anyio.fail_after(20), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        websocket = WebSocket(stream)
        # What came before it counts, also if both come with one read.
        assert await websocket.receive_batch() == ["hi"]
        with pytest.raises(ConnectionBroken, match=r"TLS: .*BAD_RECORD_MAC"):
            await websocket.receive_batch()
        with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
            await stream.receive()
        await websocket.aclose_forcefully()
    assert said[0].startswith(b"\x17\x03\x03"), "an alert, encrypted as all records of TLS 1.3 are"


async def test_an_alert_names_its_reason(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    theirs.verify_mode = ssl.CERT_REQUIRED  # in TLS 1.3 the client learns of it after its handshake
    with anyio.fail_after(20), serving(theirs, lambda connection: None) as server:
        stream = await connect(server.port, ours)
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert "CERTIFICATE_REQUIRED" in broken(caught.value).problem
        await stream.aclose()
    assert len(server.problems) == 1


# --- the handshake --------------------------------------------------------------------------------------------------


async def test_a_rejected_certificate_gives_its_reason_to_both(theirs: ssl.SSLContext) -> None:
    with anyio.fail_after(20), serving(theirs, lambda connection: None) as server:
        with pytest.raises(CertificateRejected, match="unable to get local issuer"):
            await connect(server.port, ssl.create_default_context())
    [problem] = server.problems
    assert isinstance(problem, ssl.SSLError)
    assert problem.reason == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03\x00\x40abc"], ids=["nothing", "half a record"])
async def test_an_end_in_the_handshake(ours: ssl.SSLContext, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            raw, _ = listener.accept()
            raw.recv(65536)
            raw.send(said)
            raw.close()

        with anyio.fail_after(20), pytest.raises(ConnectFailed, match="TLS: the stream ended in the handshake"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, hang_up)
                try:
                    await connect(listener.getsockname()[1], ours)
                except ConnectFailed as error:
                    problem = error
            raise problem


async def test_what_comes_with_the_end_of_the_handshake_is_kept(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> None:
    """With TLS 1.2 the server's last flight and its first bytes may come together."""
    theirs.maximum_version = ssl.TLSVersion.TLSv1_2

    def handle(connection: ssl.SSLSocket) -> None:
        connection.send(b"first")
        connection.unwrap()

    with anyio.fail_after(20):
        for _ in range(5):
            with serving(theirs, handle) as server:
                stream = await connect(server.port, ours)
                assert await stream.receive(2) == b"fi"
                assert not is_quiet(stream)
                assert await read_until(stream, b"st") == b"rst"
                await stream.aclose()


async def test_each_origin_has_its_own_session(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    """Two servers on one host cannot read each other's tickets."""
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").configure_cert(other)
    authority.configure_trust(ours)
    resume_sessions(ours)
    resumed: list[bool | None] = []

    def handle(connection: ssl.SSLSocket) -> None:
        resumed.append(connection.session_reused)
        connection.send(b"x")
        connection.unwrap()

    with anyio.fail_after(20), serving(theirs, handle, 3) as one, serving(other, handle, 3) as two:
        for port in (one.port, two.port) * 3:
            stream = await connect(port, ours)
            assert await stream.receive() == b"x"
            await stream.aclose()
    assert resumed == [False, False, True, True, True, True]


# --- while it is open -----------------------------------------------------------------------------------------------


async def test_both_directions_at_once_and_a_peer_slower_than_we(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    """Each side has more under way than the kernel takes: bytes wait encrypted and not, and none is lost."""
    message = bytes(range(256)) * 16_000

    def handle(connection: ssl.SSLSocket) -> None:
        # The answer begins before all has come: a thread sends while this one reads.
        got = bytearray()
        while len(got) < len(message):
            got += connection.recv(65536)
            if len(got) % 3 == 0:
                connection.send(b"some")
        assert got == message
        connection.sendall(got)
        assert connection.recv(10) == b""

    with anyio.fail_after(60), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        got = bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, message)
            while not got.endswith(message):
                got += await stream.receive(30_000)
        assert set(bytes(got[: -len(message)])) <= set(b"some")
        await stream.aclose()
    assert server.problems == []


async def test_many_small_records_come_with_one_read(theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
    sent = threading.Event()

    def handle(connection: ssl.SSLSocket) -> None:
        for _ in range(100):
            connection.send(b"abc")
        sent.set()
        assert connection.recv(10) == b"."
        connection.unwrap()

    with anyio.fail_after(20), serving(theirs, handle) as server:
        stream = await connect(server.port, ours)
        await anyio.to_thread.run_sync(sent.wait)
        assert await stream.receive() == b"abc" * 100
        await stream.send(b".")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
    assert server.problems == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize(("version", "command"), [("-tls1_3", b"k"), ("-tls1_3", b"K"), ("-tls1_2", b"r")], ids=str)
async def test_new_keys_while_bytes_flow(
    authority: trustme.CA, ours: ssl.SSLContext, tmp_path: Path, version: str, command: bytes
) -> None:
    """A key update (K asks for ours too, RFC 8446 section 4.6.3), and the renegotiation of TLS 1.2."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(tmp_path / "server.pem"), version]
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdin is not None
        assert process.stdout is not None
        pipe = process.stdout

        async def read_line(text: bytes) -> None:
            await anyio.to_thread.run_sync(read_line_with, pipe, text, abandon_on_cancel=True)

        try:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    await read_line(b"ACCEPT")
                    stream = await connect(port, ours)
                    received = bytearray()

                    async def receive() -> None:
                        while True:
                            received.extend(await stream.receive())

                    tasks.start_soon(receive)
                    for _ in range(3):
                        # It takes a line that begins with a command's letter as one, and sends others to the client.
                        for line in (b"before\n", command + b"\n", b"sent\n"):
                            process.stdin.write(line)
                            process.stdin.flush()
                            while unread(process.stdin):
                                await checkpoint()  # it looks only at the first letter of what it reads at once
                        await stream.send(b"ours\n")
                        await read_line(b"ours")
                    while received != b"before\nsent\n" * 3:
                        await checkpoint()
                    tasks.cancel_scope.cancel()
        finally:
            await stream.aclose()
            process.terminate()


def read_line_with(pipe: Any, text: bytes) -> None:
    while text not in (line := pipe.readline()):
        assert line, "the server has ended"


def unread(pipe: Any) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]
