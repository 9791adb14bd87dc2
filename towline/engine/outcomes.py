"""Reads how a job ended, from a terminal frame or from the job's state.

An end is always delivered, with everything that can be read. `problem` says what is missing or does not fit.
"""

from __future__ import annotations

from typing import TypedDict

from msgspec import UNSET, Raw, UnsetType

from .._updates import JobCancelled, JobComplete, JobFailed, Outcome
from ..protocols.wire import (
    Codec,
    ErrorFrame,
    ErrorPayload,
    JobCanceledFrame,
    JobCompleteFrame,
    JobState,
    TerminalFrame,
)


def outcome_of_frame(job: str, frame: TerminalFrame, codec: Codec) -> Outcome:
    """Read the outcome from a terminal frame."""
    common = _common(job, frame.pipeline, frame.timestamp, frame.seq, frame.epoch)
    match frame:
        case JobCompleteFrame():
            return _complete(common, frame.payload, codec)
        case ErrorFrame():
            return _failed(common, frame.payload)
        case JobCanceledFrame():
            payload = frame.payload
            return JobCancelled(**common, processed_count=payload.processed_count, reason=payload.reason)


def outcome_of_state(job: str, state: JobState, codec: Codec) -> Outcome:
    """Read the outcome from the state of a job that has ended."""
    common = _common(job, state.pipeline, state.end_time or state.last_update or 0, state.seq, state.epoch)
    if state.status == "canceled":
        return JobCancelled(**common, processed_count=state.processed_count)
    if state.status == "complete":
        return _complete(common, state.results, codec)
    return _failed(common, codec.decode_error(b"null" if state.error is UNSET else state.error))


class _Common(TypedDict):
    """The fields that all outcomes share."""

    job: str
    pipeline: str
    timestamp: float
    seq: int | None
    epoch: str | None


def _common(job: str, pipeline: str, timestamp: float, seq: int | None, epoch: str | None) -> _Common:
    # A log counts from 1, so position 0 means that the end has no position.
    return _Common(job=job, pipeline=pipeline, timestamp=timestamp, seq=seq or None, epoch=epoch)


def _complete(common: _Common, payload: Raw | UnsetType, codec: Codec) -> JobComplete:
    if payload is UNSET:
        return JobComplete(**common, problem="the server sent no result with the end")
    result = codec.decode_result(common["pipeline"], payload)
    return JobComplete(**common, result=result.value, result_url=result.url, problem=result.problem)


def _failed(common: _Common, error: ErrorPayload) -> JobFailed:
    return JobFailed(
        **common,
        code=error.code,
        message=error.message,
        details=error.details,
        retryable=error.retryable,
        problem=None if error.code or error.message or error.details else "the server gave no reason",
    )
