"""A job that a test scripts: each call logs an event and sends it to the followers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import anyio
import msgspec
from msgspec import Raw, Struct

from ...protocols.wire.messages import (
    TERMINAL_TYPES,
    VERSION,
    CanceledPayload,
    ErrorFrame,
    ErrorPayload,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    ProgressPayload,
    StartedPayload,
    encode,
    encode_payload,
)

JobFrame: TypeAlias = JobStartedFrame | JobProgressFrame | JobCompleteFrame | ErrorFrame | JobCanceledFrame
Status: TypeAlias = Literal["running", "complete", "failed", "canceled"]


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event of a job: its position in the log, its frame's type, and the frame's text as sent.

    `seq` counts from 1 in each `epoch`, even if the server does not send it. `at` is in seconds of the loop's clock.
    """

    epoch: str
    seq: int
    at: float
    type: str
    text: str

    @property
    def shown(self) -> bool:
        """Whether followers deliver it; a heartbeat only shows that the job is alive."""
        return '"keepAlive":true' not in self.text

    @property
    def terminal(self) -> bool:
        """Whether the job sends nothing after it."""
        return self.type in TERMINAL_TYPES


class ScriptedJob:
    """One job of a `ScriptedServer`; create it with `ScriptedServer.job`.

    `start`, `progress`, `complete`, `fail`, `cancel` log an event and send it to every socket that has sent `ready`
    (without a log: to every open one). `log` is the reference for checking a client's updates. With `numbered=False`
    frames and state have no seq and epoch, like the original's.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - a job's own word
        *,
        token: str,
        pipeline: str,
        numbered: bool,
        publish: Callable[[ScriptedJob, LoggedEvent], None],
    ) -> None:
        self.id = id
        self.pipeline = pipeline
        self.numbered = numbered
        self.token = token  # the newest; the server knows older ones that are still valid
        self.epoch = "e1"
        self.log: list[LoggedEvent] = []
        self.silent = False  # events are logged but not sent to open sockets
        self._publish = publish
        self._forgotten = 0
        self._status: Status = "running"
        self._total: int | None = None
        self._processed: int | None = None
        self._item: str | None = None
        self._results: Raw | None = None
        self._error: Raw | None = None
        self._started = anyio.current_time()

    # --- script the job ----------------------------------------------------------------------------------------

    def start(self, total_count: int | None = None) -> LoggedEvent:
        """Log `job_started`."""
        self._total = total_count
        return self._add(JobStartedFrame, StartedPayload(total_count=total_count))

    def progress(
        self,
        progress: float,
        status: str = "working",
        *,
        processed: int | None = None,
        item: str | None = None,
        keep_alive: bool = False,
    ) -> LoggedEvent:
        """Log `job_progress`; `progress` is a share of 1."""
        if processed is not None:
            self._processed = processed
        self._item = item
        payload = ProgressPayload(
            progress=progress, status=status, processed_count=processed, current_item=item, keep_alive=keep_alive
        )
        return self._add(JobProgressFrame, payload)

    def complete(self, result: Struct | Mapping[str, Any] | None = None) -> LoggedEvent:
        """Log `job_complete` with a result of the pipeline's shape (an empty object by default)."""
        self._status = "complete"
        self._results = Raw(encode(result)) if isinstance(result, Struct) else Raw(msgspec.json.encode(result or {}))
        return self._add(JobCompleteFrame, encode_payload("job_complete", result if result is not None else {}))

    def fail(
        self, code: str = "E_JOB", message: str = "the job failed", *, retryable: bool | None = None
    ) -> LoggedEvent:
        """Log `error`, which ends the job."""
        self._status = "failed"
        payload = ErrorPayload(code=code, message=message, retryable=retryable)
        self._error = Raw(encode(payload))
        return self._add(ErrorFrame, payload)

    def cancel(self, reason: str | None = None) -> LoggedEvent:
        """Log `job_canceled`, which ends the job."""
        self._status = "canceled"
        return self._add(JobCanceledFrame, CanceledPayload(processed_count=self._processed, reason=reason))

    def forget(self, seq: int) -> None:
        """Drop all events up to `seq` from the replay (`log` keeps them), so that a gap becomes too long."""
        self._forgotten = max(self._forgotten, seq)

    def begin_new_epoch(self, epoch: str) -> None:
        """Restart the job's numbering, like a server that has lost its log."""
        self.epoch = epoch
        self._forgotten = 0

    # --- read by the server ----------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the job has ended, in any way."""
        return self._status != "running"

    @property
    def last_seq(self) -> int:
        """The number of the newest event in the current epoch; 0 if there is none."""
        return next((event.seq for event in reversed(self.log) if event.epoch == self.epoch), 0)

    def events_after(self, seq: int) -> list[LoggedEvent]:
        """The events of the current epoch after `seq` that can be replayed."""
        first = max(seq, self._forgotten)
        return [event for event in self.log if event.epoch == self.epoch and event.seq > first]

    @property
    def result(self) -> Raw | None:
        """The result as JSON, once the job has completed."""
        return self._results

    def state(self) -> JobState:
        """The current answer of the state call; keep an old one to script a stale answer."""
        numbers: dict[str, Any] = {"seq": self.last_seq, "epoch": self.epoch} if self.numbered else {}
        if self._results is not None:
            numbers["results"] = self._results
        if self._error is not None:
            numbers["error"] = self._error
        now = anyio.current_time()
        return JobState(
            status=self._status,
            pipeline=self.pipeline,
            total_count=self._total,
            processed_count=self._processed,
            start_time=self._started * 1000,
            version=VERSION,
            current_item=self._item,
            last_update=(self.log[-1].at if self.log else now) * 1000,
            end_time=self.log[-1].at * 1000 if self.ended else None,
            **numbers,
        )

    def _add(self, frame: type[JobFrame], payload: Any) -> LoggedEvent:
        seq, at = self.last_seq + 1, anyio.current_time()
        numbers: dict[str, Any] = {"seq": seq, "epoch": self.epoch} if self.numbered else {}
        built = frame(
            job_id=self.id, pipeline=self.pipeline, timestamp=at * 1000, version=VERSION, payload=payload, **numbers
        )
        # The payload repeats the type, as the original's readers expect.
        document = msgspec.json.decode(encode(built))
        document["payload"] = {"type": document["type"], **document["payload"]}
        event = LoggedEvent(self.epoch, seq, at, document["type"], msgspec.json.encode(document).decode())
        self.log.append(event)
        if not self.silent:
            self._publish(self, event)
        return event
