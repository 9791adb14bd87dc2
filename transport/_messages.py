"""The messages of the wire, typed, and the one codec for both ends.

A frame is one WebSocket text message: an envelope that names its type, and a payload. Frames and payloads are msgspec
structs: snake_case here, camelCase on the wire. Unknown fields are ignored, as the protocol asks.

The pipeline named in the envelope chooses the shape of a result. Nothing is guessed from a payload's looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .._exceptions import MalformedMessage

VERSION: Final = "1.0.0"

#: The types after which a job sends nothing more.
TERMINAL_TYPES: Final = frozenset({"job_complete", "error", "job_canceled"})

Count: TypeAlias = Annotated[int, Meta(ge=0)]
Sequence: TypeAlias = Annotated[int, Meta(ge=1)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class _Wire(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What all structs of the wire share."""


# --- payloads --------------------------------------------------------------------------------------------------


class StartedPayload(_Wire, frozen=True):
    """`estimated_duration` is in seconds."""

    total_count: Count | None = None
    estimated_duration: float | None = None


class ProgressPayload(_Wire, frozen=True, gc=False):
    """`progress` is a share of 1. `keep_alive` marks a heartbeat: it counts as alive and is not shown."""

    progress: Fraction
    status: str
    processed_count: Count | None = None
    current_item: str | None = None
    keep_alive: bool = False


class ErrorPayload(_Wire, frozen=True):
    """How a job failed. `retryable` speaks of a new job, never of this one."""

    code: str
    message: str
    details: Any = None
    retryable: bool | None = None


class CanceledPayload(_Wire, frozen=True):
    """How far a canceled job had come, and who stopped it."""

    processed_count: Count | None = None
    reason: str | None = None


# --- results, one a pipeline -----------------------------------------------------------------------------------


class EnrichedBook(_Wire, frozen=True):
    """One book of a batch enrichment; a failing item is a result, not a failed job."""

    title: str
    success: bool
    author: str | None = None
    isbn: str | None = None
    error: str | None = None
    enriched: Any = None


class BatchEnrichmentResult(_Wire, frozen=True):
    """Result of `batch_enrichment`; `duration` is in milliseconds."""

    total_processed: Count
    success_count: Count
    failure_count: Count
    duration: float
    enriched_books: list[EnrichedBook]


class ImportedBook(_Wire, frozen=True):
    """One good row of a CSV import."""

    title: str
    author: str
    isbn: str | None = None
    cover_url: str | None = None
    publisher: str | None = None
    publication_year: int | str | None = None
    enrichment_error: str | None = None


class RejectedRow(_Wire, frozen=True):
    """One bad row of a CSV import."""

    title: str
    error: str


class CsvImportResult(_Wire, frozen=True):
    """Result of `csv_import`; `success_rate` is text such as "45/50"."""

    books: list[ImportedBook]
    errors: list[RejectedRow]
    success_rate: str


class BoundingBox(_Wire, frozen=True, rename=None):
    """Two corners, in pixels of the photo (or shares of it: the server says)."""

    x1: float
    y1: float
    x2: float
    y2: float


class ScannedBook(_Wire, frozen=True):
    """One book found in a photo."""

    title: str | None = None
    author: str | None = None
    isbn: str | None = None
    confidence: float | None = None
    bounding_box: BoundingBox | None = None
    enrichment_status: str | None = None
    cover_url: str | None = None
    publisher: str | None = None
    publication_year: int | str | None = None


class AiScanResult(_Wire, frozen=True):
    """Result of `ai_scan`."""

    total_detected: Count
    approved: Count
    needs_review: Count
    books: list[ScannedBook]


class ResultReference(_Wire, frozen=True):
    """A result too large for a message (over 256 KiB): `result_url` has it whole."""

    result_url: str


#: The pipelines whose results have types of their own. Any other name is lawful and gives plain JSON values.
PIPELINES: Final[Mapping[str, type]] = {
    "batch_enrichment": BatchEnrichmentResult,
    "csv_import": CsvImportResult,
    "ai_scan": AiScanResult,
}


# --- frames ----------------------------------------------------------------------------------------------------


class _Frame(_Wire, frozen=True, tag_field="type", kw_only=True):
    """The envelope. `timestamp` is in milliseconds since 1970; `seq` and `epoch` come from servers that keep a
    log. `version` is written by the sender (`VERSION`)."""

    job_id: str = ""
    pipeline: str = ""
    timestamp: float = 0
    version: str = ""
    seq: Sequence | None = None
    epoch: str | None = None


