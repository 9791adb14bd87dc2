"""`Messages`, `EventStream` and `Polling`: servers of the user's own, followed with one function."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import InvalidArgument, JobComplete, JobFailed, MalformedMessage, Output, Progress, Secret, Update
from towline._facts import (
    Answer,
    CancelJob,
    Closed,
    Ended,
    Follow,
    GetResult,
    GetState,
    InStep,
    Item,
    Line,
    Mark,
    Means,
    Message,
    Numbered,
    Position,
    Protocol,
    RefreshToken,
    Request,
    ServerEvent,
    Snapshot,
    Value,
    Wait,
    is_resumed,
)
from towline.protocols import Bookstrack, EventStream, Messages, Polling, Towline

TOKEN = Secret("t1")


def each(message: Any) -> Any:
    """What such a user writes."""
    match message:
        case {"event": "progress", "pct": percent}:
            return Progress(fraction=percent / 100)
        case {"event": "done", "result": result}:
            return JobComplete(result=result)
        case {"event": "log", "n": number, "text": text}:
            return Item(Output(key="log", value=text), Numbered(number))
        case {"event": "begin"}:
            return InStep()


PROGRESS = '{"event": "progress", "pct": 42}'
DONE = '{"event": "done", "result": 5}'
LOG = '{"event": "log", "n": 3, "text": "x"}'
HALF = Progress(fraction=0.42)


def told(request: Request | None) -> tuple[str, dict[str, str]]:
    assert request is not None

    def text(value: str | Secret) -> str:
        return value.reveal() if isinstance(value, Secret) else value

    return text(request.url), {name: text(value) for name, value in request.headers}


@pytest.mark.parametrize(
    ("protocol", "name", "sources"),
    [
        (Messages("wss://h/jobs/7?x=1", each), "messages", ("websocket",)),
        (EventStream("https://h/jobs/7?x=1", each), "event_stream", ("events",)),
        (EventStream("https://h/jobs/7?x=1", each, via="lines"), "event_stream", ("lines",)),
        (Polling("https://h/jobs/7?x=1"), "polling", ("poll",)),
    ],
)
def test_they_are_protocols_and_the_job_is_the_urls_path_and_query(
    protocol: Protocol, name: str, sources: tuple[str, ...]
) -> None:
    assert (protocol.name, protocol.sources, protocol.job) == (name, sources, "/jobs/7?x=1")
    assert protocol.ask(CancelJob("k"), TOKEN) is None
    assert protocol.ask(RefreshToken(), TOKEN) is None
    assert protocol.ask(GetState(), TOKEN) is None
    assert protocol.ask(GetResult(JobComplete()), TOKEN) is None
    url, headers = told(protocol.ask(GetResult(JobComplete(result_url="/r/7")), TOKEN))
    assert url.endswith("://h/r/7")
    assert headers["Authorization"] == "Bearer t1"
    assert list(protocol.read(GetResult(JobComplete()), Answer(200, {}, b"[1]"))) == [Value([1])]
    assert list(protocol.read(Follow(protocol.sources[0]), Closed(1000))) == []
    assert "t1" not in repr(protocol.ask(Follow(protocol.sources[0]), TOKEN))


def test_the_job_and_the_place_of_the_token_may_be_given() -> None:
    server = Polling("https://h/jobs/7", job="seven", token_in="header:X-Api-Key", headers={"X": "y"})
    assert server.job == "seven"
    url, headers = told(server.ask(Follow("poll"), TOKEN))
    assert (url, headers) == ("https://h/jobs/7", {"X": "y", "Accept": "application/json", "X-Api-Key": "t1"})
    assert "headers" not in repr(server)
    assert told(Polling("https://h/j", token_in="query:key").ask(Follow("poll"), TOKEN))[0] == "https://h/j?key=t1"


@pytest.mark.parametrize("kind", [Messages, EventStream, Polling])
def test_a_place_that_does_not_exist_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match="token_in"):
        kind("https://h/j", each, token_in="cookie")
    if kind is not Messages:
        with pytest.raises(InvalidArgument, match="subprotocol"):
            kind("https://h/j", each, token_in="subprotocol:x")


# --- messages -----------------------------------------------------------------------------------------------------

MESSAGES = Messages("wss://h/jobs/7", each)
OPEN = Follow("websocket")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (PROGRESS, [Item(HALF)]),
        (PROGRESS.encode(), [Item(HALF)]),
        (DONE, [Ended(JobComplete(result=5))]),
        (LOG, [Item(Output(key="log", value="x"), Numbered(3))]),
        ('{"event": "begin"}', [InStep()]),
        ('{"event": "heartbeat"}', []),
        ("[1, NaN]", []),
    ],
)
def test_a_message_means_what_the_function_says(text: Any, facts: Any) -> None:
    assert list(MESSAGES.read(OPEN, Message(text))) == facts


@pytest.mark.parametrize("text", ["", "hello", "{", b"\xff"])
def test_a_message_that_is_not_json_is_raised(text: Any) -> None:
    with pytest.raises(MalformedMessage):
        MESSAGES.read(OPEN, Message(text))


def test_a_function_that_returns_nonsense_is_named() -> None:
    with pytest.raises(InvalidArgument, match="each: must return an update, an outcome, a fact or None, not int"):
        Messages("wss://h", lambda message: 5).read(OPEN, Message("{}"))  # type: ignore[arg-type,return-value]


def with_(update: type[Update], **values: Any) -> Any:
    """An update as a function makes it from JSON of which it knows no types."""
    return update(**values)


@pytest.mark.parametrize(
    ("given", "delivered"),
    [
        (
            with_(JobFailed, code=500, message=None, details=[1], retryable="true"),
            JobFailed(code="500", details=[1], retryable=True),
        ),
        (with_(Progress, fraction=1, status=None, processed_count=3), Progress(fraction=1.0, processed_count=3)),
        (
            with_(Progress, fraction="half", status="x", total_count="7"),
            Progress(fraction=None, status="x", total_count=7),
        ),
        (with_(Progress, fraction=50, status="x"), Progress(fraction=None, status="x")),
        (with_(Progress, fraction=1.0000001), Progress(fraction=1.0)),
        (with_(Output, key=5, value=[1], op="replace"), Output(key="5", value=[1], op="replace")),
    ],
)
def test_a_value_of_another_type_is_read_leniently(given: Any, delivered: Any) -> None:
    (fact,) = Messages("wss://api/jobs/7", lambda _: given).read(Follow("websocket"), Message("{}"))
    assert (fact.outcome if isinstance(fact, Ended) else fact.update) == delivered  # type: ignore[union-attr]


@pytest.mark.parametrize("state", ["https://other/jobs/7", "http://api/jobs/7", "wss://api:444/jobs/7", "//x/7"])
@pytest.mark.parametrize("kind", [Messages, EventStream])
def test_a_state_call_to_another_origin_is_refused(kind: Any, state: str) -> None:
    with pytest.raises(InvalidArgument, match="state: must have the origin of `url`"):
        kind("wss://api/jobs/7/ws", each, state=state)
    for same in ("https://API:443/jobs/7", "wss://api/jobs/7", "/jobs/7"):
        kind("wss://api/jobs/7/ws", each, state=same)
    with pytest.raises(InvalidArgument, match="the port is not a number"):
        kind("wss://api:x/jobs/7/ws", each, state="/jobs/7")


def test_a_single_text_is_no_tuple_of_texts() -> None:
    for name in ("opening", "subprotocols"):
        with pytest.raises(InvalidArgument, match=f"{name}: must be .* not a single text"):
            Messages("wss://api/jobs/7", each, **{name: '{"subscribe": 7}'})  # type: ignore[arg-type]


def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Messages("wss://h", lambda message: 1 / 0).read(OPEN, Message("{}"))  # type: ignore[arg-type,return-value]


def test_the_upgrade_says_what_it_is_told_to() -> None:
    server = Messages("wss://h/j", each, subprotocols=("s",), opening=('{"subscribe": 7}',), token_in="subprotocol:b")
    request = server.ask(OPEN, TOKEN)
    assert request is not None
    assert (request.via, request.in_step, request.opening) == ("websocket", "open", ('{"subscribe": 7}',))
    assert request.subprotocols == ("s", Secret("b.t1"))
    assert MESSAGES.promise == "what arrives"


def test_with_a_state_call_the_end_is_exact() -> None:
    server = Messages("wss://h/jobs/7/ws", each, state="https://h/jobs/7")
    assert server.promise == "end exact"
    request = server.ask(OPEN, TOKEN)
    assert request is not None
    assert request.in_step == "state"
    assert told(server.ask(GetState(), TOKEN))[0] == "https://h/jobs/7"
    assert list(server.read(GetState(), Answer(200, {}, PROGRESS.encode()))) == [Snapshot((HALF,))]
    assert list(server.read(GetState(), Answer(200, {}, DONE.encode()))) == [Ended(JobComplete(result=5))]
    assert list(server.read(GetState(), Answer(200, {}, b"{}"))) == [Snapshot()]
    assert list(server.read(GetState(), Answer(404))) == []


# --- event streams ------------------------------------------------------------------------------------------------

EVENTS = EventStream("https://h/jobs/7/events", each)
STREAM = Follow("events")


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        (ServerEvent("message", PROGRESS, "7"), [Item(HALF, Mark("7"))]),
        (ServerEvent("message", PROGRESS), [Item(HALF)]),
        (ServerEvent("message", PROGRESS, ""), [Item(HALF, Mark(""))]),
        (ServerEvent("message", DONE, "8"), [Ended(JobComplete(result=5), Mark("8"))]),
        (ServerEvent("ping", "{}", "9"), [Item(None, Mark("9"), False)]),
        (ServerEvent("ping", "{}"), []),
        (ServerEvent("message", "[DONE]", "9"), [Item(None, Mark("9"), is_sign=False)]),
        (
            ServerEvent("message", LOG, "9"),
            [Item(Output(key="log", value="x"), Numbered(3))],
        ),
    ],
)
def test_an_event_has_its_id_as_its_position(event: ServerEvent, facts: Any) -> None:
    assert list(EVENTS.read(STREAM, event)) == facts


def test_an_event_that_is_not_json_and_has_no_id_is_raised() -> None:
    with pytest.raises(MalformedMessage):
        EVENTS.read(STREAM, ServerEvent("message", "[DONE]"))


@pytest.mark.parametrize(("after", "last"), [(None, None), (Mark("7"), "7"), (Mark(""), None), (Numbered(3), None)])
def test_the_stream_goes_on_after_the_last_id(after: Position | None, last: str | None) -> None:
    request = EVENTS.ask(Follow("events", after), TOKEN)
    assert request is not None
    assert (request.via, request.method, request.in_step, request.silence) == ("events", "GET", "open", None)
    url, headers = told(request)
    assert url == "https://h/jobs/7/events"
    assert headers["Accept"] == "text/event-stream"
    assert headers.get("Last-Event-ID") == last


@pytest.mark.parametrize(
    ("protocol", "want", "resumed"),
    [
        (EVENTS, Follow("events", Mark("7")), True),
        (EVENTS, Follow("events", Mark("")), False),
        (EVENTS, Follow("events"), False),
        (EventStream("https://h", each, via="lines"), Follow("lines", Numbered(3)), False),
        (MESSAGES, Follow("websocket", Numbered(3)), False),
        (Towline("wss://h", "j"), Follow("websocket", Numbered(3, "e"), "c", 2), True),
        (Bookstrack("wss://h", "j"), Follow("websocket", Numbered(3, "e"), "c", 2), False),
    ],
)
def test_a_request_shows_whether_the_server_goes_on_from_the_position(
    protocol: Protocol, want: Follow, resumed: bool
) -> None:
    request = protocol.ask(want, TOKEN)
    assert request is not None
    assert is_resumed(protocol, want, TOKEN, request) is resumed


def test_a_stream_may_be_the_answer_to_a_post_and_promise_keep_alives() -> None:
    server = EventStream("https://h/rpc", each, method="POST", body=b"{}", silence=15)
    request = server.ask(STREAM, None)
    assert request is not None
    assert (request.method, request.body, request.silence) == ("POST", b"{}", 15)


def test_the_type_of_an_event_may_be_given_to_the_function() -> None:
    seen: list[Any] = []

    def typed(kind: str, value: Any) -> None:
        seen.append((kind, value))

    server = EventStream("https://h", typed, with_type=True, state="/state")
    server.read(STREAM, ServerEvent("delta", "[1]"))
    server.read(GetState(), Answer(200, {}, b"[2]"))
    assert seen == [("delta", [1]), ("", [2])]
    assert (server.promise, EVENTS.promise) == ("end exact", "what arrives")
    assert told(server.ask(GetState(), None))[0] == "https://h/state"


@pytest.mark.parametrize("status", [400, 410, 412, 416])
def test_a_cursor_that_is_refused_is_not_a_job_that_is_gone(status: int) -> None:
    assert list(EVENTS.read(Follow("events", Mark("7")), Answer(status))) == [Means("cursor")]
    assert list(EVENTS.read(STREAM, Answer(status))) == []


def test_204_means_that_nothing_more_will_come() -> None:
    assert list(EVENTS.read(STREAM, Answer(204))) == [Means("ended")]
    assert list(EVENTS.read(Follow("events", Mark("7")), Answer(503))) == []


def test_lines_are_read_as_messages_without_a_position() -> None:
    lines = EventStream("https://h/logs", each, via="lines")
    request = lines.ask(Follow("lines"), None)
    assert request is not None
    assert request.via == "lines"
    assert list(lines.read(Follow("lines"), Line(PROGRESS))) == [Item(HALF)]
    assert list(lines.read(Follow("lines"), Line("  "))) == []
    with pytest.raises(MalformedMessage):
        lines.read(Follow("lines"), Line("{"))
    with pytest.raises(InvalidArgument, match="via"):
        EventStream("https://h", each, via="websocket")  # type: ignore[arg-type]


# --- polling ------------------------------------------------------------------------------------------------------

POLL = Polling("https://h/jobs/7")


class Poller:
    """Polls as the engine does: the cursor is the last position that was read."""

    def __init__(self, server: Polling) -> None:
        self.server = server
        self.after: Position | None = None
        self.asked: list[str] = []

    def poll(self, status: int, body: Any = b"", **headers: str) -> list[Any]:
        want = Follow("poll", self.after)
        url, _ = told(self.server.ask(want, None))
        self.asked.append(url)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        facts = list(self.server.read(want, Answer(status, names, body)))
        for fact in facts:
            self.after = getattr(fact, "at", None) or self.after
        return facts


def test_202_runs_and_200_is_the_result() -> None:
    poller = Poller(POLL)
    request = POLL.ask(Follow("poll"), None)
    assert request is not None
    assert (request.via, request.in_step) == ("poll", "first_fact")
    assert poller.poll(202) == [Snapshot()]
    assert poller.poll(202, b"<busy>", Retry_After="3") == [Snapshot()], "the source follows Retry-After"
    assert poller.poll(200, {"a": 1}) == [Ended(JobComplete(result={"a": 1}))]
    assert Poller(POLL).poll(200, b"plain text") == [Ended(JobComplete(result="plain text"))]


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"])
def test_a_page_is_no_result(kind: str) -> None:
    """A gateway or a network's login page answers so with 200; JSON was asked for."""
    poller = Poller(POLL)
    with pytest.raises(MalformedMessage, match="it is an HTML page and no result"):
        poller.poll(200, b"<html>Sign in</html>", Content_Type=kind)
    poller.poll(303, Location="/reports/7")
    assert poller.poll(200, b"<html>", Content_Type=kind) == [Ended(JobComplete(result="<html>"))], "this is the result"


