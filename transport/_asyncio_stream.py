"""A connected socket as a byte stream, on asyncio.

Why this file knows asyncio: anyio has no timer but a cancel scope, and no wait for a socket that stays registered. A
scope, a timer and two changes of the selector a read cost more than all the rest of a round trip, and a ping every
fifteen seconds through them is most of what an idle connection costs. Here the socket stays registered, one timer is
moved only when it fires, and a read costs one future.
"""

from __future__ import annotations

import asyncio
import socket
from math import inf

import anyio
from anyio.lowlevel import checkpoint, current_token

from ._socket_stream import SocketStream


def is_supported() -> bool:
    """Whether the running task is asyncio's, on a loop that watches sockets: on Windows the usual one does not.

    A running loop alone says too little: trio may run inside a task of asyncio's, or as its guest.
    """
    loop = current_token().native_token
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return False
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader


class AsyncioSocketStream(SocketStream):
    """A `SocketStream` of the loop of the task that makes it."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._loop = asyncio.get_running_loop()
        self.time = self._loop.time
        self._descriptor = connected.fileno()
        self._waiter: asyncio.Future[None] | None = None
        # What came for whoever waits, kept if that one was cancelled in the same moment.
        self._came: bytes | Exception | None = None
        self._max_bytes = 0
        self._registered = False
        self._deadline = inf
        self._timer: asyncio.Handle | None = None
        # When the timer fires, inf without one. Not every loop's handle knows it: uvloop's for a time that has come.
        self._timer_at = inf

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """See `TimedStream.receive_before`."""
        if self._waiter is not None:
            raise anyio.BusyResourceError("reading from")
        self._check_open()
        self._max_bytes = max_bytes
        self._deadline = deadline
        waiter = self._waiter = asyncio.Future(loop=self._loop)
        try:
            if self._came is not None:
                waiter.set_result(None)
                await checkpoint()
            else:
                if not self._registered:
                    self._registered = True
                    self._loop.add_reader(self._descriptor, self._readable)
                if deadline < self._timer_at:
                    self._set_timer()
                await waiter
        finally:
            self._waiter = None
        came, self._came = self._came, None
        if isinstance(came, bytes):
            if len(came) > max_bytes:
                # It was taken for a receiver that wanted more, and was cancelled.
                came, self._came = came[:max_bytes], came[max_bytes:]
            return came
        assert came is not None, "a waiter is woken only after something came"
        try:
            raise came
        finally:
            # Its traceback holds this frame, which would hold it.
            del came

    def wake(self) -> None:
        """See `TimedStream.wake`."""
        self._tell(b"")

    def _tell(self, came: bytes | Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._came = came
            self._waiter.set_result(None)

    def _readable(self) -> None:
        if self._waiter is None or self._waiter.done():
            # Nobody takes what comes: the peer is held back by TCP.
            self._registered = False
            self._loop.remove_reader(self._descriptor)
            return
        try:
            data = self._take(self._max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self._tell(error)
        else:
            if data is not None:
                self._tell(data)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._time_has_come)

    def _time_has_come(self) -> None:
        self._timer = None
        self._timer_at = inf
        if self._waiter is None or self._deadline == inf:
            return
        if self._loop.time() < self._deadline:
            # It was put off since.
            self._set_timer()
        else:
            self._tell(b"")

    def close(self) -> None:
        """See `SocketStream.close`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._registered:
            self._registered = False
            self._loop.remove_reader(self._descriptor)
        self._tell(anyio.ClosedResourceError())
        super().close()
