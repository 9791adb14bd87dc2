"""Towline's own wire: JSON messages over a WebSocket, and HTTP calls next to it (`docs/wire.md`).

The codec reads messages and answers field by field if needed; this module decides what they mean. Its file is long
because `read` has two parts, messages and answers, and each has a function for every kind of end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import ClassVar, Final, TypedDict, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .._exceptions import MalformedMessage
from .._facts import (
    Answer,
    CancelAnswer,
    CancelJob,
    Ended,
    Fact,
    Follow,
    GetResult,
    GetState,
    InStep,
    Item,
    Means,
    Message,
    NewToken,
    Numbered,
    Promise,
    Received,
    RefreshToken,
    Replaying,
    Request,
    ServerEvent,
    Snapshot,
    Text,
    Value,
    Via,
    Want,
)
from .._headers import check_subprotocols, header_pairs
from .._secret import Secret
from .._updates import JobCancelled, JobComplete, JobFailed, JobStarted, Outcome, Progress
from ._shared.requests import (
    ACCEPT_JSON,
    JSON,
    Headers,
    bearer,
    check_path,
    check_token_place,
    http_origin,
    path_segment,
    placed,
    with_query,
)
from .wire.codec import Codec, decode_known
from .wire.lenient import UNFIT
from .wire.messages import (
    ErrorFrame,
    ErrorPayload,
    Frame,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    PongFrame,
    Ready,
    ReadyAckFrame,
    TerminalFrame,
    encode,
)

#: The path of a job's progress, below the prefix that a server may be mounted under.
PROGRESS_PATH: Final = "/ws/progress"

#: The seconds between the comments of an event stream (docs/wire.md).
COMMENT_EVERY: Final = 15.0

#: What a server, or a proxy before it, answers to an upgrade if it has no WebSockets: wrong method, upgrade required,
#: not implemented (RFC 9110 sections 15.5.6, 15.5.22 and 15.6.2).
_NO_WEBSOCKET: Final = frozenset({405, 426, 501})

_NOTHING: Final[tuple[Fact, ...]] = ()


@dataclass(frozen=True)
class Towline:
    """Follows a job on a server that speaks Towline's own wire.

    - `url`, `job`: the WebSocket's URL, and the job's id, which is added to its query.
    - `api_origin`: the origin of the HTTP calls, by default the URL's own. Calls and the token may go there too.
    - `prefix`: the path below which the calls are, by default the part of the URL's path before `/ws/progress`.
    - `state_path`, `refresh_path`, `cancel_path`, `result_path`: the paths of the calls below `prefix`. `{job}` stands
      for the job's id; `cancel_path` may leave it out, because the id is also in the body.
    - `events_path`: where the same messages come as an event stream, for a way to the server on which a WebSocket is
      impossible. None if the server has no such stream.
    - `token_in`: `header` (Authorization: Bearer), `header:NAME`, `query`, `query:NAME` or `subprotocol:NAME`: where
      the token goes when the WebSocket opens. Calls have it in the header.
    - `headers`, `subprotocols`: sent with the upgrade; the headers also with each call.
    - `require_state`: refuse a server that has no state of the job.
    - `results`: types of results, by pipeline (anything msgspec decodes). Other results are plain JSON values.

    Raises `InvalidArgument` for a job, a path or a place of the token that cannot be used.
    """

    url: str
    job: str
    _: KW_ONLY
    api_origin: str | None = None
    prefix: str | None = None
    state_path: str = "/api/job-state/{job}"
    refresh_path: str = "/api/token/refresh"
    cancel_path: str = "/api/jobs/{job}/cancel"
    result_path: str = "/api/jobs/{job}/results"
    events_path: str | None = "/api/jobs/{job}/events"
    token_in: str = "header"
    headers: Mapping[str, Text] | Headers = field(default=(), repr=False)
    subprotocols: tuple[Text, ...] = ()
    require_state: bool = False
    results: Mapping[str, type] = field(default_factory=dict, hash=False)

    name: ClassVar[str] = "towline"
    promise: ClassVar[Promise] = "exact"
    stall_limit: ClassVar[float | None] = None
    token_of_job: ClassVar[bool] = True

    def __post_init__(self) -> None:
        path_segment(self.job)
        check_token_place(self.token_in)
        check_path("state_path", self.state_path)
        check_path("result_path", self.result_path)
        check_path("cancel_path", self.cancel_path, fixed=True)
        check_path("refresh_path", self.refresh_path, fixed=True)
        if self.events_path is not None:
            check_path("events_path", self.events_path)
        object.__setattr__(self, "headers", header_pairs(self.headers, reserved=frozenset({"authorization"})))
        object.__setattr__(self, "subprotocols", check_subprotocols(self.subprotocols))

    @property
    def sources(self) -> tuple[Via, ...]:
        """The WebSocket, then the event stream."""
        return ("websocket",) if self.events_path is None else ("websocket", "events")

    @cached_property
    def codec(self) -> Codec:
        """The reader of messages and answers, made once."""
        return Codec(self.results)

    # --- asking ----------------------------------------------------------------------------------------------------

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None only for a refresh without a token."""
        match want:
            case Follow(via="events"):
                return self._follow_events(want, token)
            case Follow():
                return self._follow(want, token)
            case GetState():
                return self._call("GET", self._url(self.state_path), bearer(token))
            case CancelJob(key):
                headers = (*bearer(token), ("Idempotency-Key", key), JSON)
                return self._call("POST", self._url(self.cancel_path), headers, _json(jobId=self.job))
            case GetResult(outcome):
                return self._call("GET", self._result_url(outcome), bearer(token))
            case RefreshToken():
                if token is None:
                    return None
                body = Secret(_json(jobId=self.job, oldToken=token.reveal()).decode())
                return self._call("POST", self._url(self.refresh_path), (JSON,), body)

    def _follow(self, want: Follow, token: Secret | None) -> Request:
        sent = placed(token, self.token_in, with_query(self.url, "jobId", self.job))
        after = _place_in_log(want)
        ready = Ready(
            epoch=None if after is None else after.epoch,
            seq=None if after is None else after.seq,
            client=want.client or None,
            socket=want.socket or None,
        )
        return Request(
            via="websocket",
            url=sent.url,
            headers=(*self._headers, *sent.headers),
            subprotocols=(*self.subprotocols, *sent.subprotocols),
            opening=(encode(ready).decode(),),
            in_step="state",
        )

    def _follow_events(self, want: Follow, token: Secret | None) -> Request | None:
        if self.events_path is None:
            return None
        after = _place_in_log(want)
        last = () if after is None else (("Last-Event-ID", f"{after.epoch}:{after.seq}"),)
        return Request(
            via="events",
            url=self._url(self.events_path),
            headers=(*self._headers, *bearer(token), *last),
            in_step="state",
            silence=COMMENT_EVERY,
        )

    def _call(self, method: str, url: str, headers: Headers, body: bytes | Secret | None = None) -> Request:
        headers = (*self._headers, *headers, ACCEPT_JSON)
        return Request(via="call", method=method, url=url, headers=headers, body=body)

    @property
    def _headers(self) -> Headers:
        return cast(Headers, self.headers)

    def _url(self, path: str) -> str:
        """The URL of a call, below the prefix that the server is mounted under."""
        prefix = self.prefix
        if prefix is None:
            before, found, after = self.url.partition("?")[0].rpartition(PROGRESS_PATH)
            prefix = before.removeprefix(_origin(self.url)) if found and not after else ""
        return self._origin + prefix + path.replace("{job}", path_segment(self.job))

    @property
    def _origin(self) -> str:
        return http_origin(self.api_origin or self.url)

    def _result_url(self, outcome: JobComplete) -> str:
        url = outcome.result_url
        if url is None:
            return self._url(self.result_path)
        if re.match("//|[A-Za-z][A-Za-z0-9+.-]*:", url):
            return f"{self._origin.partition(':')[0]}:{url}" if url.startswith("//") else url
        # A path, as some servers write it without its slash: below the origin, not below the call that named it.
        return f"{self._origin}/{url.removeprefix('/')}"

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, want: Want, received: Received) -> Iterable[Fact]:
        """Return what a message or an answer means.

        Raises `MalformedMessage` for a message, or an answer of status 2xx, that cannot be read.
        """
        if type(received) is Message or type(received) is ServerEvent:
            frame: Frame
            try:
                frame = decode_known(received.data)
            except UNFIT as error:
                unfit = self._decode_unfit(received.data, error)
                if unfit is None:
                    return _NOTHING
                frame = unfit
            # A message that names no job is about ours, because the socket is.
            if type(frame) is JobProgressFrame and (frame.job_id == self.job or not frame.job_id):
                # Nearly every message, so it takes the shortest way.
                payload, seq, epoch = frame.payload, frame.seq, frame.epoch
                at = None if seq is None or epoch is None else Numbered(seq, epoch)
                if payload.keep_alive:
                    return (Item(None, at, False),)
                first = frame.first_seq
                if first is None or seq is None or first > seq:
                    first = seq
                update = Progress(
                    job=self.job,
                    pipeline=frame.pipeline,
                    timestamp=frame.timestamp,
                    seq=seq,
                    epoch=epoch,
                    fraction=payload.progress,
                    status=payload.status,
                    processed_count=payload.processed_count,
                    current_item=payload.current_item,
                    first_seq=first,
                    merged=1 if seq is None or first is None else seq - first + 1,
                )
                return (Item(update, at),)
            return self._read_frame(frame)
        if type(received) is Answer:
            return self._read_answer(want, received)
        return _NOTHING

    def _decode_unfit(self, data: str | bytes, error: Exception) -> Frame | None:
        """Read an unusual message field by field; None if it cannot be read and is about another job."""
        try:
            return self.codec.decode_unfit(data, error)
        except MalformedMessage as malformed:
            if malformed.job_id in ("", self.job):
                raise
            return None

    def _read_frame(self, frame: Frame) -> tuple[Fact, ...]:
        if isinstance(frame, ReadyAckFrame):
            if frame.epoch is None or frame.from_ is None or frame.to is None:
                return (InStep(),)  # no replay follows
            return (Replaying(frame.from_, frame.to, frame.epoch),)
        if isinstance(frame, PingFrame | PongFrame) or frame.job_id not in ("", self.job):
            return _NOTHING
        at = _position(frame.seq, frame.epoch)
        if isinstance(frame, JobCompleteFrame | ErrorFrame | JobCanceledFrame):
            return (Ended(outcome_of_frame(self.job, frame, self.codec), at),)
        if isinstance(frame, JobStartedFrame):
            started = JobStarted(
                job=self.job,
                pipeline=frame.pipeline,
                timestamp=frame.timestamp,
                seq=frame.seq,
                epoch=frame.epoch,
                total_count=frame.payload.total_count,
                estimated_duration=frame.payload.estimated_duration,
            )
            return (Item(started, at),)
        return (Item(None, at),)

    def _read_answer(self, want: Want, answer: Answer) -> tuple[Fact, ...]:
        match want:
            case Follow(via="websocket") if answer.status in _NO_WEBSOCKET:
                return (Means("source"),)
            case Follow(via="events") if answer.status == 204:
                return (Means("ended"),)  # everything was sent before
            case Follow(via="events") if answer.status == 404 or answer.status in _NO_WEBSOCKET:
                return (Means("source"),)  # this server has no such stream
            case GetState() if answer.status == 200:
                return (self._read_state(self.codec.decode_state(answer.body)),)
            case CancelJob() if 200 <= answer.status < 300:
                return (CancelAnswer(self.codec.decode_cancel(answer.body)),)
            case GetResult(outcome) if answer.status == 200:
                return (Value(self.codec.decode_whole_result(outcome.pipeline, answer.body).value),)
            case RefreshToken() if 200 <= answer.status < 300:
                fresh = self.codec.decode_token(answer.body)
                return (NewToken(Secret(fresh.token), fresh.expires_in),)
        return _NOTHING

    def _read_state(self, state: JobState) -> Fact:
        at = _position(state.seq, state.epoch)
        if state.ended:
            return Ended(outcome_of_state(self.job, state, self.codec), at)
        if state.processed_count is None and state.total_count is None and state.current_item is None:
            return Snapshot((), at)
        shown = Progress(
            job=self.job,
            pipeline=state.pipeline,
            timestamp=state.last_update or 0,
            seq=state.seq,
            epoch=state.epoch,
            fraction=None,
            processed_count=state.processed_count,
            total_count=state.total_count,
            current_item=state.current_item,
            first_seq=state.seq,
        )
        return Snapshot((shown,), at)


# --- ends --------------------------------------------------------------------------------------------------------


def outcome_of_frame(job: str, frame: TerminalFrame, codec: Codec) -> Outcome:
    """Read the outcome from a terminal frame, with everything that can be read; `problem` names the rest."""
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


def _place_in_log(want: Follow) -> Numbered | None:
    """Where to go on. Position 0 is before the first event, so it asks for nothing else than no position does."""
    return want.after if isinstance(want.after, Numbered) and want.after.seq > 0 else None


def _position(seq: int | None, epoch: str | None) -> Numbered | None:
    return None if seq is None or epoch is None else Numbered(seq, epoch)


def _origin(url: str) -> str:
    """The URL's scheme, host and port as it has them."""
    end = url.find("/", url.find("://") + 3)
    return url if end < 0 else url[:end]


def _json(**fields: str) -> bytes:
    return msgspec.json.encode(fields)
