"""Sleep that the system announces by calling us on a thread of its own, and holds back while we do not return."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

from ..transport._handover import Handover


class AnnouncedSleep:
    """Carries the word from that thread to the loop, and back that the work is done.

    `patience` is how long the system waits for us at most, in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._words: Handover[tuple[bool, threading.Event]] = Handover()

    def will_sleep(self) -> None:
        """For the system's thread: returns when the loop has done its work, and at most `patience` seconds later."""
        done = threading.Event()
        if self._words.put((True, done)):
            done.wait(self._patience)

    def woke(self) -> None:
        """For the system's thread: returns at once."""
        self._words.put((False, threading.Event()))

    async def watch_sleep(
        self, before_sleep: Callable[[], Awaitable[object]], after_sleep: Callable[[], object]
    ) -> None:
        """Await `before_sleep()` before each sleep, while it is held back; call `after_sleep()` on waking."""
        while True:
            sleeping, done = await self._words.take()
            if sleeping:
                try:
                    await before_sleep()
                finally:
                    done.set()
            else:
                after_sleep()

    def close(self) -> None:
        """Hold no sleep back any more."""
        for _, done in self._words.close():
            done.set()
