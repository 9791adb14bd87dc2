"""The calls that the user requests, alone: real HTTP calls to a scripted server, with a real token source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

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
    State,
    StateUnreachable,
    Token,
    TokenProviderFailed,
    UnexpectedResponse,
)
from towline._facts import Ended, Fact, Numbered
from towline._tasks import Tasks
from towline._updates import Outcome
from towline.engine.calls import RequestedCalls
from towline.engine.intake import Intake
from towline.engine.looks import Looks
from towline.engine.reader import Reader
from towline.engine.sequence.sequencer import Sequencer
from towline.engine.settings import Settings
from towline.engine.tokens import TokenSource
from towline.protocols.towline import Towline
from towline.statemachine import AnyEvent, CancelAccepted, Snapshot
from towline.testing import Answer, Drop, Hang, Reaction, Request, ScriptedServer

pytestmark = pytest.mark.anyio
PATH = "/api/jobs/j1/results"
LIMIT = 1 << 20
Make = Callable[..., "Asked"]


class Asked:
    """The calls about the job `j1`, and what they report."""

    def __init__(
        self,
        settings: Settings,
        outcome: Outcome | None,
        token: Token,
    ) -> None:
        reader = Reader(settings.protocol)
        tokens = TokenSource(
            settings.job,
            reader,
            settings.access,
            provider=settings.provider,
            exchanges=settings.exchanges_tokens,
            required=settings.token_required,
            deadline=30.0,
            changed=lambda token: None,
        )
        tokens.give(token)
        self.snapshot = Snapshot(state=State.CONNECTED)
        self.outcome = outcome
        self.posted: list[AnyEvent] = []
        self.ended: list[tuple[Fact, ...]] = []
        self.calls = RequestedCalls(
            settings,
            reader,
            tokens,
            fetch_state=_looks(settings, reader, tokens).fetch,
            snapshot=lambda: self.snapshot,
            outcome=lambda: self.outcome,
            post=self.posted.append,
            ended=self.ended.append,
        )

    def cancel(self) -> None:
        """What the engine does when the user cancels."""
        self.snapshot = Snapshot(state=State.CANCELLED)
        self.calls.give_up()


def _looks(settings: Settings, reader: Reader, tokens: TokenSource) -> Looks:
    """Looks of which only the state call is used: whatever else they would call fails the test."""

    def unused(*args: object, **more: object) -> Any:
        raise AssertionError("only the state call is made")

    tasks, sequencer = Tasks(), Sequencer(settings.job)
    intake = Intake(
        settings.job,
        reader,
        sequencer,
        counts=Counter(),
        snapshot=unused,
        post=unused,
        publish=unused,
        act=unused,
        is_current=unused,
        no_room=unused,
    )
    return Looks(
        settings,
        tasks,
        reader,
        tokens,
        sequencer,
        intake,
        snapshot=unused,
        facts=unused,
        post=unused,
        publish=unused,
        act=unused,
        failed=unused,
        finished=unused,
    )


@pytest.fixture
def make(server: ScriptedServer, make_settings: Callable[..., Settings]) -> Make:
    """Makes the calls about the job with these settings and this end."""

    def make(outcome: Outcome | None = None, token: Token = Token("t1"), **settings: Any) -> Asked:  # noqa: B008 - frozen
        return Asked(make_settings(server.network, **settings), outcome, token)

    return make


def requests(server: ScriptedServer, call: str) -> list[Request]:
    return [request for request in server.requests if request.call == call]


# --- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [{"books": []}, None, 0])
async def test_a_result_that_came_with_the_end_needs_no_call(
    make: Make, server: ScriptedServer, result: object
) -> None:
    asked = make(outcome=JobComplete(job="j1", result=result))
    assert await asked.calls.fetch_result(LIMIT) == result
    assert server.requests == []


@pytest.mark.parametrize("outcome", [
    JobComplete(job="j1", result_url=PATH),
    JobComplete(job="j1", result_url=f"http://hub{PATH}"),
    JobComplete(job="j1", problem="the server sent no result with the end"),
], ids=["path", "url", "usual path"])  # fmt: skip
async def test_a_result_that_did_not_come_is_fetched(make: Make, server: ScriptedServer, outcome: JobComplete) -> None:
    asked = make(outcome=outcome)
    server.script("results", Answer(body={"data": {"rows": 2}, "metadata": {}}))
    assert await asked.calls.fetch_result(LIMIT) == {"rows": 2}
    (request,) = server.requests
    assert (request.target, request.token) == (PATH, "t1")


async def test_a_fetched_result_has_the_type_of_its_pipeline(make: Make, server: ScriptedServer) -> None:
    class Report(msgspec.Struct):
        rows: int

    outcome = JobComplete(job="j1", pipeline="csv_import", result_url=PATH)
    protocol = Towline("ws://hub/ws/progress", "j1", results={"csv_import": Report})
    asked = make(protocol=protocol, outcome=outcome)
    server.script("results", Answer(body={"rows": 2}))
    assert await asked.calls.fetch_result(LIMIT) == Report(rows=2)


async def test_before_the_end_there_is_no_result(make: Make, server: ScriptedServer) -> None:
    with pytest.raises(StateUnreachable, match=r"the job's result while connected: wait for `result\(\)` first"):
        await make().calls.fetch_result(LIMIT)
    assert server.requests == []


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [(JobFailed(job="j1", code="E", message="broken"), "failed"), (JobCancelled(job="j1"), "was cance")],
)
async def test_a_job_that_did_not_complete_has_no_result(
    make: Make, server: ScriptedServer, outcome: Outcome, problem: str
) -> None:
    with pytest.raises(StateUnreachable, match=f"the job {problem}.*no result"):
        await make(outcome=outcome).calls.fetch_result(LIMIT)
    assert server.requests == []


@pytest.mark.parametrize("status", [404, 410])
async def test_a_result_that_the_server_does_not_have_is_a_typed_error(
    make: Make, server: ScriptedServer, status: int
) -> None:
    server.script("results", Answer(status))
    with pytest.raises(StateUnreachable, match=f"the server has none .*{status}") as raised:
        await make(outcome=JobComplete(job="j1", result_url=PATH)).calls.fetch_result(LIMIT)
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
    make: Make, server: ScriptedServer, answer: Reaction, error: type[Exception]
) -> None:
    asked = make(outcome=JobComplete(job="j1", result_url=PATH))
    server.script("results", answer, Answer(body=[1]))
    with pytest.raises(error):
        await asked.calls.fetch_result(LIMIT)
    assert await asked.calls.fetch_result(LIMIT) == [1]


async def test_the_token_goes_to_no_other_origin(make: Make, server: ScriptedServer) -> None:
    asked = make(outcome=JobComplete(job="j1", result_url="http://elsewhere/result"))
    with pytest.raises(InvalidArgument, match="another origin"):
        await asked.calls.fetch_result(LIMIT)
    assert server.network.dials == []


# --- the token -------------------------------------------------------------------------------------------------------


async def test_a_rejected_token_is_exchanged_and_the_call_made_again(make: Make, server: ScriptedServer) -> None:
    asked = make(token=Token("t1", refresh=True), outcome=JobComplete(job="j1", result_url=PATH))
    server.script("results", Answer(401), Answer(body=[1]))
    assert await asked.calls.fetch_result(LIMIT) == [1]
    assert [(request.call, request.token) for request in server.requests] == [
        ("results", "t1"),
        ("refresh", None),
        ("results", "t1+"),
    ]


async def test_a_rejected_token_is_replaced_by_the_provider_for_a_cancel_with_the_same_key(
    make: Make,
    server: ScriptedServer,
) -> None:
    async def provide() -> str:
        return "t2"

    asked = make(provider=provide)
    server.script("cancel", Answer(401), Answer(body={"result": "accepted"}))
    assert await asked.calls.cancel_job() == "accepted"
    first, second = requests(server, "cancel")
    assert (first.token, second.token) == ("t1", "t2")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


async def test_a_token_that_cannot_be_renewed_is_tried_once(make: Make, server: ScriptedServer) -> None:
    server.revoke("t1")
    with pytest.raises(UnexpectedResponse) as raised:
        await make().calls.cancel_job()
    assert raised.value.status == 401
    assert len(server.requests) == 1


async def test_a_fresh_token_that_is_rejected_too_is_not_replaced_again(make: Make, server: ScriptedServer) -> None:
    server.always("cancel", Answer(401))
    with pytest.raises(UnexpectedResponse) as raised:
        await make(token=Token("t1", refresh=True)).calls.cancel_job()
    assert raised.value.status == 401
    assert [request.call for request in server.requests] == ["cancel", "refresh", "cancel"]


async def test_a_provider_that_fails_is_the_error_of_the_call(make: Make, server: ScriptedServer) -> None:
    async def provide() -> str:
        raise KeyError("t1")

    server.always("cancel", Answer(401))
    with pytest.raises(TokenProviderFailed, match="raised KeyError"):
        await make(provider=provide).calls.cancel_job()


# --- cancelling the job ----------------------------------------------------------------------------------------------


async def test_an_accepted_cancel_is_an_event_and_no_end(make: Make, server: ScriptedServer) -> None:
    asked = make()
    assert await asked.calls.cancel_job() == "accepted"
    assert asked.posted == [CancelAccepted()]
    assert asked.ended == []
    (request,) = server.requests
    assert msgspec.json.decode(request.body) == {"jobId": "j1"}


async def test_a_cancel_that_the_server_does_not_understand_changes_nothing(make: Make, server: ScriptedServer) -> None:
    asked = make()
    server.script("cancel", Answer(body={"result": "perhaps"}))
    assert await asked.calls.cancel_job() == "unknown"
    assert (asked.posted, asked.ended) == ([], [])
    assert len(server.requests) == 1


async def test_a_cancel_that_came_too_late_brings_the_end(make: Make, server: ScriptedServer) -> None:
    job = server.job("j1", token="t1")
    job.complete({"books": []})
    asked = make()
    assert await asked.calls.cancel_job() == "too_late"
    assert asked.posted == []
    ((end,),) = asked.ended
    assert isinstance(end, Ended)
    assert isinstance(end.outcome, JobComplete)
    assert (end.outcome.result, end.at) == ({"books": []}, Numbered(1, "e1"))


@pytest.mark.parametrize("case", ["the end is known", "not followed", "still running", "no state"])
async def test_a_cancel_that_came_too_late_brings_no_end_where_none_is_due(
    make: Make, server: ScriptedServer, case: str
) -> None:
    asked = make()
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


async def test_a_repeat_is_the_same_request_until_it_is_answered(make: Make, server: ScriptedServer) -> None:
    asked = make()
    server.script("cancel", Drop(), Answer(503))
    with pytest.raises(NetworkError):
        await asked.calls.cancel_job()
    with pytest.raises(UnexpectedResponse):
        await asked.calls.cancel_job()
    assert await asked.calls.cancel_job() == "accepted"
    assert await asked.calls.cancel_job() == "too_late"
    keys = [request.headers["idempotency-key"] for request in requests(server, "cancel")]
    assert keys[0] == keys[1] == keys[2] != keys[3]


async def test_two_at_the_same_time_are_one_request_to_the_server(make: Make, server: ScriptedServer) -> None:
    asked = make()
    answers: list[str] = []

    async def cancel() -> None:
        answers.append(await asked.calls.cancel_job())

    async with anyio.create_task_group() as both:
        both.start_soon(cancel)
        both.start_soon(cancel)
    assert answers == ["accepted", "accepted"]
    assert len({request.headers["idempotency-key"] for request in requests(server, "cancel")}) == 1


# --- giving up -------------------------------------------------------------------------------------------------------


async def test_cancelling_the_connection_ends_a_call_that_waits(make: Make, server: ScriptedServer) -> None:
    asked = make()
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


async def test_a_cancelled_connection_asks_nothing(make: Make, server: ScriptedServer) -> None:
    asked = make()
    asked.cancel()
    with pytest.raises(Cancelled, match="make a new Connection"):
        await asked.calls.cancel_job()
    assert server.requests == []


async def test_a_cancellation_of_the_caller_is_no_answer(make: Make, server: ScriptedServer) -> None:
    asked = make()
    server.script("cancel", Hang())
    with anyio.move_on_after(1) as waiting:
        await asked.calls.cancel_job()
    assert waiting.cancelled_caught
    assert await asked.calls.cancel_job() == "accepted"
    first, second = requests(server, "cancel")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
