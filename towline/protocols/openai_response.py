"""A response of OpenAI's Responses API in background mode, and of servers that speak it (Azure, vLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final

from msgspec import Struct, field

from .. import _facts as f
from .._facts import Answer, Fact, Follow, Promise, Received, Request, ServerEvent, Via, Want
from .._secret import Secret
from .._updates import JobCancelled, JobComplete, Outcome, Output, Progress
from ._shared.generic import Fault, HTTPServer, object_of, objects_of, parsed_object
from ._shared.requests import ACCEPT_JSON, path_segment, with_query
from .wire.lenient import Count, build

_ENDS: Final = ("completed", "incomplete", "failed", "cancelled")


class _Fields(Struct):
    """The fields of an event, and of an answer's headers."""

    type: str
    sequence_number: Count | None
    output_index: Count | None
    content_index: Count | None
    delta: str
    poll_after: float | None = field(name="openai-poll-after-ms")


@dataclass(frozen=True)
class OpenAIResponse(HTTPServer):
    """Follows a response that was created with `background=true`, by its id.

    - `job`: the response's id.
    - `url`: the base of the API. Its query is part of each request.
    - `silence`: the seconds between the keep-alives that the server promises. Without it, silence is no loss.
    - `stall_limit`: the seconds without a sign of the job after which the engine gives up.

    Text arrives as `Output` with the key `OUTPUT.PART`, such as `0.0`. `replace` begins a part, also when the server
    runs the response again. If the server no longer keeps the stream, the state is polled, and its whole text replaces
    what came before. The result is the response as the API returns it.
    """

    job: str
    url: str = "https://api.openai.com/v1"
    _: KW_ONLY
    silence: float | None = None
    stall_limit: float | None = None

    name: ClassVar[str] = "openai_response"
    sources: ClassVar[tuple[Via, ...]] = ("events", "poll")
    promise: ClassVar[Promise] = "exact"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None for a fresh token."""
        if isinstance(want, f.RefreshToken):
            return None
        base, mark, query = self.url.partition("?")
        is_cancel = isinstance(want, f.CancelJob)
        path = f"/responses/{path_segment(self.job)}{'/cancel' if is_cancel else ''}"
        url = f"{base.rstrip('/')}{path}{mark}{query}"
        if isinstance(want, Follow) and want.via == "events":
            url = with_query(url, "stream", "true")
            if isinstance(want.after, f.Numbered):
                url = with_query(url, "starting_after", str(want.after.seq))
            sent = self.placed(token, url)
            return Request(via="events", url=sent.url, headers=sent.headers, silence=self.silence)
        sent = self.placed(token, url, ACCEPT_JSON)
        if isinstance(want, Follow):
            return Request(via="poll", url=sent.url, headers=sent.headers, in_step="first_fact")
        return Request(via="call", url=sent.url, method="POST" if is_cancel else "GET", headers=sent.headers)

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an event or an answer means; raises `MalformedMessage` if it is not a JSON object."""
        match want, received:
            case Follow(), ServerEvent(data=data):
                return () if data == "[DONE]" else _read_event(parsed_object(data, "event"))
            case Follow(via="events"), Answer(200 | 400 | 405 | 501 as status, _, body):
                # No stream is kept (OpenAI and Azure: 400), or there is no such call. A login page is no JSON object.
                return (f.Means("source"),) if status != 200 or parsed_object(body, "an answer") else ()
            case f.CancelJob(), Answer(400):
                return (f.CancelAnswer("too_late"),)
            case _, Answer(200, headers, body):
                return _read_response(want, parsed_object(body, "an answer"), headers)
        return ()


def _read_response(want: Want, response: dict[str, Any], headers: Mapping[str, str]) -> tuple[Fact, ...]:
    status = response.get("status")
    if isinstance(want, f.GetResult):
        return (f.Value(response),)
    if isinstance(want, f.CancelJob):
        return (f.CancelAnswer("too_late" if status in _ENDS and status != "cancelled" else "accepted"),)
    if not isinstance(status, str):
        return ()
    if status in _ENDS:
        return (f.Snapshot(tuple(_texts(response))), f.Ended(_outcome(response, status)))
    # Next to a stream, the text of a state has no place among the deltas. Only a poll shows it.
    texts = _texts(response) if isinstance(want, Follow) else ()
    shown = f.Snapshot((Progress(fraction=None, status=status), *texts))
    advice = build(_Fields, headers).poll_after
    return (shown,) if advice is None else (shown, f.Wait(advice / 1000))


def _read_event(fields: dict[str, Any]) -> tuple[Fact, ...]:
    event = build(_Fields, fields)
    at = None if event.sequence_number is None else f.Numbered(event.sequence_number)
    kind, key = event.type.removeprefix("response."), f"{event.output_index or 0}.{event.content_index or 0}"
    response = object_of(fields.get("response"))
    if kind in _ENDS:
        return (f.Ended(_outcome(response, kind), at),)
    if kind in ("created", "queued", "in_progress"):
        return (f.Item(Progress(fraction=None, status=str(response.get("status") or kind)), at),)
    if kind == "content_part.added":
        return (f.Item(Output(key=key, value=_text(object_of(fields.get("part"))), op="replace"), at),)
    if kind in ("output_text.delta", "refusal.delta", "reasoning_text.delta"):
        return (f.Item(Output(key=key, value=event.delta), at),)
    if kind == "error":
        return (f.Item(None, at), f.Means("ended"))  # the state says whether it was the end
    # OpenAI's keep-alive is an event, and says nothing about the response.
    return (f.Item(None, at, is_sign=kind != "keepalive"),)


def _texts(response: dict[str, Any]) -> list[Output]:
    """The text of each part that is whole."""
    return [
        Output(key=f"{output}.{part}", value=text, op="replace")
        for output, item in objects_of(response.get("output"))
        if item.get("status") != "in_progress"
        for part, content in objects_of(item.get("content"))
        if (text := _text(content))
    ]


def _text(part: dict[str, Any]) -> str:
    text = part.get("text") or part.get("refusal")
    return text if isinstance(text, str) else ""


def _outcome(response: dict[str, Any], kind: str) -> Outcome:
    status = response.get("status") if response.get("status") in _ENDS else kind
    if status == "cancelled":
        return JobCancelled()
    if status == "failed":
        return Fault.of(response.get("error")).failed()
    problem = None if response else "the server sent no result with the end"
    if status == "incomplete":
        problem = f"the response is incomplete: {object_of(response.get('incomplete_details')).get('reason')}"
    return JobComplete(result=response or None, problem=problem)
