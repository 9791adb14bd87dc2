"""A task of an MCP server: the extension `io.modelcontextprotocol/tasks` of the protocol 2026-07-28."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

from .. import _facts as f
from .._facts import Answer, Fact, Follow, Meaning, Promise, Received, Request, Via, Want
from .._secret import Secret
from .._updates import JobCancelled, JobComplete, Outcome, Paused, Progress
from ._shared.generic import Fault, HTTPServer, object_of, objects_of, parsed_object
from ._shared.requests import JSON
from .wire.lenient import build

_VERSION: Final = "2026-07-28"
_META: Final = "io.modelcontextprotocol/"
#: Each request names the version and the extension that the client has.
_ENVELOPE: Final = {
    f"{_META}protocolVersion": _VERSION,
    f"{_META}clientInfo": {"name": "towline", "version": "1"},
    f"{_META}clientCapabilities": {"extensions": {f"{_META}tasks": {}}},
}

#: Errors: an unknown task, and what no repeat changes (method, headers, capability, version). Others are lost attempts.
_UNKNOWN: Final = "-32602"
_REFUSED: Final = ("-32601", "-32020", "-32021", "-32022")


class _Task(Struct, rename="camel"):
    status: str
    status_message: str
    poll_interval_ms: float | None
    ttl_ms: float | None


@dataclass(frozen=True)
class MCPTask(HTTPServer):
    """Follows a task of an MCP server, by polling.

    - `url`: the server's endpoint, such as `https://api.example/mcp`.
    - `job`: the `taskId` that the server answered to `tools/call`.
    - `stall_limit`: the seconds without a sign of the job after which the engine gives up.

    The server sends its latest status message with each answer, and says when to ask again. The result is that of the
    tool. A task that waits for input is `Paused`: answer it with your MCP client (`tasks/update`).
    """

    url: str
    job: str
    _: KW_ONLY
    stall_limit: float | None = None

    name: ClassVar[str] = "mcp_task"
    sources: ClassVar[tuple[Via, ...]] = ("poll",)
    promise: ClassVar[Promise] = "end exact"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None for a fresh token."""
        if isinstance(want, f.RefreshToken):
            return None
        method = "tasks/cancel" if isinstance(want, f.CancelJob) else "tasks/get"
        params = {"taskId": self.job, "_meta": _ENVELOPE}
        sent = self.placed(
            token,
            self.url,
            JSON,
            ("Accept", "application/json, text/event-stream"),
            ("MCP-Protocol-Version", _VERSION),
            ("Mcp-Method", method),
            ("Mcp-Name", _header(self.job)),
        )
        return Request(
            via="poll" if isinstance(want, Follow) else "call",
            url=sent.url,
            method="POST",
            headers=sent.headers,
            body=msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}),
            in_step="first_fact",
        )

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an answer means; raises `MalformedMessage` if one of status 200 is not a JSON object."""
        if not isinstance(received, Answer) or (received.status != 200 and b'"jsonrpc"' not in received.body):
            return ()
        answer = parsed_object(_message(received), "an answer")
        is_cancel = isinstance(want, f.CancelJob)
        if error := object_of(answer.get("error")):
            code = Fault.of(error).code
            means: Meaning = "gone" if code == _UNKNOWN else "refused" if code in _REFUSED else "lost"
            return () if is_cancel else (f.Means(means),)
        return (f.CancelAnswer("accepted"),) if is_cancel else _read_task(want, object_of(answer.get("result")))


def _read_task(want: Want, fields: dict[str, Any]) -> tuple[Fact, ...]:
    task = build(_Task, fields)
    if isinstance(want, f.GetResult):
        return (f.Value(fields.get("result")),) if task.status == "completed" else ()
    if (outcome := _outcome(task, fields)) is not None:
        return (f.Ended(outcome),)
    if not task.status:
        return ()
    shown: Progress | Paused = Progress(fraction=None, status=task.status_message or task.status)
    if task.status == "input_required":
        shown = Paused(kind="input", message=task.status_message or _asked(fields))
    if task.poll_interval_ms is None:
        return (f.Snapshot((shown,)),)
    # A poll later than half of the task's lifetime could miss the end.
    wait = task.poll_interval_ms if task.ttl_ms is None else min(task.poll_interval_ms, task.ttl_ms / 2)
    return (f.Snapshot((shown,)), f.Wait(wait / 1000))


def _header(text: str) -> str:
    """A header's value as SEP-2243 encodes it: text that a header cannot hold as base64."""
    if text.isascii() and text.isprintable() and text == text.strip() and not text.startswith("=?"):
        return text
    return f"=?base64?{b64encode(text.encode()).decode()}?="


def _message(answer: Answer) -> bytes:
    """The JSON of an answer. A server may wrap it into an event."""
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return answer.body
    return b"\n".join(line[5:] for line in answer.body.splitlines() if line.startswith(b"data:"))


def _outcome(task: _Task, fields: dict[str, Any]) -> Outcome | None:
    result = object_of(fields.get("result"))
    match task.status:
        case "cancelled":
            return JobCancelled(reason=task.status_message or None)
        case "failed":
            fault = Fault.of(fields.get("error"))
            return Fault(fault.code, fault.message or task.status_message).failed()
        case "completed" if result.get("isError") is True:
            texts = [part["text"] for _, part in objects_of(result.get("content")) if isinstance(part.get("text"), str)]
            return Fault("", "\n".join(texts)).failed(result)
        case "completed":
            return JobComplete(result=result or None, problem=None if result else "the server sent no result")
    return None


def _asked(fields: dict[str, Any]) -> str:
    """What the task asks for, in its own words."""
    asked = [object_of(object_of(asked).get("params")) for asked in object_of(fields.get("inputRequests")).values()]
    return "\n".join(params["message"] for params in asked if isinstance(params.get("message"), str))
