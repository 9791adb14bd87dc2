"""Reads everything that a server says about a job: messages, states, results, tokens, answers to a cancel.

The typed decoders of `_messages` come first, because nearly every message fits them. What does not is read again field
by field (`_lenient`). Only the field that decides is checked: a message needs its type, a state its status, an answer
with a token the token. The words that mean an end always mean it, whatever else can be read.

The pipeline named in the envelope chooses the type of a result. Nothing is guessed from a payload's looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import asdict

from .._exceptions import MalformedMessage
from ._lenient import UNFIT, build, load, said, unwrapped
from ._messages import (
    PIPELINES,
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

#: How a request to stop a job was answered: it will stop, it had ended, or the server does not say.
CancelAnswer: TypeAlias = Literal["accepted", "too_late", "unknown"]

#: The words for an end, in types of messages and in a state's status. Case, separators and a leading "job" make no
#: difference.
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
_SEPARATORS: Final = re.compile(r"[\s_.:-]+")

_ENVELOPE: Final = frozenset({"type", "jobId", "pipeline", "timestamp", "version", "seq", "epoch", "payload"})

_decode_known: Final[Callable[[str | bytes], KnownFrame]] = msgspec.json.Decoder(KnownFrame).decode
_decode_state: Final[Callable[[bytes], JobState]] = msgspec.json.Decoder(JobState).decode
_encode: Final = msgspec.json.Encoder().encode


class Result(NamedTuple):
    """What a message, a state or a call holds of a result.

    With `url`, the result is to be fetched there, and `value` is what stands beside the URL, if anything. With
    `problem`, the value is plain JSON because it does not fit the type of its pipeline.
    """

    value: Any = None
    url: str | None = None
    problem: str | None = None


class Codec:
    """Reads frames, states and results. `pipelines` adds result types of the application's own, by pipeline name."""

    def __init__(self, pipelines: Mapping[str, type] | None = None) -> None:
        self._results: dict[str, Callable[[Raw | bytes], Any]] = {
            name: msgspec.json.Decoder(shape).decode for name, shape in {**PIPELINES, **(pipelines or {})}.items()
        }
        #: How many fields were left out because they did not fit.
        self.unfit_fields = 0

    # --- messages ------------------------------------------------------------------------------------------------

    def decode(self, data: str | bytes) -> Frame:
        """Read one frame.

        Raises `MalformedMessage` for what is not JSON, has no type, or is a progress that shows nothing. A type that
        means an end never raises.
        """
        try:
            return _decode_known(data)
        except UNFIT as error:
            return self._decode_unfit(data, error)

    def _decode_unfit(self, data: str | bytes, error: Exception) -> Frame:
        unfit: list[str] = []
        try:
            fields = load(data, unfit)
        except ValueError:
            raise MalformedMessage(None, "$", "not JSON") from error
        type_ = fields.get("type") if isinstance(fields, dict) else None
        if not isinstance(type_, str):
            raise MalformedMessage(None, "$.type", "a message needs a type") from error
        try:
            return _frame(type_, fields, unfit)
        finally:
            self.unfit_fields += len(unfit)

    # --- states and answers ----------------------------------------------------------------------------------------

    def decode_state(self, data: bytes) -> JobState:
        """Read the answer of the state call; raises `MalformedMessage` where it has no status."""
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
            raise MalformedMessage("job_state", "$.status", "a state needs a status") from error
        # What the end needs may stand beside the status.
        results, failure = fields.get("results"), fields.get("error")
        if results is None and (url := _reference(fields)) is not None:
            results = {"resultUrl": url}
        if failure is None:
            failure = {name: fields[name] for name in ("code", "message") if fields.get(name) is not None} or None
        return self._build(
            JobState,
            fields,
            status=_end_of(word) or "running",
            results=UNSET if results is None and "results" not in fields else Raw(_encode(results)),
            error=UNSET if failure is None else Raw(_encode(failure)),
        )

    def decode_token(self, data: bytes) -> TokenAnswer:
        """Read an answer with a token; raises `MalformedMessage` where there is none.

        The error has no cause: a decoder may quote what stands there, and a token stands there.
        """
        answer = self._build(TokenAnswer, self._load_answer("token", data, "token"))
        if not answer.token:
            raise MalformedMessage("token", "$.token", "the answer has no token")
        return answer

    def decode_cancel(self, data: bytes) -> CancelAnswer:
        """Read the body of a success that answers a request to stop a job.

        `result` decides where it is there, else `status`. A body without both, or without JSON, is a success like any
        other. Raises `MalformedMessage` for a page.
        """
        if data.lstrip().startswith(b"<"):
            raise MalformedMessage("cancel", "$", "a page, not the answer to a request to stop")
        try:
            value = unwrapped(self._load(data), "result", "status")
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
            value = unwrapped(self._load(data), deciding)
        if not isinstance(value, dict):
            path, problem = ("$", f"not an answer with a {deciding}") if error is None else _path_and_problem(error)
            raise MalformedMessage(kind, path, problem) from error
        return value

    def _load(self, data: Raw | bytes) -> Any:
        unfit: list[str] = []
        value = load(data, unfit)
        self.unfit_fields += len(unfit)
        return value

    def _build(self, struct: type[T], fields: Mapping[str, Any], **given: Any) -> T:
        unfit: list[str] = []
        built = build(struct, fields, unfit, **given)
        self.unfit_fields += len(unfit)
        return built

    # --- ends ------------------------------------------------------------------------------------------------------

    def decode_result(self, pipeline: str, payload: Raw | bytes) -> Result:
        """Read what a message or a state holds of a result: a reference, or else the result.

        Raises `MalformedMessage` for what is not JSON.
        """
        payload = self._sound(payload)
        # A reference may stand in the place of any pipeline's result, so it is looked for first.
        with suppress(*UNFIT):
            url = _reference(asdict(msgspec.json.decode(payload, type=_References)))
            if url is not None:
                plain = _without_type(self._load(payload))
                beside = {name: value for name, value in plain.items() if name not in (*_REFERENCES, "pipeline")}
                return Result(beside or None, url=url)
        return self._typed(pipeline, payload)

    def decode_whole_result(self, pipeline: str, data: bytes) -> Result:
        """Read a fetched result, taken out of an envelope `{data, metadata}`.

        Raises `MalformedMessage` for what is not JSON.
        """
        sound = self._sound(data)
        with suppress(*UNFIT):
            top = msgspec.json.decode(sound, type=dict[str, Raw])
            if "data" in top and _RESULT_ENVELOPE >= top.keys() != {"data"}:
                sound = top["data"]
        return self._typed(pipeline, sound)

    def _sound(self, data: Raw | bytes) -> Raw | bytes:
        """The same JSON as a typed decoder can read it."""
        try:
            msgspec.json.decode(data, type=Raw)
        except UNFIT:
            try:
                return _encode(self._load(data))
            except ValueError as error:
                raise MalformedMessage("job_complete", "$", "not JSON") from error
        return data

    def _typed(self, pipeline: str, data: Raw | bytes) -> Result:
        """The result as the type of its pipeline, or as plain JSON where there is no type or it does not fit."""
        decode = self._results.get(pipeline)
        if decode is not None:
            with suppress(*UNFIT):
                value = decode(data)
                if not isinstance(value, dict):
                    return Result(value)
        plain = _without_type(self._load(data))
        if decode is None:
            return Result(plain)
        try:
            return Result(decode(_encode(plain)))
        except UNFIT as error:
            path, problem = _path_and_problem(error)
            return Result(plain, problem=f"the result does not fit the type of its pipeline at {path}: {problem}")

    def decode_error(self, payload: Raw | bytes) -> ErrorPayload:
        """Read how a job failed, whatever stands there."""
        unfit: list[str] = []
        try:
            return _failure(load(payload, unfit), unfit)
        except ValueError:
            return ErrorPayload(code="", message=bytes(payload).decode("utf-8", "replace"))
        finally:
            self.unfit_fields += len(unfit)


