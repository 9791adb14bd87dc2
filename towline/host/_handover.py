"""Hands values from any thread to a task of an event loop.

The system may call a callback on its own thread at any time: while the loop is busy, while it ends, or after it has
ended. So `put` touches nothing of the loop. It appends to a queue and writes a byte to a socket pair, because every
event loop can wait for a socket.
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
    """A queue that any thread puts into and one task takes from.

    With `only_newest`, a new value replaces one that was not taken yet.
    """

    def __init__(self, *, only_newest: bool = False) -> None:
        self._things: deque[T] = deque(maxlen=1 if only_newest else None)
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        # `close` must not run during a send: another file might have got the same descriptor by then.
        self._ringing = threading.Lock()

    def put(self, thing: T) -> bool:
        """Append a value and return at once; safe from any thread, at any time. Returns False after `close`."""
        with self._ringing:
            if self._bell.fileno() < 0:
                return False
            self._things.append(thing)
            with suppress(BlockingIOError):  # the buffer is full of unread bytes: the task will wake anyway
                self._bell.send(b"\0")
        return True

    async def take(self) -> T:
        """Wait for the next value, in the order of `put`. Cancellation loses nothing."""
        while not self._things:
            await anyio.wait_readable(self._ear)
            with suppress(BlockingIOError):
                self._ear.recv(4096)
        return self._things.popleft()

    def close(self) -> list[T]:
        """Refuse further values, and return those that were not taken."""
        with self._ringing:
            self._bell.close()
            self._ear.close()
            left = list(self._things)
            self._things.clear()
            return left
