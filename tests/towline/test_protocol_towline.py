"""The own wire as a protocol: what it asks, and what it makes of what the server says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import (
    InvalidArgument,
    JobCancelled,
    JobComplete,
    JobFailed,
    JobStarted,
    MalformedMessage,
    Progress,
    Secret,
)
from towline._facts import (
    Answer,
    CancelAnswer,
    CancelJob,
    Closed,
    Ended,
    Fact,
    Follow,
    GetResult,
    GetState,
    InStep,
    Item,
    Mark,
    Message,
    NewToken,
    Numbered,
    Protocol,
    RefreshToken,
    Replaying,
    Request,
    Snapshot,
    Value,
    has_sign,
)
from towline.protocols.bookstrack import Bookstrack
from towline.protocols.towline import Towline

TOKEN = Secret("t1")
SERVER = Towline("wss://h.example/ws/progress", "j1")
FOLLOW = Follow("websocket")


def revealed(request: Request | None) -> dict[str, Any]:
    """A request as it is written, with its secrets."""
    assert request is not None

    def text(value: Any) -> Any:
        return value.reveal() if isinstance(value, Secret) else value

    return {
        "request": f"{request.method} {text(request.url)}",
        "headers": {name: text(value) for name, value in request.headers},
        "subprotocols": [text(name) for name in request.subprotocols],
        "opening": [json.loads(text(message)) for message in request.opening],
        "body": json.loads(text(request.body)) if request.body else None,
    }


def message(type_: str, payload: Any = None, **envelope: Any) -> Message:
    fields = {"type": type_, "jobId": "j1", "pipeline": "p", "timestamp": 1, **envelope}
    return Message(json.dumps(fields if payload is None else {**fields, "payload": payload}))


def read(type_: str, payload: Any = None, **envelope: Any) -> list[Fact]:
    return list(SERVER.read(FOLLOW, message(type_, payload, **envelope)))


# --- asking -------------------------------------------------------------------------------------------------------


def test_it_is_a_protocol() -> None:
    protocol: Protocol = SERVER
    assert (protocol.name, protocol.sources, protocol.promise, protocol.job) == (
        "towline",
        ("websocket", "events"),
        "exact",
        "j1",
    )
    assert Towline("wss://h.example/ws/progress", "j1") == SERVER
    assert hash(SERVER) == hash(Towline("wss://h.example/ws/progress", "j1"))
    assert Towline("wss://h.example/ws/progress", "j1", results={"p": int}) != SERVER


@pytest.mark.parametrize(
    ("want", "ready"),
    [
        (FOLLOW, {"type": "ready"}),
        (Follow("websocket", Numbered(4, "e1")), {"type": "ready", "epoch": "e1", "seq": 4}),
        (Follow("websocket", Numbered(0, "e1")), {"type": "ready"}),
        (Follow("websocket", Mark("x")), {"type": "ready"}),
        (Follow("websocket", client="c", socket=2), {"type": "ready", "client": "c", "socket": 2}),
    ],
)
def test_a_link_opens_with_ready_and_the_cursor(want: Follow, ready: Any) -> None:
    request = SERVER.ask(want, TOKEN)
    assert request is not None
    assert (request.via, request.in_step, request.silence) == ("websocket", "state", None)
    assert revealed(request) == {
        "request": "GET wss://h.example/ws/progress?jobId=j1",
        "headers": {"Authorization": "Bearer t1"},
        "subprotocols": [],
        "opening": [ready],
        "body": None,
    }


@pytest.mark.parametrize(
    ("place", "url", "headers", "subprotocols"),
    [
        ("header", "wss://h/p?x=1&jobId=a%20b", {"Authorization": "Bearer t&1"}, ["s"]),
        ("header:X-Api-Key", "wss://h/p?x=1&jobId=a%20b", {"X-Api-Key": "t&1"}, ["s"]),
        ("query", "wss://h/p?x=1&jobId=a%20b&token=t%261", {}, ["s"]),
        ("query:key", "wss://h/p?x=1&jobId=a%20b&key=t%261", {}, ["s"]),
        ("subprotocol:bearer", "wss://h/p?x=1&jobId=a%20b", {}, ["s", "bearer.t&1"]),
    ],
)
def test_the_token_goes_where_it_is_to_go(place: str, url: str, headers: Any, subprotocols: Any) -> None:
    server = Towline("wss://h/p?x=1", "a b", token_in=place, headers={"X": "y"}, subprotocols=("s",))
    request = server.ask(FOLLOW, Secret("t&1"))
    assert "t&1" not in repr(request)
    assert "t%261" not in repr(request)
    told = revealed(request)
    assert (told["request"], told["headers"]) == (f"GET {url}", {"X": "y", **headers})
    assert told["subprotocols"] == subprotocols
    bare = revealed(server.ask(FOLLOW, None))
    assert (bare["request"], bare["headers"]) == ("GET wss://h/p?x=1&jobId=a%20b", {"X": "y"})


def test_calls_have_the_token_in_the_header_wherever_the_socket_has_it() -> None:
    server = Towline("ws://h:8000/jobs/ws/progress", "a/b", token_in="query", headers={"X": Secret("y")})
    state = revealed(server.ask(GetState(), TOKEN))
    assert state["request"] == "GET http://h:8000/jobs/api/job-state/a%2Fb"
    assert state["headers"] == {"X": "y", "Authorization": "Bearer t1", "Accept": "application/json"}
    cancel = revealed(server.ask(CancelJob("k"), TOKEN))
    assert cancel["request"] == "POST http://h:8000/jobs/api/jobs/a%2Fb/cancel"
    assert cancel["headers"]["Idempotency-Key"] == "k"
    assert cancel["body"] == {"jobId": "a/b"}
    refresh = revealed(server.ask(RefreshToken(), TOKEN))
    assert refresh["request"] == "POST http://h:8000/jobs/api/token/refresh"
    assert refresh["body"] == {"jobId": "a/b", "oldToken": "t1"}
    assert "Authorization" not in refresh["headers"]
    assert "t1" not in repr(server.ask(RefreshToken(), TOKEN))
    assert server.ask(RefreshToken(), None) is None
    assert "y" not in repr(server).replace("query", "")


def test_the_calls_may_be_at_another_origin_prefix_and_path() -> None:
    server = Towline("wss://h/ws/progress", "j", api_origin="https://api.example", prefix="/v2", state_path="/s/{job}")
    assert revealed(server.ask(GetState(), None))["request"] == "GET https://api.example/v2/s/j"
    other = Towline("wss://h/somewhere", "j")
    assert revealed(other.ask(GetState(), None))["request"] == "GET https://h/api/job-state/j"


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (None, "https://h.example/api/jobs/j1/results"),
        ("/r/1?x", "https://h.example/r/1?x"),
        ("r/1", "https://h.example/r/1"),
        ("https://other.example/r", "https://other.example/r"),
        ("//other.example/r", "https://other.example/r"),
    ],
)
def test_the_result_is_where_the_outcome_says(url: str | None, asked: str) -> None:
    request = SERVER.ask(GetResult(JobComplete(result_url=url)), TOKEN)
    assert revealed(request)["request"] == f"GET {asked}"


@pytest.mark.parametrize(
    "options",
    [
        {"job": ""},
        {"job": ".."},
        {"job": "\ud800"},
        {"token_in": "cookie"},
        {"token_in": "subprotocol:"},
        {"state_path": "/state"},
        {"result_path": "/{job}/{other}"},
        {"cancel_path": "cancel"},
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(InvalidArgument) as refused:
        Towline(**{"url": "wss://h", "job": "j", **options})
    assert refused.value.name == name


# --- messages -----------------------------------------------------------------------------------------------------

ALIVE = {"progress": 0.5, "keepAlive": True}
PAYLOAD = {"progress": 0.5, "status": "s", "processedCount": 3, "currentItem": "x"}


@pytest.mark.parametrize("envelope", [{}, {"jobId": None}])
def test_progress_is_an_item_with_its_position(envelope: Any) -> None:
    [item] = read("job_progress", PAYLOAD, seq=4, epoch="e1", **envelope)
    assert item == Item(
        Progress(
            job="j1",
            pipeline="p",
            timestamp=1,
            seq=4,
            epoch="e1",
            fraction=0.5,
            status="s",
            processed_count=3,
            current_item="x",
            first_seq=4,
        ),
        Numbered(4, "e1"),
    )


def test_without_a_log_there_is_no_position() -> None:
    [item] = read("job_progress", PAYLOAD)
    assert isinstance(item, Item)
    assert (item.at, item.update.seq, item.update.first_seq) == (None, None, None)


@pytest.mark.parametrize(
    ("facts", "meaning", "sign"),
    [
        (
            read("job_progress", {"progress": 0.5, "keepAlive": True}, seq=4, epoch="e"),
            Item(None, Numbered(4, "e"), False),
            False,
        ),
        (read("job_progress", {"progress": 0.5, "keepAlive": True}, jobId=None), Item(None, None, False), False),
        (read("news", {}, seq=4, epoch="e"), Item(None, Numbered(4, "e")), True),
        (read("news"), Item(None), True),
        (read("ready_ack", epoch="e", **{"from": 3, "to": 2}), Replaying(3, 2, "e"), False),
        (read("ready_ack", pipeline=None), InStep(), False),
    ],
)
def test_what_shows_nothing_keeps_its_place(facts: list[Fact], meaning: Fact, sign: bool) -> None:
    assert facts == [meaning]
    assert has_sign(facts) is sign


@pytest.mark.parametrize("type_", ["job_progress", "job_complete", "job_started", "news"])
def test_a_message_about_another_job_means_nothing(type_: str) -> None:
    assert read(type_, PAYLOAD, jobId="j2", seq=1, epoch="e") == []


def test_an_unreadable_message_about_another_job_means_nothing() -> None:
    assert read("job_progress", {}, jobId="j2", seq=1, epoch="e") == []


def test_pings_and_pongs_mean_nothing() -> None:
    assert read("ping") == read("pong") == []


@pytest.mark.parametrize("text", ["", "[]", "no JSON", '{"type":"job_progress","payload":{}}', '{"payload":{}}'])
def test_an_unreadable_message_is_raised(text: str) -> None:
    with pytest.raises(MalformedMessage):
        SERVER.read(FOLLOW, Message(text))


def test_an_unreadable_message_names_its_place() -> None:
    with pytest.raises(MalformedMessage) as raised:
        read("job_progress", {}, seq=4, epoch="e")
    assert (raised.value.seq, raised.value.epoch, raised.value.job_id) == (4, "e", "j1")


def test_the_start_of_a_job() -> None:
    [item] = read("job_started", {"totalCount": 9, "estimatedDuration": 2.5}, seq=1, epoch="e")
    started = JobStarted(job="j1", pipeline="p", timestamp=1, seq=1, epoch="e", total_count=9, estimated_duration=2.5)
    assert item == Item(started, Numbered(1, "e"))


@pytest.mark.parametrize(
    ("type_", "payload", "outcome"),
    [
        ("job_complete", {"a": 1}, JobComplete(result={"a": 1})),
        ("job_complete", {"resultsUrl": "/r", "b": 2}, JobComplete(result={"b": 2}, result_url="/r")),
        ("job_complete", None, JobComplete(problem="the server sent no result with the end")),
        ("error", {"code": "E", "message": "m"}, JobFailed(code="E", message="m")),
        ("error", {}, JobFailed(problem="the server gave no reason")),
        ("job_canceled", {"processedCount": 3, "reason": "r"}, JobCancelled(processed_count=3, reason="r")),
    ],
)
def test_an_end_has_everything_that_can_be_read(type_: str, payload: Any, outcome: Any) -> None:
    [ended] = read(type_, payload, seq=9, epoch="e")
    assert isinstance(ended, Ended)
    assert ended.at == Numbered(9, "e")
    expected = {"job": "j1", "pipeline": "p", "timestamp": 1, "seq": 9, "epoch": "e"}
    assert ended.outcome == type(outcome)(
        **expected,
        **{
            name: value
            for name in outcome.__struct_fields__
            if name not in expected and (value := getattr(outcome, name)) is not None
        },
    )


def test_a_close_has_the_engines_own_meaning() -> None:
    for code in (None, 1000, 1001, 1008, 4401, 4509):
        assert list(SERVER.read(FOLLOW, Closed(code))) == []


# --- answers ------------------------------------------------------------------------------------------------------


def answered(want: Any, status: int, body: Any, server: Towline = SERVER) -> list[Fact]:
    return list(server.read(want, Answer(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())))


def test_a_running_state_is_a_snapshot() -> None:
    state = {"status": "running", "processedCount": 3, "totalCount": 9, "currentItem": "x", "seq": 4, "epoch": "e"}
    [snapshot] = answered(GetState(), 200, {**state, "pipeline": "p", "lastUpdate": 5})
    shown = Progress(
        job="j1",
        pipeline="p",
        timestamp=5,
        seq=4,
        epoch="e",
        fraction=None,
        processed_count=3,
        total_count=9,
        current_item="x",
        first_seq=4,
    )
    assert snapshot == Snapshot((shown,), Numbered(4, "e"))
    assert answered(GetState(), 200, {"status": "running"}) == [Snapshot()]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"status": "complete", "results": {"a": 1}}, JobComplete),
        ({"status": "failed", "error": {"code": "E"}}, JobFailed),
        ({"status": "Cancelled"}, JobCancelled),
    ],
)
def test_a_state_that_ended_is_an_end(state: Any, kind: type) -> None:
    [ended] = answered(GetState(), 200, {**state, "seq": 0, "epoch": "e"})
    assert isinstance(ended, Ended)
    assert (type(ended.outcome), ended.at, ended.outcome.seq) == (kind, Numbered(0, "e"), None)


@pytest.mark.parametrize("want", [GetState(), GetResult(JobComplete()), CancelJob("k"), RefreshToken(), FOLLOW])
def test_a_refusal_has_the_engines_own_meaning(want: Any) -> None:
    for status in (301, 400, 401, 404, 410, 429, 500, 503):
        assert answered(want, status, b"<html>") == []


def test_an_answer_that_cannot_be_read_is_raised() -> None:
    for want in (GetState(), RefreshToken(), CancelJob("k")):
        with pytest.raises(MalformedMessage):
            answered(want, 200, b"<html>")


def test_the_answers_to_a_cancel() -> None:
    assert answered(CancelJob("k"), 200, {"jobId": "j1", "result": "too_late"}) == [CancelAnswer("too_late")]
    assert answered(CancelJob("k"), 202, b"") == [CancelAnswer("accepted")]


def test_a_fresh_token_has_its_lifetime_and_is_not_shown() -> None:
    facts = answered(RefreshToken(), 200, {"token": "t2", "expiresIn": 60})
    assert facts == [NewToken(Secret("t2"), 60)]
    assert "t2" not in repr(facts)


def test_a_result_has_its_pipelines_type_if_one_was_given() -> None:
    want = GetResult(JobComplete(pipeline="p"))
    assert answered(want, 200, {"a": 1}) == [Value({"a": 1})]
    assert answered(want, 200, {"data": {"a": 1}, "metadata": {}}) == [Value({"a": 1})]
    typed = Towline("wss://h", "j1", results={"p": dict[str, float]})
    assert answered(want, 200, {"a": 1}, typed) == [Value({"a": 1.0})]
    [ended] = typed.read(FOLLOW, message("job_complete", {"a": 1}))
    assert isinstance(ended, Ended)
    assert ended.outcome.problem is None


# --- the original backend -----------------------------------------------------------------------------------------


def test_the_original_backend_differs_only_in_its_parameters() -> None:
    server = Bookstrack("wss://h/ws/progress", "j1")
    assert (server.name, server.promise, server.stall_limit) == ("bookstrack", "end exact", 3600)
    follow = revealed(server.ask(Follow("websocket", Numbered(3, "e"), client="c", socket=1), TOKEN))
    assert follow["request"] == "GET wss://h/ws/progress?jobId=j1&token=t1"
    assert (follow["headers"], follow["opening"]) == ({}, [{"type": "ready"}])
    cancel = revealed(server.ask(CancelJob("k"), TOKEN))
    assert (cancel["request"], cancel["body"]) == ("POST https://h/api/enrichment/cancel", {"jobId": "j1"})
    state = revealed(server.ask(GetState(), TOKEN))
    assert state["request"] == "GET https://h/api/job-state/j1"
    assert state["headers"]["Authorization"] == "Bearer t1"


@pytest.mark.parametrize(
    ("fields", "first"),
    [({"firstSeq": 4}, 4), ({"firstSeq": "4"}, 4), ({}, 9), ({"firstSeq": 10}, 9), ({"firstSeq": -1}, 9)],
)
def test_merged_progress_says_what_it_stands_for(fields: dict[str, Any], first: int) -> None:
    frame = {"type": "job_progress", "jobId": "j1", "seq": 9, "epoch": "e", "payload": {"progress": 0.5}, **fields}
    [fact] = SERVER.read(FOLLOW, Message(json.dumps(frame)))
    assert isinstance(fact, Item)
    assert isinstance(fact.update, Progress)
    assert fact.at == Numbered(9, "e")
    assert (fact.update.first_seq, fact.update.seq, fact.update.merged) == (first, 9, 10 - first)
