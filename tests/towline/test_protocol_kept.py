"""What a record keeps of a protocol, and the protocol built again; recordings; the built-in names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import InvalidArgument, JobComplete, Progress, Secret
from towline._facts import (
    Answer,
    CancelJob,
    Closed,
    Follow,
    GetResult,
    GetState,
    Line,
    Mark,
    Message,
    Numbered,
    Received,
    RefreshToken,
    ServerEvent,
    Want,
)
from towline.protocols import A2ATask, Bookstrack, EventStream, Messages, Polling, Towline
from towline.protocols._shared.kept import kept_of, protocol_of
from towline.protocols._shared.names import CLASSES, protocol_class
from towline.protocols._shared.recording import Observed, dump_line, load_lines

URL = "wss://api.example/ws/progress"


def each(message: Any) -> Progress:
    return Progress(job="j", fraction=message)


@pytest.mark.parametrize(
    "protocol",
    [
        Towline(URL, "j1"),
        Towline(URL, "j1", require_state=True, api_origin="https://calls.example", prefix="", token_in="query:key"),
        Bookstrack(URL, "j1", cancel_path="/cancel"),
        Polling("https://api.example/jobs/7?x=1", location="Operation-Location"),
    ],
)
def test_a_protocol_is_built_again(protocol: Any) -> None:
    kept = kept_of(protocol)
    assert kept.secrets == {}
    assert protocol_of(protocol.name, protocol.job, *kept) == protocol


def test_only_what_differs_is_kept() -> None:
    assert kept_of(Towline(URL, "j1", results={"csv": int})) == ({"url": URL}, {})
    assert kept_of(Bookstrack(URL, "j1", token_in="header")).parameters == {"url": URL, "token_in": "header"}


def test_headers_and_subprotocols_are_secrets() -> None:
    headers = (("X-Key", "k1"), ("X.Key", Secret("k2")), *((f"X-{number}", "k") for number in range(10)))
    protocol = Towline(URL, "j1", headers=headers, subprotocols=("v1", Secret("v2")))
    kept = kept_of(protocol)
    assert kept.parameters == {"url": URL}
    assert kept.secrets["headers.1.X.Key"] == Secret("k2")
    built: Any = protocol_of("towline", "j1", *kept)
    assert [name for name, _ in built.headers] == [name for name, _ in headers]
    assert built.headers[1] == ("X.Key", Secret("k2"))
    assert built.subprotocols == (Secret("v1"), Secret("v2"))


class Mine(Bookstrack):
    pass


@pytest.mark.parametrize(
    ("protocol", "code"),
    [
        (Messages(URL, each, job="j1"), f"{__name__}:each"),
        (EventStream("https://h/1", each, job="j1"), f"{__name__}:each"),
        (Polling("https://h/1", each, job="j1"), f"{__name__}:each"),
        (Mine(URL, "j1", headers={"X": "hunter2"}), f"{__name__}:Mine"),
    ],
)
def test_code_is_named_and_must_be_passed_again(protocol: Any, code: str) -> None:
    kept = kept_of(protocol)
    assert code in kept.parameters.values()
    assert kept.secrets == {}
    with pytest.raises(InvalidArgument, match="pass the protocol again") as caught:
        protocol_of(protocol.name, "j1", *kept)
    assert code in str(caught.value)
    assert "module:object" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("towline", {}, "has no URL"),
        ("towline", {"url": 7}, "has no URL"),
        ("towline", {"url": URL, "colour": "red"}, "does not fit the protocol towline"),
        ("towline", {"url": URL, "token_in": 7}, "does not fit the protocol towline"),
        ("messages", {"url": URL}, "does not fit the protocol messages"),
        ("other", {"url": URL}, "does not fit the protocol other"),
    ],
)
def test_a_record_that_does_not_fit(name: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        protocol_of(name, "j1", parameters, {})


def test_secrets_that_do_not_fit() -> None:
    with pytest.raises(InvalidArgument, match="does not fit"):
        protocol_of("towline", "j1", {"url": URL}, {"headers.first.X": Secret("hunter2")})


def test_each_name_is_its_class_s() -> None:
    assert {protocol_class(name).name for name in CLASSES} == set(CLASSES)
    with pytest.raises(InvalidArgument, match="bookstrack, messages"):
        protocol_class("nope")


# --- recordings ----------------------------------------------------------------------------------------------------

FOLLOW = Follow("websocket", None, "c", 2)
LINES: list[tuple[Want, Received]] = [
    (FOLLOW, Message('{"type":"ready_ack"}')),
    (FOLLOW, Message("{}\ud800\n\u2028é".encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass"))),
    (FOLLOW, Message(b"\x00\xff")),
    (Follow("websocket", Numbered(7, "e")), Closed(1006, "gone")),
    (Follow("events", Mark("m")), ServerEvent("progress", "{}", "7")),
    (Follow("events"), ServerEvent("", "", None)),
    (Follow("lines"), Line("{}")),
    (Follow("poll"), Answer(202, {"location": "/jobs/7"}, "é".encode())),
    (GetState(), Answer(200, {}, b"\xff")),
    (CancelJob("k"), Answer(200)),
    (GetResult(JobComplete(job="j1", result_url="/r")), Closed()),
]


def test_a_recording_is_read_as_it_was_written() -> None:
    lines = [dump_line(want, received) for want, received in LINES]
    assert not any("\n" in line for line in lines)
    assert list(load_lines(lines)) == LINES


@pytest.mark.parametrize("line", ["", "7", "{}", '{"want":{"type":"state"},"received":{"type":"nope"}}', '{"want":1}'])
def test_what_is_no_recording(line: str) -> None:
    with pytest.raises(InvalidArgument, match="line 2"):
        list(load_lines([dump_line(GetState(), Answer(200)), line]))


def test_a_cookie_is_left_out() -> None:
    line = json.loads(dump_line(GetState(), Answer(200, {"Set-Cookie": "hunter2", "ETag": "1"})))
    assert line["received"]["headers"] == {"etag": "1"}


def observed(protocol: Any) -> tuple[Observed, list[str]]:
    lines: list[str] = []
    return Observed(protocol, lambda want, received: lines.append(repr((want, received)))), lines


@pytest.mark.parametrize(
    "received",
    [
        Message('{"jobId": "j1", "token": "se/c&r\\"et"}'),
        Message('{"jobId": "j1", "token": "se\\/c&r\\"et"}'),
        Message(b'se/c&r"et'),
        ServerEvent("progress", 'se/c&r"et', 'se/c&r"et'),
        Line('se/c&r"et'),
        Answer(200, {"x": 'se/c&r"et', "location": "/?token=se%2Fc%26r%22et"}, b'se/c&r"et'),
        Closed(1000, 'se/c&r"et'),
    ],
)
def test_a_token_is_masked_wherever_a_server_repeats_it(received: Received) -> None:
    protocol, lines = observed(Polling("https://h/j1"))
    protocol.ask(FOLLOW, Secret('se/c&r"et'))
    protocol.read(Follow("events", Mark('/?token=se/c&r"et')), received)
    (line,) = lines
    assert "se/c" not in line
    assert "se%2F" not in line
    assert r"se\/" not in line
    assert line.count("TOKEN") >= 2


def test_the_answer_to_a_refresh_is_not_observed_and_its_token_is_masked() -> None:
    protocol, lines = observed(Towline(URL, "j1", headers={"X-Key": "hunter2"}))
    protocol.ask(RefreshToken(), Secret("old"))
    protocol.read(RefreshToken(), Answer(200, {}, b'{"token": "fresh", "expiresIn": 60}'))
    assert lines == []
    protocol.read(GetState(), Answer(404, {}, b"fresh old hunter2"))
    assert "b'TOKEN TOKEN TOKEN'" in lines[0]


def test_an_observed_protocol_is_the_same_protocol() -> None:
    inner = Polling("https://h/j1")
    protocol, _ = observed(inner)
    assert (protocol.name, protocol.url, protocol.job) == (inner.name, inner.url, inner.job)
    assert (protocol.sources, protocol.promise) == (inner.sources, inner.promise)
    assert protocol.ask(FOLLOW, None) == inner.ask(FOLLOW, None)


def test_an_observed_protocol_keeps_what_only_some_protocols_have() -> None:
    protocol, _ = observed(A2ATask("https://h/a2a", "j1"))
    assert protocol.replays_end is True
    with pytest.raises(AttributeError, match="stall_limit"):
        _ = protocol.stall_limit
