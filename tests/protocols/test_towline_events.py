"""The own wire as an event stream: what is asked, and what is read."""

from __future__ import annotations

import pytest

from towline import InvalidArgument, Progress, Secret
from towline._facts import Answer, Follow, Item, Means, Message, Numbered, Replaying, Request, ServerEvent
from towline.protocols import Bookstrack, Towline

SERVER = Towline("wss://h.example/jobs/ws/progress", "a b", headers={"X": "y"})
PROGRESS = (
    '{"type":"job_progress","jobId":"a b","pipeline":"p","timestamp":1,"version":1,"seq":2,"epoch":"e",'
    '"payload":{"progress":0.5,"status":"s"}}'
)
ACK = '{"type":"ready_ack","jobId":"a b","timestamp":1,"version":1,"epoch":"e","from":1,"to":5}'


def asked(after: Numbered | None = None) -> Request:
    request = SERVER.ask(Follow("events", after), Secret("t1"))
    assert request is not None
    return request


def test_the_request() -> None:
    assert SERVER.sources == ("websocket", "events")
    request = asked(Numbered(7, "e"))
    assert request.url == "https://h.example/jobs/api/jobs/a%20b/events"
    assert [(name, str(value)) for name, value in request.headers] == [
        ("X", "y"),
        ("Authorization", "Secret(hidden)"),
        ("Last-Event-ID", "e:7"),
    ]
    assert (request.via, request.in_step, request.silence, request.opening) == ("events", "state", 15, ())


@pytest.mark.parametrize("after", [None, Numbered(0, "e")])
def test_from_the_start_there_is_no_id(after: Numbered | None) -> None:
    assert "Last-Event-ID" not in dict(asked(after).headers)


def test_a_server_without_the_stream() -> None:
    for server in (Towline("wss://h/ws/progress", "j", events_path=None), Bookstrack("wss://h/ws/progress", "j")):
        assert server.sources == ("websocket",)
        assert server.ask(Follow("events"), None) is None
    with pytest.raises(InvalidArgument, match="events_path"):
        Towline("wss://h/ws/progress", "j", events_path="/events")


def test_an_event_is_read_as_a_message() -> None:
    events = Follow("events")
    for text in (PROGRESS, ACK):
        assert list(SERVER.read(events, ServerEvent("message", text, "e:2"))) == list(
            SERVER.read(Follow("websocket"), Message(text))
        )
    (item,) = SERVER.read(events, ServerEvent("message", PROGRESS, "e:2"))
    assert isinstance(item, Item)
    assert isinstance(item.update, Progress)
    assert item.at == Numbered(2, "e")
    assert list(SERVER.read(events, ServerEvent("message", ACK, None))) == [Replaying(1, 5, "e")]


@pytest.mark.parametrize("status", [405, 426, 501])
def test_an_upgrade_that_finds_no_websocket_leads_to_the_stream(status: int) -> None:
    assert list(SERVER.read(Follow("websocket"), Answer(status))) == [Means("source")]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_may_have_no_stream(status: int) -> None:
    assert list(SERVER.read(Follow("events"), Answer(status))) == [Means("source")]


def test_nothing_is_left_after_the_end() -> None:
    assert list(SERVER.read(Follow("events"), Answer(204))) == [Means("ended")]
