"""A connected socket as a byte stream, on any backend.

It waits with `anyio.wait_readable` and `anyio.wait_writable` and moves the bytes itself. No transport, queue or extra
turn of the loop lies between the kernel and the caller.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from math import inf
from typing import Final

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

# A sender whose peer reads fast would keep the loop to itself: after this many sends, other tasks run.
_SENDS_A_TURN: Final = 16


class SocketStream(ByteStream):
    """A `TimedStream` that owns a connected, non-blocking stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._closed = False
        self._sending = False
        self._sends = 0
        self._waiting: anyio.CancelScope | None = None
        #: See `TimedStream`.
        self.time: Callable[[], float] = anyio.current_time

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """See `TimedStream.receive_before`. Always waits, even if bytes are already there."""
        if self._waiting is not None:
            raise anyio.BusyResourceError("reading from")
        self._check_open()
        try:
            with anyio.CancelScope(deadline=deadline) as self._waiting:
                data = None
                while data is None:
                    await anyio.wait_readable(self._socket)
                    data = self._take(max_bytes)
                return data
        finally:
            self._waiting = None
        return b""

    def wake(self) -> None:
        """See `TimedStream.wake`."""
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

    def _take(self, max_bytes: int) -> bytes | None:
        """The bytes the kernel has, None if there are none yet."""
        self._sends = 0
        try:
            data = self._socket.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Pass all bytes to the kernel. Waits, and can be cancelled, when its buffer is full and after many sends.

        If it is cancelled, some bytes may have been sent. Raises `BrokenResourceError`, `ClosedResourceError`, and
        `BusyResourceError` while another task sends.
        """
        await self.send_before(inf, item)

    async def send_before(self, deadline: float, data: bytes) -> None:
        """See `TimedStream.send_before`."""
        await self.let_others_run()
        if self._sending:
            raise anyio.BusyResourceError("writing to")
        sent = self.send_nowait(data)
        if sent == len(data):
            return
        self._sending = True
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                rest = memoryview(data)[sent:]
                while rest:
                    await anyio.wait_writable(self._socket)
                    self._sends = 0
                    rest = rest[self.send_nowait(rest) :]
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

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Send the bytes that the kernel takes at once, and return how many.

        The rest must follow with `send_before`, ahead of anything else. Raises `BrokenResourceError`,
        `ClosedResourceError`.
        """
        self._sends += 1
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error

    def is_quiet(self) -> bool:
        """Whether the connection is open and no byte waits to be received. Takes nothing."""
        if self._closed:
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
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._check_open()
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close the stream, as `close`; never waits."""
        self.close()

    def close(self) -> None:
        """Close at once; tasks waiting for this socket get `ClosedResourceError`."""
        if not self._closed:
            self._closed = True
            if self._sending or self._waiting is not None:
                anyio.notify_closing(self._socket)
            self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
