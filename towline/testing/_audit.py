"""Checks that the updates of one job are complete, in order, without repeats, and have one end.

The server's own log is the reference. Merged progress counts as the range it covers. Events that a re-sync reports as
skipped count as skipped; heartbeats are not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from .._updates import AnyUpdate, JobCancelled, JobComplete, JobFailed, JobStarted, Progress, Resynced
from .memory._scripted_job import LoggedEvent

_TYPES: Final[dict[type, str]] = {
    JobStarted: "job_started",
    Progress: "job_progress",
    JobComplete: "job_complete",
    JobFailed: "error",
    JobCancelled: "job_canceled",
}
_ENDS: Final = (JobComplete, JobFailed, JobCancelled)


def audit_updates(
    updates: Iterable[AnyUpdate], log: Sequence[LoggedEvent] | None = None, *, ended: bool = True
) -> list[str]:
    """Compare a follower's updates for a whole job with the server's log; returns the problems found.

    Without a log only the order of the updates is checked. Use `ended=False` for a follower that got `Exhausted` before
    the end: then no end is required.
    """
    auditor = _Auditor(log)
    for update in updates:
        auditor.take(update)
    auditor.finish(ended)
    return auditor.findings


class _Auditor:
    def __init__(self, log: Sequence[LoggedEvent] | None) -> None:
        self.findings: list[str] = []
        events = log or ()
        self._blind = log is None
        self._types = {(event.epoch, event.seq): event.type for event in events}
        self._hidden = {(event.epoch, event.seq) for event in events if not event.shown}
        self._end = events[-1].type if events and events[-1].terminal else None
        self._epochs: list[str] = []
        self._applied: int | None = 0  # None: the follower's position is unknown, because the server keeps no state
        self._count = 0
        self._ends: list[str] = []
        # The event up to which a snapshot has just been reported: the snapshot's own progress stands there too.
        self._snapshot_at: tuple[str | None, int] | None = None

    def take(self, update: AnyUpdate) -> None:
        if self._ends:
            self._find(f"{_name(update)} after the end")
        if update.epoch is not None and update.epoch not in self._epochs[-1:]:
            if update.epoch in self._epochs:
                self._find(f"{_name(update)} of the former epoch {update.epoch!r}")
            self._epochs.append(update.epoch)
            self._applied, self._count = 0, 0
        shown, self._snapshot_at = self._snapshot_at, None
        if isinstance(update, Resynced):
            self._take_resync(update)
        elif isinstance(update, Progress) and shown is not None and (update.epoch, _first(update)) == shown:
            # For a slow consumer, the progress of the events after the snapshot may be merged into it.
            self._applied = update.seq
        elif update.seq is not None and type(update) in _TYPES:
            self._take_event(update, update.seq)
        if isinstance(update, Progress) and update.processed_count is not None:
            if update.processed_count < self._count:
                self._find(f"{_name(update)} shows {update.processed_count} after {self._count}")
            self._count = max(self._count, update.processed_count)
        if isinstance(update, _ENDS):
            self._ends.append(_TYPES[type(update)])

    def _take_resync(self, update: Resynced) -> None:
        if update.kind == "snapshot" and update.missed and update.to_seq is not None:
            self._snapshot_at = update.epoch, update.to_seq
        if update.kind == "unavailable":
            self._applied = None
        elif update.missed and update.to_seq is not None and self._applied is not None:
            applied = self._seen_before(update.epoch, update.to_seq - update.missed + 1)
            if applied + update.missed != update.to_seq:
                self._find(f"{update.missed} missed up to {update.to_seq}, but {applied} were applied")
            self._applied = update.to_seq

    def _take_event(self, update: AnyUpdate, seq: int) -> None:
        first = _first(update) or seq
        if self._applied is not None:
            applied = self._seen_before(update.epoch, first)
            if first != applied + 1:
                self._find(f"{_name(update)} {first} to {seq} follows {applied}")
        self._applied = seq
        logged = self._types.get((update.epoch or "", seq))
        if not self._blind and logged != _TYPES[type(update)]:
            self._find(f"{_name(update)} at {seq}, where the server's log has {logged}")

    def _seen_before(self, epoch: str | None, seq: int) -> int:
        """The follower's position before event `seq`, including the heartbeats directly before it."""
        applied = self._applied or 0
        while applied + 1 < seq and (epoch, applied + 1) in self._hidden:
            applied += 1
        return applied

    def finish(self, ended: bool) -> None:
        if len(self._ends) > 1:
            self._find(f"{len(self._ends)} ends: {', '.join(self._ends)}")
        if ended and not self._ends:
            self._find("no end")
        if not self._blind and self._ends and self._ends[0] != self._end:
            self._find(f"the end is {self._ends[0]}, the server's log ends with {self._end}")

    def _find(self, what: str) -> None:
        self.findings.append(what)


def _first(update: AnyUpdate) -> int | None:
    """The first event that an update stands for."""
    return update.first_seq if isinstance(update, Progress) and update.first_seq is not None else update.seq


def _name(update: AnyUpdate) -> str:
    return type(update).__name__