def test_the_location_of_the_last_202_rides_in_a_mark() -> None:
    poller = Poller(POLL)
    poller.poll(202, Location="/operations/1")
    poller.poll(202)
    poller.poll(202, Location="2?x=1")
    poller.poll(200, 5)
    assert poller.asked == [
        "https://h/jobs/7",
        "https://h/operations/1",
        "https://h/operations/1",
        "https://h/operations/2?x=1",
    ]


def test_another_header_may_name_the_next_poll() -> None:
    poller = Poller(Polling("https://h/jobs/7", location="Operation-Location"))
    poller.poll(202, Operation_Location="https://h/o/1", Location="/elsewhere")
    poller.poll(202)
    assert poller.asked[-1] == "https://h/o/1"


def test_a_303_ends_with_what_stands_there() -> None:
    poller = Poller(Polling("https://h/jobs/7", each))
    assert poller.poll(202, PROGRESS.encode())[0] == Snapshot((HALF,))
    assert poller.poll(303, Location="/results/7")[1:] == [Wait(0)]
    assert poller.poll(503) == [], "it is asked again"
    [ended] = poller.poll(200, {"event": "progress", "pct": 42})
    assert ended.outcome == JobComplete(result={"event": "progress", "pct": 42})
    assert poller.asked[-2:] == ["https://h/results/7"] * 2


