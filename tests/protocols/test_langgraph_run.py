"""`LangGraphRun`: events and answers of the server in, facts out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import InvalidArgument, JobCancelled, JobComplete, JobFailed, MalformedMessage, Output, Progress, Secret
from towline._facts import (
    Answer,
    Ask,
    CancelAnswer,
    CancelJob,
    Closed,
    Ended,
    Fact,
    Follow,
    GetResult,
    GetState,
    Item,
    Mark,
    Means,
    RefreshToken,
    Request,
    ServerEvent,
    Snapshot,
    Value,
)
from towline.protocols import LangGraphRun
from towline.protocols._shared.kept import kept_of, protocol_of

RUN = LangGraphRun("https://h/api/", "thread 1", "run1")
STREAM, STATE, CANCEL = Follow("events"), GetState(), CancelJob("k")
RUN_URL = "https://h/api/threads/thread%201/runs/run1"


def asked(want: Any, run: LangGraphRun = RUN) -> Request:
    request = run.ask(want, Secret("secret"))
    assert request is not None
    return request


def event(kind: str, data: Any, name: str | None = "1796003615671-0") -> list[Fact]:
    return list(RUN.read(STREAM, ServerEvent(kind, json.dumps(data), name)))


def answer(want: Any, status: int, body: Any = None) -> list[Fact]:
    return list(RUN.read(want, Answer(status, {}, json.dumps(body).encode())))


def mark(kind: str, data: Any, name: str = "1796003615671-0") -> Mark:
    [fact] = event(kind, data, name)
    assert isinstance(fact, Item)
    assert isinstance(fact.at, Mark)
    return fact.at


# --- asking --------------------------------------------------------------------------------------------------------


def test_a_stream_begins_at_the_start_and_promises_keep_alives() -> None:
    request = asked(STREAM)
    assert (request.via, request.method, request.url) == ("events", "GET", f"{RUN_URL}/stream")
    assert dict(request.headers) == {"Last-Event-ID": "-1", "x-api-key": Secret("secret")}
    assert request.silence == 15


def test_a_replay_begins_with_the_whole_millisecond() -> None:
    """`langgraph dev` gives all its events one id, and replays only those with a higher one."""
    at = mark("updates", {})
    assert dict(asked(Follow("events", at)).headers)["Last-Event-ID"] == "1796003615670-999999"
    # The ids are compared as texts.
    assert "1796003615671-0" > "1796003615670-999999" > "1796003615670-0"


@pytest.mark.parametrize("name", ["7", "abc", "a-b", "12-x", "-1"])
def test_an_id_of_another_form_is_sent_as_it_is(name: str) -> None:
    at = mark("updates", {}, name)
    assert dict(asked(Follow("events", at)).headers)["Last-Event-ID"] == name


def test_the_filter_is_repeated_at_each_join() -> None:
    run = LangGraphRun("https://h", "t", "r", stream_mode="updates")
    for after in (None, Mark("1-0 x")):
        assert asked(Follow("events", after), run).url == "https://h/threads/t/runs/r/stream?stream_mode=updates"


@pytest.mark.parametrize(
    ("want", "method", "path"),
    [(STATE, "GET", ""), (GetResult(JobComplete()), "GET", "/join"), (CANCEL, "POST", "/cancel")],
)
def test_calls(want: Any, method: str, path: str) -> None:
    request = asked(want)
    assert (request.via, request.method, request.url) == ("call", method, f"{RUN_URL}{path}")


def test_there_is_no_call_for_a_token() -> None:
    assert RUN.ask(RefreshToken(), None) is None


@pytest.mark.parametrize("ids", [("", "r"), ("t", ".."), (".", "r")])
def test_an_id_that_no_path_can_hold_is_refused(ids: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        LangGraphRun("https://h", *ids)


def test_the_promise_is_that_of_the_run() -> None:
    assert (RUN.promise, RUN.replays_end) == ("exact", True)
    other = LangGraphRun("https://h", "t", "r", resumable=False)
    assert (other.promise, other.replays_end) == ("end exact", False)


def test_a_record_keeps_the_thread() -> None:
    run = LangGraphRun("https://h", "t", "r", resumable=False, token_in="header")
    kept = kept_of(run)
    assert protocol_of("langgraph_run", "r", kept.parameters, kept.secrets) == run


# --- events --------------------------------------------------------------------------------------------------------


def test_each_event_is_an_output_of_its_type() -> None:
    value = {"work": {"done": 1}}
    [fact] = event("updates", value)
    assert fact == Item(Output(key="updates", value=value), mark("updates", value))
    [fact] = event("values|sub", value)
    assert isinstance(fact, Item)
    assert fact.update == Output(key="values|sub", value=value, op="replace")


def test_metadata_shows_nothing_and_has_a_position() -> None:
    assert event("metadata", {"attempt": 1}) == [Item(None, mark("metadata", {"attempt": 1}))]


def test_an_event_that_comes_twice_has_one_position_and_another_of_the_same_millisecond_has_its_own() -> None:
    assert mark("updates", {"n": 1}) == mark("updates", {"n": 1})
    marks = {mark("updates", {"n": 1}), mark("updates", {"n": 2}), mark("values", {"n": 1})}
    assert len(marks) == 3


def test_a_run_that_was_not_made_resumable_has_no_positions() -> None:
    assert event("updates", 5, None) == [Item(Output(key="updates", value=5))]
    assert event("metadata", 5, None) == [Item(None)]


def test_an_empty_id_clears_the_position() -> None:
    assert event("updates", 5, "") == [Item(Output(key="updates", value=5), Mark(""))]


@pytest.mark.parametrize("kind", ["error", "end"])
def test_an_error_and_an_end_let_the_state_decide(kind: str) -> None:
    """An unknown run is 200 with the event `error`, too."""
    assert event(kind, {"message": "404: Run not found"}, None) == [Item(None), Means("ended")]
    item, ended = event(kind, None)
    assert isinstance(item, Item)
    assert isinstance(item.at, Mark)
    assert ended == Means("ended")


def test_an_event_that_is_not_json_costs_itself() -> None:
    [fact] = RUN.read(STREAM, ServerEvent("updates", "{", "1-0"))
    assert isinstance(fact, Item)
    assert fact.update is None
    with pytest.raises(MalformedMessage):
        RUN.read(STREAM, ServerEvent("updates", "{", None))


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "running", "something new"])
def test_a_run_that_has_not_ended(status: str) -> None:
    assert answer(STATE, 200, {"status": status}) == [Snapshot((Progress(fraction=None, status=status),))]


def test_a_cancelled_run_is_interrupted() -> None:
    assert answer(STATE, 200, {"status": "interrupted"}) == [Ended(JobCancelled())]


def test_the_result_comes_from_join() -> None:
    ended, more = answer(STATE, 200, {"status": "success"})
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, JobComplete)
    assert ended.outcome.problem
    assert isinstance(more, Ask)
    assert answer(more.want, 200, {"answer": 42}) == [Value({"answer": 42}), Ended(JobComplete(result={"answer": 42}))]
    assert answer(more.want, 200, None) == [Value(None), Ended(JobComplete())]


def test_a_run_that_waits_for_input_completes_with_its_interrupt() -> None:
    asked_for = {"__interrupt__": [{"id": "i", "value": "which colour?"}]}
    _, more = answer(STATE, 200, {"status": "success"})
    assert isinstance(more, Ask)
    assert answer(more.want, 200, asked_for)[1] == Ended(JobComplete(result=asked_for))


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_the_text_of_a_failure_comes_from_join(status: str) -> None:
    ended, more = answer(STATE, 200, {"status": status})
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, JobFailed)
    assert ended.outcome.code == status
    assert isinstance(more, Ask)
    error = {"__error__": {"error": "ValueError", "message": "the disk is full"}}
    assert answer(more.want, 200, error) == [Ended(JobFailed(code="ValueError", message="the disk is full"))]
    for unfit in (None, [], {}, {"__error__": 5}, {"__error__": {"error": None, "message": []}}):
        [ended] = answer(more.want, 200, unfit)
        assert isinstance(ended, Ended)
        assert isinstance(ended.outcome, JobFailed)


@pytest.mark.parametrize("body", [{}, {"status": None}, {"status": 5}])
def test_a_run_without_a_status_says_nothing(body: Any) -> None:
    assert answer(STATE, 200, body) == []


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (202, [CancelAnswer("accepted")]),
        (404, [CancelAnswer("too_late")]),
        (409, [CancelAnswer("too_late")]),
        (422, []),
        (500, []),
    ],
)
def test_a_late_or_second_cancel_is_404(status: int, facts: list[Fact]) -> None:
    assert answer(CANCEL, status) == facts


def test_other_answers_are_left_to_the_status() -> None:
    assert answer(STATE, 404) == []
    assert answer(STREAM, 404) == []
    assert list(RUN.read(STREAM, Closed())) == []
