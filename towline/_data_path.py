"""The way of the data: from the socket's frames through the recovery to the subscribers, past the machine.

Only what the data means for the lifecycle (a gap, a sync complete, the end, a silence) becomes an event.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio
from msgspec.structs import replace

from ._exceptions import MalformedMessage, TowlineError
from ._recovery import End, Finding, Gap, Synced
from ._text import escape
from ._updates import OUTCOME_KINDS, AnyUpdate, Progress, Stalled
from .statemachine import (
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
from .statemachine import Synced as SyncedEvent
from .transport import Frame, JobProgressFrame, JobState, PingFrame, PongFrame, ReadyAckFrame

if TYPE_CHECKING:
    from ._engine import Engine
    from ._links import Link

_LOG: Final = logging.getLogger("towline")


class DataPath:
    """Takes in what the socket brings, hands on what it shows, and notes when the job last gave a sign."""

    __slots__ = ("_batch_came", "_engine", "_last_state", "last_sign")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Set at each batch, for a fetch that waits for what the socket brings.
        self._batch_came: anyio.Event | None = None
        #: When the job last gave a sign, on the loop's clock.
        self.last_sign: float | None = None
        # The last state since the last message: one that differs from it is a sign of the job.
        self._last_state: JobState | None = None

    def take_in(self, link: Link, batch: list[str | bytes]) -> None:
        """Hand on what one read brought. The hot path: no await, no lock, no task switch a message."""
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
        """The sync is complete: hand on what it held back."""
        self.act(self._engine.recovery.release(), self._engine.snapshot.generation)

    def skip_state(self, effect: SkipState) -> None:
        """Come into step without a state."""
        self.act(self._engine.recovery.unavailable(), self._engine.snapshot.generation)

    def deliver(self, effect: Deliver) -> None:
        """Deliver the end, after what belongs before it."""
        end: End = effect.update if effect.update is not None else self._engine.recovery.assume_cancelled()
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

    def look_into_silence(self, answer: JobState | TowlineError, effect: FetchState) -> None:
        """Take in what the state call answered because the job was silent; report the silence if it goes on."""
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
        """Note a state that was fetched; returns whether it is a sign of the job: it differs from the last one."""
        # A keep-alive moves these two, and is no sign.
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


def _is_sign(frame: Frame, job: str) -> bool:
    """Whether the frame is a sign of the job: keep-alives, pings and answers to `ready` are none."""
    if isinstance(frame, JobProgressFrame):
        return not frame.payload.keep_alive and frame.job_id in (job, "")
    return not isinstance(frame, PingFrame | PongFrame | ReadyAckFrame) and frame.job_id in (job, "")
