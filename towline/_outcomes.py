"""How a job ended, read from a terminal frame or from the job's state.

An end is never dropped because it cannot be read whole: it then comes from its type alone, with the problem named.
"""

from __future__ import annotations

from typing import TypedDict

from msgspec import UNSET, Raw

from ._exceptions import MalformedMessage
from ._updates import JobCanceled, JobComplete, JobFailed, Outcome
from .transport import (
    Codec,
    ErrorFrame,
    ErrorPayload,
    JobCanceledFrame,
    JobCompleteFrame,
    JobState,
    ResultReference,
    TerminalFrame,
    UnreadableEnd,
)


def outcome_of_frame(job: str, frame: TerminalFrame, codec: Codec) -> Outcome:
    """Read the end that a terminal frame tells."""
    told = _Told(job, frame.pipeline, frame.timestamp, frame.seq, frame.epoch)
    match frame:
        case JobCompleteFrame():
            return told.complete(frame.payload, codec)
        case ErrorFrame():
            return told.failed(frame.payload)
        case JobCanceledFrame():
            return told.canceled(frame.payload.processed_count, frame.payload.reason)
        case UnreadableEnd():
            return told.unreadable(frame.type, frame.problem, frame.raw)


def outcome_of_state(job: str, state: JobState, codec: Codec) -> Outcome:
    """Read the end that the state of an ended job tells."""
    told = _Told(job, state.pipeline, state.end_time or state.last_update or 0, state.seq, state.epoch)
    if state.status == "canceled":
        return told.canceled(state.processed_count, None)
    if state.status == "complete":
        if state.results is UNSET:
            return told.unreadable("job_complete", "the state tells no result", None)
        return told.complete(state.results, codec)
    if state.error is UNSET:
        return told.unreadable("error", "the state tells no error", None)
    try:
        return told.failed(codec.decode_error(state.error))
    except MalformedMessage as error:
        return told.unreadable("error", str(error), _text(state.error))


class _Common(TypedDict):
    job: str
    pipeline: str
    timestamp: float
    seq: int | None
    epoch: str | None


class _Told:
    """What every end has in common."""

    def __init__(self, job: str, pipeline: str, timestamp: float, seq: int | None, epoch: str | None) -> None:
        # An end at place 0 of a log is none: a log counts from 1.
        self.common = _Common(job=job, pipeline=pipeline, timestamp=timestamp, seq=seq or None, epoch=epoch)

    def complete(self, payload: Raw, codec: Codec) -> Outcome:
        try:
            result = codec.decode_result(self.common["pipeline"], payload)
        except MalformedMessage as error:
            return self.unreadable("job_complete", str(error), _text(payload))
        if isinstance(result, ResultReference):
            return JobComplete(**self.common, result_url=result.result_url)
        return JobComplete(**self.common, result=result)

    def failed(self, error: ErrorPayload) -> Outcome:
        return JobFailed(
            **self.common,
            code=error.code,
            message=error.message,
            details=error.details,
            retryable=error.retryable,
        )

    def canceled(self, processed_count: int | None, reason: str | None) -> Outcome:
        return JobCanceled(**self.common, processed_count=processed_count, reason=reason)

    def unreadable(self, type_: str, problem: str, raw: str | None) -> Outcome:
        kind = {"job_complete": JobComplete, "error": JobFailed, "job_canceled": JobCanceled}[type_]
        outcome: Outcome = kind(**self.common, problem=problem, raw=raw)
        return outcome


def _text(payload: Raw) -> str:
    return bytes(payload).decode("utf-8", "replace")
