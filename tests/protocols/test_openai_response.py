"""`OpenAIResponse`: bytes of the Responses API in, facts out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import (
    InvalidArgument,
    JobCancelled,
    JobComplete,
    JobFailed,
    MalformedMessage,
    Output,
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
    Item,
    Mark,
    Means,
    Numbered,
    RefreshToken,
    Request,
    ServerEvent,
    Snapshot,
    Value,
    Wait,
)
from towline.protocols import OpenAIResponse
from towline.protocols._shared.kept import kept_of, protocol_of

RESPONSE = OpenAIResponse("resp_1")
STREAM, POLL = Follow("events"), Follow("poll")
TEXT = {"type": "output_text", "text": "whole", "annotations": []}
MESSAGE = {"type": "message", "status": "completed", "content": [TEXT]}


def asked(want: Any, protocol: OpenAIResponse = RESPONSE, token: str | None = "t1") -> Request:
    request = protocol.ask(want, None if token is None else Secret(token))
    assert request is not None
    return request


def event(kind: str, seq: Any = 5, **fields: Any) -> tuple[Fact, ...]:
    data = json.dumps({"type": kind, "sequence_number": seq, **fields})
    return RESPONSE.read(STREAM, ServerEvent(kind, data))


def answered(want: Any, state: Any, status: int = 200, **headers: str) -> tuple[Fact, ...]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RESPONSE.read(want, Answer(status, named, json.dumps(state).encode()))


# --- asking --------------------------------------------------------------------------------------------------------


def test_the_stream_goes_on_after_the_last_event() -> None:
    assert asked(STREAM).url == "https://api.openai.com/v1/responses/resp_1?stream=true"
    after = asked(Follow("events", Numbered(6)))
    assert after.url == "https://api.openai.com/v1/responses/resp_1?stream=true&starting_after=6"
    assert (after.via, after.method, after.in_step, after.silence) == ("events", "GET", "open", None)
    assert asked(Follow("events", Mark("x"))).url == asked(STREAM).url


def test_the_first_event_has_the_number_0() -> None:
    assert asked(Follow("events", Numbered(0))).url.endswith("&starting_after=0")
    assert event("response.created", 0) == (Item(Progress(fraction=None, status="created"), Numbered(0)),)


@pytest.mark.parametrize(
    ("want", "via", "method", "path"),
    [
        (POLL, "poll", "GET", ""),
        (GetState(), "call", "GET", ""),
        (GetResult(JobComplete()), "call", "GET", ""),
        (CancelJob("k"), "call", "POST", "/cancel"),
    ],
)
def test_the_calls(want: Any, via: str, method: str, path: str) -> None:
    request = asked(want)
    assert (request.via, request.method) == (via, method)
    assert request.url == f"https://api.openai.com/v1/responses/resp_1{path}"
    assert dict(request.headers)["Authorization"].reveal() == "Bearer t1"  # type: ignore[union-attr]
    assert (request.in_step == "first_fact") == (via == "poll")


def test_there_is_no_fresh_token() -> None:
    assert RESPONSE.ask(RefreshToken(), Secret("t1")) is None


def test_a_server_with_a_query_and_a_header_of_its_own() -> None:
    azure = OpenAIResponse("a/b", "https://h/openai/v1/?api-version=x", token_in="header:api-key", silence=15)
    request = asked(Follow("events", Numbered(3)), azure)
    assert request.url == "https://h/openai/v1/responses/a%2Fb?api-version=x&stream=true&starting_after=3"
    assert dict(request.headers)["api-key"].reveal() == "t1"  # type: ignore[union-attr]
    assert request.silence == 15
    assert asked(CancelJob("k"), azure).url == "https://h/openai/v1/responses/a%2Fb/cancel?api-version=x"


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="token_in"):
        OpenAIResponse("r", token_in="subprotocol:x")
    with pytest.raises(InvalidArgument, match="job"):
        OpenAIResponse("..").ask(POLL, None)


def test_a_record_keeps_it_without_its_headers_in_the_open() -> None:
    made = OpenAIResponse("r1", "https://h/v1", stall_limit=10, headers={"OpenAI-Project": "p"})
    kept = kept_of(made)
    assert kept.parameters == {"url": "https://h/v1", "stall_limit": 10}
    assert protocol_of("openai_response", "r1", kept.parameters, kept.secrets) == OpenAIResponse(
        "r1", "https://h/v1", stall_limit=10, headers=(("OpenAI-Project", Secret("p")),)
    )


# --- events --------------------------------------------------------------------------------------------------------


def test_text_is_an_output_of_its_part() -> None:
    assert event("response.output_text.delta", output_index=1, content_index=2, delta="Hi ") == (
        Item(Output(key="1.2", value="Hi "), Numbered(5)),
    )


@pytest.mark.parametrize("kind", ["refusal", "reasoning_text"])
def test_other_text_is_an_output_too(kind: str) -> None:
    assert event(f"response.{kind}.delta", delta="no") == (Item(Output(key="0.0", value="no"), Numbered(5)),)


def test_a_run_that_the_server_begins_again_replaces_the_text_from_empty() -> None:
    part = {"type": "output_text", "text": "", "annotations": []}
    assert event("response.content_part.added", output_index=0, content_index=0, part=part) == (
        Item(Output(key="0.0", value="", op="replace"), Numbered(5)),
    )


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_the_status_is_progress(status: str) -> None:
    shown = (Item(Progress(fraction=None, status=status), Numbered(5)),)
    assert event(f"response.{status}") == shown
    assert event("response.created", response={"status": status}) == shown


@pytest.mark.parametrize("kind", ["response.output_item.added", "response.web_search_call.searching", "", "later"])
def test_other_events_take_their_place(kind: str) -> None:
    assert event(kind) == (Item(None, Numbered(5)),)


def test_a_keep_alive_is_no_sign_of_the_response() -> None:
    """As OpenAI sends it: https://github.com/openai/openai-node/issues/1964."""
    assert event("keepalive") == (Item(None, Numbered(5), is_sign=False),)


