"""Bells: how the readers of a job's log, and others that wait for the log, learn that there is more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio


class Bell:
    """Wakes one task. A ring between two waits is kept, so nothing falls between looking and waiting.

    On asyncio it waits for a bare future: a new event for each wait would take a tenth of what a frame takes in all.
    """

    def __init__(self) -> None:
        loop = asyncio._get_running_loop()
        # None on trio. As a guest of asyncio it runs in a loop's callbacks: no task of asyncio runs then.
        self._loop = loop if loop is not None and asyncio.current_task(loop) is not None else None
        self._waiting: asyncio.Future[None] | anyio.Event | None = None
        #: Whether it has rung since the last wait.
        self.rung = False

    def ring(self) -> None:
        """Let the task look again. Call it in the loop."""
        self.rung = True
        if (waiting := self._waiting) is not None:
            self._waiting = None
            if isinstance(waiting, anyio.Event):
                waiting.set()
            elif not waiting.done():  # it is cancelled a moment before its task
                waiting.set_result(None)

    async def wait_ring(self) -> None:
        """Wait until it has rung since the last wait."""
        if not self.rung:
            if self._loop is not None:
                self._waiting = future = self._loop.create_future()
                await future
            else:
                self._waiting = event = anyio.Event()
                await event.wait()
        self.rung = False


class Bells:
    """The bells by job: those of its readers, and those of who only waits for its end."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Bell]] = {}
        self._at_end: dict[str, set[Bell]] = {}

    @contextmanager
    def subscribe(self, job_id: str, *, ends_only: bool = False) -> Iterator[Bell]:
        """Give a bell that rings at each new event of the job, or only when the job may have ended."""
        bell = Bell()
        all_bells = self._at_end if ends_only else self._readers
        all_bells.setdefault(job_id, set()).add(bell)
        try:
            yield bell
        finally:
            bells = all_bells[job_id]
            bells.remove(bell)
            if not bells:
                del all_bells[job_id]

    def ring(self, job_id: str, *, ended: bool) -> None:
        """Wake the readers of the job, and at its end who waits for that."""
        for bell in self._readers.get(job_id, ()):
            bell.ring()
        if ended:
            for bell in self._at_end.get(job_id, ()):
                bell.ring()

    def ring_all(self) -> None:
        """Wake everybody: events may have been missed."""
        for job_id in self._readers.keys() | self._at_end.keys():
            self.ring(job_id, ended=True)

    def count(self, job_id: str) -> int:
        """How many readers the job has here."""
        return len(self._readers.get(job_id, ()))
