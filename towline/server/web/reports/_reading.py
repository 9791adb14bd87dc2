"""`POST /api/jobs/{jobId}/events`: how a worker's report is read, which event it becomes, and why it is refused.

The number of a report is the number of the event that it becomes, so a report that is sent again is recognized however
old it is, and of two workers at one job the later one learns of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from ...._exceptions import InvalidArgument, JobFailure
from ...log._base import Event, EventLog, Job
from ...log._drafts import Draft, completed_in_log, failed, progressed, started
from .._answers import Refusal
from ._types import CompleteReport, ErrorReport, Numbered, ProgressReport, Report, StartedReport


def read_report(body: bytes) -> Report:
    """Read a report; raises the refusal of one that is malformed, with the place of its fault."""
    try:
        return msgspec.json.decode(body, type=Report)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(400, "bad_report", f"the report cannot be read: {error}") from error


def draft_of(report: Numbered, job: Job, *, base_path: str, inline: int) -> Draft:
    """Make the event of a report; raises the refusal of a result that no hub can keep."""
    match report:
        case StartedReport():
            return started(report.total_count, report.estimated_duration)
        case ProgressReport():
            total = job.total if report.total_count is None else report.total_count
            return progressed(report.processed_count, total, report.current_item, report.status, report.checkpoint)
        case CompleteReport():
            try:
                return completed_in_log(job, report.result or {}, base_path=base_path, inline=inline)
            except InvalidArgument as error:
                raise Refusal(400, "bad_report", str(error)) from error
        case ErrorReport():
            failure = JobFailure(report.code, report.message, details=report.details, retryable=report.retryable)
            return failed(failure)


async def check_repeated(log: EventLog, job: Job, number: int, draft: Draft) -> None:
    """Raise the refusal of a report that became no event, unless it had become this event before."""
    if number <= job.seq:
        events = await log.read(job.id, number - 1, 1)
        if events and _is_event(draft, events[0], job):
            return
    if not job.running:
        raise ended(job)
    count = draft.change.processed
    if number == job.seq + 1 and count is not UNSET and job.processed is not None and count < job.processed:
        raise Refusal(409, "count_below", f"a processedCount is not below an earlier one, {job.processed}")
    # With the next number it came too early, and the event before it has been reported since: by another worker.
    problem = "leaves a gap" if number > job.seq else "is the number of another event"
    text = f"{number} {problem}; the next number is {job.seq + 1}. Does another worker report on this job?"
    raise Refusal(409, "wrong_number", text)


def ended(job: Job) -> Refusal:
    """The refusal of a report after the end."""
    return Refusal(409, "ended", f"the job has ended ({job.status}): stop working")


def _is_event(draft: Draft, event: Event, job: Job) -> bool:
    # A long result is not in its event, but in the state.
    same_end = draft.change.outcome is UNSET or draft.change.outcome == job.outcome
    return same_end and draft.type == event.type and _said(draft.payload) == _said(event.payload)


def _said(payload: bytes) -> Mapping[str, Any]:
    # The share is computed, from a total that may have changed since.
    fields: dict[str, Any] = msgspec.json.decode(payload)
    return {name: value for name, value in fields.items() if name != "progress"}
