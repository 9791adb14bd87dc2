"""From a thread of the system's to a task of an event loop.

A callback that the system makes on a thread of its own may come at any time: while the loop is busy, as it ends, after
it has ended. So nothing of the loop is touched from there. What is handed over lies in a queue, and a byte on a socket
pair wakes whoever waits, as every event loop can wait for a socket.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Handover(Generic[T]):
    """Things put by any thread, taken by one task. With `only_newest`, a thing nobody took gives way to the next."""

    def __init__(self, *, only_newest: bool = False) -> None:
        self._things: deque[T] = deque(maxlen=1 if only_newest else None)
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        # Holds `close` back while a byte is on its way: else it might go to another file that got the same number.
        self._ringing = threading.Lock()

    def put(self, thing: T) -> bool:
        """Hand a thing over. From any thread, at any time; returns at once. False if nobody will take it: closed."""
        with self._ringing:
            if self._bell.fileno() < 0:
                return False
            self._things.append(thing)
            with suppress(BlockingIOError):  # full of bytes that nobody has heard yet: one more says nothing new
                self._bell.send(b"\0")
        return True

    async def take(self) -> T:
        """Wait for the next thing, in the order in which they were put. When cancelled, nothing is lost."""
        while not self._things:
            await anyio.wait_readable(self._ear)
            with suppress(BlockingIOError):
                self._ear.recv(4096)
        return self._things.popleft()

    def close(self) -> list[T]:
        """Let nothing in any more; returns what nobody took."""
        with self._ringing:
            self._bell.close()
            self._ear.close()
            left = list(self._things)
            self._things.clear()
            return left
