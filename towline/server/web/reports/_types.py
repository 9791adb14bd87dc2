"""The reports of workers elsewhere by HTTP, and their answer, as they are in JSON."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

_MOST: Final = 2**53  # JSON numbers are whole up to here in every language (RFC 8259 section 6)

Number: TypeAlias = Annotated[int, Meta(ge=1, le=_MOST)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=_MOST)]


class _Report(Struct, rename="camel", tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """What all reports have in common. A misspelt field is an error, because it would be lost silently."""


class StartedReport(_Report, tag="job_started"):
    """The work begins; the duration is in seconds. Only as number 1."""

    number: Annotated[int, Meta(ge=1, le=1)]
    total_count: Count | None = None
    estimated_duration: Annotated[float, Meta(ge=0)] | None = None


class ProgressReport(_Report, tag="job_progress"):
    """So many items are done. The checkpoint, any JSON value, is kept for the next worker."""

    number: Number
    processed_count: Count
    total_count: Count | None = None
    current_item: str | None = None
    status: str = "processing"
    checkpoint: Raw | UnsetType = UNSET


class CompleteReport(_Report, tag="job_complete"):
    """The job ends well, with the fields of its result."""

    number: Number
    result: dict[str, Any] | None = None


class ErrorReport(_Report, tag="error"):
    """The job fails, with a code for programs and a message for people."""

    number: Number
    code: str
    message: str
    details: Any = None
    retryable: bool = False


class KeepAliveReport(_Report, tag="keep_alive"):
    """The worker lives. It becomes no event, and its answer has the checkpoint."""


Numbered: TypeAlias = StartedReport | ProgressReport | CompleteReport | ErrorReport
Report: TypeAlias = Numbered | KeepAliveReport


class ReportAnswer(Struct, rename="camel"):
    """How far the job is: `number` is that of its last event, and the next report has one more."""

    job_id: str
    number: int
    status: str
    processed_count: int
    checkpoint: Raw | UnsetType = UNSET
