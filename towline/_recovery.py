"""How a follower comes back into step: nothing lost, nothing twice, nothing backwards.

Sans-IO: frames and states come in, updates and findings go out; no clock, no socket. One `Recovery` lives as long as
the connection to a job and outlives its sockets. It holds the watermark (how far updates were handed on) and, while a
sync is under way, the frames that came meanwhile.

Two kinds of server:

- One that keeps a log puts `epoch` and `seq` on every frame and state. Then every event has its place: a replay is
  handed on whole, a snapshot says how much it covers, a hole is seen.
- One that does not is followed by snapshots: an end wins over any snapshot, a smaller count never replaces a larger.

A sync ends in `Synced` once, and what was held back comes with `release()`: so the machine can tell of `connected`
after the updates that belong before it.

Long, because the rules of one sync (frames, replay, state, end) all read and write the same watermark and buffer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from ._exceptions import MalformedMessage
from ._outcomes import outcome_of_frame, outcome_of_state
from ._updates import AnyUpdate, JobCanceled, JobStarted, Outcome, Progress, Resynced, merge
from .transport import (
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

#: How many frames a sync holds back before progress is merged. Frames of other kinds beyond it are a gap.
BUFFER_LIMIT: Final = 1024

#: How many of a job's former logs are known as such.
LOGS_REMEMBERED: Final = 16


class Cursor(NamedTuple):
    """How far updates were handed on: event `seq` of the log `epoch`."""

    epoch: str
    seq: int


class Gap(NamedTuple):
    """What came does not join what was handed on; frames are held back from here until the next `release`."""

    problem: str


class Synced(NamedTuple):
    """The sync is complete: call `release` when it is acted upon."""


class End(NamedTuple):
    """The job has ended: hand on `before`, then `outcome`."""

    before: tuple[AnyUpdate, ...]
    outcome: Outcome


Finding: TypeAlias = Gap | Synced | End | None
_Plain: TypeAlias = JobStartedFrame | JobProgressFrame | UnknownFrame


class Phase(Enum):
    """What is done with the next frame."""

    HOLDING = "holding"
    """It is held back until a snapshot has come."""
    REPLAYING = "replaying"
    """It is part of a replay, and handed on if it joins."""
    COMPLETE = "complete"
    """The sync is complete and not yet released: it is held back."""
    LIVE = "live"
    """It is handed on if it joins."""


_HANDED_ON: Final = (Phase.LIVE, Phase.REPLAYING)


class _Held(NamedTuple):
    """One frame held back, or several merged: what it shows (a heartbeat shows nothing), and its place in the log."""

    update: AnyUpdate | None
    epoch: str | None
    first: int
    last: int


class Recovery:
    """The data path of one job. Every method is synchronous and never blocks; `take()` has what is to be handed on."""

    def __init__(self, job: str, *, codec: Codec | None = None, cursor: Cursor | None = None) -> None:
        self.job = job
        self.codec = codec or Codec()
        self.phase = Phase.HOLDING
        #: How far updates were handed on; None before the first, and where the server keeps no log.
        self.applied = cursor
        #: The largest count shown in this epoch.
        self.shown: int | None = None
        self.duplicates = 0
        self.unknown = 0
        self.foreign = 0
        self._begun = cursor is not None
        self._out: list[AnyUpdate] = []
        self._held: list[_Held] = []
        self._prelude: Resynced | None = None
        self._held_end: JobState | None = None
        self._replay_to = 0
        # The logs that came before the one applied: what speaks of them is out of date.
        self._over: tuple[str, ...] = ()
        # What this socket told: the epoch of its log, and whether it has answered `ready`.
        self._socket_epoch: str | None = None
        self._acknowledged = False
        # Whether the server sends frames without a place in its log: then a state's place says nothing about them.
        self._unplaced = False

    def take(self) -> list[AnyUpdate]:
        """The updates to hand on now, in order."""
        out, self._out = self._out, []
        return out

    # --- the life of a sync ----------------------------------------------------------------------------------------

    def opened(self) -> Cursor | None:
        """A new socket is open: frames are held back. Returns the cursor to say in `ready`."""
        self._socket_epoch = None
        self._acknowledged = False
        self._held_end = None
        self._hold_from_here()
        return self.applied

    def resync(self) -> None:
        """A sync begins on the same socket; what was held back since a gap stays held."""
        if self.phase is Phase.LIVE:
            self._hold_from_here()

    def _hold_from_here(self) -> None:
        self.phase = Phase.HOLDING
        self._prelude = None
        self._held.clear()

    @property
    def awaiting_ack(self) -> bool:
        """Whether the server may still answer `ready` with a replay."""
        return self.phase is Phase.HOLDING and not self._acknowledged

    @property
    def replaying(self) -> bool:
        """Whether a replay is under way: then of a state only an end counts."""
        return self.phase is Phase.REPLAYING

    def give_up_replay(self) -> None:
        """The replay has come to a halt: the next state decides."""
        if self.phase is Phase.REPLAYING:
            self._hold_from_here()

    def held_end(self) -> End | None:
        """The end that a state told during a replay, for when the replay will not come to it. Given once."""
        state, self._held_end = self._held_end, None
        return None if state is None else self._end(outcome_of_state(self.job, state, self.codec))

    def release(self) -> Finding:
        """Act upon `Synced`: hand on what was held back; from here frames are live. A `Gap` begins a new sync."""
        self.phase = Phase.LIVE
        if self._prelude is not None:
            self._emit(self._prelude)
            self._prelude = None
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
        """Take one frame in."""
        if type(frame) is JobProgressFrame and frame.job_id == self.job and self.phase in _HANDED_ON:
            applied, epoch, seq = self.applied, frame.epoch, frame.seq
            if applied is not None and epoch == applied.epoch == self._socket_epoch and seq == applied.seq + 1:
                # What nearly every frame is: the next one. The long way round would lead to the same.
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
        return self._plain(self._item_of(frame))

    def malformed(self, error: MalformedMessage) -> Finding:
        """Take in that a frame could not be read: it shows nothing, but it had its place in the log."""
        if error.epoch is None or error.seq is None or (error.job_id and error.job_id != self.job):
            return None
        return self._plain(_Held(None, error.epoch, error.seq, error.seq))

    def _plain(self, item: _Held) -> Finding:
        """A frame that ends nothing: held back, handed on, dropped as a duplicate, or the sign of a gap."""
        if item.epoch is not None and item.epoch in self._over and self._socket_epoch is not None:
            self.duplicates += 1
            return None
        if item.epoch is not None and item.epoch != self._socket_epoch:
            if self._socket_epoch is not None and self.phase is Phase.HOLDING:
                # The log began anew while frames of the old one were held back: they join nothing any more.
                self._held.clear()
            self._decide(item.epoch)
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
        # A replay that breaks off is no second gap: the state that is being fetched beside it decides.
        gap = None if self.phase is Phase.REPLAYING else self._gap_before(item)
        self._hold_from_here()
        self._hold(item)
        return gap

    def _decide(self, epoch: str) -> None:
        """This socket speaks of the log `epoch`: that is the log there is now."""
        self._socket_epoch = epoch
        self._over = tuple(over for over in self._over if over != epoch)

    def _take_up(self, cursor: Cursor) -> None:
        """Move the watermark, maybe into another log."""
        if self.applied is None or self.applied.epoch != cursor.epoch:
            if self.applied is not None:
                self._over = (*self._over, self.applied.epoch)[-LOGS_REMEMBERED:]
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
        return Gap(f"more than {BUFFER_LIMIT} updates came during one sync")

    def _joins(self, item: _Held) -> bool:
        """Whether the item is the next to be handed on."""
        if item.epoch is None:
            return not self._is_old(item)
        if self.applied is None:
            # A server whose states have no place in its log: the first frame is where the log is taken up.
            return self.phase is Phase.LIVE
        return self.applied.epoch == item.epoch and item.first == self.applied.seq + 1

    def _is_old(self, item: _Held) -> bool:
        """Whether the item was handed on before, or is behind what was shown."""
        if item.epoch is None:
            count = item.update.processed_count if isinstance(item.update, Progress) else None
            return count is not None and self.shown is not None and count < self.shown
        return self.applied is not None and self.applied.epoch == item.epoch and item.last <= self.applied.seq

    def _gap_before(self, item: _Held) -> Gap:
        if self.applied is None or self.applied.epoch != item.epoch:
            return Gap(f"the server's log began anew, at event {item.first}")
        return Gap(f"event {self.applied.seq + 1} was expected, {item.first} came")

    def _apply(self, item: _Held) -> None:
        if item.epoch is not None:
            self._take_up(Cursor(item.epoch, item.last))
        if item.update is not None:
            self._emit(item.update)

    def _emit(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress) and update.processed_count is not None:
            if self.shown is not None and update.processed_count < self.shown:
                # It has its place in the log, so it is handed on; the count never goes back.
                update = replace(update, processed_count=self.shown)
            self.shown = update.processed_count
        self._begun = True
        self._out.append(update)

    def _item_of(self, frame: _Plain) -> _Held:
        update = self._update_of(frame)
        if frame.epoch is None:
            self._unplaced = True
        if frame.seq is None or frame.epoch is None:
            return _Held(update, None, 0, 0)
        return _Held(update, frame.epoch, frame.seq, frame.seq)

    def _update_of(self, frame: _Plain) -> AnyUpdate | None:
        """What a frame shows; a heartbeat and a frame of an unknown type show nothing."""
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
            progress=payload.progress,
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
        self._decide(ack.epoch)
        applied = self.applied if self.applied is not None and self.applied.epoch == ack.epoch else Cursor(ack.epoch, 0)
        early = self._sent_unasked(applied, ack.from_)
        if ack.from_ != (early[-1].last if early else applied.seq) + 1:
            # The log no longer reaches back that far: the state decides.
            return None
        self._take_up(applied)
        resynced = Resynced(
            job=self.job, epoch=ack.epoch, kind="replay", from_seq=applied.seq + 1, to_seq=ack.to, missed=0
        )
        if ack.to >= ack.from_:
            if self._begun:
                self._emit(resynced)
            for item in early:
                self._apply(item)
            self._held = [item for item in self._held if not self._is_old(item)]
            self.phase = Phase.REPLAYING
            self._replay_to = ack.to
            return None
        self._prelude = resynced if self._begun else None
        self.phase = Phase.COMPLETE
        return Synced()

    def _sent_unasked(self, applied: Cursor, before: int) -> list[_Held]:
        """What joins of that with which a server began before it heard `ready`, and which it does not send again."""
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
        """Take in the state fetched for a sync. Where a replay is under way or may still come, an end waits for it."""
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
        if state.epoch is None or state.seq is None or self._unplaced:
            return self._unplaced_state(state)
        return self._placed_state(state, Cursor(state.epoch, state.seq))

    def _is_of_another_log(self, state: JobState) -> bool:
        """Whether the state speaks of another log than this socket does: then it is out of date."""
        if state.epoch is None:
            return False
        return state.epoch in self._over or (self._socket_epoch is not None and self._socket_epoch != state.epoch)

    def _placed_state(self, state: JobState, told: Cursor) -> Finding:
        if self._is_of_another_log(state):
            return _OTHER_LOG
        same_log = self.applied is not None and self.applied.epoch == told.epoch
        applied = self.applied if self.applied is not None and same_log else Cursor(told.epoch, 0)
        refused = told.seq < applied.seq
        held = [item for item in self._held if item.last > applied.seq]
        if held and held[0].first == applied.seq + 1:
            # What was held back joins without the snapshot: nothing need be left out.
            missed = 0
        elif refused:
            return Gap(f"the state is of event {told.seq}, behind event {applied.seq}, which was handed on")
        else:
            missed = told.seq - applied.seq
            held = [item for item in held if item.last > told.seq]
            if held and held[0].first > told.seq + 1:
                return Gap(f"the state is of event {told.seq}, the next that came is {held[0].first}")
            held = [_without(item, told.seq) for item in held]
            applied = told
        first = 1 + (self.applied.seq if self.applied is not None and same_log else 0)
        self._take_up(applied)
        self._held = held
        return self._synced(state, first=first, last=max(told.seq, applied.seq), missed=missed, refused=refused)

    def _unplaced_state(self, state: JobState) -> Finding:
        count = state.processed_count
        refused = count is not None and self.shown is not None and count < self.shown
        floor = self.shown if refused else count
        # What has a place in a log keeps it, though it shows nothing any more.
        self._held = [
            item._replace(update=None) if _is_covered(item, floor) else item
            for item in self._held
            if item.epoch is not None or not _is_covered(item, floor)
        ]
        self._take_up_log()
        return self._synced(state, first=None, last=None, missed=None, refused=refused)

    def _synced(
        self, state: JobState, *, first: int | None, last: int | None, missed: int | None, refused: bool
    ) -> Synced:
        count = state.processed_count
        # A snapshot that what was held back makes needless must not run ahead of it.
        if count is not None and missed != 0:
            self.shown = count if self.shown is None else max(count, self.shown)
        self._prelude = Resynced(
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
            first=not self._begun,
            processed_count=self.shown if missed != 0 else None,
            total_count=state.total_count,
            current_item=state.current_item,
        )
        self.phase = Phase.COMPLETE
        return Synced()

    def unavailable(self) -> Finding:
        """The server keeps no state of this job: go on with what came over the socket."""
        if self.phase is not Phase.HOLDING:
            return None
        self._prelude = Resynced(job=self.job, kind="unavailable", first=not self._begun)
        self._take_up_log()
        self.phase = Phase.COMPLETE
        return Synced()

    def _take_up_log(self) -> None:
        """Nothing can tell what lies between what was handed on and what is held: go on where the socket does."""
        first = next((item for item in self._held if item.epoch is not None and not self._is_old(item)), None)
        if first is not None and first.epoch is not None and not self._joins(first):
            self._take_up(Cursor(first.epoch, first.first - 1))

    def look(self, state: JobState) -> Finding:
        """Take in the state fetched because the socket had gone quiet. If it has moved, `take()` tells of it."""
        if state.ended:
            return self._end(outcome_of_state(self.job, state, self.codec))
        if self.phase is not Phase.LIVE:
            return None
        count, applied = state.processed_count, self.applied
        if state.epoch is None or state.seq is None or self._unplaced:
            moved = count is not None and count > (self.shown or 0)
            first = missed = None
        elif applied is not None and applied.epoch != state.epoch:
            return Gap("the state is of another log than what was handed on")
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
        """The end of a job that the server agreed to stop and then did not know any more."""
        return self._end(JobCanceled(job=self.job, assumed=True))

    def _end(self, outcome: Outcome) -> End:
        """What joins is handed on first, then a word about what is missing, then the end."""
        self._held_end = None
        if self._prelude is not None:
            self._emit(self._prelude)
            self._prelude = None
        if self.phase is Phase.HOLDING and self.applied is None and self._held and self._held[0].epoch is not None:
            # Nothing was handed on yet: what joins is what begins the log.
            self._take_up(Cursor(self._held[0].epoch, 0))
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
            self._take_up(Cursor(outcome.epoch, max(outcome.seq, applied)))
        return End(tuple(before), outcome)


_TERMINAL: Final = (JobCompleteFrame, ErrorFrame, JobCanceledFrame)
_OTHER_LOG: Final = Gap("the state is of another log than the socket's")


def _is_covered(item: _Held, floor: int | None) -> bool:
    """Whether a snapshot with the count `floor` says what the item says."""
    count = item.update.processed_count if isinstance(item.update, Progress) else None
    return floor is not None and count is not None and count <= floor


def _without(item: _Held, seq: int) -> _Held:
    """The item less its events up to `seq`, which a snapshot covers: it may be several merged."""
    if item.first > seq:
        return item
    update = item.update
    if isinstance(update, Progress):
        covered = seq + 1 - item.first
        update = replace(update, first_seq=seq + 1, merged=max(1, update.merged - covered))
    return item._replace(update=update, first=seq + 1)


def _compacted(held: list[_Held]) -> list[_Held]:
    """The same items with progress that follows upon progress merged."""
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
        # A heartbeat shows nothing; its place goes to its neighbour.
        update = newer.update if older.update is None else older.update
    elif isinstance(older.update, Progress) and isinstance(newer.update, Progress):
        update = merge(older.update, newer.update)
        if update is None:
            return None
    else:
        return None
    return _Held(update, older.epoch, older.first, newer.last)
