"""Sleep that the system announces by a callback on its own thread; the system delays the sleep until it returns."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from .._handover import Handover


class AnnouncedSleep:
    """Passes each announcement from the system's thread to the loop, and waits until the loop is done.

    `patience` is the longest that the system waits for us, in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._announcements: Handover[tuple[bool, threading.Event]] = Handover()

    def will_sleep(self) -> None:
        """Announce sleep, on the system's thread: returns when the loop is done, or after `patience` seconds."""
        done = threading.Event()
        if self._announcements.put((True, done)):
            done.wait(self._patience)

    def woke(self) -> None:
        """Announce waking, on the system's thread: returns at once."""
        self._announcements.put((False, threading.Event()))

    async def watch_sleep(
        self, before_sleep: Callable[[], Awaitable[object]], after_sleep: Callable[[], object]
    ) -> None:
        """Await `before_sleep()` before each sleep, which waits for it; call `after_sleep()` after waking."""
        while True:
            sleeping, done = await self._announcements.take()
            if sleeping:
                try:
                    await before_sleep()
                finally:
                    done.set()
            else:
                after_sleep()

    def close(self) -> None:
        """Stop delaying sleep."""
        for _, done in self._announcements.close():
            done.set()
