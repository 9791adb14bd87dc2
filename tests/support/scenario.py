"""What the scenarios share: follow a job while a story runs, and check what always holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio
from job_server import STEPS, JobServer

from towline import Connection, JobCancelled, JobComplete, JobFailed, Progress, Resynced, State
from towline._facts import Protocol

OUTCOMES: Final = (JobComplete, JobFailed, JobCancelled)

#: Seconds; longer than the wait between two polls, and than a first backoff.
LONG: Final = 20.0

Story = Callable[[Connection], Awaitable[None]]


async def run(
    server: JobServer, story: Story, *, first: bool = True, protocol: Protocol | None = None, **options: Any
) -> tuple[Connection, list[Any]]:
    """Follow the job to its end, while `story` runs from the moment the link is in step; returns what was delivered.

    `first`: whether the connection must get in step before the story begins.
    """
    told: list[Any] = []

    async def collect() -> None:
        async for update in connection:
            told.append(update)  # noqa: PERF401 - what came before an error counts

    async with server.follow(protocol, **options) as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)
            if first:
                await connection.wait_for(State.CONNECTED, timeout=60)
            await story(connection)
    return connection, told


def check(server: JobServer, told: Sequence[Any], end: type = JobComplete, *, missed: bool = False) -> None:
    """One end, the right one, last; no update twice; in order; nothing missing without a report.

    `missed`: updates were published while no link was open.
    """
    assert [type(update) for update in told if isinstance(update, OUTCOMES)] == [end]
    assert isinstance(told[-1], end)
    assert {update.job for update in told} == {server.protocol().job}
    shown = fractions(told)
    assert shown == sorted(set(shown))
    published = [message["done"] / STEPS for message in server.log if "done" in message]
    assert set(shown) <= set(published)
    if server.promise == "exact":
        assert shown == published
        assert gaps(told) == []
    elif server.way == "poll":
        # A poll shows the newest only. What may be missing is reported where a poll failed, not at each poll.
        assert missed or gaps(told) == []
    elif shown != [done for done in published if done >= min(shown, default=0)]:
        # What came before the first update is not known to be missing: the job may have begun at any time.
        assert missed
        assert gaps(told)


def fractions(told: Sequence[Any]) -> list[float]:
    """The progress in what was delivered."""
    return [update.fraction for update in told if isinstance(update, Progress)]


def gaps(told: Sequence[Any]) -> list[Resynced]:
    """The reports that updates may be missing."""
    return [update for update in told if isinstance(update, Resynced) and update.missed != 0 and not update.first]
