"""Follows the stand-in's job with Towline as a program does, and keeps all that it is given."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from recordings import JOB
from stand_in import URL, StandIn, background_tasks

from towline import AnyUpdate, Connection, Exhausted, Outcome, Policy, Progress, Stalled
from towline.protocols import Towline
from towline.testing import controlled

#: What this backend needs: its state says `running` even after the end, so a silence needs a limit.
STALL_LIMIT: Final = 3600.0


class Follower:
    """One connection with its updates, and how the following ended."""

    def __init__(self, line: Connection) -> None:
        self.line = line
        self.updates: list[AnyUpdate] = []
        self.end: Outcome | Exhausted | None = None
        self.ended_at = 0.0
        self._came = anyio.Event()

    async def read(self) -> None:
        """Take every update; to be run again after `Connection.connect`."""
        try:
            async for update in self.line:
                self.updates.append(update)
                self._wake()
            self.end = self.line.outcome
        except Exhausted as error:
            self.end = error
        self.ended_at = anyio.current_time()
        self._wake()

    def _wake(self) -> None:
        self._came.set()
        self._came = anyio.Event()

    async def wait_end(self) -> Outcome | Exhausted:
        """Wait for the job's end, or for the error of giving up."""
        with anyio.fail_after(8 * 3600):
            while self.end is None:
                await self._came.wait()
        return self.end

    async def wait_count(self, count: int) -> None:
        """Wait for the progress with this count."""
        with anyio.fail_after(3600):
            while count not in self.counts:
                await self._came.wait()

    @property
    def progress(self) -> list[Progress]:
        """The progress that came as messages."""
        return [update for update in self.updates if isinstance(update, Progress) and update.fraction is not None]

    @property
    def states(self) -> list[int | None]:
        """The counts in the progress that states showed; only this has no share."""
        return [
            update.processed_count
            for update in self.updates
            if isinstance(update, Progress) and update.fraction is None
        ]

    @property
    def counts(self) -> list[int | None]:
        """The counts in the progress that came as messages."""
        return [update.processed_count for update in self.progress]

    @property
    def stalls(self) -> list[float]:
        """The silences that were reported, in seconds."""
        return [update.seconds for update in self.updates if isinstance(update, Stalled)]


@asynccontextmanager
async def following(
    server: StandIn, *, own: Mapping[str, Any] | None = None, random: Callable[[], float] = lambda: 0.5, **options: Any
) -> AsyncIterator[Follower]:
    """Follow the stand-in's job until the block is left."""
    defaults: dict[str, Any] = {
        "token": server.token,
        "policy": Policy(stall_limit=STALL_LIMIT),
    }
    started = time.time()
    protocol = Towline(URL, JOB, token_in="query", **own or {})
    connection = Connection(protocol, network=server.network, **defaults | options)
    controlled(connection, random=random, wall_time=lambda: started + anyio.current_time())
    async with background_tasks() as tasks, connection as line:
        follower = Follower(line)
        tasks.start_soon(follower.read)
        yield follower
