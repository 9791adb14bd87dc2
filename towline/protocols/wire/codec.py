"""Reads everything that a server says about a job: messages, states, results, tokens, answers to a cancel.

The typed decoders of `messages` run first, because nearly every message fits them. A message that does not fit is read
again field by field (`lenient`). Only the required field is checked: a message's type, a state's status, a token
answer's token. The words for an end always mean an end, even if the rest is unreadable.

The pipeline named in the envelope selects the type of a result, if the application gave one. It is never guessed from
the payload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import asdict

from ..._exceptions import MalformedMessage
from ..._facts import CancelWord
from .lenient import UNFIT, as_text, build, load, unwrapped
from .messages import (
    CanceledPayload,
    ErrorFrame,
    ErrorPayload,
    Frame,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    KnownFrame,
    PingFrame,
    PongFrame,
    ProgressPayload,
    ReadyAckFrame,
    StartedPayload,
    Status,
    TokenAnswer,
    UnknownFrame,
)

T = TypeVar("T", bound=Struct)

#: The words for an end, in message types and in a state's status. Case, separators and a leading "job" do not matter.
_END_WORDS: Final[Mapping[str, Status]] = {
    "complete": "complete",
    "completed": "complete",
    "success": "complete",
    "succeeded": "complete",
    "error": "failed",
    "failed": "failed",
    "canceled": "canceled",
    "cancelled": "canceled",
}
#: In an envelope (`{"status": "success", "data": …}`) these describe the call, not the job.
_CALL_WORDS: Final = frozenset({"success", "error"})
_SEPARATORS: Final = re.compile(r"[\s_.:-]+")

_ENVELOPE: Final = frozenset(
    {"type", "jobId", "pipeline", "timestamp", "version", "seq", "epoch", "payload", "firstSeq"}
)

#: Reads the usual messages; raises one of `UNFIT` for others.
decode_known: Final[Callable[[str | bytes], KnownFrame]] = msgspec.json.Decoder(KnownFrame).decode
_decode_state: Final[Callable[[bytes], JobState]] = msgspec.json.Decoder(JobState).decode
_encode: Final = msgspec.json.Encoder().encode


class Result(NamedTuple):
    """A result as read from a message, a state or a call.

    With `url`, fetch the result there; `value` then holds any other fields of the message. With `problem`, the value is
    plain JSON because it does not fit its pipeline's type.
    """

    value: Any = None
    url: str | None = None
    problem: str | None = None


class Codec:
    """Reads frames, states and results.

    `pipelines` gives the types of results by pipeline name; any other result is plain JSON values.
    """

    def __init__(self, pipelines: Mapping[str, type] | None = None) -> None:
        self._results: dict[str, Callable[[Raw | bytes], Any]] = {
            name: msgspec.json.Decoder(shape).decode for name, shape in (pipelines or {}).items()
        }

    # --- messages ------------------------------------------------------------------------------------------------

    def decode_unfit(self, data: str | bytes, error: Exception) -> Frame:
        """Read a frame that `decode_known` refused with `error`.

        Raises `MalformedMessage` if it is not JSON, has no type, or is a progress message without anything to show. A
        type that means an end never raises.
        """
        try:
            fields = load(data)
        except ValueError:
            raise MalformedMessage(None, "$", "it is not JSON") from error
        type_ = fields.get("type") if isinstance(fields, dict) else None
        if not isinstance(type_, str):
            raise MalformedMessage(None, "$.type", "it has no type") from error
        return _frame(type_, fields)

    # --- states and answers ----------------------------------------------------------------------------------------

    def decode_state(self, data: bytes) -> JobState:
        """Read the answer of the state call; raises `MalformedMessage` if it has no status."""
        error: Exception | None = None
        try:
            state = _decode_state(data)
        except UNFIT as raised:
            error = raised
        else:
            if not state.ended or _holds(state.results) or _holds(state.error):
                return state
        fields = self._load_answer("job_state", data, "status", error)
        word = fields.get("status")
        if not isinstance(word, str):
            raise MalformedMessage("job_state", "$.status", "it has no status") from error
        inner = fields.get("result")
        in_envelope = "data" in fields or (isinstance(inner, dict) and "status" in inner)
        if in_envelope and _plain_word(word) in _CALL_WORDS:
            raise MalformedMessage("job_state", "$.status", "it describes the call, not the job") from error
        # The result or error may be in the same object as the status.
        results, failure = fields.get("results"), fields.get("error")
        if results is None and (url := _reference(fields)) is not None:
            results = {"resultUrl": url}
        if failure is None:
            failure = {name: fields[name] for name in ("code", "message") if fields.get(name) is not None} or None
        return build(
            JobState,
            fields,
            status=_end_of(word) or "running",
            results=UNSET if results is None and "results" not in fields else Raw(_encode(results)),
            error=UNSET if failure is None else Raw(_encode(failure)),
        )

    def decode_token(self, data: bytes) -> TokenAnswer:
        """Read an answer with a token; raises `MalformedMessage` if there is none.

        The error has no cause, because a decoder's text may quote the token.
        """
        answer = build(TokenAnswer, self._load_answer("token", data, "token"))
        if not answer.token:
            raise MalformedMessage("token", "$.token", "the answer has no token")
        return answer

    def decode_cancel(self, data: bytes) -> CancelWord:
        """Read the body of a successful answer to a cancel request.

        `result` decides if present, otherwise `status`. A body without both, or without JSON, counts as accepted.
        Raises `MalformedMessage` for an HTML page.
        """
        if data.lstrip().startswith(b"<"):
            raise MalformedMessage("cancel", "$", "it is an HTML page: check the protocol's cancel_path")
        try:
            value = unwrapped(load(data), "result", "status")
        except ValueError:
            return "accepted"
        fields = value if isinstance(value, dict) else {}
        result, status = fields.get("result"), fields.get("status")
        if isinstance(result, str):
            return _CANCEL_RESULTS.get(_plain_word(result), "unknown")
        if result is False or fields.get("success") is False:
            return "unknown"
        return _CANCEL_STATUS.get(_plain_word(status), "accepted") if isinstance(status, str) else "accepted"

    def _load_answer(self, kind: str, data: bytes, deciding: str, error: Exception | None = None) -> Mapping[str, Any]:
        value: Any = None
        with suppress(ValueError):
            value = unwrapped(load(data), deciding)
        if not isinstance(value, dict):
            path, problem = (
                ("$", f"it is not an answer with a {deciding}") if error is None else _path_and_problem(error)
            )
            raise MalformedMessage(kind, path, problem) from error
        return value

    # --- ends ------------------------------------------------------------------------------------------------------

    def decode_result(self, pipeline: str, payload: Raw | bytes) -> Result:
        """Read the result in a message or a state: a reference to it, or the result itself.

        Raises `MalformedMessage` if it is not JSON.
        """
        payload = self._readable(payload)
        # A reference may replace any pipeline's result, so check for it first.
        with suppress(*UNFIT):
            url = _reference(asdict(msgspec.json.decode(payload, type=_References)))
            if url is not None:
                plain = _without_type(load(payload))
                beside = {name: value for name, value in plain.items() if name not in (*_REFERENCES, "pipeline")}
                return Result(beside or None, url=url)
        return self._typed(pipeline, payload)

    def decode_whole_result(self, pipeline: str, data: bytes) -> Result:
        """Read a fetched result, without its envelope `{data, metadata}` if it has one.

        Raises `MalformedMessage` if it is not JSON.
        """
        sound = self._readable(data)
        with suppress(*UNFIT):
            top = msgspec.json.decode(sound, type=dict[str, Raw])
            if "data" in top and _RESULT_ENVELOPE >= top.keys() != {"data"}:
                sound = top["data"]
        return self._typed(pipeline, sound)

    def _readable(self, data: Raw | bytes) -> Raw | bytes:
        """The same JSON in a form that a typed decoder can read."""
        try:
            msgspec.json.decode(data, type=Raw)
        except UNFIT:
            try:
                return _encode(load(data))
            except ValueError as error:
                raise MalformedMessage("job_complete", "$", "it is not JSON") from error
        return data

    def _typed(self, pipeline: str, data: Raw | bytes) -> Result:
        """Decode the result as its pipeline's type, or as plain JSON if there is no type or it does not fit."""
        decode = self._results.get(pipeline)
        if decode is not None:
            with suppress(*UNFIT):
                value = decode(data)
                if not isinstance(value, dict):
                    return Result(value)
        plain = _without_type(load(data))
        if decode is None:
            return Result(plain)
        try:
            return Result(decode(_encode(plain)))
        except UNFIT as error:
            path, problem = _path_and_problem(error)
            return Result(plain, problem=f"the result does not fit its pipeline's type at {path}: {problem}")

    def decode_error(self, payload: Raw | bytes) -> ErrorPayload:
        """Read how a job failed, from a payload of any shape."""
        try:
            return _failure(load(payload))
        except ValueError:
            return ErrorPayload(code="", message=bytes(payload).decode("utf-8", "replace"))