# --- one message, field by field ---------------------------------------------------------------------------------


def _frame(type_: str, fields: Mapping[str, Any], unfit: list[str]) -> Frame:
    payload = fields.get("payload")
    flat = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    if payload is None and flat:
        # A message without a payload may have the payload's fields beside its type.
        payload = flat
    inner = payload if isinstance(payload, dict) else {}
    match _end_of(type_):
        case "complete":
            absent = payload is None and "payload" not in fields
            return build(JobCompleteFrame, fields, unfit, payload=UNSET if absent else Raw(_encode(payload)))
        case "failed":
            return build(ErrorFrame, fields, unfit, payload=_failure(payload, unfit))
        case "canceled":
            if payload is not inner:
                inner = {"reason": said(payload) or None}
            return build(JobCanceledFrame, fields, unfit, payload=build(CanceledPayload, inner, unfit))
    match type_:
        case "job_started":
            return build(JobStartedFrame, fields, unfit, payload=build(StartedPayload, inner, unfit))
        case "job_progress":
            return _progress(fields, build(ProgressPayload, inner, unfit), unfit)
        case "ready_ack":
            return build(ReadyAckFrame, fields, unfit)
        case "ping":
            return build(PingFrame, fields, unfit)
        case "pong":
            return build(PongFrame, fields, unfit)
    return build(UnknownFrame, fields, unfit, type=type_)


