"""A connected socket as a byte stream, on any backend.

It waits with `anyio.wait_readable` and `anyio.wait_writable` and moves the bytes itself. No transport, queue or extra
turn of the loop lies between the kernel and the caller, with TLS or without.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from ._tls import SEALED_RECORD, TLS

# A sender whose peer reads fast would keep the loop to itself: after this many sends, other tasks run. Each 32 KiB of a
# send count as one more, so that a turn takes half a millisecond, as one of reading does.
_SENDS_A_TURN: Final = 64
_LIKE_A_SEND: Final = 32 << 10

# Bytes to encrypt at once, so that a large message does not lie in memory twice while the peer is slow.
_SEALED_AT_ONCE: Final = 64 << 10

# From this size on, the memory of a read is kept for the next one with TLS. Each read needs three such pieces, and the
# allocator would give their pages back and fetch new ones each time (M_TRIM_THRESHOLD in glibc's mallopt(3)).
_KEPT_READ: Final = 128 << 10

# Bytes to read at once in the TLS handshake: a server's certificates are a few KiB.
_HANDSHAKE_READ: Final = 16 << 10


class SocketStream(ByteStream):
    """A `TimedStream` that owns a connected, non-blocking stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._closed = False
        self._sending = False
        self._sends = 0
        self._waiting: anyio.CancelScope | None = None
        self._tls: TLS | None = None
        self._sealed: bytearray | None = None
        # What the next receiver gets without reading: bytes, or the end that followed the last bytes.
        self._came: bytes | Exception | None = None
        # Bytes for the kernel that it has not taken, and bytes of ours behind them that are not encrypted yet.
        self._unsent: bytes | bytearray | memoryview = b""
        self._unsealed: bytes | bytearray | memoryview = b""
        #: See `TimedStream`.
        self.time: Callable[[], float] = anyio.current_time

    @property
    def has_tls(self) -> bool:
        """Whether the bytes are encrypted."""
        return self._tls is not None

    async def start_tls(self, tls: TLS) -> None:
        """Make the TLS handshake; from then on, all bytes are encrypted. Close the stream if it fails.

        Raises `ssl.SSLError`, and as `receive` and `send`.
        """
        try:
            while not tls.shake_hands():
                await self.send(tls.data_to_send())
                tls.feed(await self.receive(_HANDSHAKE_READ))
        except ssl.SSLError:
            # Tell the server why: the alert names the problem.
            with suppress(anyio.BrokenResourceError):
                self.send_nowait(tls.data_to_send())
            raise
        await self.send(tls.data_to_send())
        self._tls = tls
        # The server's first bytes may have come with the end of its handshake.
        self._came = tls.open(b"") or tls.end

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """See `TimedStream.receive_before`. Always waits, even if bytes are already there."""
        if self._waiting is not None:
            raise anyio.BusyResourceError("reading from")
        self._check_open()
        try:
            with anyio.CancelScope(deadline=deadline) as self._waiting:
                if self._came is not None:
                    await checkpoint()
                while self._came is None:
                    await anyio.wait_readable(self._socket)
                    self._came = self._take(max_bytes)
                return self._hand_over(max_bytes)
        finally:
            self._waiting = None
        return b""

    def _hand_over(self, max_bytes: int) -> bytes:
        """Return at most `max_bytes` of what came, or raise it if it is an error."""
        came, self._came = self._came, None
        if isinstance(came, bytes) and len(came) > max_bytes:
            came, self._came = came[:max_bytes], came[max_bytes:]
        elif self._tls is not None:
            self._came = self._tls.end
        if isinstance(came, bytes):
            return came
        assert came is not None, "a receiver returns only with a result"
        try:
            raise came.with_traceback(None)
        finally:
            # Break the cycle: the traceback refers to this frame, and the frame to the exception.
            del came

    def wake(self) -> None:
        if self._waiting is not None:
            self._waiting.deadline = -inf

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive between 1 and `max_bytes` bytes. Always waits, and takes nothing if it is cancelled.

        Raises `EndOfStream`, `BrokenResourceError`, `ClosedResourceError`, and `BusyResourceError` while another task
        receives.
        """
        data = b""
        while not data:
            data = await self.receive_before(inf, max_bytes)
        return data

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """The bytes that are there, None if only `receive_before` can tell. Raises as it does."""
        if self._came is None and not self._closed:
            self._came = self._take(max_bytes)
            if self._came is not None:
                return self._hand_over(max_bytes)
        return None

    def _take(self, max_bytes: int) -> bytes | None:
        """The bytes the kernel has, decrypted, None if there are none yet. With TLS they may be more than asked for."""
        self._sends = 0
        data: bytes | memoryview
        try:
            if self._tls is None or max_bytes < _KEPT_READ:
                self._sealed = None
                data = self._socket.recv(max_bytes)
            else:
                # A part of a record came before. With its rest it is no more content than asked for: the few bytes over
                # would be a read of their own.
                size = max_bytes - SEALED_RECORD
                if self._sealed is None or len(self._sealed) != size:
                    self._sealed = bytearray(size)
                data = memoryview(self._sealed)[: self._socket.recv_into(self._sealed)]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return bytes(data) if self._tls is None else self._open(self._tls, data)

    def _open(self, tls: TLS, data: bytes | memoryview) -> bytes | None:
        opened = tls.open(data)
        if tls.wants_to_send or self._unsealed:
            # An alert, or a part of a new handshake. If the kernel is full, the next send takes it along.
            self._unsent = bytes(self._unsent) + tls.data_to_send()
            with suppress(anyio.BrokenResourceError):
                self._push()
        if not opened and tls.end is not None:
            self._came = tls.end  # it stays, even if TCP goes on
            raise tls.end.with_traceback(None)
        return opened or None

    async def send(self, item: bytes) -> None:
        """Pass all bytes to the kernel. Waits, and can be cancelled, when its buffer is full and after many sends.

        If it is cancelled, some bytes may have been sent. Raises `BrokenResourceError`, `ClosedResourceError`, and
        `BusyResourceError` while another task sends.
        """
        await self.send_before(inf, item)

    async def send_before(self, deadline: float, data: bytes | bytearray) -> None:
        await self.let_others_run()
        if self._sending:
            raise anyio.BusyResourceError("writing to")
        if not self.send_nowait(data):
            await self.send_rest_before(deadline)

    async def send_rest_before(self, deadline: float) -> None:
        """Send what `send_nowait` has left. Raises as `send_before`."""
        self._sending = True
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                pushed = False
                while not pushed:
                    await anyio.wait_writable(self._socket)
                    self._sends = 0
                    pushed = self._push()
        finally:
            self._sending = False
        if scope.cancelled_caught:
            raise TimeoutError

    async def let_others_run(self) -> None:
        """Yield to other tasks after many sends without a wait. A cancellation here has sent nothing."""
        if self._sends >= _SENDS_A_TURN:
            self._sends = 0
            await checkpoint()

    @property
    def may_send_now(self) -> bool:
        """Whether `send_nowait` is allowed: no other task is sending, and other tasks have had their turn."""
        return not self._sending and self._sends < _SENDS_A_TURN

    def send_nowait(self, data: bytes | bytearray) -> bool:
        """Send as much as the kernel takes at once; returns whether that is everything.

        The stream keeps the rest: call `send_rest_before`, ahead of any other send. Raises `BrokenResourceError`,
        `ClosedResourceError`.
        """
        self._sends += 1 + len(data) // _LIKE_A_SEND
        if self._tls is None:
            self._unsent = data
        else:
            self._unsealed = bytes(self._unsealed) + data if self._unsealed else data
        return self._push()

    def _push(self) -> bool:
        """Pass waiting bytes to the kernel while it takes them; returns whether it took everything."""
        try:
            while True:
                if self._unsent:
                    sent = self._socket.send(self._unsent)
                    if sent < len(self._unsent):
                        self._unsent = memoryview(self._unsent)[sent:]
                        return False
                    self._unsent = b""
                if not self._unsealed:
                    return True
                assert self._tls is not None, "only TLS leaves bytes to encrypt"
                if len(self._unsealed) <= _SEALED_AT_ONCE:
                    self._unsent = self._tls.seal(self._unsealed)
                    self._unsealed = b""
                else:
                    rest = memoryview(self._unsealed)
                    self._unsent = self._tls.seal(rest[:_SEALED_AT_ONCE])
                    self._unsealed = rest[_SEALED_AT_ONCE:]
        except ssl.SSLWantReadError:
            return True  # TLS 1.2 negotiates new keys: the bytes follow when the receiver has read the peer's part
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error

    def is_quiet(self) -> bool:
        """Whether the connection is open and no byte waits to be received. Takes nothing."""
        if self._closed or self._came is not None:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            pass
        return False

    async def send_eof(self) -> None:
        """Signal the end of our bytes to the peer. Raises `BrokenResourceError`, `ClosedResourceError`."""
        try:
            self._say_farewell()
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close the stream, as `close`; never waits."""
        self.close()

    def close(self) -> None:
        """Close at once; tasks waiting for this socket get `ClosedResourceError`.

        With TLS, sends close_notify if the kernel takes it at once, and never waits for the peer's.
        """
        if not self._closed:
            self._say_farewell()
            self._closed = True
            if self._sending or self._waiting is not None:
                anyio.notify_closing(self._socket)
            self._socket.close()

    def _say_farewell(self) -> None:
        # Nothing may stand between the close_notify and a record that was sent in part.
        if self._tls is not None and not self._unsent and not isinstance(self._tls.end, anyio.BrokenResourceError):
            with suppress(OSError):
                self._socket.send(self._tls.farewell())

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
