"""A byte stream whose waits all end at a deadline, as a WebSocket needs."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import anyio
from anyio.abc import ByteStream


class TimedStream(Protocol):
    """A byte stream with deadlines. One task at a time may receive, and one may send."""

    #: The clock of the deadlines, in seconds.
    time: Callable[[], float]

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """Receive some bytes, or none once `deadline` has passed or `wake` was called.

        Takes nothing if it is cancelled. Raises as `ByteStream.receive`.
        """

    def wake(self) -> None:
        """Make a waiting `receive_before` return; does nothing if no task waits there."""

    async def send_before(self, deadline: float, data: bytes | bytearray) -> None:
        """Send all bytes. After a cancellation or `deadline`, it is unknown how many were sent.

        Raises as `ByteStream.send`, and `TimeoutError`.
        """

    async def aclose(self) -> None:
        """Close the stream."""


class ScopedStream:
    """A `TimedStream` made from any byte stream, with cancel scopes."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._waiting: anyio.CancelScope | None = None
        #: See `TimedStream`.
        self.time: Callable[[], float] = anyio.current_time

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        if self._waiting is not None:
            raise anyio.BusyResourceError("reading from")
        data = b""
        try:
            with anyio.CancelScope(deadline=deadline) as self._waiting:
                data = await self.stream.receive(max_bytes)
        finally:
            self._waiting = None
        return data

    def wake(self) -> None:
        if self._waiting is not None:
            self._waiting.deadline = -inf

    async def send_before(self, deadline: float, data: bytes | bytearray) -> None:
        with anyio.CancelScope(deadline=deadline) as scope:
            try:
                await self.stream.send(bytes(data))
            except TimeoutError as error:
                # ETIMEDOUT: the operating system gave up on the peer; our deadline has not passed.
                raise anyio.BrokenResourceError from error
        if scope.cancelled_caught:
            raise TimeoutError

    async def aclose(self) -> None:
        await self.stream.aclose()
