"""A WebSocket over an anyio byte stream; the receiving task drives `WebSocketProtocol`.

This module starts no task. The receiving task reads, answers pings and measures silence; `send` runs in the task that
calls it. A frame is made and written in one step if the kernel takes it all, otherwise under a lock. So frames are sent
complete and in order.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Self, TypeVar

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..._exceptions import (
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    ForbiddenRequest,
    HandshakeRefused,
    InvalidArgument,
    TowlineError,
)
from ..._headers import Headers, check_subprotocols
from ..._secret import Secret
from .._limits import DEFAULT_LIMITS, Limits, Liveness
from .._url import URL, check_headers, parse_url
from ..http._protocol import parse_retry_after
from ..net._network import STREAM_ERRORS, Network, broken, close_now, endpoint_of
from ..net._socket_stream import SocketStream
from ..net._timed_stream import ScopedStream, TimedStream
from ._deflate import Deflate, DeflateExtension
from ._framing import Message
from ._handshake import RESERVED, Accepted, ClientHandshake, Refused
from ._protocol import WebSocketProtocol, check_close

# Seconds to look for bytes that the kernel has kept, if nothing was receiving when the peer became overdue.
_SECOND_LOOK = 1.0

_Sent = TypeVar("_Sent")

# Bytes to request while little arrives. Memory allocators map and unmap pages for a larger buffer (glibc from 128 KiB
# on, mallopt(3)), which costs more than the read.
_SMALL_READ = 64 << 10
_LITTLE = 4 << 10

# So many full reads follow each other without a wait, which costs as much as a large read itself. Each 256 messages
# count as one more read, so that other tasks run after about half a millisecond.
_READS_A_TURN = 4
_LIKE_A_READ = 256


@dataclass(frozen=True, slots=True)
class WebSocketStatistics:
    """Counts since the upgrade; bytes include the framing, but not TLS."""

    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


class WebSocket:
    """An open WebSocket; `open_websocket` and `connect_websocket` make one.

    One task receives, any number may send. **While no task receives, pings are not answered, and neither silence nor
    the peer's close is noticed**: keep a task receiving. If messages are not taken, reading stops and TCP slows the
    peer down.
    """

    # Thousands may be open and idle: slots take less memory.
    __slots__ = (
        "_iterated",
        "_large_read",
        "_liveness",
        "_next_message",
        "_overdue_since",
        "_ping_wanted",
        "_pinged_at",
        "_probe",
        "_protocol",
        "_read_size",
        "_reads_left",
        "_ready",
        "_receiver_left",
        "_receiving",
        "_send_lock",
        "_small_read",
        "_socket",
        "_stream",
        "_stream_closed",
        "_time",
        "last_received",
        "subprotocol",
    )

    def __init__(
        self,
        stream: ByteStream,
        *,
        limits: Limits | None = None,
        liveness: Liveness | None = None,
        subprotocol: str | None = None,
        deflate: DeflateExtension | None = None,
        trailing: bytes = b"",
    ) -> None:
        """Use a stream whose upgrade is done; `trailing` are the bytes read after the upgrade."""
        limits = limits or DEFAULT_LIMITS
        #: The subprotocol the server chose, or None.
        self.subprotocol = subprotocol
        #: `anyio.current_time()` when bytes last arrived.
        self.last_received = anyio.current_time()
        self._socket = stream if isinstance(stream, SocketStream) else None
        self._stream: TimedStream = self._socket or ScopedStream(stream)
        self._time = self._stream.time
        self._protocol = WebSocketProtocol(limits=limits, deflate=deflate)
        self._large_read = limits.read_size
        self._small_read = self._read_size = min(_SMALL_READ, limits.read_size)
        self._reads_left = 0
        self._liveness = liveness
        self._send_lock = anyio.Lock(fast_acquire=True)
        self._stream_closed = False
        self._receiving = False
        self._pinged_at: float | None = None
        self._overdue_since: float | None = None
        self._probe: tuple[float, float] | None = None  # when it ends, and how many seconds it was given
        self._ping_wanted = False
        self._receiver_left: anyio.Event | None = None
        self._ready: list[Message] = self._protocol.receive_data(trailing)
        # The rest of the newest batch during iteration. Keeping its bound method saves a call per message.
        self._iterated: Iterator[Message] = iter(())
        self._next_message = self._iterated.__next__

    def __repr__(self) -> str:
        end = self._protocol.end
        state = "closing" if self._protocol.closing else "open"
        return f"<{type(self).__name__} {state if end is None else type(end).__name__}>"

    # --- receive ------------------------------------------------------------------------------------------------

    async def receive_batch(self) -> list[Message]:
        """Return all complete messages of the next read, at least one: `str` for text, `bytes` for binary.

        It may be cancelled at any time and called again without losing messages. One exception, as with `send`: a
        cancellation while a pong waits for a full socket ends the WebSocket.

        Messages received before the end come first. Then each call raises how it ended: `ConnectionClosed`,
        `ConnectionBroken`, `ProtocolViolation`, `MessageTooBig`, or `DeadlineExceeded` for silence. Raises
        `ForbiddenRequest` while another task receives.
        """
        if self._receiving:
            raise ForbiddenRequest("receive", "receiving", "another task is receiving; let one task receive")
        self._receiving = True
        try:
            if rest := list(self._iterated):
                # An iteration stopped in the middle of a batch.
                self._ready[:0] = rest
            while not self._ready:
                await self._step()
            if self._protocol.wants_to_send:
                await self._flush_in_time()
            ready, self._ready = self._ready, []
            return ready
        finally:
            self._leave_receiving()

    def _leave_receiving(self) -> None:
        self._receiving = False
        if self._receiver_left is not None:
            self._receiver_left.set()
            self._receiver_left = None

    def __aiter__(self) -> Self:
        """Yield messages until the peer closes with 1000 or 1001, or we close; raises as `receive_batch`.

        After a break, another iteration or `receive_batch` continues with the next message.
        """
        # The socket is its own iterator, so a break leaves no generator to the garbage collector.
        return self

    async def __anext__(self) -> Message:
        try:
            return self._next_message()
        except StopIteration:
            pass
        try:
            batch = await self.receive_batch()
        except ConnectionClosed as closed:
            if closed.by_us or closed.code in {1000, 1001}:
                raise StopAsyncIteration from None
            raise
        self._iterated = iter(batch)
        self._next_message = self._iterated.__next__
        return self._next_message()

    async def _step(self) -> None:
        """Do the next step: raise the error that ended it, process buffered bytes, or read."""
        protocol = self._protocol
        if protocol.end is not None:
            if protocol.wants_to_send:
                await self._flush_in_time()
            await self._close_stream()
            raise protocol.end.with_traceback(None)
        if protocol.has_more:
            await checkpoint()
            self._ready = protocol.receive_data(b"")
            return
        if self._ping_wanted:
            self._queue_ping()
        if protocol.wants_to_send:
            await self._flush_before(self._lost_at())
        data = None
        try:
            if self._reads_left > 0 and self._socket is not None:
                data = self._socket.receive_nowait(self._read_size)
            if data is None:
                self._reads_left = _READS_A_TURN
                data = await self._stream.receive_before(self._next_deadline(), self._read_size)
        except anyio.EndOfStream:
            protocol.receive_eof()
        except STREAM_ERRORS as error:
            if protocol.end is None:
                renamed = broken(error)
                renamed.__cause__ = error
                protocol.fail(renamed)
        else:
            if data:
                self.last_received = self._time()
                if len(data) >= self._small_read:
                    self._read_size = self._large_read
                elif len(data) < _LITTLE and self._read_size != self._small_read:
                    self._read_size = self._small_read
                    protocol.release()
                self._pinged_at = self._overdue_since = self._probe = None
                self._ping_wanted = False
                self._ready = protocol.receive_data(data)
                if len(data) > self._large_read // 2:
                    self._reads_left -= 1 + len(self._ready) // _LIKE_A_READ
                else:
                    self._reads_left = 0
            elif protocol.end is None:
                self._look_at_silence()

    # --- liveness -----------------------------------------------------------------------------------------------

    def probe(self, seconds: float = 5.0) -> None:
        """Ping now; if no bytes arrive within `seconds`, receiving raises `DeadlineExceeded`.

        Returns at once; any task of the loop may call it. The receiving task sends the ping.
        """
        ends = self._time() + seconds
        if self._probe is None or ends < self._probe[0]:
            self._probe = ends, seconds
        self._ping_wanted = True
        self._stream.wake()

    def _lost_at(self) -> float:
        """When silence counts as a lost connection."""
        lost = inf
        if self._liveness is not None:
            lost = self.last_received + self._liveness.lost_after
            if self._pinged_at is not None:
                # If nothing was receiving for a while, the ping is late; its answer gets the usual time.
                lost = max(lost, self._pinged_at + self._liveness.lost_after - self._liveness.ping_after)
        if self._probe is not None:
            lost = min(lost, self._probe[0])
        if self._overdue_since is not None:
            lost = max(lost, self._overdue_since + _SECOND_LOOK)
        return lost

    def _next_deadline(self) -> float:
        """How long the next read may wait for bytes."""
        if self._ping_wanted:
            return -inf
        if self._liveness is not None and self._pinged_at is None:
            return self.last_received + self._liveness.ping_after
        if self._overdue_since is None and self._lost_at() <= self._time():
            # Nothing was receiving at the deadline: read what the kernel has kept before giving up.
            self._overdue_since = self._time()
        return self._lost_at()

    def _look_at_silence(self) -> None:
        """React to a read without bytes: ping, or give up."""
        now = self._time()
        if self._ping_wanted:
            return
        if self._liveness is not None and self._pinged_at is None:
            if now >= self.last_received + self._liveness.ping_after:
                self._queue_ping()
        elif now >= self._lost_at():
            self._give_up()

    def _queue_ping(self) -> None:
        self._ping_wanted = False
        self._pinged_at = self._time()
        self._protocol.queue_ping()

    def _give_up(self) -> None:
        silent = self._time() - self.last_received
        seconds = silent if self._probe is None else self._probe[1]
        self._protocol.end = DeadlineExceeded("an answer to our ping", round(seconds, 3))

    # --- send ---------------------------------------------------------------------------------------------------

    async def send(self, message: Message | Secret) -> None:
        """Send one message, `str` as text, `bytes` as binary; returns when the operating system has taken it.

        A `Secret` is sent as text, and no traceback shows it.

        If it is cancelled while it waits for the socket, the peer may have half a frame: then the WebSocket ends with
        an error. Raises `InvalidArgument` (nothing was sent, it stays open), and the error that ended it, as
        `receive_batch`.
        """
        await self._send(self._protocol.send_message, message)

    async def send_batch(self, messages: Sequence[Message | Secret]) -> None:
        """Send messages in order with one write, which costs much less than one for each. Otherwise as `send`.

        If one message is invalid, none is sent.
        """
        await self._send(self._protocol.send_messages, messages)

    async def _send(self, make: Callable[[_Sent], bytes | bytearray], sent: _Sent) -> None:
        socket = self._socket
        if socket is not None and socket.may_send_now and not self._send_lock.locked():
            # If the kernel takes the complete frame, no lock is needed: no other task runs meanwhile.
            data = make(sent)
            try:
                if socket.send_nowait(data):
                    return
            except STREAM_ERRORS as error:
                self._protocol.send_failed()
                raise broken(error) from error
            self._send_lock.acquire_nowait()
            started = True
        else:
            await self._send_lock.acquire()
            started = False
        try:
            if started:
                await self._write(None)
            else:
                await self._let_others_run()
                await self._write(make(sent))
            if self._protocol.wants_to_send:
                await self._drain()
        finally:
            self._send_lock.release()

    async def ping(self) -> None:
        """Send a ping. Nothing waits for the pong, which counts as received bytes (see `probe`)."""
        self._protocol.queue_ping()
        async with self._send_lock:
            await self._drain()

    async def _flush_in_time(self) -> None:
        """Write queued frames until the connection counts as lost, but try for at least a second."""
        await self._flush_before(max(self._lost_at(), self._time() + 1))

    async def _flush_before(self, deadline: float) -> None:
        """Write queued frames until `deadline`: a stuck link must not block longer than silence may last."""
        try:
            self._send_lock.acquire_nowait()
        except anyio.WouldBlock:
            return  # the task that holds the lock writes them before it releases
        try:
            await self._drain(deadline)
        finally:
            self._send_lock.release()

    async def _drain(self, deadline: float = inf) -> None:
        while self._protocol.wants_to_send:
            # A pending cancellation must raise here, before bytes are taken out and could be lost.
            await checkpoint_if_cancelled()
            await self._let_others_run()
            try:
                await self._write(self._protocol.data_to_send(), deadline)
            except TowlineError:
                return  # the peer's earlier data is still to be read; the reader will see the end

    async def _let_others_run(self) -> None:
        """Yield after many sends, before bytes are made, so that a cancellation loses none."""
        if self._socket is not None:
            await self._socket.let_others_run()

    async def _write(self, data: bytes | bytearray | None, deadline: float = inf) -> None:
        """Write bytes to the stream, None for what `send_nowait` has left. The caller holds the lock.

        If that fails half-way, nothing is ever sent again.
        """
        protocol = self._protocol
        try:
            if data is None:
                assert self._socket is not None, "only a socket keeps a rest"
                await self._socket.send_rest_before(deadline)
            else:
                await self._stream.send_before(deadline, data)
            return
        except TimeoutError:
            protocol.send_failed()
            if protocol.end is None:
                self._give_up()
            await self._close_stream()
        except STREAM_ERRORS as error:
            protocol.send_failed()
            if protocol.end is None:
                raise broken(error) from error
        except BaseException:
            protocol.send_failed()
            protocol.fail(ConnectionBroken("a write was cancelled half-way"))
            self._stream.wake()
            await self._close_stream()
            raise
        # We closed the stream meanwhile; that is the reason.
        assert protocol.end is not None
        raise protocol.end.with_traceback(None)

    # --- end ----------------------------------------------------------------------------------------------------

    async def aclose(self, code: int = 1000, reason: str = "", timeout: float = 2.0) -> None:
        """Send a close frame, wait at most `timeout` seconds for the peer's, then close the stream.

        The wait ends with the peer's close frame, not with the end of TCP, which some servers delay by seconds.
        Cancellation does not shorten it, so it is bounded. Messages that arrive meanwhile are dropped, unless another
        task receives them.
        """
        check_close(code, reason)
        with anyio.CancelScope(shield=True, deadline=self._time() + timeout):
            async with self._send_lock:
                if data := self._protocol.send_close(code, reason):
                    await self._try_write(data)
            while self._protocol.end is None:
                if self._receiving:
                    if self._receiver_left is None:
                        self._receiver_left = anyio.Event()
                    await self._receiver_left.wait()
                else:
                    await self._discard()
        await self._hang_up()

    async def abandon(self, code: int = 1001, reason: str = "") -> None:
        """Send a close frame if the socket takes it within 0.1 s, then close the stream without waiting for the peer.

        Use it for a connection that is probably dead. It is async because a write is; it is shielded from cancellation.
        """
        check_close(code, reason)
        with anyio.CancelScope(shield=True, deadline=self._time() + 0.1):
            # A ping may be half written at this moment; a close frame inside it would be unreadable.
            async with self._send_lock:
                if data := self._protocol.send_close(code, reason):
                    await self._try_write(data)
        await self._hang_up()

    async def aclose_forcefully(self) -> None:
        """Close the stream without a close frame; never waits."""
        await self._hang_up()

    async def _try_write(self, data: bytes) -> None:
        try:
            await self._write(data)
        except TowlineError as error:
            self._protocol.fail(error)

    async def _discard(self) -> None:
        """Receive until the peer's close frame and drop messages."""
        self._receiving = True
        try:
            await self._step()
            self._ready.clear()
        except TowlineError:
            pass  # the WebSocket has ended, and `end` says how
        finally:
            self._leave_receiving()

    async def _hang_up(self) -> None:
        self._protocol.fail(ConnectionClosed(1006, by_us=True))
        self._stream.wake()
        await self._close_stream()

    async def _close_stream(self) -> None:
        if not self._stream_closed:
            self._stream_closed = True
            await close_now(self._stream)

    def statistics(self) -> WebSocketStatistics:
        """Counts since the upgrade."""
        protocol = self._protocol
        return WebSocketStatistics(
            protocol.messages_received, protocol.messages_sent, protocol.bytes_received, protocol.bytes_sent
        )


