"""A task of an A2A agent (Agent2Agent protocol), over JSON-RPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import msgspec

from .. import _facts as f
from .._exceptions import InvalidArgument
from .._facts import Answer, Fact, Follow, Mark, Meaning, Means, Promise, Received, Request, ServerEvent, Via, Want
from .._secret import Secret
from .._updates import JobCancelled, JobComplete, JobFailed, Outcome, Output, Paused, Progress
from ._shared.generic import HTTPServer, object_of, objects_of, parsed_object
from ._shared.requests import JSON
from .wire.lenient import as_text

#: The methods to subscribe, to get the task, and to cancel it (A2A 1.0 section 9.4, 0.3 section 7).
_METHODS: Final = {
    "1.0": ("SubscribeToTask", "GetTask", "CancelTask"),
    "0.3": ("tasks/resubscribe", "tasks/get", "tasks/cancel"),
}
#: What errors mean (A2A 1.0 section 5.4). -32004 answers a subscription to a task that has ended, and one to an agent
#: without streams: a poll shows which.
_ERRORS: Final[dict[int, Meaning]] = {-32001: "gone", -32004: "source", -32601: "source", -32009: "refused"}
_PAUSES: Final = {"input_required": "input", "auth_required": "auth"}
_ENDS: Final = ("completed", "failed", "rejected", "canceled")
_AGENT: Final = ("ROLE_AGENT", "agent")


@dataclass(frozen=True)
class A2ATask(HTTPServer):
    """Follows a task of an A2A agent: `A2ATask(url, task_id)`.

    - `url`: the address of the agent's JSON-RPC interface. `job` is the task's id.
    - `version`: the version of the protocol that the agent speaks.

    A status message is a `Progress`, or a `Paused` if the agent waits (`input`, `auth`). An artifact is an `Output`
    whose key is its id and whose value is a list of parts. The result is the task without its history.
    """

    url: str
    job: str
    version: Literal["1.0", "0.3"] = "1.0"

    name: ClassVar[str] = "a2a_task"
    sources: ClassVar[tuple[Via, ...]] = ("events", "poll")
    promise: ClassVar[Promise] = "end exact"
    replays_end: ClassVar[bool] = True  # from the history

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in _METHODS:
            raise InvalidArgument("version", f"must be one of {', '.join(_METHODS)}")

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None if the server has none."""
        if not isinstance(want, Follow | f.GetState | f.CancelJob):
            return None
        via = want.via if isinstance(want, Follow) else "call"
        subscribe, get, cancel = _METHODS[self.version]
        method = cancel if isinstance(want, f.CancelJob) else subscribe if via == "events" else get
        sent = self.placed(token, self.url, JSON, ("A2A-Version", self.version))
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"id": self.job}})
        return Request(via=via, url=sent.url, method="POST", headers=sent.headers, body=body, in_step="first_fact")

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an event or an answer means. Raises `MalformedMessage` for what is not a JSON object."""
        match received:
            case ServerEvent(data=text) | Answer(200, body=text):
                reply = parsed_object(text, "an answer")
            case _:
                return ()
        if isinstance(code := object_of(reply.get("error")).get("code"), int):
            if isinstance(want, f.CancelJob):
                return (f.CancelAnswer("too_late"),) if code == -32002 else ()
            # What a single call is refused says nothing about the stream, except that the task is gone.
            meaning = _ERRORS.get(code, "lost")
            return (Means(meaning),) if isinstance(want, Follow) or meaning == "gone" else ()
        result = object_of(reply.get("result"))
        if isinstance(want, f.CancelJob):
            return (f.CancelAnswer("accepted"),) if result else ()
        wrapped = (result.get(kind) for kind in ("task", "statusUpdate", "artifactUpdate", "message"))
        return tuple(_read_body(want, next((body for body in wrapped if isinstance(body, dict)), result)))


def _read_body(want: Want, body: dict[str, Any]) -> Iterator[Fact]:
    """Read a task, an update of it, or a message. Their members tell them apart in both versions."""
    status = object_of(body.get("status"))
    if "artifact" in body:
        yield f.Item(_output(object_of(body["artifact"]), append=body.get("append") is True))
    elif status and "id" in body:
        yield from _read_task(want, body, status)
    elif status and _state(status) in _ENDS:
        yield Means("ended")  # the end is read from the whole task: a stream may have repeated a chunk
    elif status:
        yield f.Item(_shown(status), _mark(status.get("message")))
    elif "parts" in body:
        yield f.Item(Progress(fraction=None, status=_text(body)), _mark(body))


def _read_task(want: Want, task: dict[str, Any], status: dict[str, Any]) -> Iterator[Fact]:
    yield f.Snapshot(tuple(_output(artifact) for _, artifact in objects_of(task.get("artifacts"))))
    last = _mark(status.get("message"))
    if isinstance(want, Follow) and (last is None or want.after != last):
        said = {at: m for _, m in objects_of(task.get("history")) if m.get("role") in _AGENT and (at := _mark(m))}
        for at in list(said)[list(said).index(want.after) + 1 if want.after in said else 0 :]:
            yield f.Item(Progress(fraction=None, status=_text(said[at])), at)
    if _state(status) in _ENDS:
        yield f.Ended(_outcome(task, _state(status), _text(status.get("message"))))
    elif isinstance(want, Follow) and last is not None:
        yield f.Item(_shown(status), last)
    else:
        yield f.Snapshot((_shown(status),))


def _outcome(task: dict[str, Any], state: str, text: str) -> Outcome:
    if state == "canceled":
        return JobCancelled(reason=text or None)
    whole = {name: value for name, value in task.items() if name != "history"}
    return JobComplete(result=whole) if state == "completed" else JobFailed(code=state, message=text, details=whole)


def _shown(status: dict[str, Any]) -> Progress | Paused:
    state, text = _state(status), _text(status.get("message"))
    if state in _PAUSES:
        return Paused(kind=_PAUSES[state], message=text)
    return Progress(fraction=None, status=text or state)


def _state(status: dict[str, Any]) -> str:
    """The state in one spelling, for `TASK_STATE_INPUT_REQUIRED` and `input-required`."""
    return as_text(status.get("state")).removeprefix("TASK_STATE_").lower().replace("-", "_")


def _output(artifact: dict[str, Any], *, append: bool = False) -> Output:
    parts = [part for _, part in objects_of(artifact.get("parts"))]
    return Output(key=as_text(artifact.get("artifactId")), value=parts, op="append" if append else "replace")


def _text(message: Any) -> str:
    texts = (part.get("text") for _, part in objects_of(object_of(message).get("parts")))
    return "\n".join(text for text in texts if isinstance(text, str))


def _mark(message: Any) -> Mark | None:
    name = object_of(message).get("messageId")
    return Mark(name) if isinstance(name, str) and name else None