@pytest.mark.parametrize(("seq", "at"), [(None, None), ("7", Numbered(7)), (7.0, Numbered(7)), ("x", None), (-1, None)])
def test_a_number_is_read_leniently(seq: Any, at: Any) -> None:
    assert event("response.output_text.delta", seq, delta="a", output_index=None) == (
        Item(Output(key="0.0", value="a"), at),
    )


def test_completed_is_the_end_with_the_response_as_its_result() -> None:
    response = {"status": "completed", "output": [MESSAGE]}
    assert event("response.completed", response=response) == (Ended(JobComplete(result=response), Numbered(5)),)


def test_incomplete_is_the_end_with_a_problem() -> None:
    response = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []}
    (ended,) = event("response.incomplete", response=response)
    assert ended == Ended(
        JobComplete(result=response, problem="the response is incomplete: max_output_tokens"), Numbered(5)
    )


def test_failed_is_a_failure_with_its_reason() -> None:
    response = {"status": "failed", "error": {"code": "server_error", "message": "broke"}}
    assert event("response.failed", response=response) == (
        Ended(JobFailed(code="server_error", message="broke"), Numbered(5)),
    )


def test_a_cancelled_response_ends_with_response_failed_whose_status_is_cancelled() -> None:
    response = {"status": "cancelled", "error": None}
    assert event("response.failed", response=response) == (Ended(JobCancelled(), Numbered(5)),)
    assert event("response.cancelled") == (Ended(JobCancelled(), Numbered(5)),)


@pytest.mark.parametrize("response", [None, [], {"status": 7}, {"error": "x"}])
def test_an_end_always_ends(response: Any) -> None:
    for kind, outcome in {"completed": JobComplete, "incomplete": JobComplete, "failed": JobFailed}.items():
        (ended,) = event(f"response.{kind}", response=response)
        assert isinstance(ended, Ended)
        assert isinstance(ended.outcome, outcome)


