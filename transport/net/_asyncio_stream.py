"""A connected socket as a byte stream, on asyncio.

This file uses asyncio because anyio's only timer is a cancel scope, and its wait for a socket does not stay registered.
A scope, a timer and two changes of the selector per read cost more than the rest of a round trip. For an idle
connection, a ping every fifteen seconds through them is most of its cost. Here the socket stays registered, one timer
is moved only when it fires, and a read costs one future.
"""

from __future__ import annotations

import asyncio
import socket
from math import inf

import anyio
from anyio.lowlevel import checkpoint, current_token

from ._socket_stream import SocketStream


def is_supported() -> bool:
    """Whether the running task belongs to an asyncio loop that can watch sockets (on Windows the default cannot).

    A running loop alone is not enough: trio may run inside an asyncio task, or as its guest.
    """
    loop = current_token().native_token
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return False
    return type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader


class AsyncioSocketStream(SocketStream):
    """A `SocketStream` bound to the loop of the task that creates it."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._loop = asyncio.get_running_loop()
        self.time = self._loop.time
        self._descriptor = connected.fileno()
        self._waiter: asyncio.Future[None] | None = None
        self._max_bytes = 0
        self._registered = False
        self._deadline = inf
        self._timer: asyncio.Handle | None = None
        # When the timer fires, inf without one. The handle cannot be asked on every loop: uvloop's does not know a time
        # that has passed.
        self._timer_at = inf

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
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
        # If this task was cancelled at the same moment, the result waits in `_came` for the next receiver.
        return self._hand_over(max_bytes)

    def wake(self) -> None:
        self._deliver(b"")

    def _deliver(self, came: bytes | Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._came = came
            self._waiter.set_result(None)

    def _readable(self) -> None:
        if self._waiter is None or self._waiter.done():
            # No task is receiving: stop reading, and TCP slows the peer down.
            self._registered = False
            self._loop.remove_reader(self._descriptor)
            return
        try:
            data = self._take(self._max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self._deliver(error)
        else:
            if data is not None:
                self._deliver(data)

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
            # The deadline was extended meanwhile.
            self._set_timer()
        else:
            self._deliver(b"")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._registered:
            self._registered = False
            self._loop.remove_reader(self._descriptor)
        self._deliver(anyio.ClosedResourceError())
        super().close()
