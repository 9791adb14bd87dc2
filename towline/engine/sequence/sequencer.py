"""Puts the facts of one job in order: no update lost, none repeated, none out of order.

Sans-IO: facts come in, updates and findings go out; there is no clock, no socket and no wire. One `Sequencer` exists
per connection and outlives its links. It holds the cursor (how far updates were delivered) and, until a link is in
step, the facts buffered meanwhile. Order, duplicates and gaps follow from the positions alone:

- `Numbered`: the next number is delivered, a smaller one is a duplicate, a larger one a gap. A replay is delivered
  completely, and a snapshot says how much it covers.
- `Mark`: equal to a delivered one, it is a duplicate. The last 256 are remembered.
- None: everything is delivered. A snapshot shows only news, and no count gets smaller.

A link is in step when it is open, at its first fact, or when the job's state was fetched: the protocol's request says
which. Then there is one `Synced`; `release()` delivers the buffered facts. So the state machine can report `connected`
after the updates that precede it.

This file is long because all rules of a sync (facts, replay, state, end) use the same cursor and buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeGuard

from msgspec.structs import replace

from ..._facts import Ended, Fact, InStep, InStepAt, Item, Mark, Numbered, Position, Replaying, Snapshot
from ..._updates import AnyUpdate, JobCancelled, Outcome, Progress, Resynced
from .findings import End, Finding, Gap, Phase, Synced
from .held import Held, compacted, continuing, first_of, join_state, uncovered, without
from .order import Order
from .outlet import Outlet
from .placing import State, missed_before_end, placed_at, placed_last, positioned, state_of, without_number

#: How many facts a sync buffers before it merges progress. Too many facts of other kinds count as a gap.
BUFFER_LIMIT: Final = 1024

#: Stored for updates without a position: the next process reports that some may be missing. No server gives this mark
#: a meaning.
UNPLACED: Final = Mark("")

#: No event has this number.
_UNKNOWN: Final = -2

_DELIVERING: Final = (Phase.LIVE, Phase.REPLAYING)
_WAITING: Final = (Phase.HOLDING, Phase.STARTING)

#: How often an end that only a state shows waits for one new link. Then it counts, with a report.
REPLAYS_AWAITED: Final = 3


class _Awaited(NamedTuple):
    """An end that waits for a link to show what came before it, from the position `after`."""

    state: State
    after: Position | None
    times: int = 1
    is_linked: bool = False


class Sequencer:
    """Turns the facts of one job into updates. Never blocks; `take()` returns the updates to deliver.

    `cursor`: the position of an earlier process; None if it delivered nothing. `replays_end`: a new link shows what
    came before the end.
    """

    def __init__(self, job: str, *, cursor: Position | None = None, replays_end: bool = False) -> None:
        self.job = job
        self._replays_end = replays_end
        self._awaited: _Awaited | None = None
        self._phase = Phase.HOLDING
        self.order = Order(None if cursor == UNPLACED else cursor)
        self.outlet = Outlet(job, has_shown=cursor is not None)
        self.duplicates = 0
        self._held: list[Held] = []
        self._held_end: State | None = None
        self._replay_to = _UNKNOWN
        # The next event, if it may be delivered at once. A change of the phase or of the cursor forgets it.
        self._next_seq, self._next_epoch = _UNKNOWN, ""
        # Whether this link was asked to replay, and whether the server has said if it does.
        self._replays = False
        self._acknowledged = False
        # Whether updates before this link are missing if its first fact is the end.
        self._may_miss = False

    @property
    def applied(self) -> Position | None:
        """The position up to which updates were delivered; None before the first, and without positions."""
        return self.order.applied

    @property
    def phase(self) -> Phase:
        """How the next fact is handled."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self._next_seq = _UNKNOWN
        if phase is not Phase.REPLAYING:
            self._replay_to = _UNKNOWN

    def take(self) -> list[AnyUpdate]:
        """Return the updates to deliver now, in order."""
        return self.outlet.take()

    # --- the course of a sync --------------------------------------------------------------------------------------

    def opened(self, in_step: InStepAt = "state", after: Position | None = None, *, is_stream: bool = False) -> Finding:
        """Start a new link, which the server was asked to begin after the position `after`.

        `is_stream`: updates come one by one, so some were missed if the link begins with the end.
        Returns `Synced` if the link is in step at once.
        """
        by_state = in_step == "state"
        may_jump = not by_state and after is None and self.outlet.has_shown
        self.order.opened(by_state=by_state, after=after, may_jump=may_jump)
        self._replays = after is not None
        self._may_miss = is_stream and not self._replays
        self._acknowledged = False
        self._held_end = None
        if self._awaited is not None:
            self._awaited = self._awaited._replace(is_linked=True)
        self._start_holding()
        if in_step == "first_fact":
            self.phase = Phase.STARTING
        return self._in_step(is_snapshot=False) if in_step == "open" else None

    def _in_step(self, *, is_snapshot: bool) -> Synced:
        """Bring a link in step without a state; only after an interruption is there something to report."""
        if self.outlet.has_shown:
            if is_snapshot:
                self.outlet.hold(Resynced(kind="snapshot"))
            elif self._replays:
                self.outlet.hold(Resynced(kind="replay", missed=0))
            else:
                self.outlet.hold(Resynced(kind="unavailable"))
        self.phase = Phase.COMPLETE
        return Synced()

    def resync(self) -> None:
        """Start a sync on the same link; facts buffered since a gap stay buffered."""
        if self.phase is Phase.LIVE:
            self._start_holding()

    def _start_holding(self) -> None:
        self.phase = Phase.HOLDING
        self.outlet.hold(None)
        self._held.clear()

    @property
    def awaiting_ack(self) -> bool:
        """Whether the server may still announce a replay."""
        return self.phase is Phase.HOLDING and self.order.by_state and not self._acknowledged

    @property
    def is_waiting(self) -> bool:
        """Whether the link is not in step yet, and no replay is running."""
        return self._phase in _WAITING

    @property
    def replaying(self) -> bool:
        """Whether a replay is running: then only an end in a state counts."""
        return self.phase is Phase.REPLAYING

    def give_up_replay(self) -> None:
        """Stop waiting for a replay that does not go on. The next state we fetch says what is missing."""
        if self.phase is Phase.REPLAYING:
            self._start_holding()

    def held_end(self) -> End | None:
        """The end from a state that arrived during a replay, for a replay that does not reach it. Returned once."""
        state, self._held_end = self._held_end, None
        return None if state is None or state.ended is None else self._end(state.ended, state.snapshot)

    def awaited_end(self) -> End | None:
        """The end that waited for a link, now that one has ended in order and brought nothing new."""
        awaited = self._awaited
        if awaited is None or not awaited.is_linked or awaited.after != self.applied or awaited.state.ended is None:
            return None
        # An empty stream proves that nothing is missing only if it was asked to go on where the last one ended.
        return self._end(awaited.state.ended, awaited.state.snapshot, is_fetched=not self._replays)

    def _must_wait(self, state: State) -> bool:
        """Whether an end waits for a link to show what came before it."""
        if not self._replays_end or self.order.by_state or state.at is not None:
            return False
        awaited = self._awaited
        times = awaited.times + 1 if awaited is not None and awaited.after == self.applied else 1
        self._awaited = _Awaited(state, self.applied, times)
        return times <= REPLAYS_AWAITED

    def release(self) -> Finding:
        """Handle `Synced`: deliver buffered facts, and later ones as they arrive. A `Gap` starts a new sync."""
        self.phase = Phase.LIVE
        self.outlet.release()
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

    # --- facts of the link -----------------------------------------------------------------------------------------

    def take_next(self, fact: Fact) -> TypeGuard[Item]:
        """Deliver a fact if it is simply the next progress in order, as nearly every one is; returns whether it was.

        `follow` would do the same, more slowly.
        """
        if type(fact) is not Item:
            return False
        at, update = fact.at, fact.update
        if (
            type(at) is Numbered
            and at.seq == self._next_seq
            and at.epoch == self._next_epoch
            and at.seq != self._replay_to
            and type(update) is Progress
            and update.seq is not None
            and update.merged == 1
            and update.job
        ):
            self._next_seq += 1
            self.order.applied = at
            outlet, count = self.outlet, update.processed_count
            shown = outlet.shown
            if count is not None:
                if shown.count is not None and count < shown.count:
                    update = replace(update, processed_count=shown.count)
                else:
                    shown.count = count
            shown.progress = update
            outlet.ready.append(update)
            return True
        return False

    def follow(self, facts: Iterable[Fact]) -> Finding:
        """Process the facts of one message, event, line or poll. Facts about the connection are ignored."""
        facts = tuple(facts)
        if len(facts) == 1 and self.take_next(facts[0]):
            return None
        self._next_seq = _UNKNOWN
        finding: Finding = None
        for fact, at, more in positioned(facts):
            found = self._fact(fact, at, more)
            if isinstance(found, End):
                return found
            finding = found if found is not None else finding
        self._expect_next()
        return finding

    def _expect_next(self) -> None:
        """Note which event comes next, for `take_next`."""
        order, applied = self.order, self.order.applied
        delivering = self.outlet.has_shown and self.phase in _DELIVERING
        if delivering and isinstance(applied, Numbered) and applied.epoch == order.link_epoch:
            self._next_seq, self._next_epoch = applied.seq + 1, applied.epoch

    def _fact(self, fact: Fact, at: Position | None, more: bool) -> Finding:
        if self.phase is Phase.STARTING and not isinstance(fact, Ended):
            synced = self._in_step(is_snapshot=isinstance(fact, Snapshot))
            if not isinstance(fact, InStep | Replaying):
                self._fact(fact, at, more)
            return synced
        match fact:
            case Item(update):
                item = Held(update, at, first_of(update, at), more)
                # Of what the server has merged, the first part may have been delivered.
                return self._item(without(item, self.order.seq) if self.order.reaches_into(item) else item)
            case Ended(outcome):
                return self._end(Ended(outcome, at), is_fetched=self._may_miss and self.phase is Phase.STARTING)
            case Snapshot(updates):
                snapshot = Snapshot(updates, at)
                if self.phase is Phase.HOLDING:
                    return self._state(State(snapshot, None))
                return self._item(Held(snapshot, at, at.seq if isinstance(at, Numbered) else 0, more))
            case Replaying():
                return self._replay(fact)
            case InStep():
                # Where the state decides, this only means that no replay follows.
                self._acknowledged = True
        return None

    def _item(self, item: Held) -> Finding:
        """Process a fact that does not end the job: buffer it, deliver it, drop a duplicate, or report a gap."""
        order = self.order
        if order.is_out_of_date(item):
            self.duplicates += 1
            return None
        if item.epoch is not None and item.epoch != order.link_epoch:
            if order.link_epoch is not None and self.phase is Phase.HOLDING:
                # The log restarted while facts of the old one were buffered: these no longer fit.
                self._held.clear()
            order.enter_log(item.epoch)
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

    def _move_to(self, position: Position) -> None:
        """Move the cursor. A new log counts from the start again."""
        self._next_seq = _UNKNOWN
        if self.order.move_to(position):
            self.outlet.shown.count = None

    def _hold(self, item: Held) -> Finding:
        if self._is_old(item):
            self.duplicates += 1
            return None
        self._held.append(item)
        if len(self._held) <= BUFFER_LIMIT:
            return None
        self._held = compacted(self._held)
        if len(self._held) <= BUFFER_LIMIT:
            return None
        self._held.clear()
        return Gap(f"more than {BUFFER_LIMIT} updates arrived during one sync")

    def _joins(self, item: Held) -> bool:
        """Whether the item is the next to be delivered."""
        return not self._is_outdone(item) and self.order.joins(item, is_live=self.phase is Phase.LIVE)

    def _is_old(self, item: Held) -> bool:
        """Whether the item was delivered before, or is older than what was shown."""
        return self._is_outdone(item) or self.order.is_old(item)

    def _is_outdone(self, item: Held) -> bool:
        """Whether an item without a position has a smaller count than was shown, where states decide."""
        if item.at is not None or not self.order.by_state:
            return False
        return (
            item.shown_count is not None
            and self.outlet.shown.count is not None
            and item.shown_count < self.outlet.shown.count
        )

    def _gap_before(self, item: Held) -> Gap:
        return Gap(self.order.gap_before(item))

    def _apply(self, item: Held) -> None:
        snapshot = item.update if isinstance(item.update, Snapshot) else None
        news: list[AnyUpdate] = []
        if snapshot is not None:
            news = self.outlet.shown.news_of(snapshot.updates)
        elif item.update is not None and not isinstance(item.update, Snapshot):
            news = [item.update]
        if snapshot is None and item.first > 1 and not (self.order.by_state or self.outlet.has_shown):
            # The log began before this link, and no state covers its first events. Some logs count from 0.
            self.outlet.emit(Resynced(epoch=item.epoch, kind="unavailable", to_seq=item.first - 1, first=True))
        if snapshot is None and self.order.is_new_log(item) and not self.order.by_state:
            # A log that begins again is complete if it begins with its first number.
            self.outlet.emit(Resynced(epoch=item.epoch, kind="replay", missed=0 if item.first <= 1 else None))
        if item.at is not None and not item.more:
            self._move_to(item.at)
            # The position goes to the last update: a consumer that took only some of them must get all again.
            news[-1:] = [placed_at(update, item.at) for update in news[-1:]]
        for update in news:
            self.outlet.emit(update)
        if snapshot is not None:
            self.outlet.shown.note_snapshot(snapshot.updates)

    # --- replay ----------------------------------------------------------------------------------------------------

    def _replay(self, announced: Replaying) -> Finding:
        self._acknowledged = True
        if self.phase is not Phase.HOLDING:
            return None
        self.order.enter_log(announced.epoch)
        same = self.order.is_same_log(Numbered(0, announced.epoch))
        applied = Numbered(self.order.seq if same else 0, announced.epoch)
        early = continuing(self._held, applied, announced.first)
        if announced.first != (early[-1].last if early else applied.seq) + 1:
            # The log no longer goes back that far: the state decides.
            return None
        self._move_to(applied)
        resynced = Resynced(
            epoch=announced.epoch,
            kind="replay",
            from_seq=applied.seq + 1,
            to_seq=announced.last,
            missed=0,
        )
        if announced.last >= announced.first:
            if self.outlet.has_shown:
                self.outlet.emit(resynced)
            for item in early:
                self._apply(item)
            self._held = [item for item in self._held if not self._is_old(item)]
            self.phase = Phase.REPLAYING
            self._replay_to = announced.last
            return None
        self.outlet.hold(resynced if self.outlet.has_shown else None)
        return self._replayed()

    def _replayed(self) -> Finding:
        held = self.held_end()
        if held is not None:
            return held
        self.phase = Phase.COMPLETE
        return Synced()

    # --- states ----------------------------------------------------------------------------------------------------

    def state(self, facts: Iterable[Fact]) -> Finding:
        """Process the state fetched for a sync. During a replay, or while one may still start, an end waits for it."""
        state = state_of(facts)
        if state is None:
            return None
        if state.ended is not None:
            if self.order.is_of_another_log(state.at):
                return _OTHER_LOG
            replay_may_come = self.awaiting_ack and isinstance(state.at, Numbered)
            if self.phase is Phase.REPLAYING or replay_may_come:
                self._held_end = state
                return None
            if self.phase is Phase.STARTING and self._must_wait(state):
                return _SHOWN_LATER
            return self._end(state.ended, state.snapshot, is_fetched=not self.order.by_state)
        return self._state(state) if self.phase in _WAITING else None

    def _state(self, state: State) -> Finding:
        if not isinstance(state.at, Numbered) or self.order.is_unnumbered:
            return self._unnumbered_state(state)
        return self._numbered_state(state, state.at)

    def _numbered_state(self, state: State, reported: Numbered) -> Finding:
        if self.order.is_of_another_log(reported):
            return _OTHER_LOG
        before = self.order.seq if self.order.is_same_log(reported) else 0
        joined = join_state(self._held, before, reported.seq)
        if isinstance(joined, str):
            return Gap(joined)
        self._held, reached = joined
        missed = reached - before
        self._move_to(Numbered(reached, reported.epoch))
        last = max(reported.seq, reached)
        resynced = self.outlet.snapshot_report(last, reported.epoch, before + 1, missed, refused=reported.seq < before)
        # A snapshot that the buffered items make unnecessary is not shown ahead of them.
        return self._synced(resynced, placed_last(state.snapshot) if missed else [], state.snapshot)

    def _unnumbered_state(self, state: State) -> Finding:
        count = state.shown_count
        refused = count is not None and self.outlet.shown.count is not None and count < self.outlet.shown.count
        floor = self.outlet.shown.count if refused else count
        self._held = uncovered(self._held, floor)
        self._continue_from_held()
        if isinstance(state.at, Mark):
            self._move_to(state.at)
        news = [] if refused else self._news_without_number(state)
        return self._synced(self.outlet.snapshot_report(refused=refused), news, None if refused else state.snapshot)

    def _news_without_number(self, state: State) -> list[AnyUpdate]:
        return [without_number(update) for update in self.outlet.shown.news_of(state.snapshot.updates)]

    def _synced(self, resynced: Resynced, news: list[AnyUpdate], snapshot: Snapshot | None) -> Synced:
        self.outlet.hold(resynced, news, snapshot)
        self.phase = Phase.COMPLETE
        return Synced()

    def is_ahead(self, facts: Iterable[Fact]) -> bool:
        """Whether a state goes beyond what was delivered."""
        state = state_of(facts)
        if state is None:
            return False
        if isinstance(state.at, Numbered) and self.order.is_same_log(state.at) and not self.order.is_unnumbered:
            return state.at.seq > self.order.seq
        return (
            state.shown_count is not None
            and self.outlet.shown.count is not None
            and state.shown_count > self.outlet.shown.count
        )

    def unavailable(self) -> Finding:
        """Continue with the link's facts alone: the server has no state of this job."""
        if self.phase not in _WAITING:
            return None
        self.outlet.hold(Resynced(kind="unavailable", first=not self.outlet.has_shown))
        self._continue_from_held()
        self.phase = Phase.COMPLETE
        return Synced()

    def _continue_from_held(self) -> None:
        """Continue at the first buffered event, because events missed before it cannot be known."""
        first = next((item for item in self._held if item.epoch is not None and not self._is_old(item)), None)
        if first is not None and first.epoch is not None and not self._joins(first):
            self._move_to(Numbered(first.first - 1, first.epoch))

    def look(self, facts: Iterable[Fact], *, is_complete: bool = False, may_wait: bool = True) -> Finding:
        """Process a state fetched because the link was silent. If the job has advanced, `take()` returns updates.

        `is_complete`: the link announced the end, so it has shown everything before the end. `may_wait`: a later link
        may still show what is missing, so an end in the state can wait for it.
        """
        # A new link that says nothing else does not show what came while there was none.
        is_complete = is_complete and (self.phase not in _WAITING or self._replays or not self.outlet.has_shown)
        state = state_of(facts)
        if state is not None and state.ended is not None:
            if not is_complete and may_wait and self._must_wait(state):
                return _SHOWN_LATER
            return self._end(state.ended, state.snapshot, is_fetched=not is_complete)
        if state is None or self.phase is not Phase.LIVE:
            return None
        if not isinstance(state.at, Numbered) or self.order.is_unnumbered:
            self._look_without_number(state)
            return None
        if isinstance(self.applied, Numbered) and not self.order.is_same_log(state.at):
            return Gap("the state belongs to another log than the delivered updates")
        missed = state.at.seq - self.order.seq
        if missed <= 0:
            return None
        resynced = self.outlet.snapshot_report(state.at.seq, state.at.epoch, 1 + self.order.seq, missed)
        self._synced(resynced, placed_last(state.snapshot), state.snapshot)
        self._move_to(state.at)
        return self.release()

    def _look_without_number(self, state: State) -> None:
        if not self.order.by_state:
            # The link is still in step, so nothing is known to be missing.
            self.outlet.emit_news(Snapshot(tuple(without_number(update) for update in state.snapshot.updates)))
        elif state.shown_count is None or state.shown_count > (self.outlet.shown.count or 0):
            news = self._news_without_number(state)
            if news:
                self._synced(self.outlet.snapshot_report(), news, state.snapshot)
                self.release()

    # --- the end ---------------------------------------------------------------------------------------------------

    def assume_cancelled(self) -> End:
        """The end of a job that the server agreed to cancel and then no longer knew."""
        return self._end(Ended(JobCancelled(job=self.job, assumed=True)))

    def _end(self, ended: Ended, snapshot: Snapshot | None = None, *, is_fetched: bool = False) -> End:
        """Deliver the buffered updates that fit, then the snapshot's, then a report of missed ones, then the end.

        `is_fetched`: the end comes from a state, or is all that the link shows, so updates before it may be missing.
        """
        at = ended.at
        self._held_end = None
        self.outlet.release()
        if self.phase in _WAITING and self.applied is None and self._held and self._held[0].epoch is not None:
            # Nothing was delivered yet, so the buffered items start the log.
            self._move_to(Numbered(0, self._held[0].epoch))
        self.phase = Phase.LIVE
        for item in self._held:
            if self._joins(item):
                self._apply(item)
        self._held.clear()
        if snapshot is not None:
            self.outlet.emit_news(snapshot)
        before = self.take()
        if isinstance(at, Numbered) and at.seq > 0:
            applied = self.order.seq if self.order.is_same_log(at) else 0
            before += missed_before_end(self.job, applied, at)
            self._move_to(Numbered(max(at.seq, applied), at.epoch))
        else:
            if is_fetched and self.outlet.has_shown:
                before.append(Resynced(job=self.job, kind="end"))
            if isinstance(at, Mark):
                self._move_to(at)
        outcome: Outcome = ended.outcome if ended.outcome.job else replace(ended.outcome, job=self.job)
        return End(tuple(before), outcome if isinstance(at, Numbered) and at.seq == 0 else placed_at(outcome, at))


_OTHER_LOG: Final = Gap("the state belongs to another log than this link's")
_SHOWN_LATER: Final = Gap("the job has ended, and a new link shows what came before")
