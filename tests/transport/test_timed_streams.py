"""Each kind of `TimedStream` on each backend, on real sockets: nothing is lost, every wait ends."""

import asyncio
import errno
import gc
import os
import socket
import ssl
import struct
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from threading import Thread
from typing import Any

import anyio
import pytest
import trio
import trustme
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from towline._exceptions import ConnectionBroken
from towline.transport import Limits, Message, WebSocket
from towline.transport.net._asyncio_stream import AsyncioSocketStream, is_supported
from towline.transport.net._socket_stream import SocketStream
from towline.transport.net._timed_stream import ScopedStream, TimedStream
from towline.transport.net._tls import TLS

pytestmark = pytest.mark.anyio

KINDS = ("generic", "own", "scoped", "generic-tls", "own-tls")
SHORT = 0.02  # seconds that pass while nothing comes


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


@pytest.fixture
def peer_and_socket() -> tuple[socket.socket, socket.socket]:
    peer, mine = socket.socketpair()
    mine.setblocking(False)
    peer.settimeout(10)
    return peer, mine


@pytest.fixture(scope="module")
def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's, and the server's."""
    authority = trustme.CA()
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("peer.example").configure_cert(theirs)
    return ours, theirs


@pytest.fixture(params=KINDS)
async def pair(
    request: pytest.FixtureRequest,
    peer_and_socket: tuple[socket.socket, socket.socket],
    tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> AsyncIterator[tuple[socket.socket, TimedStream]]:
    peer, mine = peer_and_socket
    stream: TimedStream
    if request.param.startswith("own"):
        # What dialling gives: asyncio's own where it can be.
        stream = AsyncioSocketStream(mine) if is_supported() else SocketStream(mine)
    else:
        stream = SocketStream(mine)
        if request.param == "scoped":
            stream = ScopedStream(stream)
    if request.param.endswith("tls"):
        assert isinstance(stream, SocketStream)
        ours, theirs = tls_contexts
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.start_tls, TLS(ours, "peer.example", 443))
            peer = await anyio.to_thread.run_sync(partial(theirs.wrap_socket, peer, server_side=True))
    yield peer, stream
    await stream.aclose()
    peer.close()


Pair = tuple[socket.socket, TimedStream]


def soon(stream: TimedStream) -> float:
    return stream.time() + SHORT


def never(stream: TimedStream) -> float:
    return stream.time() + 20


async def test_bytes_come_in_order_and_no_more_than_asked_for(pair: Pair) -> None:
    peer, stream = pair
    peer.send(b"abcdef")
    got = b""
    while len(got) < 6:
        piece = await stream.receive_before(never(stream), 4)
        assert 1 <= len(piece) <= 4
        got += piece
    assert got == b"abcdef"


async def test_a_deadline_gives_nothing_and_takes_nothing(pair: Pair) -> None:
    peer, stream = pair
    assert await stream.receive_before(soon(stream), 10) == b""
    assert await stream.receive_before(stream.time() - 1, 10) == b""
    peer.send(b"x")
    assert await stream.receive_before(never(stream), 10) == b"x"


async def test_a_deadline_holds_whether_it_was_moved_out_or_in(pair: Pair) -> None:
    """One timer serves them all: an earlier one must not wait for a later, nor a later end with an earlier."""
    peer, stream = pair
    with anyio.fail_after(100):
        peer.send(b"x")
        while not await stream.receive_before(soon(stream), 10):
            pass  # it takes longer on a slow machine
        began = stream.time()
        assert await stream.receive_before(began + 5 * SHORT, 10) == b""
        assert stream.time() >= began + 5 * SHORT
        peer.send(b"y")
        assert await stream.receive_before(never(stream), 10) == b"y"
        assert await stream.receive_before(soon(stream), 10) == b""


async def test_waking(pair: Pair) -> None:
    _, stream = pair
    stream.wake()  # nobody waits: nothing happens
    assert await stream.receive_before(soon(stream), 10) == b""
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive_before, never(stream), 10)
            await anyio.sleep(SHORT)
            stream.wake()


async def test_cancelling_loses_nothing(pair: Pair) -> None:
    """At whatever moment it strikes, the bytes are there for the next who asks."""
    peer, stream = pair
    for wait in range(8):
        got: list[bytes] = []

        async def receive(got: list[bytes], *, task_status: TaskStatus[anyio.CancelScope]) -> None:
            with anyio.CancelScope() as scope:
                task_status.started(scope)
                got.append(await stream.receive_before(never(stream), 10))

        async with anyio.create_task_group() as tasks:
            scope = await tasks.start(receive, got)
            await checkpoint()
            peer.send(b"%d" % wait)
            for _ in range(wait):
                await checkpoint()
            scope.cancel()
        with anyio.fail_after(10):
            rest = b"" if got else await stream.receive_before(never(stream), 10)
        assert b"".join(got) + rest == b"%d" % wait


async def test_what_came_for_who_was_cancelled_respects_the_next_ones_size(pair: Pair) -> None:
    peer, stream = pair
    for wait in range(6):
        taken: list[bytes] = []

        async def receive(taken: list[bytes]) -> None:
            taken.append(await stream.receive_before(never(stream), 10))

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, taken)
                await checkpoint()
                peer.send(b"abc")
                for _ in range(wait):
                    await checkpoint()
                scope.cancel()
        got = [*taken]
        with anyio.fail_after(10):
            while sum(map(len, got)) < 3:
                got.append(await stream.receive_before(never(stream), 2))
        assert all(len(piece) <= 2 for piece in got[len(taken) :])
        assert b"".join(got) == b"abc"


@pytest.mark.parametrize(
    "real_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": find_spec("uvloop") is not None})], ids=str
)
async def test_a_native_cancellation_in_the_moment_in_which_bytes_come(
    peer_and_socket: tuple[socket.socket, socket.socket],
) -> None:
    """asyncio's own `cancel` strikes a task that is woken already, as no scope of anyio's does."""
    peer, mine = peer_and_socket
    stream = AsyncioSocketStream(mine)
    kept = 0
    with anyio.fail_after(10):
        for turns in range(5):
            receiving = asyncio.ensure_future(stream.receive_before(never(stream), 10))
            await asyncio.sleep(0)
            peer.send(b"abc")
            for _ in range(turns):
                await asyncio.sleep(0)
            receiving.cancel()
            got = b""
            with suppress(asyncio.CancelledError):
                got = await receiving
            if not got:
                try:
                    mine.recv(1, socket.MSG_PEEK)
                except BlockingIOError:
                    kept += 1
            # A deadline that has come neither hides it, nor is in the way of the next.
            while len(got) < 3:
                got += await stream.receive_before(stream.time() - 1, 1)
            assert got == b"abc"
    assert kept, "else this tests nothing"
    await stream.aclose()
    peer.close()


async def test_the_end_of_the_stream_stays(pair: Pair) -> None:
    peer, stream = pair
    peer.send(b"x")
    peer.close()
    with anyio.fail_after(10):
        assert await stream.receive_before(never(stream), 10) == b"x"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_before(never(stream), 10)


async def test_closing_ends_a_wait_and_all_that_follows(pair: Pair) -> None:
    peer, stream = pair
    seen: list[type[BaseException]] = []

    async def receive() -> None:
        try:
            await stream.receive_before(never(stream), 10)
        except anyio.ClosedResourceError as error:
            seen.append(type(error))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.sleep(SHORT)
            await stream.aclose()
        assert seen == [anyio.ClosedResourceError]
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive_before(never(stream), 10)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_before(never(stream), b"x")
        await stream.aclose()
        assert peer.recv(10) == b""


async def test_one_receives_at_a_time(pair: Pair) -> None:
    _, stream = pair
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.receive_before, never(stream), 10)
            await anyio.sleep(SHORT)
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive_before(never(stream), 10)
            stream.wake()  # the first is not forgotten over the second


async def test_sending_waits_for_a_slow_peer_until_its_deadline(pair: Pair) -> None:
    peer, stream = pair
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    message = bytes(range(256)) * 8192
    with anyio.fail_after(20):
        with pytest.raises(TimeoutError):
            await stream.send_before(soon(stream), message)

        async def send() -> None:
            await stream.send_before(never(stream), b"the end")

        received = bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while not received.endswith(b"the end"):
                received += await anyio.to_thread.run_sync(peer.recv, 65536)
    assert message.startswith(received.removesuffix(b"the end"))


async def test_a_large_message_arrives_whole(pair: Pair) -> None:
    peer, stream = pair
    message = bytes(range(256)) * 8192
    received = bytearray()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send_before, never(stream), message)
            while len(received) < len(message):
                received += await anyio.to_thread.run_sync(peer.recv, 65536)
    assert received == message


async def test_what_was_raised_does_not_hold_the_stream(peer_and_socket: tuple[socket.socket, socket.socket]) -> None:
    """Else each connection that ends would be left to the garbage collector."""
    peer, mine = peer_and_socket
    stream = AsyncioSocketStream(mine) if is_supported() else SocketStream(mine)
    peer.close()
    gc.disable()
    try:
        with suppress(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
        left = weakref.ref(stream)
        del stream
        await checkpoint()  # the loop has let its callbacks go
        assert left() is None
    finally:
        gc.enable()


def test_trio_inside_a_task_of_asyncio() -> None:
    async def inner() -> bool:
        return is_supported()

    async def outer() -> tuple[bool, bool]:
        return is_supported(), trio.run(inner)

    assert asyncio.run(outer()) == (True, False)


async def test_one_sends_at_a_time(pair: Pair) -> None:
    _, stream = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.send_before, never(stream), b"x" * (1 << 22))
        await anyio.sleep(SHORT)
        with pytest.raises(anyio.BusyResourceError):
            await stream.send_before(never(stream), b"y")
        tasks.cancel_scope.cancel()


async def test_a_stream_that_times_out_by_itself_is_broken(
    peer_and_socket: tuple[socket.socket, socket.socket],
) -> None:
    """TCP's own giving up (ETIMEDOUT) is a `TimeoutError` too, but nobody's deadline."""

    class Dead(SocketStream):
        async def send(self, item: bytes) -> None:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    peer, mine = peer_and_socket
    stream = ScopedStream(Dead(mine))
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await stream.send_before(never(stream), b"x")
    assert isinstance(caught.value.__cause__, TimeoutError)
    await stream.aclose()
    peer.close()


@asynccontextmanager
async def counting_turns() -> AsyncIterator[Counter[str]]:
    """Counts how often another task of the loop has had its turn, within the block."""
    turns: Counter[str] = Counter()

    async def count() -> None:
        while True:
            await checkpoint()
            turns["taken"] += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await checkpoint()
        yield turns
        tasks.cancel_scope.cancel()


async def test_who_sends_much_lets_others_run(pair: Pair) -> None:
    _, stream = pair
    async with counting_turns() as turns:
        for _ in range(200):
            await stream.send_before(never(stream), b"x")
    assert turns["taken"] >= 2


async def test_a_large_send_counts_as_many(peer_and_socket: tuple[socket.socket, socket.socket]) -> None:
    peer, mine = peer_and_socket
    stream = SocketStream(mine)
    assert stream.send_nowait(b"x")
    assert stream.may_send_now
    stream.send_nowait(bytes(4 << 20))
    assert not stream.may_send_now
    await stream.aclose()
    peer.close()


async def test_what_is_there_can_be_read_without_a_wait(pair: Pair) -> None:
    peer, stream = pair
    if not isinstance(stream, SocketStream):
        return
    assert stream.receive_nowait(256 << 10) is None
    for text in (b"a", b"b" * 100_000):
        sender = Thread(target=peer.sendall, args=[text])
        sender.start()
        got = b""
        while len(got) < len(text):
            # Each size of a read in turn: the large one keeps its memory with TLS.
            got += stream.receive_nowait((256 << 10, 100)[len(got) % 2]) or b""
        sender.join()
        assert got == text
    peer.close()
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        while stream.receive_nowait(256 << 10) is None:
            await stream.receive_before(never(stream), 100)
    await stream.aclose()
    assert stream.receive_nowait(100) is None


@pytest.mark.parametrize(("text", "least", "most"), [(b"x" * 996, 3, 7), (b"", 8, 14)], ids=["large", "small"])
async def test_full_reads_follow_each_other_but_others_run(
    peer_and_socket: tuple[socket.socket, socket.socket], text: bytes, least: int, most: int
) -> None:
    """A turn has four reads of one message each, but only two of 500."""
    peer, mine = peer_and_socket
    stream = AsyncioSocketStream(mine) if is_supported() else SocketStream(mine)
    web_socket = WebSocket(stream, limits=Limits(read_size=1000))
    frame = b"\x82\x7e" + len(text).to_bytes(2, "big") + text if text else b"\x82\x00"
    peer.sendall(frame * (20_000 // len(frame)))
    got: list[Message] = []
    async with counting_turns() as turns:
        for _ in range(20):
            got += await web_socket.receive_batch()
    assert got == [text] * (20_000 // len(frame))
    assert least <= turns["taken"] <= most
    await web_socket.aclose_forcefully()
    peer.close()


async def test_who_reads_much_lets_others_run(pair: Pair) -> None:
    peer, stream = pair
    peer.send(b"x" * 32)
    async with counting_turns() as turns:
        for _ in range(32):
            assert await stream.receive_before(never(stream), 1) == b"x"
    assert turns["taken"] >= 16


async def test_a_reset_breaks_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):
            mine = socket.create_connection(listener.getsockname())
            mine.setblocking(False)
            peer, _ = listener.accept()
            stream = AsyncioSocketStream(mine) if is_supported() else SocketStream(mine)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError) as caught:
                await stream.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            with pytest.raises(anyio.BrokenResourceError):
                for _ in range(3):
                    await stream.send(b"x")
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send_eof()
            await stream.aclose()


async def test_the_end_can_be_told_to_the_peer(peer_and_socket: tuple[socket.socket, socket.socket]) -> None:
    peer, mine = peer_and_socket
    stream = AsyncioSocketStream(mine) if is_supported() else SocketStream(mine)
    with peer:
        await stream.send(b"x")
        await stream.send_eof()
        assert peer.recv(10) == b"x"
        assert peer.recv(10) == b""
        peer.send(b"y")
        assert await stream.receive() == b"y"
        await stream.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_eof()


async def test_nobody_reads_so_the_peer_is_held_back(pair: Pair) -> None:
    """Between two reads nothing is taken out of the kernel, so what the peer can send is bounded by TCP."""
    peer, stream = pair
    peer.send(b"x")
    assert await stream.receive_before(never(stream), 10) == b"x"
    peer.setblocking(False)
    sent = 0
    with pytest.raises((BlockingIOError, ssl.SSLWantWriteError)):
        for _ in range(10_000):
            sent += peer.send(b"x" * 65536)
            await checkpoint()
    got = 0
    while got < sent:
        got += len(await stream.receive_before(never(stream), 1 << 20))
    # OpenSSL does not count a record that the kernel took in part; nobody else can hold one back.
    assert sent <= got <= sent + 65536


async def test_a_websocket_survives_a_cancellation_while_others_have_their_turn(
    peer_and_socket: tuple[socket.socket, socket.socket],
) -> None:
    """The kernel takes everything, so nothing is half sent whenever it strikes."""
    peer, mine = peer_and_socket
    websocket = WebSocket(AsyncioSocketStream(mine) if is_supported() else SocketStream(mine))
    scope = anyio.CancelScope()

    async def cancel() -> None:
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        with scope:
            for _ in range(200):
                await websocket.send("x")
    assert scope.cancelled_caught
    await websocket.send("y")
    frames = peer.recv(65536)
    assert len(frames) == 7 * websocket.statistics().messages_sent
    await websocket.aclose_forcefully()
    peer.close()


async def test_a_sender_that_meets_the_reset_first_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mine = socket.create_connection(listener.getsockname())
        mine.setblocking(False)
        peer, _ = listener.accept()
    websocket = WebSocket(AsyncioSocketStream(mine) if is_supported() else SocketStream(mine))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(ConnectionBroken, match="reset"):
        await websocket.send("x")
    with pytest.raises(ConnectionBroken):
        await websocket.send("x")
    await websocket.aclose_forcefully()
