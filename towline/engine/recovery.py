"""Brings a follower up to date after a connect: no update lost, none repeated, none out of order.

Sans-IO: frames and states come in, updates and findings go out; there is no clock and no socket. One `Recovery` exists
per job connection and outlives its sockets. It holds the position (how far updates were delivered) and, during a sync,
the frames buffered meanwhile.

There are two kinds of server:

- A server with a log puts `epoch` and `seq` on every frame and state. Then every event has a position: a replay is
  delivered completely, a snapshot says how much it covers, and gaps are noticed.
- A server without a log is followed by snapshots. An end takes precedence over any snapshot, and a smaller count never
  replaces a larger one.

A sync ends with one `Synced`; `release()` then delivers the buffered frames. So the state machine can report
`connected` after the updates that precede it.

This file is long because all rules of a sync (frames, replay, state, end) use the same position and buffer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from .._exceptions import MalformedMessage
from .._updates import AnyUpdate, JobCancelled, JobStarted, Outcome, Progress, Resynced, merge
from ..protocols.wire import (
    Codec,
    ErrorFrame,
    Frame,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    PongFrame,
    ReadyAckFrame,
    UnknownFrame,
)
from .outcomes import outcome_of_frame, outcome_of_state

#: How many frames a sync buffers before it merges progress. Too many frames of other kinds count as a gap.
BUFFER_LIMIT: Final = 1024

#: How many of a job's former logs are remembered.
LOGS_REMEMBERED: Final = 16


class Cursor(NamedTuple):
    """The position up to which updates were delivered: event `seq` of the log `epoch`."""

    epoch: str
    seq: int


class Gap(NamedTuple):
    """A frame does not follow the delivered updates; frames are buffered from here until the next `release`."""

    problem: str


class Synced(NamedTuple):
    """The sync is complete: call `release` after handling it."""


class End(NamedTuple):
    """The job has ended: deliver `before`, then `outcome`."""

    before: tuple[AnyUpdate, ...]
    outcome: Outcome


Finding: TypeAlias = Gap | Synced | End | None
_Plain: TypeAlias = JobStartedFrame | JobProgressFrame | UnknownFrame


class Phase(Enum):
    """How the next frame is handled."""

    HOLDING = "holding"
    """Buffered until a snapshot arrives."""
    REPLAYING = "replaying"
    """Part of a replay: delivered if it comes next."""
    COMPLETE = "complete"
    """The sync is complete but not released: buffered."""
    LIVE = "live"
    """Delivered if it comes next."""


_DELIVERING: Final = (Phase.LIVE, Phase.REPLAYING)


class _Held(NamedTuple):
    """One buffered frame, or several merged: its update (a heartbeat has none) and its position in the log."""

    update: AnyUpdate | None
    epoch: str | None
    first: int
    last: int


class Recovery:
    """Turns the frames and states of one job into updates. Never blocks; `take()` returns the updates to deliver."""

    def __init__(self, job: str, *, codec: Codec | None = None, cursor: Cursor | None = None) -> None:
        self.job = job
        self.codec = codec or Codec()
        self.phase = Phase.HOLDING
        #: The position up to which updates were delivered; None before the first, and if the server keeps no log.
        self.applied = cursor
        #: The largest count shown in this epoch.
        self.shown: int | None = None
        self.duplicates = 0
        self.unknown = 0
        self.foreign = 0
        self._has_shown = cursor is not None
        self._out: list[AnyUpdate] = []
        self._held: list[_Held] = []
        self._pending_resync: Resynced | None = None
        self._held_end: JobState | None = None
        self._replay_to = 0
        # The epochs of former logs: frames and states from these are out of date.
        self._former_epochs: tuple[str, ...] = ()
        # Known from this socket: the epoch of its log, and whether the server has answered `ready`.
        self._socket_epoch: str | None = None
        self._acknowledged = False
        # Whether the server sends frames without a position: then the position of a state says nothing about them.
        self._has_unnumbered = False

    def take(self) -> list[AnyUpdate]:
        """Return the updates to deliver now, in order."""
        out, self._out = self._out, []
        return out

    # --- the course of a sync --------------------------------------------------------------------------------------

    def opened(self) -> Cursor | None:
        """Start buffering for a new socket. Returns the cursor to send in `ready`."""
        self._socket_epoch = None
        self._acknowledged = False
        self._held_end = None
        self._start_holding()
        return self.applied

    def resync(self) -> None:
        """Start a sync on the same socket; frames buffered since a gap stay buffered."""
        if self.phase is Phase.LIVE:
            self._start_holding()

    def _start_holding(self) -> None:
        self.phase = Phase.HOLDING
        self._pending_resync = None
        self._held.clear()

    @property
    def awaiting_ack(self) -> bool:
        """Whether the server may still answer `ready` with a replay."""
        return self.phase is Phase.HOLDING and not self._acknowledged

    @property
    def replaying(self) -> bool:
        """Whether a replay is running: then only an end in a state counts."""
        return self.phase is Phase.REPLAYING

    def give_up_replay(self) -> None:
        """Abandon a replay that has stopped: the next state decides."""
        if self.phase is Phase.REPLAYING:
            self._start_holding()

    def held_end(self) -> End | None:
        """The end from a state that arrived during a replay, for a replay that does not reach it. Returned once."""
        state, self._held_end = self._held_end, None
        return None if state is None else self._end(outcome_of_state(self.job, state, self.codec))

    def release(self) -> Finding:
        """Handle `Synced`: deliver buffered frames, and later ones as they arrive. A `Gap` starts a new sync."""
        self.phase = Phase.LIVE
        if self._pending_resync is not None:
            self._emit(self._pending_resync)
            self._pending_resync = None
        held, self._held = self._held, []
        for place, item in enumerate(held):
            if self._joins(item):
                self._apply(item)
            elif self._is_old(item):
                self.duplicates += 1
            else:
                self.phase = Phase.HOLDING
                self._held = held[place:]
                return self._gap_before(item)
        return None

    # --- frames ----------------------------------------------------------------------------------------------------

    def frame(self, frame: Frame) -> Finding:
        """Process one frame."""
        if type(frame) is JobProgressFrame and frame.job_id == self.job and self.phase in _DELIVERING:
            applied, epoch, seq = self.applied, frame.epoch, frame.seq
            if applied is not None and epoch == applied.epoch == self._socket_epoch and seq == applied.seq + 1:
                # The usual case: the next event in order. The code below would give the same result, more slowly.
                self.applied = Cursor(applied.epoch, seq)
                if not frame.payload.keep_alive:
                    self._emit(self._progress_of(frame))
                if self.phase is Phase.REPLAYING and seq >= self._replay_to:
                    return self._replayed()
                return None
        if isinstance(frame, ReadyAckFrame):
            return self._ready_ack(frame)
        if isinstance(frame, (PingFrame, PongFrame)):
            return None
        if frame.job_id and frame.job_id != self.job:
            self.foreign += 1
            return None
        if isinstance(frame, _TERMINAL):
            return self._end(outcome_of_frame(self.job, frame, self.codec))
        return self._non_terminal(self._item_of(frame))

    def malformed(self, error: MalformedMessage) -> Finding:
        """Process an unreadable frame: it has nothing to show, but it has a position in the log."""
        if error.epoch is None or error.seq is None or (error.job_id and error.job_id != self.job):
            return None
        return self._non_terminal(_Held(None, error.epoch, error.seq, error.seq))

    def _non_terminal(self, item: _Held) -> Finding:
        """Process a frame that does not end the job: buffer it, deliver it, drop a duplicate, or report a gap."""
        if item.epoch is not None and item.epoch in self._former_epochs and self._socket_epoch is not None:
            self.duplicates += 1
            return None
        if item.epoch is not None and item.epoch != self._socket_epoch:
            if self._socket_epoch is not None and self.phase is Phase.HOLDING:
                # The log restarted while frames of the old one were buffered: these no longer fit.
                self._held.clear()
            self._set_socket_epoch(item.epoch)
        if self.phase is Phase.HOLDING or self.phase is Phase.COMPLETE:
            return self._hold(item)
        if self._joins(item):
            self._apply(item)
            if self.phase is Phase.REPLAYING and item.last >= self._replay_to:
                return self._replayed()
            return None
        if self._is_old(item):
            self.duplicates += 1
            return None
        # An interrupted replay is not a second gap: the state being fetched meanwhile decides.
        gap = None if self.phase is Phase.REPLAYING else self._gap_before(item)
        self._start_holding()
        self._hold(item)
        return gap

    def _set_socket_epoch(self, epoch: str) -> None:
        """Remember that this socket uses the log `epoch`, so it is the current one."""
        self._socket_epoch = epoch
        self._former_epochs = tuple(over for over in self._former_epochs if over != epoch)

    def _move_to(self, cursor: Cursor) -> None:
        """Move the position, possibly to another log."""
        if self.applied is None or self.applied.epoch != cursor.epoch:
            if self.applied is not None:
                self._former_epochs = (*self._former_epochs, self.applied.epoch)[-LOGS_REMEMBERED:]
            self.shown = None
        self.applied = cursor

    def _hold(self, item: _Held) -> Finding:
        if self._is_old(item):
            self.duplicates += 1
            return None
        self._held.append(item)
        if len(self._held) <= BUFFER_LIMIT:
            return None
        self._held = _compacted(self._held)
        if len(self._held) <= BUFFER_LIMIT:
            return None
        self._held.clear()
        return Gap(f"more than {BUFFER_LIMIT} updates arrived during one sync")

    def _joins(self, item: _Held) -> bool:
        """Whether the item is the next to be delivered."""
        if item.epoch is None:
            return not self._is_old(item)
        if self.applied is None:
            # The server's states have no position in its log: start the log at this first frame.
            return self.phase is Phase.LIVE
        return self.applied.epoch == item.epoch and item.first == self.applied.seq + 1

    def _is_old(self, item: _Held) -> bool:
        """Whether the item was delivered before, or is older than what was shown."""
        if item.epoch is None:
            count = item.update.processed_count if isinstance(item.update, Progress) else None
            return count is not None and self.shown is not None and count < self.shown
        return self.applied is not None and self.applied.epoch == item.epoch and item.last <= self.applied.seq

    def _gap_before(self, item: _Held) -> Gap:
        if self.applied is None or self.applied.epoch != item.epoch:
            return Gap(f"the server's log restarted, at event {item.first}")
        return Gap(f"expected event {self.applied.seq + 1}, got {item.first}")

    def _apply(self, item: _Held) -> None:
        if item.epoch is not None:
            self._move_to(Cursor(item.epoch, item.last))
        if item.update is not None:
            self._emit(item.update)

    def _emit(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress) and update.processed_count is not None:
            if self.shown is not None and update.processed_count < self.shown:
                # It has a position in the log, so it is delivered; but the count never decreases.
                update = replace(update, processed_count=self.shown)
            self.shown = update.processed_count
        self._has_shown = True
        self._out.append(update)

    def _item_of(self, frame: _Plain) -> _Held:
        update = self._update_of(frame)
        if frame.epoch is None:
            self._has_unnumbered = True
        if frame.seq is None or frame.epoch is None:
            return _Held(update, None, 0, 0)
        return _Held(update, frame.epoch, frame.seq, frame.seq)

    def _update_of(self, frame: _Plain) -> AnyUpdate | None:
        """The update of a frame; None for a heartbeat or a frame of an unknown type."""
        if isinstance(frame, UnknownFrame):
            self.unknown += 1
            return None
        if isinstance(frame, JobStartedFrame):
            return JobStarted(
                job=self.job,
                pipeline=frame.pipeline,
                timestamp=frame.timestamp,
                seq=frame.seq,
                epoch=frame.epoch,
                total_count=frame.payload.total_count,
                estimated_duration=frame.payload.estimated_duration,
            )
        return None if frame.payload.keep_alive else self._progress_of(frame)

    def _progress_of(self, frame: JobProgressFrame) -> Progress:
        payload = frame.payload
        return Progress(
            job=self.job,
            pipeline=frame.pipeline,
            timestamp=frame.timestamp,
            seq=frame.seq,
            epoch=frame.epoch,
            fraction=payload.progress,
            status=payload.status,
            processed_count=payload.processed_count,
            current_item=payload.current_item,
            first_seq=frame.seq,
        )

    # --- replay ----------------------------------------------------------------------------------------------------

    def _ready_ack(self, ack: ReadyAckFrame) -> Finding:
        self._acknowledged = True
        if self.phase is not Phase.HOLDING or ack.epoch is None or ack.from_ is None or ack.to is None:
            return None
        self._set_socket_epoch(ack.epoch)
        applied = self.applied if self.applied is not None and self.applied.epoch == ack.epoch else Cursor(ack.epoch, 0)
        early = self._sent_before_ready(applied, ack.from_)
        if ack.from_ != (early[-1].last if early else applied.seq) + 1:
            # The log no longer goes back that far: the state decides.
            return None
        self._move_to(applied)
        resynced = Resynced(
            job=self.job, epoch=ack.epoch, kind="replay", from_seq=applied.seq + 1, to_seq=ack.to, missed=0
        )
        if ack.to >= ack.from_:
            if self._has_shown:
                self._emit(resynced)
            for item in early:
                self._apply(item)
            self._held = [item for item in self._held if not self._is_old(item)]
            self.phase = Phase.REPLAYING
            self._replay_to = ack.to
            return None
        self._pending_resync = resynced if self._has_shown else None
        self.phase = Phase.COMPLETE
        return Synced()

    def _sent_before_ready(self, applied: Cursor, before: int) -> list[_Held]:
        """Frames the server sent before our `ready` that continue the log and will not be replayed."""
        early: list[_Held] = []
        reached = applied.seq
        for item in self._held:
            if item.epoch == applied.epoch and item.first == reached + 1 and item.last < before:
                early.append(item)
                reached = item.last
        return early

    def _replayed(self) -> Finding:
        held = self.held_end()
        if held is not None:
            return held
        self.phase = Phase.COMPLETE
        return Synced()

    # --- states ----------------------------------------------------------------------------------------------------

    def state(self, state: JobState) -> Finding:
        """Process the state fetched for a sync. During a replay, or while one may still start, an end waits for it."""
        if state.ended:
            if self._is_of_another_log(state):
                return _OTHER_LOG
            replay_may_come = self.awaiting_ack and state.seq is not None and state.epoch is not None
            if self.phase is Phase.REPLAYING or replay_may_come:
                self._held_end = state
                return None
            return self._end(outcome_of_state(self.job, state, self.codec))
        if self.phase is not Phase.HOLDING:
            return None
        if state.epoch is None or state.seq is None or self._has_unnumbered:
            return self._unnumbered_state(state)
        return self._numbered_state(state, Cursor(state.epoch, state.seq))

    def _is_of_another_log(self, state: JobState) -> bool:
        """Whether the state belongs to another log than this socket's; then it is out of date."""
        if state.epoch is None:
            return False
        return state.epoch in self._former_epochs or (
            self._socket_epoch is not None and self._socket_epoch != state.epoch
        )

    def _numbered_state(self, state: JobState, reported: Cursor) -> Finding:
        if self._is_of_another_log(state):
            return _OTHER_LOG
        same_log = self.applied is not None and self.applied.epoch == reported.epoch
        applied = self.applied if self.applied is not None and same_log else Cursor(reported.epoch, 0)
        refused = reported.seq < applied.seq
        held = [item for item in self._held if item.last > applied.seq]
        if held and held[0].first == applied.seq + 1:
            # The buffered frames continue the log without the snapshot, so nothing is left out.
            missed = 0
        elif refused:
            return Gap(f"the state is at event {reported.seq}, behind event {applied.seq}, which was delivered already")
        else:
            missed = reported.seq - applied.seq
            held = [item for item in held if item.last > reported.seq]
            if held and held[0].first > reported.seq + 1:
                return Gap(f"the state is at event {reported.seq}, but the next event received is {held[0].first}")
            held = [_without(item, reported.seq) for item in held]
            applied = reported
        first = 1 + (self.applied.seq if self.applied is not None and same_log else 0)
        self._move_to(applied)
        self._held = held
        return self._synced(state, first=first, last=max(reported.seq, applied.seq), missed=missed, refused=refused)

    def _unnumbered_state(self, state: JobState) -> Finding:
        count = state.processed_count
        refused = count is not None and self.shown is not None and count < self.shown
        floor = self.shown if refused else count
        # A frame keeps its position in the log even if it has nothing left to show.
        self._held = [
            item._replace(update=None) if _is_covered(item, floor) else item
            for item in self._held
            if item.epoch is not None or not _is_covered(item, floor)
        ]
        self._continue_from_held()
        return self._synced(state, first=None, last=None, missed=None, refused=refused)

    def _synced(
        self, state: JobState, *, first: int | None, last: int | None, missed: int | None, refused: bool
    ) -> Synced:
        count = state.processed_count
        # A snapshot that the buffered frames make unnecessary must not be shown ahead of them.
        if count is not None and missed != 0:
            self.shown = count if self.shown is None else max(count, self.shown)
        self._pending_resync = Resynced(
            job=self.job,
            pipeline=state.pipeline,
            timestamp=state.last_update or 0,
            seq=last,
            epoch=state.epoch,
            kind="snapshot",
            from_seq=first,
            to_seq=last,
            missed=missed,
            refused=refused,
            first=not self._has_shown,
            processed_count=self.shown if missed != 0 else None,
            total_count=state.total_count,
            current_item=state.current_item,
        )
        self.phase = Phase.COMPLETE
        return Synced()

    def is_ahead(self, state: JobState) -> bool:
        """Whether the state goes beyond what was delivered."""
        applied, count = self.applied, state.processed_count
        if applied is not None and state.seq is not None and state.epoch == applied.epoch and not self._has_unnumbered:
            return state.seq > applied.seq
        return count is not None and self.shown is not None and count > self.shown

    def unavailable(self) -> Finding:
        """Continue with the socket's frames alone: the server keeps no state of this job."""
        if self.phase is not Phase.HOLDING:
            return None
        self._pending_resync = Resynced(job=self.job, kind="unavailable", first=not self._has_shown)
        self._continue_from_held()
        self.phase = Phase.COMPLETE
        return Synced()

    def _continue_from_held(self) -> None:
        """Continue at the first buffered event, because events missed before it cannot be known."""
        first = next((item for item in self._held if item.epoch is not None and not self._is_old(item)), None)
        if first is not None and first.epoch is not None and not self._joins(first):
            self._move_to(Cursor(first.epoch, first.first - 1))

    def look(self, state: JobState) -> Finding:
        """Process a state fetched because the socket was silent. If the job has advanced, `take()` returns updates."""
        if state.ended:
            return self._end(outcome_of_state(self.job, state, self.codec))
        if self.phase is not Phase.LIVE:
            return None
        count, applied = state.processed_count, self.applied
        if state.epoch is None or state.seq is None or self._has_unnumbered:
            moved = count is not None and count > (self.shown or 0)
            first = missed = None
        elif applied is not None and applied.epoch != state.epoch:
            return Gap("the state belongs to another log than the delivered updates")
        else:
            first = 1 + (applied.seq if applied is not None else 0)
            missed = state.seq + 1 - first
            moved = missed > 0
        if moved:
            self.phase = Phase.HOLDING
            self._synced(state, first=first, last=state.seq if missed else None, missed=missed, refused=False)
            if missed and state.epoch is not None and state.seq is not None:
                self.applied = Cursor(state.epoch, state.seq)
            return self.release()
        return None

    # --- the end ---------------------------------------------------------------------------------------------------

    def assume_cancelled(self) -> End:
        """The end of a job that the server agreed to cancel and then no longer knew."""
        return self._end(JobCancelled(job=self.job, assumed=True))

    def _end(self, outcome: Outcome) -> End:
        """Deliver the buffered updates that fit, then a report of missed ones, then the end."""
        self._held_end = None
        if self._pending_resync is not None:
            self._emit(self._pending_resync)
            self._pending_resync = None
        if self.phase is Phase.HOLDING and self.applied is None and self._held and self._held[0].epoch is not None:
            # Nothing was delivered yet, so the buffered frames start the log.
            self._move_to(Cursor(self._held[0].epoch, 0))
        self.phase = Phase.LIVE
        for item in self._held:
            if self._joins(item):
                self._apply(item)
        self._held.clear()
        before = self.take()
        if outcome.seq is not None and outcome.epoch is not None:
            same_log = self.applied is not None and self.applied.epoch == outcome.epoch
            applied = self.applied.seq if self.applied is not None and same_log else 0
            if outcome.seq > applied + 1:
                before.append(
                    Resynced(
                        job=self.job,
                        epoch=outcome.epoch,
                        kind="end",
                        from_seq=applied + 1,
                        to_seq=outcome.seq - 1,
                        missed=outcome.seq - 1 - applied,
                    )
                )
            self._move_to(Cursor(outcome.epoch, max(outcome.seq, applied)))
        return End(tuple(before), outcome)