# --- one message, field by field ---------------------------------------------------------------------------------


def _frame(type_: str, fields: Mapping[str, Any]) -> Frame:
    payload = fields.get("payload")
    flat = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    if payload is None and flat:
        # A message without a payload may have the payload's fields next to its type.
        payload = flat
    inner = payload if isinstance(payload, dict) else {}
    match _end_of(type_):
        case "complete":
            absent = payload is None and "payload" not in fields
            return build(JobCompleteFrame, fields, payload=UNSET if absent else Raw(_encode(payload)))
        case "failed":
            return build(ErrorFrame, fields, payload=_failure(payload))
        case "canceled":
            if payload is not inner:
                inner = {"reason": as_text(payload) or None}
            return build(JobCanceledFrame, fields, payload=build(CanceledPayload, inner))
    match type_:
        case "job_started":
            return build(JobStartedFrame, fields, payload=build(StartedPayload, inner))
        case "job_progress":
            return _progress(fields, build(ProgressPayload, inner))
        case "ready_ack":
            return build(ReadyAckFrame, fields)
        case "ping":
            return build(PingFrame, fields)
        case "pong":
            return build(PongFrame, fields)
    return build(UnknownFrame, fields, type=type_)


def _progress(fields: Mapping[str, Any], payload: ProgressPayload) -> JobProgressFrame:
    frame = build(JobProgressFrame, fields, payload=payload)
    if payload == _NOTHING:
        raise MalformedMessage(
            "job_progress",
            "$.payload",
            "it holds nothing to show",
            job_id=frame.job_id,
            epoch=frame.epoch,
            seq=frame.seq,
        )
    return frame


