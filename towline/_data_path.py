"""The way of the data: from the socket's frames through the recovery to the subscribers, past the machine.

Only what the data means for the lifecycle (a gap, a sync complete, the end, a silence) becomes an event.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from ._exceptions import MalformedMessage
from ._recovery import End, Finding, Gap, Synced
from ._text import escape
from ._updates import OUTCOME_KINDS, AnyUpdate, Progress, Stalled
from .statemachine import Cause, Deliver, FetchState, GapFound, JobEnded, ReleaseBuffer, State, Timer
from .statemachine import Stalled as StalledEvent
from .statemachine import Synced as SyncedEvent
from .transport import Frame, JobProgressFrame, JobState, PingFrame, PongFrame, ReadyAckFrame

if TYPE_CHECKING:
    from ._engine import Engine
    from ._links import Link

_LOG: Final = logging.getLogger("towline")


class DataPath:
    """Takes in what the socket brings, hands on what it shows, and watches how long the job has been silent."""

    __slots__ = ("_batch_came", "_engine", "_last_job_message", "_silent", "_stall_told", "stall_ticket")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Set at each batch, for a fetch that waits for what the socket brings.
        self._batch_came: anyio.Event | None = None
        self._last_job_message = 0.0
        self._stall_told = False
        #: The ticket of the stall timer, which is armed anew here when the job speaks after a silence.
        self.stall_ticket = 0
        # The job was silent for so long that it was looked into, and has not spoken since.
        self._silent = False

    def take_in(self, link: Link, batch: list[str | bytes]) -> None:
        """Hand on what one read brought. The hot path: no await, no lock, no task switch a message."""
        decode, take_in = self._engine.settings.codec.decode, self._engine.recovery.frame
        self._engine.counts["messages"] += len(batch)
        spoke = False
        for message in batch:
            try:
                frame = decode(message)
            except MalformedMessage as error:
                finding = self._malformed(error)
            else:
                spoke = spoke or _is_of_the_job(frame)
                finding = take_in(frame)
            if finding is not None:
                self.act(finding, link.generation)
                if self._engine.links.current is not link:
                    break
        if spoke:
            self._job_spoke()
        self.publish(self._engine.recovery.take())
        if self._batch_came is not None:
            self._batch_came.set()
            self._batch_came = None

    def release_buffer(self, effect: ReleaseBuffer) -> None:
        """The sync is complete: hand on what it held back."""
        self._last_job_message = anyio.current_time()
        self._stall_told = self._silent = False
        self.act(self._engine.recovery.release(), self._engine.snapshot.generation)

    def deliver(self, effect: Deliver) -> None:
        """Hand on the end, and what belongs before it."""
        end: End = effect.update
        self._engine.delivery.outcome = end.outcome
        if end.before:
            self._hand_on(list(end.before))
        self._engine.delivery.end(self._engine.recovery.applied)
        self._engine.counts["updates"] += 1

    def act(self, finding: Finding, generation: int) -> None:
        """Turn what the data path found into an event, after what it handed on."""
        self.publish(self._engine.recovery.take())
        if isinstance(finding, Gap):
            self._gap(finding.problem, generation)
        elif isinstance(finding, Synced):
            self._engine.post(SyncedEvent(generation=generation))
        elif isinstance(finding, End):
            self._engine.post(JobEnded(outcome=OUTCOME_KINDS[type(finding.outcome)], update=finding))

    def publish(self, updates: list[AnyUpdate]) -> None:
        """Hand updates on. Nothing comes after the end or after `cancel()`."""
        if updates and self._engine.snapshot.outcome is None and self._engine.snapshot.state is not State.CANCELLED:
            self._hand_on(updates)

    def overflowed(self) -> None:
        """A consumer was too far behind."""
        self._engine.counts["overflows"] += 1
        self._gap("a consumer is too far behind for updates that may not be merged", self._engine.snapshot.generation)

    async def next_batch(self) -> None:
        """Wait until the socket has brought something."""
        if self._batch_came is None:
            self._batch_came = anyio.Event()
        await self._batch_came.wait()

    def silence_limit_reached(self, ticket: int) -> None:
        """The stall timer is not moved at each message: it looks back, and goes on if one has come."""
        remaining = self._last_job_message + self._engine.settings.policy.stall_after[0] - anyio.current_time()
        if not self._silent and remaining > 0:
            self._engine.timers.arm(Timer.STALL, ticket, remaining)
        else:
            first, self._silent = not self._silent, True
            self._engine.post(StalledEvent(ticket=ticket, first=first))

    def look_into_silence(self, state: JobState, effect: FetchState) -> None:
        """Take in the state that was fetched because the job was silent; tell of the silence once."""
        finding = self._engine.recovery.look(state)
        updates = self._engine.recovery.take()
        if updates or finding is not None:
            self._stall_told = False
            self.publish(updates)
            self.act(finding, effect.generation)
        elif not self._stall_told:
            self._stall_told = True
            silence = anyio.current_time() - self._last_job_message
            self.publish([Stalled(job=self._engine.settings.job, seconds=round(silence, 3))])

    def _job_spoke(self) -> None:
        self._last_job_message = anyio.current_time()
        self._stall_told = False
        if self._silent:
            # The next silence begins, and is short again before it is looked into.
            self._silent = False
            self._engine.timers.arm(Timer.STALL, self.stall_ticket, self._engine.settings.policy.stall_after[0])

    def _malformed(self, error: MalformedMessage) -> Finding:
        self._engine.counts["malformed_messages"] += 1
        # A server that sends one mostly sends more: the first is worth a warning.
        level = logging.WARNING if self._engine.counts["malformed_messages"] == 1 else logging.DEBUG
        _LOG.log(level, "skipped: %s", escape(str(error)))
        return self._engine.recovery.malformed(error)

    def _hand_on(self, updates: list[AnyUpdate]) -> None:
        self._engine.counts["updates"] += len(updates)
        fits = self._engine.delivery.publish(updates, self._engine.recovery.applied)
        if self._engine.settings.on_progress is not None:
            with self._engine.turn():
                for update in updates:
                    if self._engine.snapshot.state is State.CANCELLED:
                        return
                    if isinstance(update, Progress):
                        self._engine.handlers.call(self._engine.settings.on_progress, update)
        if not fits:
            self.overflowed()

    def _gap(self, problem: str, generation: int) -> None:
        self._engine.counts["gaps"] += 1
        self._engine.last_error = None
        self._engine.post(GapFound(generation=generation, cause=Cause(code="gap", text=problem)))


def _is_of_the_job(frame: Frame) -> bool:
    """Whether the job has spoken: a heartbeat is none of its words."""
    if isinstance(frame, JobProgressFrame):
        return not frame.payload.keep_alive
    return not isinstance(frame, PingFrame | PongFrame | ReadyAckFrame)