def test_a_url_of_another_origin_is_for_the_engine_to_refuse() -> None:
    poller = Poller(POLL)
    poller.poll(202, Location="https://evil.example/x")
    poller.poll(202)
    assert poller.asked[-1] == "https://evil.example/x"


def test_a_location_that_is_no_url_is_raised_without_its_text() -> None:
    with pytest.raises(MalformedMessage) as raised:
        Poller(POLL).poll(202, Location="https://[secret")
    assert "secret" not in str(raised.value)


def test_with_a_function_the_json_decides() -> None:
    poller = Poller(Polling("https://h/jobs/7", each))
    assert poller.poll(200, PROGRESS.encode()) == [Snapshot((HALF,))]
    assert poller.poll(200, {"event": "?"}) == [Snapshot()]
    assert poller.poll(202) == [Snapshot()]
    assert poller.poll(200, DONE.encode()) == [Ended(JobComplete(result=5))]
    failing = Poller(Polling("https://h/jobs/7", lambda answer: JobFailed(message="m")))
    assert failing.poll(202, {}) == [Ended(JobFailed(message="m"))]
    with pytest.raises(MalformedMessage):
        poller.poll(200, b"<page>")


@pytest.mark.parametrize("status", [204, 301, 304, 401, 404, 410, 429, 500])
def test_any_other_status_has_the_engines_own_meaning(status: int) -> None:
    assert list(POLL.read(Follow("poll", Mark("x")), Answer(status, {"Retry-After": "3"}))) == []


def test_a_mark_that_is_not_its_own_is_ignored() -> None:
    for mark in ("", "x", "[]", '{"url": 5}'):
        assert told(POLL.ask(Follow("poll", Mark(mark)), None))[0] == "https://h/jobs/7"
