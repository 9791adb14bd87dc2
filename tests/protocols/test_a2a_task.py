"""`A2ATask`: answers and events of an agent in, facts out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import InvalidArgument, JobCancelled, JobComplete, JobFailed, Output, Paused, Progress, Secret
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
    RefreshToken,
    Request,
    ServerEvent,
    Snapshot,
    Via,
)
from towline.protocols import A2ATask
from towline.protocols._shared.kept import kept_of, protocol_of

TASK = A2ATask("https://h/a2a", "t1")
STREAM, POLL, STATE, CANCEL = Follow("events"), Follow("poll"), GetState(), CancelJob("k")


def asked(want: Any, protocol: A2ATask = TASK) -> Request:
    request = protocol.ask(want, Secret("secret"))
    assert request is not None
    return request


def event(want: Any = STREAM, **reply: Any) -> list[Fact]:
    return list(TASK.read(want, ServerEvent("message", json.dumps({"jsonrpc": "2.0", "id": 1, **reply}))))


def answer(want: Any, status: int = 200, **reply: Any) -> list[Fact]:
    return list(TASK.read(want, Answer(status, {}, json.dumps({"jsonrpc": "2.0", "id": 1, **reply}).encode())))


def message(name: str, text: str, role: str = "ROLE_AGENT") -> dict[str, Any]:
    return {"messageId": name, "role": role, "parts": [{"text": text}]}


def task(state: str, said: dict[str, Any] | None = None, *history: dict[str, Any], **fields: Any) -> dict[str, Any]:
    status = {"state": state} if said is None else {"state": state, "message": said}
    return {"id": "t1", "contextId": "c", "status": status, "history": list(history), **fields}


def shown(text: str, name: str | None = None) -> Item:
    return Item(Progress(fraction=None, status=text), None if name is None else Mark(name))


# --- asking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "via", "new", "old"),
    [
        (STREAM, "events", "SubscribeToTask", "tasks/resubscribe"),
        (POLL, "poll", "GetTask", "tasks/get"),
        (STATE, "call", "GetTask", "tasks/get"),
        (CANCEL, "call", "CancelTask", "tasks/cancel"),
    ],
)
def test_each_want_is_a_call_of_json_rpc_with_the_version(want: Any, via: Via, new: str, old: str) -> None:
    for version, method in (("1.0", new), ("0.3", old)):
        request = asked(want, A2ATask("https://h/a2a", "t1", version))  # type: ignore[arg-type]
        assert (request.via, request.method, request.url) == (via, "POST", "https://h/a2a")
        assert isinstance(request.body, bytes)
        body = json.loads(request.body)
        assert (body["jsonrpc"], body["method"], body["params"]) == ("2.0", method, {"id": "t1"})
        headers = dict(request.headers)
        assert headers["A2A-Version"] == version
        assert headers["Authorization"] == Secret("Bearer secret")
        assert request.in_step == "first_fact"


@pytest.mark.parametrize("want", [RefreshToken(), GetResult(JobComplete())])
def test_an_agent_has_no_call_for_a_token_and_none_for_a_result(want: Any) -> None:
    assert TASK.ask(want, None) is None


@pytest.mark.parametrize("fields", [{"version": "2.0"}, {"token_in": "subprotocol:x"}, {"token_in": "cookie"}])
def test_parameters_that_cannot_be_used_are_refused(fields: Any) -> None:
    with pytest.raises(InvalidArgument):
        A2ATask("https://h/", "t1", **fields)


def test_a_record_keeps_the_version() -> None:
    old = A2ATask("https://h/a2a", "t1", "0.3")
    kept = kept_of(old)
    assert kept.parameters == {"url": "https://h/a2a", "version": "0.3"}
    assert protocol_of("a2a_task", "t1", kept.parameters, kept.secrets) == old


# --- reading a task ------------------------------------------------------------------------------------------------


def test_status_messages_of_a_gap_come_from_the_history_by_their_ids() -> None:
    whole = task(
        "TASK_STATE_WORKING",
        message("m3", "three"),
        message("u", "do it", "ROLE_USER"),
        message("m1", "one"),
        message("m2", "two"),
    )
    every = [Snapshot(), shown("one", "m1"), shown("two", "m2"), shown("three", "m3")]
    assert event(result={"task": whole}) == every
    assert answer(POLL, result=whole) == every
    # Only what follows the position, also in a new process. The present status keeps its place.
    assert event(Follow("events", Mark("m1")), result={"task": whole}) == [every[0], *every[2:]]
    assert event(Follow("events", Mark("m3")), result={"task": whole}) == [every[0], every[3]]
    assert event(Follow("events", Mark("not there")), result={"task": whole}) == every


def test_a_state_call_shows_the_present_only() -> None:
    whole = task("TASK_STATE_WORKING", message("m2", "two"), message("m1", "one"))
    assert answer(STATE, result=whole) == [Snapshot(), Snapshot((Progress(fraction=None, status="two"),))]


def test_artifacts_of_a_task_replace_what_was_shown() -> None:
    parts = [{"text": "a"}, {"data": {"n": 1}}]
    whole = task("TASK_STATE_WORKING", artifacts=[{"artifactId": "x", "parts": parts}])
    replaced = Snapshot((Output(key="x", value=parts, op="replace"),))
    assert event(result={"task": whole}) == [replaced, Snapshot((Progress(fraction=None, status="working"),))]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("TASK_STATE_COMPLETED", JobComplete),
        ("completed", JobComplete),
        ("TASK_STATE_FAILED", JobFailed),
        ("TASK_STATE_REJECTED", JobFailed),
        ("TASK_STATE_CANCELED", JobCancelled),
        ("canceled", JobCancelled),
    ],
)
def test_the_end_is_read_from_the_task(state: str, outcome: type) -> None:
    whole = task(state, message("m2", "why"), message("m1", "one"), artifacts=[])
    *before, ended = answer(POLL, result=whole)
    assert before == [Snapshot(), shown("one", "m1")]
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, outcome)
    expected = {name: value for name, value in whole.items() if name != "history"}
    match ended.outcome:
        case JobComplete(result=result):
            assert result == expected
        case JobFailed() as failed:
            assert (failed.code, failed.message, failed.details) == (state[11:].lower(), "why", expected)
        case JobCancelled() as cancelled:
            assert cancelled.reason == "why"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("TASK_STATE_INPUT_REQUIRED", "input"),
        ("input-required", "input"),
        ("TASK_STATE_AUTH_REQUIRED", "auth"),
        ("auth-required", "auth"),
    ],
)
def test_a_task_that_waits_is_paused(state: str, kind: str) -> None:
    said = message("m1", "which?")
    paused = Paused(kind=kind, message="which?")
    assert event(result={"task": task(state, said)}) == [Snapshot(), Item(paused, Mark("m1"))]
    assert event(result={"statusUpdate": {"taskId": "t1", "status": task(state, said)["status"]}}) == [
        Item(paused, Mark("m1"))
    ]
    assert answer(STATE, result=task(state)) == [Snapshot(), Snapshot((Paused(kind=kind),))]


# --- reading updates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [True, False], ids=["1.0", "0.3"])
def test_updates_of_both_versions(wrapped: bool) -> None:
    def sent(kind: str, body: dict[str, Any]) -> list[Fact]:
        return event(result={kind: body} if wrapped else {"kind": kind, **body})

    status = {"state": "working", "message": message("m1", "one")}
    assert sent("statusUpdate", {"taskId": "t1", "status": status}) == [shown("one", "m1")]
    assert sent("statusUpdate", {"taskId": "t1", "status": {"state": "working"}}) == [shown("working")]
    artifact = {"artifactId": "x", "parts": [{"text": "a"}]}
    first = Item(Output(key="x", value=[{"text": "a"}], op="replace"))
    more = Item(Output(key="x", value=[{"text": "a"}], op="append"))
    assert sent("artifactUpdate", {"taskId": "t1", "artifact": artifact}) == [first]
    assert sent("artifactUpdate", {"taskId": "t1", "artifact": artifact, "append": True}) == [more]
    assert sent("message", message("m2", "two")) == [shown("two", "m2")]


def test_the_last_update_of_a_stream_asks_for_the_task() -> None:
    status = {"state": "TASK_STATE_COMPLETED", "message": message("m", "done")}
    assert event(result={"statusUpdate": {"taskId": "t1", "status": status}}) == [Means("ended")]


def test_the_text_of_a_message_is_that_of_its_parts() -> None:
    said = {"messageId": "m", "parts": [{"text": "a"}, {"data": 1}, {"kind": "text", "text": "b"}, 7]}
    assert event(result={"message": said}) == [shown("a\nb", "m")]


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (-32001, "gone"),
        (-32004, "source"),  # ended, or an agent without streams: a poll shows which
        (-32601, "source"),
        (-32009, "refused"),
        (-32603, "lost"),
        (-1, "lost"),
    ],
)
def test_what_an_error_means_for_a_stream(code: int, meaning: Any) -> None:
    assert event(error={"code": code}) == answer(STREAM, error={"code": code}) == [Means(meaning)]
    assert answer(STATE, error={"code": code}) == ([Means("gone")] if meaning == "gone" else [])


def test_the_answers_to_a_cancel() -> None:
    assert answer(CANCEL, result=task("TASK_STATE_CANCELED")) == [CancelAnswer("accepted")]
    assert answer(CANCEL, error={"code": -32002}) == [CancelAnswer("too_late")]
    assert answer(CANCEL, error={"code": -32001}) == []


@pytest.mark.parametrize(
    "reply",
    [{}, {"result": None}, {"result": 5}, {"result": {}}, {"error": None}, {"error": {"code": "x"}}, {"error": 3}],
)
def test_an_answer_that_says_nothing_leaves_the_meaning_to_the_status(reply: Any) -> None:
    for want in (POLL, STATE, CANCEL):
        assert answer(want, **reply) == []


def test_other_answers_are_left_to_the_status() -> None:
    assert TASK.read(STREAM, Answer(503, {}, b"<html>")) == ()
    assert TASK.read(STREAM, Closed()) == ()


@pytest.mark.parametrize("value", [None, 5, "x", [], [5, None], {}])
def test_an_unfit_field_costs_itself(value: Any) -> None:
    """Only the state decides."""
    whole = {"id": "t1", "history": value, "artifacts": value, "status": {"state": "completed", "message": value}}
    *_, ended = answer(POLL, result=whole)
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, JobComplete)
    working = {"id": "t1", "history": value, "artifacts": value, "status": {"state": "working", "message": value}}
    assert answer(POLL, result=working) == [Snapshot(), Snapshot((Progress(fraction=None, status="working"),))]