def test_an_error_lets_the_state_decide() -> None:
    assert event("error", code="x", message="y") == (Item(None, Numbered(5)), Means("ended"))


def test_the_mark_of_a_stream_s_end_says_nothing() -> None:
    assert RESPONSE.read(STREAM, ServerEvent("message", "[DONE]")) == ()
    assert RESPONSE.read(STREAM, Closed()) == ()


@pytest.mark.parametrize("data", ["", "{", "[]", "7"])
def test_an_event_that_is_no_object_is_malformed(data: str) -> None:
    with pytest.raises(MalformedMessage):
        RESPONSE.read(STREAM, ServerEvent("message", data))


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_stream_that_is_not_kept_falls_back_to_the_next_source(status: int) -> None:
    assert answered(STREAM, {"error": {"message": "not created with stream=true"}}, status) == (Means("source"),)


def test_a_server_that_answers_the_state_has_no_stream() -> None:
    assert answered(STREAM, {"status": "in_progress"}) == (Means("source"),)
    with pytest.raises(MalformedMessage):
        RESPONSE.read(STREAM, Answer(200, {}, b"<html>log in"))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_other_refusals_are_left_to_the_engine(status: int) -> None:
    for want in (STREAM, POLL, GetState(), CancelJob("k"), GetResult(JobComplete())):
        assert answered(want, {"error": {}}, status) == ()


def test_a_poll_shows_the_status_and_the_text_that_is_whole() -> None:
    half = {"type": "message", "status": "in_progress", "content": [{"type": "output_text", "text": "ha"}]}
    state = {"status": "in_progress", "output": [{"type": "reasoning"}, MESSAGE, half]}
    assert answered(POLL, state, openai_poll_after_ms="1500") == (
        Snapshot((Progress(fraction=None, status="in_progress"), Output(key="1.0", value="whole", op="replace"))),
        Wait(1.5),
    )


def test_beside_a_stream_the_state_shows_no_text() -> None:
    state = {"status": "in_progress", "output": [MESSAGE]}
    assert answered(GetState(), state) == (Snapshot((Progress(fraction=None, status="in_progress"),)),)


@pytest.mark.parametrize("want", [POLL, GetState()])
def test_the_end_in_a_state_brings_the_whole_text(want: Any) -> None:
    state = {"status": "completed", "output": [MESSAGE, {"content": [{"refusal": "no"}, {"text": None}, 7]}, 7]}
    texts = (Output(key="0.0", value="whole", op="replace"), Output(key="1.0", value="no", op="replace"))
    assert answered(want, state) == (Snapshot(texts), Ended(JobComplete(result=state)))


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ({"status": "cancelled"}, JobCancelled()),
        ({"status": "failed"}, JobFailed(problem="the server gave no reason")),
        ({"status": "failed", "error": {"message": "m"}}, JobFailed(message="m")),
    ],
)
def test_other_ends_in_a_state(state: Any, outcome: Any) -> None:
    assert answered(POLL, state) == (Snapshot(), Ended(outcome))


def test_a_state_without_a_status_says_nothing() -> None:
    assert answered(POLL, {"output": []}) == ()


def test_the_result_is_the_response() -> None:
    assert answered(GetResult(JobComplete()), {"status": "completed"}) == (Value({"status": "completed"}),)


@pytest.mark.parametrize(
    ("status", "state", "answer"),
    [
        (200, {"status": "cancelled"}, "accepted"),
        (200, {"status": "in_progress"}, "accepted"),
        (200, {}, "accepted"),
        (200, {"status": "completed"}, "too_late"),
        (200, {"status": "incomplete"}, "too_late"),
        (400, {"error": {"message": "Cannot cancel a completed response."}}, "too_late"),
    ],
)
def test_a_cancel_is_idempotent_at_openai_and_400_at_azure(status: int, state: Any, answer: Any) -> None:
    assert answered(CancelJob("k"), state, status) == (CancelAnswer(answer),)
