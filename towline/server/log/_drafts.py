"""Events before they are in the log: their type and payload, and what they change in the job's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from ..._exceptions import InvalidArgument, JobFailure
from ...protocols.wire.messages import ErrorPayload, ProgressPayload, ResultReference, StartedPayload, encode_payload
from ._base import Change, Job

MAX_RESULT: Final = 16 * 1024 * 1024  # what one answer of the hub's may hold
_MAX_TEXT: Final = 500  # characters of an item or status text


class Draft(Struct, frozen=True):
    """One event to be written. `payload` is JSON with its type repeated."""

    type: str
    payload: bytes
    change: Change


def started(total: int | None, estimated_duration: float | None) -> Draft:
    """The work begins; the duration is in seconds."""
    payload = StartedPayload(total_count=total, estimated_duration=estimated_duration)
    return _draft("job_started", payload, Change(total=total, processed=0))


def progressed(done: int, total: int | None, item: str | None, status: str, checkpoint: object) -> Draft:
    """So much is done; `checkpoint` is any JSON value, or UNSET to keep the one before."""
    payload = ProgressPayload(
        progress=None if total is None else min(1.0, done / total) if total else 0.0,
        status=_cut(status),
        processed_count=done,
        current_item=None if item is None else _cut(item),
    )
    change = Change(
        total=total,
        processed=done,
        current_item=payload.current_item,
        checkpoint=UNSET if checkpoint is UNSET else msgspec.json.encode(checkpoint),
    )
    return _draft("job_progress", payload, change)


def ended(event_type: str, fields: Struct | Mapping[str, Any]) -> Draft:
    """The job ends; the outcome that is kept is the payload less its type."""
    return _draft(event_type, fields, Change(outcome=msgspec.json.encode(fields)))


def failed(failure: JobFailure) -> Draft:
    """The job ends as failed."""
    payload = ErrorPayload(
        code=_readable(failure.code),
        message=_readable(failure.message),
        details=failure.details,
        retryable=failure.retryable,
    )
    return ended("error", payload)


def completed(pipeline: str, result: Mapping[str, Any]) -> Draft:
    """The job ends well, with its result in the message."""
    return ended("job_complete", {"pipeline": pipeline, **result})


def completed_by_url(pipeline: str, url: str) -> Draft:
    """The job ends well, with its result to be fetched."""
    return completed(pipeline, msgspec.to_builtins(ResultReference(result_url=url)))


def completed_in_log(job: Job, result: Mapping[str, Any], *, base_path: str, inline: int) -> Draft:
    """The job ends well, with its result in the message up to `inline` bytes, else to be fetched from the log.

    Raises `InvalidArgument` for a result that is too large, or that has the protocol's own field `resultUrl`.
    """
    if "resultUrl" in result:
        raise InvalidArgument("result", "resultUrl is the protocol's own name: call the field something else")
    draft = completed(job.pipeline, result)
    if len(draft.payload) > MAX_RESULT:
        raise InvalidArgument("result", f"it has more than {MAX_RESULT} bytes")
    if len(draft.payload) > inline:
        by_url = completed_by_url(job.pipeline, result_url(base_path, job.id))
        draft = Draft(by_url.type, by_url.payload, draft.change)
    return draft


def result_url(base_path: str, job_id: str) -> str:
    """Where a job's result is fetched."""
    return f"{base_path}/api/jobs/{job_id}/results"


def refers_to_result(job: Job) -> bool:
    """Whether the outcome is only the URL at which the hub itself serves the result, wherever it was mounted then."""
    try:
        url = msgspec.json.decode(job.outcome or b"{}", type=ResultReference).result_url
    except msgspec.ValidationError:  # a result with other fields
        return False
    return url.endswith(result_url("", job.id))


def _draft(event_type: str, payload: Struct | Mapping[str, Any], change: Change) -> Draft:
    return Draft(event_type, bytes(encode_payload(event_type, payload)), change)


def _cut(text: str) -> str:
    return _readable(text[:_MAX_TEXT])


def _readable(text: str) -> str:
    # Lone surrogates have no UTF-8: they come from file names and must not fail a job.
    return text.encode(errors="replace").decode()