def _progress(fields: Mapping[str, Any], payload: ProgressPayload, unfit: list[str]) -> JobProgressFrame:
    frame = build(JobProgressFrame, fields, unfit, payload=payload)
    if payload == _NOTHING:
        raise MalformedMessage(
            "job_progress",
            "$.payload",
            "nothing in it can be shown",
            job_id=frame.job_id,
            epoch=frame.epoch,
            seq=frame.seq,
        )
    return frame


_NOTHING: Final = ProgressPayload(progress=None, status="")


def _failure(value: Any, unfit: list[str]) -> ErrorPayload:
    """How a job failed: `{code, message}`, the same within `error`, or anything else as text."""
    if not isinstance(value, dict):
        return ErrorPayload(code="", message=said(value))
    fields = _present(value)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields |= _present(inner)
    elif inner is not None:
        fields.setdefault("code" if "message" in fields else "message", inner)
    message = fields.get("message")
    if fields.keys().isdisjoint(("code", "message", "details")):
        # No name is known here: all of it is shown, if there is anything.
        message = {name: each for name, each in fields.items() if name != "type"} or None
    return build(ErrorPayload, fields, unfit, message=said(message))


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without_type(result: Any) -> Any:
    """A result without the type that a message repeats in its payload, and a state does not."""
    if isinstance(result, dict) and isinstance(type_ := result.get("type"), str) and _end_of(type_) == "complete":
        return {name: value for name, value in result.items() if name != "type"}
    return result


def _holds(value: Raw | UnsetType) -> bool:
    return value is not UNSET and bytes(value) != b"null"


# --- words -------------------------------------------------------------------------------------------------------


def _plain_word(word: str) -> str:
    return _SEPARATORS.sub("", word.lower())


def _end_of(word: str) -> Status | None:
    """How a job ended that a word says has ended; None for any other word."""
    return _END_WORDS.get(_plain_word(word).removeprefix("job"))


_CANCEL_RESULTS: Final[Mapping[str, CancelAnswer]] = {
    "accepted": "accepted",
    "canceled": "accepted",
    "cancelled": "accepted",
    "toolate": "too_late",
}
# "success" may speak of this call and not of the job: it is no end here.
_CANCEL_STATUS: Final[Mapping[str, CancelAnswer]] = {
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
    """Split msgspec's sentence into where and what. It names fields and types; of a value it quotes only what is not
    in an enumeration, and that is the server's text, so it is left out."""
    problem, found, path = str(error).rpartition(" - at `")
    if not found:
        problem, path = path, "$"
    return path.removesuffix("`"), "Invalid enum value" if problem.startswith("Invalid enum value") else problem
