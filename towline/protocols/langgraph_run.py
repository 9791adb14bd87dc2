"""A run on a LangGraph server (LangGraph Platform, `langgraph dev`)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Final, Literal

from .. import _facts as f
from .._exceptions import MalformedMessage
from .._facts import Answer, Fact, Follow, Mark, Promise, Received, Request, ServerEvent, Via, Want
from .._secret import Secret
from .._updates import JobCancelled, JobComplete, JobFailed, Outcome, Output, Progress
from ._shared.generic import HTTPServer, object_of, parsed, parsed_object
from ._shared.requests import ACCEPT_JSON, path_segment, with_query
from .wire.lenient import as_text

#: `langgraph dev` 0.16 sends a comment every 5 seconds. A busy server may be late.
_SILENCE: Final = 15.0

#: Above the number of any event in one millisecond.
_LAST_NUMBER: Final = 999_999


@dataclass(frozen=True)
class LangGraphRun(HTTPServer):
    """Follows a run on a LangGraph server: `LangGraphRun(url, thread, run)`.

    - `url`: the server's address. `thread` and `job` are the ids of the thread and of the run.
    - `resumable`: the run was made with `stream_resumable`. If not, a lost stream leaves a gap, which is reported.
    - `stream_mode`: only events of this mode. By default all that the run was made with.

    Each event is an `Output` whose key is the event's type, such as `updates`. The result is what `join` answers. A run
    that waits for a person completes with `{"__interrupt__": [...]}`, because the answer is another run.
    """

    url: str
    thread: str
    job: str
    _: KW_ONLY
    resumable: bool = True
    stream_mode: str = ""
    token_in: str = "header:x-api-key"

    name: ClassVar[str] = "langgraph_run"
    sources: ClassVar[tuple[Via, ...]] = ("events",)

    def __post_init__(self) -> None:
        super().__post_init__()
        path_segment(self.thread), path_segment(self.job)

    @property
    def promise(self) -> Promise:
        """What the updates are worth."""
        return "exact" if self.resumable else "end exact"

    @property
    def replays_end(self) -> bool:
        """Whether a new stream shows what came before the end."""
        return self.resumable

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None for a fresh token."""
        run = f"{self.url.rstrip('/')}/threads/{path_segment(self.thread)}/runs/{path_segment(self.job)}"
        if isinstance(want, Follow):
            url = f"{run}/stream"
            url = with_query(url, "stream_mode", self.stream_mode) if self.stream_mode else url
            last = _before(want.after.text) if isinstance(want.after, Mark) else "-1"  # -1: from the start
            sent = self.placed(token, url, ("Last-Event-ID", last))
            return Request(via="events", url=sent.url, headers=sent.headers, silence=_SILENCE)
        paths = {f.GetState: ("GET", ""), f.GetResult: ("GET", "/join"), f.CancelJob: ("POST", "/cancel")}
        if type(want) not in paths:
            return None
        method, path = paths[type(want)]
        sent = self.placed(token, f"{run}{path}", ACCEPT_JSON)
        return Request(via="call", url=sent.url, method=method, headers=sent.headers)

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an event or an answer means. Raises `MalformedMessage` if it is not JSON and has no id."""
        match want, received:
            case Follow(), ServerEvent():
                return _read_event(received)
            case f.CancelJob(), Answer(200 | 202 | 204):
                return (f.CancelAnswer("accepted"),)
            case f.CancelJob(), Answer(404 | 409):
                # There is nothing to cancel: the run has ended or was cancelled already. The state says which.
                return (f.CancelAnswer("too_late"),)
            case f.GetState(), Answer(200, body=body):
                return _read_state(parsed_object(body, "a run").get("status"))
            case f.GetResult(outcome), Answer(200, body=body):
                return _read_result(outcome, parsed(body, "a result"))
        return ()


def _read_event(event: ServerEvent) -> tuple[Fact, ...]:
    at = _mark(event)
    if event.type in ("error", "end"):
        # The state decides: the stream of a run that the server does not know is an error, too.
        return (f.Item(None, at), f.Means("ended"))
    if event.type == "metadata":
        return (f.Item(None, at),)
    try:
        value = parsed(event.data, "event")
    except MalformedMessage:
        if at is None:
            raise
        return (f.Item(None, at),)
    op: Literal["append", "replace"] = "replace" if event.type.partition("|")[0] == "values" else "append"
    return (f.Item(Output(key=event.type, value=value, op=op), at),)


def _read_state(status: Any) -> tuple[Fact, ...]:
    """Read the run's status. `join` has the result, and the reason of a failure."""
    problem = "the server's answer to `join` could not be used"
    match status:
        case "success":
            return (f.Ended(JobComplete(problem=problem)), f.Ask(f.GetResult(JobComplete())))
        case "error" | "timeout":
            return (f.Ended(JobFailed(code=status, problem=problem)), f.Ask(f.GetResult(JobFailed(code=status))))
        case "interrupted":
            return (f.Ended(JobCancelled()),)
        case str():
            return (f.Snapshot((Progress(fraction=None, status=status),)),)
    return ()


def _read_result(outcome: Outcome, answer: Any) -> tuple[Fact, ...]:
    if isinstance(outcome, JobComplete):
        return (f.Value(answer), f.Ended(JobComplete(result=answer)))
    error = object_of(object_of(answer).get("__error__"))
    code, message = as_text(error.get("error")), as_text(error.get("message"))
    problem = None if code or message else "the server gave no reason"
    return (f.Ended(JobFailed(code=code or getattr(outcome, "code", ""), message=message, problem=problem)),)


def _mark(event: ServerEvent) -> Mark | None:
    """The event's id, and a digest: `langgraph dev` gives all events of one millisecond the same id (`ms-0`)."""
    if not event.id:
        return None if event.id is None else Mark("")
    digest = blake2b(f"{event.type}\n{event.data}".encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Mark(f"{event.id} {digest}")


def _before(mark: str) -> str:
    """The id to go on after, so that all events of the mark's millisecond come again."""
    last = mark.partition(" ")[0]
    millisecond, _, number = last.partition("-")
    is_numbered = millisecond.isdecimal() and number.isdecimal()
    return f"{int(millisecond) - 1}-{_LAST_NUMBER}" if is_numbered else last