async def connect_websocket(
    url: str | URL,
    *,
    headers: Headers = (),
    subprotocols: Iterable[str | Secret] = (),
    require_subprotocol: bool = False,
    limits: Limits | None = None,
    liveness: Liveness | None = Liveness(),  # noqa: B008 - frozen
    deflate: Deflate | None = None,
    network: Network | None = None,
    deadline: float = 10.0,
    wall_time: Callable[[], float] = time.time,
) -> WebSocket:
    """Open a WebSocket; the caller must end it with `aclose`, `abandon` or `aclose_forcefully`.

    `url` is a `wss` URL, or a `ws` URL to loopback (to any host if the network allows it). `headers` are added to the
    upgrade; a header's value and a subprotocol may be a `Secret`. `liveness=None` turns the heartbeat off. `deadline`
    (seconds) covers name, TCP, TLS and upgrade together. `deflate=Deflate()` offers compression. `wall_time` gives
    seconds since 1970, to read a `Retry-After` date.

    Raises `InvalidArgument` before it connects; then `NetworkError`, `DeadlineExceeded`, `ProtocolViolation`, or
    `HandshakeRefused` for a status other than 101. After an error nothing stays open.
    """
    network = network or Network()
    if not isinstance(url, URL):
        url = parse_url(url, allow_insecure=network.allow_insecure)
    if url.scheme not in {"ws", "wss"}:
        raise InvalidArgument("url", "the scheme must be wss or ws")
    handshake = ClientHandshake(
        url,
        headers=check_headers(headers, reserved=RESERVED),
        subprotocols=check_subprotocols(subprotocols),
        require_subprotocol=require_subprotocol,
        extensions="" if deflate is None else deflate.offer,
        limits=limits,
    )
    answer: Accepted | Refused | None = None
    stream: ByteStream | None = None
    try:
        with anyio.CancelScope(deadline=anyio.current_time() + deadline):
            stream = await network.connect(endpoint_of(url, network.tls))
            answer = await _shake_hands(stream, handshake)
        answer = answer or handshake.refusal
        if stream is None or answer is None:
            raise DeadlineExceeded("the WebSocket handshake", deadline)
        if isinstance(answer, Refused):
            retry_after = parse_retry_after(answer.retry_after, wall_time())
            raise HandshakeRefused(answer.status, retry_after=retry_after, body=answer.body)
        agreed: DeflateExtension | None = None
        if deflate is not None and answer.extensions:
            agreed = deflate.accepted(answer.extensions, (limits or DEFAULT_LIMITS).max_message)
    except BaseException:
        if stream is not None:
            await close_now(stream)
        raise
    return WebSocket(
        stream,
        limits=limits,
        liveness=liveness,
        subprotocol=answer.subprotocol,
        deflate=agreed,
        trailing=answer.trailing,
    )


