"""A job on a server of your own that sends Server-Sent Events, or JSON line by line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from .._exceptions import InvalidArgument, MalformedMessage
from .._facts import (
    Answer,
    Fact,
    Follow,
    GetState,
    Item,
    Line,
    Mark,
    Means,
    Promise,
    Received,
    Request,
    ServerEvent,
    Via,
    Want,
)
from .._secret import Secret
from ._shared.generic import HTTPServer, OwnServer, parsed

#: Statuses by which servers refuse a `Last-Event-ID` that they no longer know.
_CURSOR_REFUSED: Final = frozenset({400, 410, 412, 416})


@dataclass(frozen=True)
class EventStream(OwnServer, HTTPServer):
    """Follows an event stream; `each` turns the JSON of one event into an update or an outcome.

    An event's id is its position: after a lost stream the server is asked to go on after the last one
    (`Last-Event-ID`). If it does, every update arrives exactly once.

    - `via`: `events` for Server-Sent Events, `lines` for one JSON value a line (NDJSON), which has no ids.
    - `with_type`: call `each(type, json)` instead of `each(json)`, for events with names (`event: progress`). The type
      of an event without a name is "message".
    - `method`, `body`: the request, for a server whose stream is the answer to a POST that may be repeated.
    - `silence`: the seconds between the keep-alives that the server promises. Without it, silence is no loss.
    - `state`: the URL of a call that answers the job's state as JSON. `each` reads it too, if `with_type` with the type
      "". With it the end is exact even without ids.
    """

    via: Literal["events", "lines"] = "events"
    with_type: bool = False
    method: str = "GET"
    body: bytes | None = None
    silence: float | None = None
    state: str | None = None

    name: ClassVar[str] = "event_stream"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.via not in ("events", "lines"):
            raise InvalidArgument("via", "must be events or lines")
        self.check_state(self.state)

    @property
    def sources(self) -> tuple[Via, ...]:
        """The one way to follow the job."""
        return (self.via,)

    @property
    def promise(self) -> Promise:
        """What the updates are worth if the server sends no ids; with ids that it honours they are exact."""
        return "what arrives" if self.state is None else "end exact"

    def ask(self, want: Want, token: Secret | None) -> Request | None:
        """Return the request for `want`; None if the server has none."""
        match want:
            case Follow(after=after, socket=socket):
                accepted = "text/event-stream" if self.via == "events" else "application/x-ndjson, application/json"
                more = [("Accept", accepted), ("Cache-Control", "no-store")]
                if isinstance(after, Mark) and after.text:
                    more.append(("Last-Event-ID", after.text))
                sent = self.placed(token, self.url, *more)
                return Request(
                    via=self.via,
                    url=sent.url,
                    method=self.method,
                    headers=sent.headers,
                    body=self.body,
                    # The job may have ended in the gap, and a server may tell that only to those who were there.
                    in_step="first_fact" if self.state is not None and socket > 1 else "open",
                    silence=self.silence,
                )
            case GetState():
                return None if self.state is None else self.call(self.state, token)
        return self.ask_result(want, token)

    def read(self, want: Want, received: Received) -> tuple[Fact, ...]:
        """Return what an event, a line or an answer means.

        Raises `MalformedMessage` if it is not JSON and has no id.
        """
        match received:
            case ServerEvent(kind, data, event_id):
                at = None if event_id is None else Mark(event_id)
                try:
                    value = parsed(data, "event")
                except MalformedMessage:
                    if at is None:
                        raise
                    return (Item(None, at, is_sign=False),)
                return self.meant(kind, value, at=at) if self.with_type else self.meant(value, at=at)
            case Line(text):
                if not text.strip():
                    return ()
                value = parsed(text, "line")
                return self.meant("", value) if self.with_type else self.meant(value)
            case Answer(status) if isinstance(want, Follow):
                if status == 204:
                    return (Means("ended"),)  # the server says so: do not reconnect (WHATWG HTML, section 9.2.3)
                return (Means("cursor"),) if want.after is not None and status in _CURSOR_REFUSED else ()
            case Answer():
                return self.read_call(want, received, *([""] if self.with_type else []))
        return ()