_NOTHING: Final = ProgressPayload(progress=None, status="")


def _failure(value: Any) -> ErrorPayload:
    """Read a failure: `{code, message}`, the same within `error`, or anything else as text."""
    if not isinstance(value, dict):
        return ErrorPayload(code="", message=as_text(value))
    fields = _present(value)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields |= _present(inner)
    elif inner is not None:
        fields.setdefault("code" if "message" in fields else "message", inner)
    message = fields.get("message")
    if fields.keys().isdisjoint(("code", "message", "details")):
        # No field is known: show all of them, if there are any.
        message = {name: each for name, each in fields.items() if name != "type"} or None
    return build(ErrorPayload, fields, message=as_text(message))


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without_type(result: Any) -> Any:
    """A result without its type: a message repeats the type in the payload, a state does not."""
    if isinstance(result, dict) and isinstance(type_ := result.get("type"), str) and _end_of(type_) == "complete":
        return {name: value for name, value in result.items() if name != "type"}
    return result


def _holds(value: Raw | UnsetType) -> bool:
    return value is not UNSET and bytes(value) != b"null"


# --- words -------------------------------------------------------------------------------------------------------


def _plain_word(word: str) -> str:
    return _SEPARATORS.sub("", word.lower())


def _end_of(word: str) -> Status | None:
    """The end that a word stands for; None for any other word."""
    return _END_WORDS.get(_plain_word(word).removeprefix("job"))


_CANCEL_RESULTS: Final[Mapping[str, CancelWord]] = {
    "accepted": "accepted",
    "canceled": "accepted",
    "cancelled": "accepted",
    "toolate": "too_late",
}
# "success" may mean this call and not the job: here it is not an end.
_CANCEL_STATUS: Final[Mapping[str, CancelWord]] = {
    "complete": "too_late",
    "completed": "too_late",
    "toolate": "too_late",
    "error": "unknown",
    "failed": "unknown",
    "unknown": "unknown",
}

_REFERENCES: Final = ("resultUrl", "resultsUrl")
_RESULT_ENVELOPE: Final = frozenset({"data", "metadata", "meta", "success"})


class _References(Struct):
    resultUrl: Any = None
    resultsUrl: Any = None


def _reference(fields: Mapping[str, Any]) -> str | None:
    """The URL of a result that is not in the message."""
    for name in _REFERENCES:
        url = fields.get(name)
        if isinstance(url, str) and url:
            return url
    return None


def _path_and_problem(error: Exception) -> tuple[str, str]:
    """Split msgspec's error into a path and a problem.

    Its text names fields and types. For an enumeration it also quotes the server's value, which is left out.
    """
    problem, found, path = str(error).rpartition(" - at `")
    if not found:
        problem, path = path, "$"
    return path.removesuffix("`"), "Invalid enum value" if problem.startswith("Invalid enum value") else problem