class JobStartedFrame(_Frame, frozen=True, tag="job_started"):
    """The job has begun."""

    payload: StartedPayload = StartedPayload()


class JobProgressFrame(_Frame, frozen=True, gc=False, tag="job_progress"):
    """The job has come further, or (`payload.keep_alive`) is still alive."""

    payload: ProgressPayload


class JobCompleteFrame(_Frame, frozen=True, tag="job_complete"):
    """The job has ended well; `Codec.result` reads the payload, whose shape the pipeline decides."""

    payload: Raw = Raw(b"{}")


class ErrorFrame(_Frame, frozen=True, tag="error"):
    """The job has failed."""

    payload: ErrorPayload


class JobCanceledFrame(_Frame, frozen=True, tag="job_canceled"):
    """The job was stopped on request."""

    payload: CanceledPayload = CanceledPayload()


class ReadyAckFrame(_Frame, frozen=True, tag="ready_ack"):
    """Answer to `ready`. With `epoch`, `from_` and `to` the server replays those events now (`from_` > `to`: none)."""

    from_: Annotated[int, Meta(ge=1)] | None = msgspec.field(default=None, name="from")
    to: Count | None = None


class PingFrame(_Frame, frozen=True, tag="ping"):
    """An application-level ping. It is not answered: some servers close on any message they do not know."""


class PongFrame(_Frame, frozen=True, tag="pong"):
    """An application-level pong."""


class UnknownFrame(_Wire, frozen=True):
    """A frame of a type this version does not know; tolerated and counted."""

    type: str
    job_id: str = ""
    seq: Sequence | None = None
    epoch: str | None = None


class UnreadableEnd(_Wire, frozen=True):
    """A terminal frame that does not fit its type. The job has ended all the same: only how is not known whole.

    `raw` is the frame as it came, `problem` says what does not fit.
    """

    type: str
    raw: str
    problem: str
    job_id: str = ""
    pipeline: str = ""
    timestamp: float = 0
    seq: int | None = None
    epoch: str | None = None


TerminalFrame: TypeAlias = JobCompleteFrame | ErrorFrame | JobCanceledFrame | UnreadableEnd
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
Frame: TypeAlias = KnownFrame | UnknownFrame | UnreadableEnd


class Ready(_Wire, frozen=True, tag_field="type", tag="ready"):
    """What the client says after each open: its cursor, where it has one, who it is, and the number of this socket."""

    timestamp: float
    epoch: str | None = None
    seq: Sequence | None = None
    client: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    socket: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


class JobState(_Wire, frozen=True):
    """Answer of the state call. `results` and `error` are the terminal payloads less their type."""

    status: Literal["running", "complete", "failed", "canceled"]
    pipeline: str = ""
    total_count: Count | None = None
    processed_count: Count | None = None
    start_time: float | None = None
    version: str = ""
    current_item: str | None = None
    last_update: float | None = None
    end_time: float | None = None
    results: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    seq: Count | None = None
    epoch: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has ended, however."""
        return self.status != "running"


# --- the codec -------------------------------------------------------------------------------------------------


class _Head(Struct, rename="camel"):
    """What is read of a frame that does not fit: each field alone may be wrong, so nothing is demanded of it."""

    type: Any = None
    job_id: Any = ""
    pipeline: Any = ""
    timestamp: Any = 0
    seq: Any = None
    epoch: Any = None


_decode_known: Final[Callable[[str | bytes], KnownFrame]] = msgspec.json.Decoder(KnownFrame).decode
_decode_head: Final[Callable[[str | bytes], _Head]] = msgspec.json.Decoder(_Head).decode
_decode_state: Final[Callable[[bytes], JobState]] = msgspec.json.Decoder(JobState).decode
_encode: Final = msgspec.json.Encoder().encode

# A deeply nested value exhausts the decoder's stack: a RecursionError is then the peer's doing, not ours.
_UNFIT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _path_and_problem(error: Exception) -> tuple[str, str]:
    """Split msgspec's sentence into where and what. It names fields and types; of a value it quotes only what is not
    in an enumeration, and that is the server's text, so it is left out."""
    problem, found, path = str(error).rpartition(" - at `")
    if not found:
        problem, path = path, "$"
    return path.removesuffix("`"), "Invalid enum value" if problem.startswith("Invalid enum value") else problem