async def _shake_hands(stream: ByteStream, handshake: ClientHandshake) -> Accepted | Refused:
    # A server may refuse and close before it has read everything: its response says more than our error.
    with suppress(*STREAM_ERRORS):
        await stream.send(handshake.request)
    answer: Accepted | Refused | None = None
    while answer is None:
        try:
            data = await stream.receive(64 << 10)
        except anyio.EndOfStream:
            answer = handshake.receive_eof()
        except STREAM_ERRORS as error:
            answer = handshake.refusal
            if answer is None:
                raise broken(error) from error
        else:
            answer = handshake.receive(data)
    return answer


@asynccontextmanager
async def open_websocket(
    url: str | URL,
    *,
    headers: Headers = (),
    subprotocols: Iterable[str | Secret] = (),
    require_subprotocol: bool = False,
    limits: Limits | None = None,
    liveness: Liveness | None = Liveness(),  # noqa: B008 - frozen
    deflate: Deflate | None = None,
    network: Network | None = None,
    deadline: float = 10.0,
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket for the length of a block; `aclose` it with 1000, or with 1001 and 0.5 s if the block raises."""
    websocket = await connect_websocket(
        url,
        headers=headers,
        subprotocols=subprotocols,
        require_subprotocol=require_subprotocol,
        limits=limits,
        liveness=liveness,
        deflate=deflate,
        network=network,
        deadline=deadline,
    )
    try:
        yield websocket
    except BaseException:
        await websocket.aclose(1001, timeout=0.5)
        raise
    await websocket.aclose()
