"""The updates that wait for one consumer: joined if they are many, and what is known of those that were dropped."""

from __future__ import annotations

from typing import Final

import anyio
from msgspec.structs import replace

from ..._facts import Mark, Numbered, Position
from ..._updates import AnyUpdate, Outcome, Output, Progress, Resynced, merge_runs
from .joining import joined, size_of

#: How many updates wait for a consumer before they are joined.
INBOX_LIMIT: Final = 256


class _Lost:
    """The range of updates that an inbox has dropped since an overflow, until a `Resynced` reports it."""

    __slots__ = ("epoch", "first", "last", "progress", "resync_requested")

    def __init__(self) -> None:
        #: Whether a re-sync was requested, which reports it.
        self.resync_requested = False
        self.epoch: str | None = None
        self.first: int | None = None
        self.last: int | None = None
        #: The newest progress that was dropped: it follows the report, which shows nothing of the job.
        self.progress: Progress | None = None

    def add(self, update: AnyUpdate) -> None:
        first = update.seq
        if isinstance(update, Progress):
            first = update.first_seq
            self.progress = update
        elif isinstance(update, Resynced):
            first = update.from_seq
        last = update.to_seq if isinstance(update, Resynced) else update.seq
        if first is None or last is None or update.epoch is None:
            return
        if self.epoch != update.epoch:
            self.epoch, self.first = update.epoch, first
        self.last = last

    def reported_by(self, resynced: Resynced) -> list[AnyUpdate]:
        """Extend `resynced` by the updates lost here; the newest progress among them follows it."""
        progress = self._newest_progress(resynced.epoch)
        if self.first is None or self.last is None or resynced.missed is None:
            return [replace(resynced, missed=None), *progress]
        missed = self.last - self.first + 1 + resynced.missed
        first = self.first if self.epoch == resynced.epoch else resynced.from_seq
        return [replace(resynced, from_seq=first, missed=missed), *progress]

    def reported_before(self, end: Outcome) -> list[AnyUpdate]:
        """The report of lost updates when the end leaves no time for a re-sync."""
        missed = None if self.first is None or self.last is None else self.last - self.first + 1
        report = Resynced(
            job=end.job,
            epoch=self.epoch,
            kind="end",
            from_seq=self.first,
            to_seq=self.last,
            missed=missed,
        )
        return [report, *self._newest_progress(self.epoch)]

    def _newest_progress(self, epoch: str | None) -> list[AnyUpdate]:
        """The newest progress lost, without its place, which the report covers. A new log counts from 1."""
        update = self.progress
        if update is None or (epoch is not None and update.epoch not in (None, epoch)):
            return []
        return [replace(update, seq=None, epoch=None, mark=None, first_seq=None)]


class Inbox:
    """The updates waiting for one consumer, and its position. `max_waiting` is in bytes of output."""

    def __init__(self, done: Position | None, max_waiting: int) -> None:
        #: A list, because few updates wait, and an empty deque takes 0.7 KiB.
        self.waiting: list[AnyUpdate] = []
        #: The bytes of output among them.
        self.size = 0
        #: Whether too much is waiting.
        self.is_full = False
        #: The update the consumer is processing, and the last finished one that had a position in the log.
        self.in_hand: AnyUpdate | None = None
        self.done: AnyUpdate | Position | None = done
        self.lost: _Lost | None = None
        #: Who read it last, as `caller` says; None before the first read.
        self.reader: object = None
        #: A reader that was found to have ended, and when.
        self.ended: tuple[object, float] | None = None
        self.wake: anyio.Event | None = None
        self._max_waiting = max_waiting

    def position(self, applied: Position | None) -> Position | None:
        """This consumer's position: `applied`, or less while updates are waiting or in hand."""
        if not self.waiting and self.in_hand is None and self.lost is None:
            return applied
        done = self.done
        return done if done is None or isinstance(done, Numbered | Mark) else position_of(done)

    def put(self, updates: list[AnyUpdate]) -> None:
        """Add updates. If too many wait, merge runs of progress; `is_full` says whether there are still too many."""
        if self.lost is not None:
            updates = self._after_loss(self.lost, updates)
        waiting = self.waiting
        excess = len(waiting) + len(updates) - INBOX_LIMIT
        if excess > 0:
            # A run of progress goes into the newest update alone; the older ones stay as they are.
            waiting.extend(updates[:-excess])
            waiting.extend(merge_runs((waiting.pop(), *updates[-excess:])))
        else:
            waiting.extend(updates)
        if Output in map(type, updates):
            self.size += sum(map(size_of, updates))
        if (excess > 0 or self.size) and self._has_too_much():
            self.waiting = joined(waiting)
            self.size = sum(map(size_of, self.waiting))
            self.is_full = self._has_too_much()
        self.look()

    def took(self, update: AnyUpdate) -> bool:
        """Note that the consumer took an update; returns whether this made room."""
        self.size -= size_of(update)
        was_full, self.is_full = self.is_full, self.is_full and self._has_too_much()
        return was_full and not self.is_full

    def _has_too_much(self) -> bool:
        return len(self.waiting) > INBOX_LIMIT or self.size > self._max_waiting

    def drop(self) -> None:
        """Drop what is waiting; the next `Resynced` or the end reports it."""
        self.lost = self.lost or _Lost()
        for update in self.waiting:
            self.lost.add(update)
        self.waiting.clear()
        self.size, self.is_full = 0, False

    def _after_loss(self, lost: _Lost, updates: list[AnyUpdate]) -> list[AnyUpdate]:
        """What remains to be added while updates are lost: from the first `Resynced` on, with a report in it."""
        for place, update in enumerate(updates):
            if isinstance(update, Resynced):
                self.lost = None
                return [*lost.reported_by(update), *updates[place + 1 :]]
            lost.add(update)
        return []

    def put_end(self, end: Outcome) -> None:
        """Add the final update, which always fits."""
        if self.lost is not None:
            self.waiting.extend(self.lost.reported_before(end))
            self.lost = None
        self.waiting.append(end)
        self.look()

    def look(self) -> None:
        """Wake the consumer."""
        if self.wake is not None:
            self.wake.set()
            self.wake = None


def position_of(update: AnyUpdate) -> Position | None:
    """The position that an update carries."""
    if update.mark is not None:
        return Mark(update.mark)
    if update.seq is not None and update.epoch is not None:
        return Numbered(update.seq, update.epoch)
    return None
