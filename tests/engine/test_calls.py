"""The calls that the user requests, alone: real HTTP calls to a scripted server, with a real token source."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from towline import (
    Cancelled,
    InvalidArgument,
    JobCancelled,
    JobComplete,
    JobFailed,
    MalformedMessage,
    MessageTooBig,
    NetworkError,
    Secret,
    State,
    StateUnreachable,
    Token,
    TokenProviderFailed,
    UnexpectedResponse,
)
from towline._updates import Outcome
from towline.engine.calls import RequestedCalls
from towline.engine.tokens import TokenProvider, TokenSource
from towline.protocols.wire import Codec, JobState
from towline.sources import JobCalls
from towline.statemachine import AnyEvent, CancelAccepted, Snapshot
from towline.testing import Answer, Drop, Hang, Reaction, Request, ScriptedServer

pytestmark = pytest.mark.anyio
PATH = "/api/jobs/j1/results"
LIMIT = 1 << 20


class Asked:
    """The calls about the job `j1`, and what they report."""

    def __init__(
        self,
        server: ScriptedServer,
        *,
        provider: TokenProvider | None = None,
        refresh: bool = False,
        pipelines: dict[str, type] | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        calls = JobCalls("http://hub", network=server.network, allow_insecure=True)
        tokens = TokenSource("j1", calls, provider=provider, refresh=refresh, deadline=30.0, changed=lambda token: None)
        tokens.give(Token(Secret("t1")))
        self.snapshot = Snapshot(state=State.CONNECTED)
        self.outcome = outcome
        self.posted: list[AnyEvent] = []
        self.ended: list[JobState] = []
        self.calls = RequestedCalls(
            "j1",
            Codec(pipelines),
            calls,
            tokens,
            snapshot=lambda: self.snapshot,
            outcome=lambda: self.outcome,
            post=self.posted.append,
            ended=self.ended.append,
        )

    def cancel(self) -> None:
        """What the engine does when the user cancels."""
        self.snapshot = Snapshot(state=State.CANCELLED)
        self.calls.give_up()


def requests(server: ScriptedServer, call: str) -> list[Request]:
    return [request for request in server.requests if request.call == call]


# --- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [{"books": []}, None, 0])
async def test_a_result_that_came_with_the_end_needs_no_call(server: ScriptedServer, result: object) -> None:
    asked = Asked(server, outcome=JobComplete(job="j1", result=result))
    assert await asked.calls.fetch_result(LIMIT) == result
    assert server.requests == []


@pytest.mark.parametrize("outcome", [
    JobComplete(job="j1", result_url=PATH),
    JobComplete(job="j1", result_url=f"http://hub{PATH}"),
    JobComplete(job="j1", problem="the server sent no result with the end"),
], ids=["path", "url", "usual path"])  # fmt: skip
async def test_a_result_that_did_not_come_is_fetched(server: ScriptedServer, outcome: JobComplete) -> None:
    asked = Asked(server, outcome=outcome)
    server.script("results", Answer(body={"data": {"rows": 2}, "metadata": {}}))
    assert await asked.calls.fetch_result(LIMIT) == {"rows": 2}
    (request,) = server.requests
    assert (request.target, request.token) == (PATH, "t1")


async def test_a_fetched_result_has_the_type_of_its_pipeline(server: ScriptedServer) -> None:
    class Report(msgspec.Struct):
        rows: int

    outcome = JobComplete(job="j1", pipeline="csv_import", result_url=PATH)
    asked = Asked(server, pipelines={"csv_import": Report}, outcome=outcome)
    server.script("results", Answer(body={"rows": 2}))
    assert await asked.calls.fetch_result(LIMIT) == Report(rows=2)


async def test_before_the_end_there_is_no_result(server: ScriptedServer) -> None:
    with pytest.raises(StateUnreachable, match=r"the job's result while connected: wait for `result\(\)` first"):
        await Asked(server).calls.fetch_result(LIMIT)
    assert server.requests == []


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [(JobFailed(job="j1", code="E", message="broken"), "failed"), (JobCancelled(job="j1"), "was cance")],
)
async def test_a_job_that_did_not_complete_has_no_result(
    server: ScriptedServer, outcome: Outcome, problem: str
) -> None:
    with pytest.raises(StateUnreachable, match=f"the job {problem}.*no result"):
        await Asked(server, outcome=outcome).calls.fetch_result(LIMIT)
    assert server.requests == []


@pytest.mark.parametrize("status", [404, 410])
async def test_a_result_that_the_server_does_not_have_is_a_typed_error(server: ScriptedServer, status: int) -> None:
    server.script("results", Answer(status))
    with pytest.raises(StateUnreachable, match=f"the server has none .*{status}") as raised:
        await Asked(server, outcome=JobComplete(job="j1", result_url=PATH)).calls.fetch_result(LIMIT)
    assert isinstance(raised.value.__cause__, UnexpectedResponse)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(503), UnexpectedResponse),
        (Answer(body=b"<html>"), MalformedMessage),
        (Answer(body=b'"' + b"x" * LIMIT + b'"'), MessageTooBig),
        (Drop(), NetworkError),
    ],
)
async def test_a_fetch_that_fails_says_why_and_may_be_repeated(
    server: ScriptedServer, answer: Reaction, error: type[Exception]
) -> None:
    asked = Asked(server, outcome=JobComplete(job="j1", result_url=PATH))
    server.script("results", answer, Answer(body=[1]))
    with pytest.raises(error):
        await asked.calls.fetch_result(LIMIT)
    assert await asked.calls.fetch_result(LIMIT) == [1]


async def test_the_token_goes_to_no_other_origin(server: ScriptedServer) -> None:
    asked = Asked(server, outcome=JobComplete(job="j1", result_url="http://elsewhere/result"))
    with pytest.raises(InvalidArgument, match="another origin"):
        await asked.calls.fetch_result(LIMIT)
    assert server.network.dials == []


# --- the token -------------------------------------------------------------------------------------------------------


async def test_a_rejected_token_is_exchanged_and_the_call_made_again(server: ScriptedServer) -> None:
    asked = Asked(server, refresh=True, outcome=JobComplete(job="j1", result_url=PATH))
    server.script("results", Answer(401), Answer(body=[1]))
    assert await asked.calls.fetch_result(LIMIT) == [1]
    assert [(request.call, request.token) for request in server.requests] == [
        ("results", "t1"),
        ("refresh", None),
        ("results", "t1+"),
    ]


async def test_a_rejected_token_is_replaced_by_the_provider_for_a_cancel_with_the_same_key(
    server: ScriptedServer,
) -> None:
    async def provide() -> str:
        return "t2"

    asked = Asked(server, provider=provide)
    server.script("cancel", Answer(401), Answer(body={"result": "accepted"}))
    assert await asked.calls.cancel_job() == "accepted"
    first, second = requests(server, "cancel")
    assert (first.token, second.token) == ("t1", "t2")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


async def test_a_token_that_cannot_be_renewed_is_tried_once(server: ScriptedServer) -> None:
    server.revoke("t1")
    with pytest.raises(UnexpectedResponse) as raised:
        await Asked(server).calls.cancel_job()
    assert raised.value.status == 401
    assert len(server.requests) == 1


async def test_a_fresh_token_that_is_rejected_too_is_not_replaced_again(server: ScriptedServer) -> None:
    server.always("cancel", Answer(401))
    with pytest.raises(UnexpectedResponse) as raised:
        await Asked(server, refresh=True).calls.cancel_job()
    assert raised.value.status == 401
    assert [request.call for request in server.requests] == ["cancel", "refresh", "cancel"]


async def test_a_provider_that_fails_is_the_error_of_the_call(server: ScriptedServer) -> None:
    async def provide() -> str:
        raise KeyError("t1")

    server.always("cancel", Answer(401))
    with pytest.raises(TokenProviderFailed, match="raised KeyError"):
        await Asked(server, provider=provide).calls.cancel_job()


# --- cancelling the job ----------------------------------------------------------------------------------------------


async def test_an_accepted_cancel_is_an_event_and_no_end(server: ScriptedServer) -> None:
    asked = Asked(server)
    assert await asked.calls.cancel_job() == "accepted"
    assert asked.posted == [CancelAccepted()]
    assert asked.ended == []
    (request,) = server.requests
    assert msgspec.json.decode(request.body) == {"jobId": "j1"}


async def test_a_cancel_that_the_server_does_not_understand_changes_nothing(server: ScriptedServer) -> None:
    asked = Asked(server)
    server.script("cancel", Answer(body={"result": "perhaps"}))
    assert await asked.calls.cancel_job() == "unknown"
    assert (asked.posted, asked.ended) == ([], [])
    assert len(server.requests) == 1


async def test_a_cancel_that_came_too_late_brings_the_end(server: ScriptedServer) -> None:
    job = server.job("j1", token="t1")
    job.complete({"books": []})
    asked = Asked(server)
    assert await asked.calls.cancel_job() == "too_late"
    assert asked.posted == []
    (state,) = asked.ended
    assert state.status == "complete"
    assert state.seq == 1


@pytest.mark.parametrize("case", ["the end is known", "not followed", "still running", "no state"])
async def test_a_cancel_that_came_too_late_brings_no_end_where_none_is_due(server: ScriptedServer, case: str) -> None:
    asked = Asked(server)
    server.script("cancel", Answer(body={"result": "too_late"}))
    if case != "still running":
        server.job("j1", token="t1").complete()
    if case == "the end is known":
        asked.outcome = JobComplete(job="j1")
    elif case == "not followed":
        asked.snapshot = Snapshot()
    elif case == "no state":
        server.script("state", Answer(503))
    assert await asked.calls.cancel_job() == "too_late"
    assert asked.posted == []
    assert asked.ended == []
    assert len(server.times("state")) == 1, "one try"


async def test_a_repeat_is_the_same_request_until_it_is_answered(server: ScriptedServer) -> None:
    asked = Asked(server)
    server.script("cancel", Drop(), Answer(503))
    with pytest.raises(NetworkError):
        await asked.calls.cancel_job()
    with pytest.raises(UnexpectedResponse):
        await asked.calls.cancel_job()
    assert await asked.calls.cancel_job() == "accepted"
    assert await asked.calls.cancel_job() == "too_late"
    keys = [request.headers["idempotency-key"] for request in requests(server, "cancel")]
    assert keys[0] == keys[1] == keys[2] != keys[3]


async def test_two_at_the_same_time_are_one_request_to_the_server(server: ScriptedServer) -> None:
    asked = Asked(server)
    answers: list[str] = []

    async def cancel() -> None:
        answers.append(await asked.calls.cancel_job())

    async with anyio.create_task_group() as both:
        both.start_soon(cancel)
        both.start_soon(cancel)
    assert answers == ["accepted", "accepted"]
    assert len({request.headers["idempotency-key"] for request in requests(server, "cancel")}) == 1


# --- giving up -------------------------------------------------------------------------------------------------------


async def test_cancelling_the_connection_ends_a_call_that_waits(server: ScriptedServer) -> None:
    asked = Asked(server)
    server.script("cancel", Hang())
    async with anyio.create_task_group() as others:

        async def give_up() -> None:
            await server.wait_requests("cancel")
            asked.cancel()

        others.start_soon(give_up)
        with pytest.raises(Cancelled, match="cancel_job is not possible while cancelled"):
            await asked.calls.cancel_job()
    assert anyio.current_time() == 0
    assert asked.calls._running == set()


async def test_a_cancelled_connection_asks_nothing(server: ScriptedServer) -> None:
    asked = Asked(server)
    asked.cancel()
    with pytest.raises(Cancelled, match="make a new Connection"):
        await asked.calls.cancel_job()
    assert server.requests == []


async def test_a_cancellation_of_the_caller_is_no_answer(server: ScriptedServer) -> None:
    asked = Asked(server)
    server.script("cancel", Hang())
    with anyio.move_on_after(1) as waiting:
        await asked.calls.cancel_job()
    assert waiting.cancelled_caught
    assert await asked.calls.cancel_job() == "accepted"
    first, second = requests(server, "cancel")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
