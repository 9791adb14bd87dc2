"""One watcher of one job: it reads the job's log from its cursor on, and sends what it reads.

There is no queue to overflow: each watcher is a reader of the log with its own place, woken when there is more. A slow
one falls behind and nothing waits for it. After a while it gets each run of progress merged into one message until it
has caught up, except in a replay that was promised to it. One that takes nothing for too long is let go, and finds
everything in the log when it comes back.

No watcher has timers: one sweep looks at all of them again and again and counts how long each has been where it is.

How a watcher is connected, by a socket or an event stream, is not known here: a subclass for each reads and writes.
"""

from __future__ import annotations

import json
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import anyio
from msgspec.structs import replace

from ..._exceptions import HubStorageError
from ...protocols.wire.messages import VERSION, Ready, ReadyAckFrame, encode
from .._settings import HubLimits
from .._statistics import Counters
from ..log._base import PROGRESS, Event, EventLog, Job
from ..log._bells import Bell

logger: Final = logging.getLogger("towline.server")

NO_LONGER_KEPT: Final = "the job is no longer kept"

_BATCH: Final = 64
_MERGED_BATCH: Final = 1024  # events read at once to merge their progress
_SWEEP_EVERY: Final = 1.0  # seconds, at most
_SWEEPS: Final = 5  # in each of the times that a watcher may have


class Advice(NamedTuple):
    """When a client should come back: after `retry_in` seconds and a random part of `spread` seconds."""

    retry_in: float
    spread: float

    def reason(self) -> str:
        """Return the advice as the reason of a close 1012 or 1013."""
        return json.dumps({"retry_in": round(self.retry_in, 1), "spread": round(self.spread, 1)})

    def draw(self) -> float:
        """Return one client's own moment, in seconds."""
        return random.uniform(self.retry_in, self.retry_in + self.spread)


_LOG_DOWN: Final = Advice(2.0, 2.0)


class Ending(NamedTuple):
    """Why the hub ends a watcher: a close code of the wire, and a reason or when to come back."""

    code: int
    reason: str | Advice


class PeerGone(Exception):
    """The connection ended while something was sent."""


