"""The typed messages of the wire, for both ends; `Codec` reads them.

A frame is one WebSocket message: an envelope that names its type, and a payload. Frames and payloads are msgspec
structs, with snake_case names here and camelCase on the wire. Unknown fields are ignored, as the protocol requires.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .lenient import Count, Fraction, Sequence, Timestamp

VERSION: Final = "1.0.0"

#: The name of this protocol, as records keep it.
NAME: Final = "towline"

#: The message types after which a job sends nothing more.
TERMINAL_TYPES: Final = frozenset({"job_complete", "error", "job_canceled"})


class _Wire(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Settings that all structs of the wire share."""


# --- payloads --------------------------------------------------------------------------------------------------


class StartedPayload(_Wire, frozen=True):
    """The start of a job. `estimated_duration` is in seconds."""

    total_count: Count | None = None
    estimated_duration: float | None = None


class ProgressPayload(_Wire, frozen=True, gc=False):
    """The progress of a job. `progress` is a share of 1, None if only a count is known.

    `keep_alive` marks a heartbeat: it proves that the job is alive and is not shown.
    """

    progress: Fraction | None
    status: str
    processed_count: Count | None = None
    current_item: str | None = None
    keep_alive: bool = False


class ErrorPayload(_Wire, frozen=True):
    """How a job failed. `retryable` is about a new job, never about this one."""

    code: str
    message: str
    details: Any = None
    retryable: bool | None = None


class CanceledPayload(_Wire, frozen=True):
    """How far a canceled job got, and who stopped it."""

    processed_count: Count | None = None
    reason: str | None = None


class ResultReference(_Wire, frozen=True):
    """A reference to a result too large for a message (over 256 KiB): `result_url` has the complete result."""

    result_url: str


# --- frames ----------------------------------------------------------------------------------------------------


class _Frame(_Wire, frozen=True, tag_field="type", kw_only=True):
    """The envelope of a frame. `timestamp` is in milliseconds since 1970.

    `seq` and `epoch` come from servers that keep a log. The sender writes `version` (`VERSION`).
    """

    job_id: str = ""
    pipeline: str = ""
    timestamp: Timestamp = 0
    version: str = ""
    seq: Sequence | None = None
    epoch: str | None = None


class JobStartedFrame(_Frame, frozen=True, tag="job_started"):
    """The job has started."""

    payload: StartedPayload


class JobProgressFrame(_Frame, frozen=True, gc=False, tag="job_progress"):
    """The job has progressed, or (`payload.keep_alive`) is still alive.

    With `first_seq` it stands for the progress from there to `seq`, merged by the server.
    """

    payload: ProgressPayload
    first_seq: Sequence | None = None


class JobCompleteFrame(_Frame, frozen=True, tag="job_complete"):
    """The job has completed. The pipeline decides the payload's shape; `Codec.decode_result` reads it.

    UNSET: the message has no result.
    """

    payload: Raw | UnsetType


class ErrorFrame(_Frame, frozen=True, tag="error"):
    """The job has failed."""

    payload: ErrorPayload


class JobCanceledFrame(_Frame, frozen=True, tag="job_canceled"):
    """The job was canceled on request."""

    payload: CanceledPayload


class ReadyAckFrame(_Frame, frozen=True, tag="ready_ack"):
    """The answer to `ready`. With `epoch`, the server now replays the events `from_` to `to` (`from_` > `to`: none)."""

    from_: Sequence | None = msgspec.field(default=None, name="from")
    to: Count | None = None


class PingFrame(_Frame, frozen=True, tag="ping"):
    """An application-level ping. We do not answer it: some servers close on any message they do not know."""


class PongFrame(_Frame, frozen=True, tag="pong"):
    """An application-level pong."""


class UnknownFrame(_Wire, frozen=True):
    """A frame of a type this version does not know; it is counted and otherwise ignored."""

    type: str
    job_id: str = ""
    seq: Sequence | None = None
    epoch: str | None = None


TerminalFrame: TypeAlias = JobCompleteFrame | ErrorFrame | JobCanceledFrame
KnownFrame: TypeAlias = (
    JobStartedFrame
    | JobProgressFrame
    | JobCompleteFrame
    | ErrorFrame
    | JobCanceledFrame
    | ReadyAckFrame
    | PingFrame
    | PongFrame
)
Frame: TypeAlias = KnownFrame | UnknownFrame


class Ready(_Wire, frozen=True, tag_field="type", tag="ready"):
    """The client's message after each open: its cursor if it has one, its client id, and the number of this socket."""

    timestamp: float | None = None
    epoch: str | None = None
    seq: Sequence | None = None
    client: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    socket: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


#: The status of a job.
Status: TypeAlias = Literal["running", "complete", "failed", "canceled"]


class JobState(_Wire, frozen=True):
    """The answer of the state call. `results` and `error` are the terminal payloads without their type."""

    status: Status
    pipeline: str = ""
    total_count: Count | None = None
    processed_count: Count | None = None
    start_time: Timestamp | None = None
    version: str = ""
    current_item: str | None = None
    last_update: Timestamp | None = None
    end_time: Timestamp | None = None
    results: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    seq: Count | None = None
    epoch: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has ended, in any way."""
        return self.status != "running"


class TokenAnswer(_Wire, frozen=True):
    """The answer of the calls that return a token: starting a job, and exchanging an old token."""

    token: str
    job_id: str = ""
    expires_in: float | None = None


# --- writing ---------------------------------------------------------------------------------------------------

#: Encodes a frame, a state or a `Ready` as JSON.
encode: Final = msgspec.json.Encoder().encode


def encode_payload(type: str, payload: Struct | Mapping[str, Any]) -> Raw:  # noqa: A002 - the wire's own word
    """Encode a payload with its type repeated in it, as the original's readers expect."""
    return Raw(encode({"type": type, **msgspec.to_builtins(payload)}))
