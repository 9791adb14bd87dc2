"""`MCPTask`: answers of an MCP server in, facts out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from towline import InvalidArgument, JobCancelled, JobComplete, JobFailed, MalformedMessage, Paused, Progress, Secret
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
    Means,
    RefreshToken,
    Request,
    Snapshot,
    Value,
    Wait,
)
from towline.protocols import MCPTask

TASK = MCPTask("https://h/mcp", "task-1")
POLL, CANCEL = Follow("poll"), CancelJob("k")


def asked(want: Any, protocol: MCPTask = TASK) -> Request:
    request = protocol.ask(want, Secret("t1"))
    assert request is not None
    return request


def answered(want: Any = POLL, status: int = 200, **reply: Any) -> tuple[Fact, ...]:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, **reply}).encode()
    return TASK.read(want, Answer(status, {"content-type": "application/json"}, body))


def task(status: str, want: Any = POLL, **fields: Any) -> tuple[Fact, ...]:
    return answered(want, result={"taskId": "task-1", "status": status, "resultType": "complete", **fields})


def error(code: Any, status: int = 400, want: Any = POLL) -> tuple[Fact, ...]:
    return answered(want, status, error={"code": code, "message": "m"})


# --- asking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "via", "method"),
    [
        (POLL, "poll", "tasks/get"),
        (GetState(), "call", "tasks/get"),
        (GetResult(JobComplete()), "call", "tasks/get"),
        (CANCEL, "call", "tasks/cancel"),
    ],
)
def test_each_request_has_the_headers_and_the_envelope_that_the_spec_demands(want: Any, via: str, method: str) -> None:
    request = asked(want)
    assert (request.via, request.method, request.url) == (via, "POST", "https://h/mcp")
    assert request.in_step == "first_fact"
    headers = dict(request.headers)
    assert headers.pop("Authorization").reveal() == "Bearer t1"  # type: ignore[union-attr]
    assert headers == {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": method,
        "Mcp-Name": "task-1",
    }
    assert isinstance(request.body, bytes)
    body = json.loads(request.body)
    assert (body["jsonrpc"], body["method"], body["params"]["taskId"]) == ("2.0", method, "task-1")
    assert body["params"]["_meta"] == {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "towline", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
    }


@pytest.mark.parametrize(
    ("name", "header"),
    [("a-1", "a-1"), ("ä", "=?base64?w6Q=?="), (" a", "=?base64?IGE=?="), ("=?base64?YQ==?=", None), ("a\nb", None)],
)
def test_an_id_that_a_header_cannot_hold_goes_as_base64(name: str, header: str | None) -> None:
    """SEP-2243: such a value is base64 between `=?base64?` and `?=`."""
    sent = dict(asked(POLL, MCPTask("https://h/mcp", name)).headers)["Mcp-Name"]
    assert str(sent).startswith("=?base64?") or sent == name
    assert header is None or sent == header


def test_there_is_no_fresh_token_and_no_subprotocol() -> None:
    assert TASK.ask(RefreshToken(), Secret("t1")) is None
    with pytest.raises(InvalidArgument, match="token_in"):
        MCPTask("https://h/mcp", "t", token_in="subprotocol:x")


# --- states --------------------------------------------------------------------------------------------------------


def test_progress_is_the_status_message_and_the_server_says_when_to_ask_again() -> None:
    assert task("working", statusMessage="step 3", pollIntervalMs=5000, ttlMs=900000) == (
        Snapshot((Progress(fraction=None, status="step 3"),)),
        Wait(5.0),
    )


def test_a_killed_worker_leaves_working_without_a_status_message() -> None:
    assert task("working") == (Snapshot((Progress(fraction=None, status="working"),)),)


@pytest.mark.parametrize(
    ("interval", "ttl", "wait"), [(5000, 4000, 2.0), ("250", None, 0.25), (250, "soon", 0.25), (5000, 60000, 5.0)]
)
def test_a_short_lifetime_is_asked_in_time(interval: Any, ttl: Any, wait: float) -> None:
    assert task("working", pollIntervalMs=interval, ttlMs=ttl)[1:] == (Wait(wait),)


@pytest.mark.parametrize("interval", [None, "soon", True, []])
def test_an_unreadable_interval_costs_itself(interval: Any) -> None:
    assert task("working", pollIntervalMs=interval) == (Snapshot((Progress(fraction=None, status="working"),)),)


def test_input_required_is_a_pause() -> None:
    requests = {"r1": {"method": "elicitation/create", "params": {"message": "Which one?"}}, "r2": {}}
    assert task("input_required", inputRequests=requests) == (Snapshot((Paused(kind="input", message="Which one?"),)),)
    assert task("input_required", inputRequests=[]) == (Snapshot((Paused(kind="input"),)),)


def test_completed_has_the_tool_s_result() -> None:
    result = {"content": [{"type": "text", "text": "4"}], "isError": False}
    assert task("completed", result=result) == (Ended(JobComplete(result=result)),)
    assert task("completed", GetState(), result=result) == (Ended(JobComplete(result=result)),)
    assert task("completed", GetResult(JobComplete()), result=result) == (Value(result),)
    assert task("completed") == (Ended(JobComplete(problem="the server sent no result")),)
    assert task("working", GetResult(JobComplete())) == ()


def test_a_tool_s_own_error_is_completed_with_is_error() -> None:
    result = {"content": [{"type": "text", "text": "it"}, {"type": "image"}, {"text": "broke"}], "isError": True}
    assert task("completed", result=result) == (Ended(JobFailed(message="it\nbroke", details=result)),)
    (ended,) = task("completed", result={"isError": True, "content": None})
    assert isinstance(ended, Ended)
    assert ended.outcome.problem == "the server gave no reason"


def test_failed_is_an_error_of_the_protocol() -> None:
    assert task("failed", statusMessage="gone wrong", error={"code": -32603, "message": "internal"}) == (
        Ended(JobFailed(code="-32603", message="internal")),
    )
    assert task("failed", statusMessage="gone wrong") == (Ended(JobFailed(message="gone wrong")),)


def test_cancelled() -> None:
    assert task("cancelled") == (Ended(JobCancelled()),)
    assert task("cancelled", statusMessage="by u1") == (Ended(JobCancelled(reason="by u1")),)


def test_an_unknown_status_is_progress_and_none_says_nothing() -> None:
    assert task("paused_by_moon") == (Snapshot((Progress(fraction=None, status="paused_by_moon"),)),)
    assert answered(result={}) == ()
    assert answered(result=None) == ()


def test_an_answer_as_an_event_stream_is_read_too() -> None:
    body = b'event: message\r\ndata: {"jsonrpc": "2.0", "id": 1,\r\ndata: "result": {"status": "cancelled"}}\r\n\r\n'
    answer = Answer(200, {"content-type": "text/event-stream; charset=utf-8"}, body)
    assert TASK.read(POLL, answer) == (Ended(JobCancelled()),)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_an_unknown_task_is_gone() -> None:
    """`fastmcp` answers HTTP 400 and -32602, also after the task's lifetime and after its restart."""
    assert error(-32602) == (Means("gone"),)


@pytest.mark.parametrize("code", [-32601, -32020, -32021, -32022])
def test_what_no_repeat_can_change_is_refused(code: int) -> None:
    """No such method (HTTP 404), wrong headers, no capability, an unsupported version."""
    assert error(code, 404 if code == -32601 else 400) == (Means("refused"),)


@pytest.mark.parametrize("code", [-32603, -32000, "x", None])
def test_another_error_is_a_lost_attempt(code: Any) -> None:
    assert error(code, 200) == (Means("lost"),)


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_a_refusal_without_json_rpc_is_left_to_the_engine(status: int) -> None:
    for want in (POLL, CANCEL):
        assert TASK.read(want, Answer(status, {}, b'{"detail": "no"}')) == ()


def test_a_page_is_malformed_and_a_close_says_nothing() -> None:
    with pytest.raises(MalformedMessage):
        TASK.read(POLL, Answer(200, {}, b"<html>"))
    assert TASK.read(POLL, Closed()) == ()


def test_a_cancel_is_acknowledged_always() -> None:
    """The answer says nothing about the task, and it is the same after the end."""
    assert answered(CANCEL, result={"resultType": "complete"}) == (CancelAnswer("accepted"),)
    assert error(-32602, want=CANCEL) == ()
