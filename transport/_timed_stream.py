"""A byte stream whose every wait ends at a deadline: what a WebSocket needs of the stream beneath it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import anyio
from anyio.abc import ByteStream


class TimedStream(Protocol):
    """A byte stream, of which one task at a time receives and one sends."""

    #: Gives the seconds on the clock of the deadlines.
    time: Callable[[], float]

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """Some bytes, or none once `deadline` has passed or `wake` was called. Takes nothing if it is cancelled.

        Raises as `ByteStream.receive`.
        """
        ...

    def wake(self) -> None:
        """Have the task that waits in `receive_before` return; without one, nothing happens."""
        ...

    async def send_before(self, deadline: float, data: bytes) -> None:
        """Send all of it. If it is cancelled or `deadline` passes, nobody knows how much was sent.

        Raises as `ByteStream.send`, and `TimeoutError`.
        """
        ...

    async def aclose(self) -> None:
        """Close it."""
        ...


class ScopedStream:
    """A `TimedStream` from any byte stream, by cancel scopes."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._waiting: anyio.CancelScope | None = None
        #: See `TimedStream`.
        self.time: Callable[[], float] = anyio.current_time

    async def receive_before(self, deadline: float, max_bytes: int) -> bytes:
        """See `TimedStream.receive_before`."""
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
        """See `TimedStream.wake`."""
        if self._waiting is not None:
            self._waiting.deadline = -inf

    async def send_before(self, deadline: float, data: bytes) -> None:
        """See `TimedStream.send_before`."""
        with anyio.CancelScope(deadline=deadline) as scope:
            try:
                await self.stream.send(data)
            except TimeoutError as error:
                # ETIMEDOUT: the system gave the peer up, which is no deadline of ours.
                raise anyio.BrokenResourceError from error
        if scope.cancelled_caught:
            raise TimeoutError

    async def aclose(self) -> None:
        """See `TimedStream.aclose`."""
        await self.stream.aclose()
