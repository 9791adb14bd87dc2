"""Turns what the sequencer finds into deliveries and events: updates, gaps, a finished sync, the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass

from ..._updates import OUTCOME_KINDS, AnyUpdate
from ...statemachine import AnyEvent, Cause, Deliver, GapFound, JobEnded, Reopen, Snapshot, State
from ...statemachine import Synced as SyncedEvent
from ..sequence.findings import End, Finding, Gap, Synced
from ..sequence.sequencer import Sequencer
from .delivery import Delivery
from .handlers import Handler, Handlers


@dataclass(slots=True, eq=False, repr=False)
class Publisher:
    """Delivers updates to consumers and to the handler for updates, and posts the events that findings mean.

    `turn` is the block in which functions of the program are called. `counts` are the connection's. `reopening_helps`:
    a gap can be filled by opening the link again at the cursor.
    """

    sequencer: Sequencer
    delivery: Delivery
    handlers: Handlers
    _: KW_ONLY
    on_update: Handler[AnyUpdate] | None
    counts: Counter[str]
    snapshot: Callable[[], Snapshot]
    post: Callable[[AnyEvent], object]
    turn: Callable[[], AbstractContextManager[None]]
    reopening_helps: Callable[[], bool]

    def release_buffer(self) -> None:
        """Deliver the frames that the sync buffered."""
        self.act(self.sequencer.release(), self.snapshot().generation)

    def skip_state(self) -> None:
        """Finish the sync without a state."""
        self.act(self.sequencer.unavailable(), self.snapshot().generation)

    def deliver(self, effect: Deliver) -> None:
        """Deliver the outcome, preceded by any pending updates."""
        end: End = effect.update if effect.update is not None else self.sequencer.assume_cancelled()
        self.delivery.outcome = end.outcome
        if end.before:
            self._publish(list(end.before))
        self.delivery.end(self.sequencer.applied)
        self.counts["updates"] += 1
        self._call_handler([end.outcome])

    def act(self, finding: Finding, generation: int) -> None:
        """Deliver pending updates, then turn a finding into an event."""
        self.publish(self.sequencer.take())
        if isinstance(finding, Gap):
            self._gap(finding.problem, generation)
        elif isinstance(finding, Synced):
            self.post(SyncedEvent(generation=generation))
        elif isinstance(finding, End):
            self.post(JobEnded(outcome=OUTCOME_KINDS[type(finding.outcome)], update=finding))

    def publish(self, updates: list[AnyUpdate]) -> None:
        """Deliver updates, but none after the end or after `cancel()`."""
        if updates:
            snapshot = self.snapshot()
            if snapshot.outcome is None and snapshot.state is not State.CANCELLED:
                self._publish(updates)

    def overflowed(self) -> None:
        """Report a gap: updates were dropped while there was no consumer."""
        self.counts["overflows"] += 1
        self._gap("updates were dropped while nothing read them", self.snapshot().generation)

    def _publish(self, updates: list[AnyUpdate]) -> None:
        self.counts["updates"] += len(updates)
        self.delivery.publish(updates, self.sequencer.applied)
        self._call_handler(updates)

    def _call_handler(self, updates: Iterable[AnyUpdate]) -> None:
        if self.on_update is not None:
            with self.turn():
                for update in updates:
                    if self.snapshot().state is State.CANCELLED:
                        return
                    self.handlers.call(self.on_update, update)

    def _gap(self, problem: str, generation: int) -> None:
        self.counts["gaps"] += 1
        cause = Cause(code="gap", text=problem)
        if self.reopening_helps():
            self.post(Reopen(generation=generation, cause=cause))
        else:
            self.post(GapFound(generation=generation, cause=cause))
