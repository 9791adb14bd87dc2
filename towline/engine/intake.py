"""Moves data from the socket's frames through the recovery to the subscribers, bypassing the state machine.

An event is raised only for what matters to the lifecycle: a gap, a complete sync, the end, a silence.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio
from msgspec.structs import replace

from .._exceptions import MalformedMessage, TowlineError
from .._text import escape
from .._updates import OUTCOME_KINDS, AnyUpdate, Progress, Stalled
from ..protocols import Frame, JobProgressFrame, JobState, PingFrame, PongFrame, ReadyAckFrame
from ..statemachine import (
    Cause,
    Deliver,
    FetchState,
    GapFound,
    JobEnded,
    JobSpoke,
    ReleaseBuffer,
    SkipState,
    State,
    StillSilent,
)
from ..statemachine import Synced as SyncedEvent
from .sequencer import End, Finding, Gap, Synced

if TYPE_CHECKING:
    from .attempts import Link
    from .engine import Engine

_LOG: Final = logging.getLogger("towline")


class DataPath:
    """Processes the socket's messages, delivers their updates, and notes when the job last gave a sign."""

    __slots__ = ("_batch_came", "_engine", "_last_state", "last_sign")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Set at each batch, for a fetch that waits for the socket's messages.
        self._batch_came: anyio.Event | None = None
        #: When the job last gave a sign of life, on the loop's clock.
        self.last_sign: float | None = None
        # The last state since the last message: a different one is a sign of the job.
        self._last_state: JobState | None = None

    def take_in(self, link: Link, batch: list[str | bytes]) -> None:
        """Process and deliver the messages of one read. The hot path: no await, lock or task switch per message."""
        decode, take_in = self._engine.settings.codec.decode, self._engine.recovery.frame
        self._engine.counts["messages"] += len(batch)
        spoke = False
        for message in batch:
            try:
                frame = decode(message)
            except MalformedMessage as error:
                spoke = spoke or error.job_id in ("", self._engine.settings.job)
                finding = self._malformed(error)
            else:
                spoke = spoke or _is_sign(frame, self._engine.settings.job)
                finding = take_in(frame)
            if finding is not None:
                self.act(finding, link.generation)
                if self._engine.links.current is not link:
                    break
        if spoke:
            self._last_state = None
            self._job_spoke(link.generation)
        self.publish(self._engine.recovery.take())
        if self._batch_came is not None:
            self._batch_came.set()
            self._batch_came = None

    def release_buffer(self, effect: ReleaseBuffer) -> None:
        """Deliver the frames that the sync buffered."""
        self.act(self._engine.recovery.release(), self._engine.snapshot.generation)

    def skip_state(self, effect: SkipState) -> None:
        """Finish the sync without a state."""
        self.act(self._engine.recovery.unavailable(), self._engine.snapshot.generation)

    def deliver(self, effect: Deliver) -> None:
        """Deliver the outcome, preceded by any pending updates."""
        end: End = effect.update if effect.update is not None else self._engine.recovery.assume_cancelled()
        self._engine.delivery.outcome = end.outcome
        if end.before:
            self._publish(list(end.before))
        self._engine.delivery.end(self._engine.recovery.applied)
        self._engine.counts["updates"] += 1

    def act(self, finding: Finding, generation: int) -> None:
        """Deliver pending updates, then turn a finding into an event."""
        self.publish(self._engine.recovery.take())
        if isinstance(finding, Gap):
            self._gap(finding.problem, generation)
        elif isinstance(finding, Synced):
            self._engine.post(SyncedEvent(generation=generation))
        elif isinstance(finding, End):
            self._engine.post(JobEnded(outcome=OUTCOME_KINDS[type(finding.outcome)], update=finding))

    def publish(self, updates: list[AnyUpdate]) -> None:
        """Deliver updates, but none after the end or after `cancel()`."""
        if updates and self._engine.snapshot.outcome is None and self._engine.snapshot.state is not State.CANCELLED:
            self._publish(updates)

    def overflowed(self) -> None:
        """Report a gap: a consumer was too far behind."""
        self._engine.counts["overflows"] += 1
        self._gap(
            "a consumer is too far behind, and its waiting updates cannot be merged", self._engine.snapshot.generation
        )

    async def next_batch(self) -> None:
        """Wait for the socket's next messages."""
        if self._batch_came is None:
            self._batch_came = anyio.Event()
        await self._batch_came.wait()

    def look_into_silence(self, answer: JobState | TowlineError, effect: FetchState) -> None:
        """Process the state call's answer after a silence of the job; report the silence if it continues."""
        engine = self._engine
        if isinstance(answer, JobState):
            finding = engine.recovery.look(answer)
            updates = engine.recovery.take()
            moved = finding is not None or bool(updates)
            if self.note_state(answer, effect.generation, moved=moved):
                self.publish(updates)
                self.act(finding, effect.generation)
                return
        if engine.snapshot.state is not State.CONNECTED:
            return
        silence = engine.snapshot.silent_seconds(engine.facts())
        self.publish([Stalled(job=engine.settings.job, seconds=round(silence, 3))])
        engine.post(StillSilent(generation=effect.generation, fetch=effect.fetch))

    def note_state(self, state: JobState, generation: int, *, moved: bool = False) -> bool:
        """Note a fetched state; returns whether it differs from the last one, a sign of the job."""
        # A keep-alive changes these two fields, but it is not a sign.
        last, self._last_state = self._last_state, replace(state, seq=None, last_update=None)
        is_sign = moved or (last is not None and self._last_state != last)
        if is_sign:
            self._job_spoke(generation)
        return is_sign

    def _job_spoke(self, generation: int) -> None:
        self.last_sign = anyio.current_time()
        if self._engine.snapshot.stalls or self._engine.snapshot.silence:
            self._engine.post(JobSpoke(generation=generation))

    def _malformed(self, error: MalformedMessage) -> Finding:
        self._engine.counts["malformed_messages"] += 1
        # A server that sends one usually sends more, so only the first is logged as a warning.
        level = logging.WARNING if self._engine.counts["malformed_messages"] == 1 else logging.DEBUG
        _LOG.log(level, "skipped: %s", escape(str(error)))
        return self._engine.recovery.malformed(error)

    def _publish(self, updates: list[AnyUpdate]) -> None:
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


def _is_sign(frame: Frame, job: str) -> bool:
    """Whether the frame is a sign of the job; keep-alives, pings and answers to `ready` are not."""
    if isinstance(frame, JobProgressFrame):
        return not frame.payload.keep_alive and frame.job_id in (job, "")
    return not isinstance(frame, PingFrame | PongFrame | ReadyAckFrame) and frame.job_id in (job, "")
