"""What a hub must know before it deletes anything or ends a job: that log and files belong together, what time it is,
and for how long a worker was silent.

The folder of files holds a random id in `hub-id`, and the log holds the same. A hub does not start where they differ,
so a wrong path or a disk that is not mounted costs nothing.

The wall clock is believed as far as it moves in small steps. After a jump of more than a day, which is either a wrong
clock or a hub that was stopped for so long, it has to show the new time for another day before anything is deleted.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread

from .._exceptions import HubStorageError
from ._files import IDENTITY_FILE, count_jobs, read_identity, write_identity
from .log._base import EventLog, Job

DAY: Final = 24 * 3600 * 1000  # milliseconds

_IDENTITY_NOTE: Final = "files"
_CLOCK_NOTE: Final = "clock"


async def match_files(log: EventLog, files: Path) -> str:
    """Give the id that log and folder share, after writing it where both are new.

    Raises `HubStorageError` where they do not belong together, with what to do about it.
    """
    in_log = await log.note(_IDENTITY_NOTE)
    empty = await log.is_empty()
    in_folder, jobs = await anyio.to_thread.run_sync(lambda: (read_identity(files), count_jobs(files)))
    if jobs and empty and in_log is None:
        raise HubStorageError(
            f"the database is empty, and this folder has the files of {jobs} jobs: name the database that belongs to "
            "it, or move the folder away",
            path=files,
        )
    if in_folder is None and in_log is not None and (jobs or not empty or log.shared):
        raise HubStorageError(
            f"the folder has no {IDENTITY_FILE} and is not the one that this database was used with: name that one or "
            f"mount it; to go on without its files, write {in_log} to {files / IDENTITY_FILE}",
            path=files,
        )
    if in_folder is None:
        proposed = in_log or secrets.token_hex(16)
        in_folder = await anyio.to_thread.run_sync(write_identity, files, proposed)
    elif in_log is None and not empty:
        raise _differing(files)
    if await log.keep_note(_IDENTITY_NOTE, in_folder, replace=False) != in_folder:
        raise _differing(files)
    return in_folder


async def check_match(log: EventLog, files: Path, identity: str) -> None:
    """Raise `HubStorageError` unless log and folder are still the ones that were matched."""
    if await anyio.to_thread.run_sync(read_identity, files) != identity:
        raise HubStorageError(
            f"the folder is not the one the hub started with: bring it back, or write {identity} to "
            f"{files / IDENTITY_FILE}",
            path=files,
        )
    if await log.note(_IDENTITY_NOTE) != identity:
        raise HubStorageError("the database is not the one the hub started with: restart the hub", path=files)


def _differing(files: Path) -> HubStorageError:
    return HubStorageError(
        "the folder belongs to another database: name the folder that belongs to this one (files=, --files); hubs on "
        "one Redis share one folder",
        path=files,
    )


@dataclass(frozen=True)
class Clock:
    """How far the wall clock is believed, in milliseconds since 1970, and since when it has shown a later time."""

    believed: int
    doubted: int | None = None

    def look(self, now: int) -> Clock:
        """Give the next clock, when the wall clock shows `now`."""
        if now <= self.believed + DAY:  # the usual step, or the clock was set back
            return Clock(now)
        if self.doubted is None or now < self.doubted:
            return Clock(self.believed, now)
        return self if now < self.doubted + DAY else Clock(now)


async def look_at_clock(log: EventLog, now: int) -> int:
    """Give the time by which things may be deleted, in milliseconds since 1970; never later than `now`.

    Hubs that share a log share the clock: one whose own is ahead deletes nothing while another's is right.
    """
    text = await log.note(_CLOCK_NOTE)
    if text is not None:
        believed, _, doubted = text.partition(" ")
        clock = Clock(int(believed), int(doubted) if doubted else None)
    else:
        clock = Clock(now if await log.is_empty() else 0)
    clock = clock.look(now)
    value = str(clock.believed) if clock.doubted is None else f"{clock.believed} {clock.doubted}"
    await log.keep_note(_CLOCK_NOTE, value, replace=True)
    return min(clock.believed, now)


class Silences:
    """The silences of jobs whose pipeline has a limit, in seconds.

    A silence begins with the first look that finds no change, so the time for which a hub was down does not count.
    Neither does the time for which it stood still: then there was no look for much longer than `between` (seconds).
    """

    def __init__(self, limits: Mapping[str, float], *, between: float) -> None:
        self._limits = limits
        self._between = between
        self._last_look = -math.inf
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def find(self, jobs: Iterable[Job], now: float) -> list[Job]:
        """Look at all jobs that have not ended, and give those whose worker is lost. `now` is in seconds.

        A job without a sign of life waits for a worker, which may take any time.
        """
        if now - self._last_look > 2 * self._between:
            self._seen = {}
        self._last_look = now
        seen, lost = {}, []
        for job in jobs:
            limit = self._limits.get(job.pipeline)
            if limit is None or job.updated is None:
                continue
            sign = (job.seq, job.updated)
            before, since = self._seen.get(job.id, (None, now))
            seen[job.id] = sign, since if sign == before else now
            if now - seen[job.id][1] >= limit:
                lost.append(job)
        self._seen = seen
        return lost

    def forget(self) -> None:
        """Start again: the log could not be read, so reports may have been refused too."""
        self._seen = {}