class Watcher(ABC):
    """Delivers a job's log. `close` may be called by the hub at any time.

    `silence` is how many seconds pass without an event before a sign of life is sent.
    """

    def __init__(
        self, job: Job, log: EventLog, limits: HubLimits, counters: Counters, now: Callable[[], int], silence: float
    ) -> None:
        self._job = job
        self._log = log
        self._limits = limits
        self._counters = counters
        self._now = now
        self._silence = silence
        self._bell: Bell
        self._scope = anyio.CancelScope()
        self._ending: Ending | None = None
        self._ready: Ready | None = None
        self._acknowledged = False
        self._sent = 0
        self._exact_to = job.seq  # the last event of the replay, in which nothing is merged
        self._merging = False
        self._sign_due = False
        # Where it is, for the sweep: in which write, in which wait for more.
        self._writing = False
        self._writes = 0
        self._waiting = False
        self._waits = 0
        self._last_look = (False, 0, False, 0)
        self._stuck_for = self._behind_for = self._quiet_for = 0.0

    def close(self, code: int, reason: str | Advice = "") -> None:
        """End the connection for this reason; the first call counts."""
        if self._ending is None:
            self._ending = Ending(code, reason)
        self._scope.cancel()

    def look(self, seconds: float) -> None:
        """Act on how long the watcher has been where it is; the last look was `seconds` ago."""
        now = (self._writing, self._writes, self._waiting, self._waits)
        was, self._last_look = self._last_look, now
        self._stuck_for = self._stuck_for + seconds if self._writing and was[:2] == now[:2] else 0
        same_wait = was[3] == now[3]
        self._quiet_for = self._quiet_for + seconds if self._waiting and was[2] and same_wait else 0
        is_behind = not self._waiting and not was[2] and same_wait and self._sent >= self._exact_to
        self._behind_for = self._behind_for + seconds if is_behind else 0
        if self._stuck_for >= self._limits.send_wait:
            logger.info("job %s: a watcher took nothing for %g s", self._job.id, self._limits.send_wait)
            self.close(1013, "too slow; what was missed is kept")
        elif self._behind_for >= self._limits.behind and not self._merging:
            logger.info("job %s: a watcher is behind and gets merged progress", self._job.id)
            self._merging = True
        elif self._quiet_for >= self._silence:
            self._quiet_for = 0
            self._sign_due = True
            self._bell.ring()

    # --- what a kind of connection does ------------------------------------------------------------------------

    @abstractmethod
    async def _listen(self, bell: Bell) -> None:
        """Read what the client sends. When it is gone, cancel the scope."""

    @abstractmethod
    async def _begin(self, bell: Bell) -> None:
        """Do what precedes the delivery; afterwards `_ready` holds the client's cursor, if it gave one in time."""

    @abstractmethod
    async def _write(self, text: str, event: Event | None) -> None:
        """Send one frame, which is that of `event` or of none. Raises `PeerGone`."""

    @abstractmethod
    async def _write_sign(self) -> None:
        """Send a sign of life. Raises `PeerGone`."""

    # --- what all of them share --------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Deliver up to the end, which `_ending` then names; it is None if the client has gone."""
        with self._scope, self._log.subscribe(self._job.id) as bell:
            self._bell = bell
            self._waiting = True
            try:
                # Delivering is a task of its own, because it wakes for each event, and this one lies below all that the
                # server and the framework have called to get here: each wake passes through all of it.
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._deliver, bell)
                    await self._listen(bell)
            except* PeerGone:
                pass
            except* HubStorageError as failures:
                self._counters.log_failures += 1
                logger.warning("job %s: a watcher is sent away: %s", self._job.id, failures.exceptions[0])
                self.close(1013, _LOG_DOWN)

    async def _deliver(self, bell: Bell) -> None:
        """Deliver until the scope is cancelled."""
        await self._begin(bell)
        self._waiting = False
        while True:
            if (ready := self._take_ready()) is not None:
                await self._acknowledge(ready)
            merging = self._merging and self._sent >= self._exact_to
            limit = _MERGED_BATCH if merging else _BATCH
            events = await self._log.read(self._job.id, self._sent, limit)
            for event in _merged(events) if merging else events:
                await self._send(self._write(event.text, event))
                self._sent = event.seq
                if event.terminal:
                    self.close(1000, "the job has ended")
                    return
                if self._ready is not None:
                    break
            caught_up = not events or (len(events) < limit and not bell.rung)
            if caught_up and self._ready is None:
                self._merging = False
                self._waits += 1
                self._waiting = True
                await bell.wait_ring()
                self._waiting = False
                if self._sign_due:
                    # Not every server pings by itself: only what is sent finds out that a peer is gone.
                    self._sign_due = False
                    await self._send(self._write_sign())

    def _take_ready(self) -> Ready | None:
        ready, self._ready = self._ready, None
        return ready

    async def _acknowledge(self, ready: Ready) -> None:
        """Answer `ready`: a client that sends it, the first time or again, is served from the cursor in it.

        Who was served before it spoke has all of that, and is served on from there.
        """
        job = await self._log.job(self._job.id)
        if not isinstance(job, Job):
            self.close(1001, NO_LONGER_KEPT)
            return
        # A cursor beyond the log belongs to another log, even if its epoch is the same.
        known = ready.epoch == job.epoch and ready.seq is not None and ready.seq <= job.seq
        cursor = ready.seq if known and ready.seq is not None else 0
        self._sent = cursor if self._acknowledged else max(cursor, self._sent)
        self._acknowledged = True
        self._exact_to = job.seq
        acknowledgement = ReadyAckFrame(
            job_id=job.id,
            pipeline=job.pipeline,
            timestamp=self._now(),
            version=VERSION,
            epoch=job.epoch,
            from_=self._sent + 1,
            to=job.seq,
        )
        await self._send(self._write(encode(acknowledgement).decode(), None))
        if self._sent == job.seq and not job.running:
            self.close(1000, "the job has ended")

    async def _send(self, writing: Awaitable[None], *, frames: int = 1) -> None:
        self._writing = True
        await writing
        self._writing = False
        self._writes += 1
        self._counters.frames_sent += frames


def _merged(events: Sequence[Event]) -> Iterator[Event]:
    """Give of each run of progress the last event, which then names the first; every other event as it is."""
    first: int | None = None
    for place, event in enumerate(events, 1):
        first = event.seq if first is None else first
        if event.type == PROGRESS and place < len(events) and events[place].type == PROGRESS:
            continue
        yield event if first == event.seq else replace(event, first=first)
        first = None


async def sweep(watchers: Mapping[str, Iterable[Watcher]], limits: HubLimits) -> None:
    """Look at all watchers, by job, again and again."""
    every = min(_SWEEP_EVERY, *(wait / _SWEEPS for wait in (limits.send_wait, limits.behind)))
    every = min(every, *(silence / _SWEEPS for silence in (limits.heartbeat, limits.comment_every)))
    looked = anyio.current_time()
    while True:
        await anyio.sleep(every)
        now = anyio.current_time()
        for of_job in tuple(watchers.values()):
            for watcher in tuple(of_job):
                try:
                    watcher.look(now - looked)
                except Exception:  # of one watcher: it must not end the hub
                    logger.exception("a watcher cannot be looked at")
                    watcher.close(1011, "an error of the hub")
        looked = now