class Codec:
    """Reads frames, states and results. `pipelines` adds result types of the application's own, by pipeline name."""

    def __init__(self, pipelines: Mapping[str, type] | None = None) -> None:
        self._results: dict[str, Callable[[Raw | bytes], Any]] = {
            name: msgspec.json.Decoder(shape).decode for name, shape in {**PIPELINES, **(pipelines or {})}.items()
        }

    def decode(self, data: str | bytes) -> Frame:
        """Read one frame.

        Raises `MalformedMessage` for what is not JSON and for a frame of known type that does not fit it, unless that
        type is terminal: then the answer is an `UnreadableEnd`, because an end is never dropped.
        """
        try:
            return _decode_known(data)
        except _UNFIT as error:
            return self._decode_unfit(data, error)

    def _decode_unfit(self, data: str | bytes, error: Exception) -> Frame:
        path, problem = _path_and_problem(error)
        try:
            head = _decode_head(data)
        except _UNFIT:
            raise MalformedMessage(None, path, problem) from error
        if not isinstance(head.type, str):
            raise MalformedMessage(None, "$.type", "a message needs a type") from error
        if head.type in TERMINAL_TYPES:
            return UnreadableEnd(
                type=head.type,
                raw=data if isinstance(data, str) else data.decode("utf-8", "replace"),
                problem=f"{path}: {problem}",
                job_id=_text(head.job_id),
                pipeline=_text(head.pipeline),
                timestamp=head.timestamp if isinstance(head.timestamp, int | float) else 0,
                seq=_number(head.seq),
                epoch=_text(head.epoch) or None,
            )
        if head.type in _KNOWN_TYPES:
            raise MalformedMessage(
                head.type,
                path,
                problem,
                job_id=_text(head.job_id),
                epoch=_text(head.epoch) or None,
                seq=_number(head.seq),
            ) from error
        return UnknownFrame(
            type=head.type, job_id=_text(head.job_id), seq=_number(head.seq), epoch=_text(head.epoch) or None
        )

    def decode_state(self, data: bytes) -> JobState:
        """Read the answer of the state call; raises `MalformedMessage` where it does not fit."""
        try:
            return _decode_state(data)
        except _UNFIT as error:
            raise MalformedMessage("job_state", *_path_and_problem(error)) from error

    def decode_result(self, pipeline: str, payload: Raw | bytes) -> Any:
        """Read what a message or a state tells of a result: a `ResultReference`, or else as `decode_whole_result`."""
        try:
            # A reference may stand in the place of any pipeline's result, so it is looked for first.
            if (url := _reference(payload)) is not None:
                return ResultReference(result_url=url)
        except _UNFIT as error:
            raise MalformedMessage("job_complete", *_path_and_problem(error)) from error
        return self.decode_whole_result(pipeline, payload)

    def decode_whole_result(self, pipeline: str, payload: Raw | bytes) -> Any:
        """Read a result by its pipeline: the type registered for it, or plain JSON values without the payload's type.

        Raises `MalformedMessage` where it does not fit.
        """
        try:
            if (decode := self._results.get(pipeline)) is not None:
                return decode(payload)
            result = msgspec.json.decode(payload)
        except _UNFIT as error:
            raise MalformedMessage("job_complete", *_path_and_problem(error)) from error
        # A message repeats its type here and a state does not: the result is one, whichever of them tells it.
        if isinstance(result, dict) and result.get("type") == "job_complete":
            del result["type"]
        return result

    def decode_error(self, payload: Raw | bytes) -> ErrorPayload:
        """Read how a job failed; raises `MalformedMessage` where it does not fit."""
        try:
            return msgspec.json.decode(payload, type=ErrorPayload)
        except _UNFIT as error:
            raise MalformedMessage("error", *_path_and_problem(error)) from error


class _MaybeReference(Struct, rename="camel"):
    result_url: Any = None


def _reference(payload: Raw | bytes) -> str | None:
    try:
        url = msgspec.json.decode(payload, type=_MaybeReference).result_url
    except msgspec.ValidationError:
        return None  # a result that is no object is no reference
    return url if isinstance(url, str) else None


_KNOWN_TYPES: Final = frozenset(
    {"job_started", "job_progress", "job_complete", "error", "job_canceled", "ready_ack", "ping", "pong"}
)


def encode(message: Struct) -> bytes:
    """Write a frame, a state or a `Ready` as JSON."""
    return _encode(message)


def encode_payload(type: str, payload: Struct | Mapping[str, Any]) -> Raw:  # noqa: A002 - the wire's own word
    """Write a payload with its type repeated in it, as the original's readers expect."""
    return Raw(_encode({"type": type, **msgspec.to_builtins(payload)}))