_TERMINAL: Final = (JobCompleteFrame, ErrorFrame, JobCanceledFrame)
_OTHER_LOG: Final = Gap("the state belongs to another log than this socket's")


def _is_covered(item: _Held, floor: int | None) -> bool:
    """Whether a snapshot with the count `floor` already includes the item."""
    count = item.update.processed_count if isinstance(item.update, Progress) else None
    return floor is not None and count is not None and count <= floor


def _without(item: _Held, seq: int) -> _Held:
    """The item without its events up to `seq`, which a snapshot covers; an item may be several merged."""
    if item.first > seq:
        return item
    update = item.update
    if isinstance(update, Progress):
        covered = seq + 1 - item.first
        update = replace(update, first_seq=seq + 1, merged=max(1, update.merged - covered))
    return item._replace(update=update, first=seq + 1)


def _compacted(held: list[_Held]) -> list[_Held]:
    """The same items, with consecutive progress merged."""
    compacted: list[_Held] = []
    for item in held:
        merged = _merged(compacted[-1], item) if compacted else None
        if merged is None:
            compacted.append(item)
        else:
            compacted[-1] = merged
    return compacted


def _merged(older: _Held, newer: _Held) -> _Held | None:
    if older.epoch != newer.epoch or (older.epoch is not None and newer.first != older.last + 1):
        return None
    if older.update is None or newer.update is None:
        # A heartbeat has nothing to show; the merged item keeps its position.
        update = newer.update if older.update is None else older.update
    elif isinstance(older.update, Progress) and isinstance(newer.update, Progress):
        update = merge(older.update, newer.update)
        if update is None:
            return None
    else:
        return None
    return _Held(update, older.epoch, older.first, newer.last)
