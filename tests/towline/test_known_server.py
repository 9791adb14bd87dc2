"""What is known of a server decides what a failure means: it was in step, it took the token, it agreed to cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import towline
from towline import (
    Backoff,
    Connection,
    Exhausted,
    JobCancelled,
    JobComplete,
    JobFailed,
    Policy,
    Progress,
    Stalled,
    State,
    Token,
)
from towline.testing import Answer, Drop, Hang, ScriptedJob, ScriptedServer

pytestmark = pytest.mark.anyio
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
Follow = Callable[..., Connection]


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[tuple[ScriptedServer, ScriptedJob]]:
    async with ScriptedServer(**options) as server:
        yield server, server.job("j1", token="t1")


async def gave_up(line: Connection) -> Exhausted:
    with pytest.raises(Exhausted) as raised:
        await line.result()
    return raised.value


@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status) for status in (200, 204, 302, 400, 401, 403, 405, 410, 426, 429, 500, 501, 503)),
        Answer(200, b"<html>Welcome to our Wi-Fi", headers={"Content-Type": "text/html"}),
        Answer(200, b"[" * 100_000),
        Hang(),
        Drop(),
    ],
    ids=str,
)
@pytest.mark.parametrize("numbered", [True, False])
async def test_a_state_call_never_outranks_a_socket_that_talks(follow: Follow, answer: Any, numbered: bool) -> None:
    """Whatever the state call answers: the socket stays, nothing is charged, and progress and end arrive."""
    async with scripted(numbered=numbered) as (server, job):
        server.always("state", answer)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=60)
            job.progress(0.5, processed=1)
            # Two looks into the silence ask again, and change nothing either; then one reconnect, uncharged.
            await anyio.sleep(300)
            assert len(server.times("upgrade")) == 1
            job.complete(RESULT)
            kinds = [type(update) async for update in line]
            assert kinds[-3:] == [Progress, Stalled, JobComplete]
            assert line.statistics().retries == 0


async def test_a_token_that_only_the_state_call_rejects_is_renewed_once(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", lambda request: Answer(401) if request.token == "t1" else None)
        tokens = ["t1", server.renew(job)]

        async def provider() -> str:
            return tokens.pop(0)

        async with follow(server, token=provider) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            assert (tokens, len(server.times("upgrade")), len(server.times("state"))) == ([], 1, 2)


async def test_a_provider_that_refuses_a_fresh_token_for_the_state_call_ends_nothing(follow: Follow) -> None:
    asked = []

    async def provider() -> str:
        asked.append(1)
        if len(asked) > 1:
            raise towline.TokenRefused("signed out")
        return "t1"

    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(401))
        async with follow(server, token=provider) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)
            assert len(asked) == 2


async def test_a_required_state_that_never_comes_is_a_lost_link(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(500))
        async with follow(server, own={"require_state": True}, policy=Policy(backoff=Backoff(attempts=2))) as line:
            assert (await gave_up(line)).reason == "budget"
            server.always("state", None)
            job.complete(RESULT)
            line.connect()
            assert isinstance(await line.result(), JobComplete)


# --- what is known of the server -----------------------------------------------------------------------------------


REFUSALS: list[Any] = [
    Answer(400),
    Answer(200, b"<html>Welcome to our Wi-Fi"),
    Answer(302, headers={"Location": "https://elsewhere"}),
]


@pytest.mark.parametrize("reaction", REFUSALS, ids=str)
async def test_a_refused_upgrade_of_a_known_server_is_a_lost_attempt(follow: Follow, reaction: Any) -> None:
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.script("upgrade", reaction, reaction)
            server.socket.cut("rst")
            await line.wait_for(State.RECONNECTING)
            await line.wait_for(State.CONNECTED, timeout=60)
            assert (line.statistics().dials, line.statistics().retries) == (4, 3)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


async def test_a_proxy_without_websockets_before_a_known_server_is_a_lost_attempt(follow: Follow) -> None:
    """The server has no event stream either, so the WebSocket is tried again."""
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.script("upgrade", Answer(426), Answer(426))
            server.socket.cut("rst")
            await line.wait_for(State.RECONNECTING)
            await line.wait_for(State.CONNECTED, timeout=60)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1009, 1010])
async def test_a_close_of_a_known_server_is_a_lost_link(follow: Follow, code: int) -> None:
    """A proxy that stops was seen to close with 1002 after a healthy link."""
    async with scripted() as (server, job):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.socket.close(code)
            await line.wait_for(State.RECONNECTING, timeout=5)
            await line.wait_for(State.CONNECTED, timeout=60)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


async def test_a_token_that_this_server_accepted_before_is_revoked(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.revoke("t1")
            server.socket.close(1012)
            error = await gave_up(line)
            assert error.reason == "revoked"
            assert "accepted this connection before" in str(error)
            assert "pass a fresh token" in str(error)


async def test_the_same_token_after_aclose_is_known_and_another_is_not(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            await line.aclose()
            server.revoke("t1")
            line.connect()
            assert (await gave_up(line)).reason == "revoked"
            line.connect(token="t2")
            assert (await gave_up(line)).reason == "auth"


# --- cancelling the job --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("state", [Answer(404), Answer(500), None], ids=str)
async def test_after_an_accepted_cancel_a_job_unknown_to_the_dial_is_cancelled(
    follow: Follow, status: int, state: Any
) -> None:
    """Also where the state call goes on to say that the job runs."""
    async with scripted() as (server, _):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            server.always("state", state)
            server.always("upgrade", Answer(status))
            server.socket.close(1001)
            outcome = await line.result()
            assert isinstance(outcome, JobCancelled)
            assert outcome.assumed


async def test_an_end_that_the_state_knows_is_not_assumed(follow: Follow) -> None:
    async with scripted() as (server, job):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            server.always("upgrade", Answer(404))
            job.silent = True
            job.cancel("by the user")
            server.socket.close(1001)
            outcome = await line.result()
            assert isinstance(outcome, JobCancelled)
            assert not outcome.assumed


async def test_without_an_accepted_cancel_nothing_is_assumed(follow: Follow) -> None:
    async with scripted() as (server, _):
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            server.always("upgrade", Answer(404))
            server.always("state", Answer(404))
            server.socket.close(1001)
            assert (await gave_up(line)).reason == "gone"


@pytest.mark.parametrize("status", [404, 410])
async def test_after_an_accepted_cancel_a_state_that_is_gone_means_cancelled(follow: Follow, status: int) -> None:
    async with scripted(numbered=False) as (server, _):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            server.always("state", Answer(status))
            # The socket stays open and silent: the first look asks the state.
            outcome = await line.result()
            assert isinstance(outcome, JobCancelled)
            assert outcome.assumed
            assert anyio.current_time() == pytest.approx(120, abs=5)


@pytest.mark.parametrize("renewable", [True, False])
async def test_after_an_accepted_cancel_a_token_that_cannot_be_renewed_means_cancelled(
    follow: Follow, renewable: bool
) -> None:
    async with scripted() as (server, _):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server, token=Token("t1", refresh=renewable)) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            server.revoke("t1")
            server.socket.close(1001)
            outcome = await line.result()
            assert isinstance(outcome, JobCancelled)
            assert outcome.assumed
            assert len(server.times("refresh")) == renewable


async def test_after_an_accepted_cancel_a_lost_link_and_a_fresh_token_go_on(follow: Follow) -> None:
    """Neither a close 1001 nor a rejected token alone says that the job was stopped."""
    async with scripted() as (server, job):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server, token=Token("t1", refresh=True)) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            server.script("upgrade", Answer(401))
            server.socket.close(1001)
            await line.wait_for(State.RECONNECTING)
            await line.wait_for(State.CONNECTED, timeout=60)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


async def test_a_job_that_will_stop_is_left_with_1001_until_its_end_is_known(follow: Follow) -> None:
    async with scripted() as (server, _):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            line.cancel()
            await anyio.sleep(1)
            assert server.socket.client_close is not None
            assert server.socket.client_close[0] == 1001


@pytest.mark.parametrize("refusal", ["403 twice", "close 1008"])
async def test_a_refusal_that_may_have_another_reason_confirms_no_cancel(follow: Follow, refusal: str) -> None:
    """A firewall, a rate limit: the server may know the job and its token well."""
    async with scripted() as (server, _):
        server.script("cancel", Answer(200, {"result": "accepted"}))
        async with follow(server, token=Token("t1", refresh=refusal == "403 twice")) as line:
            await line.wait_for(State.CONNECTED)
            assert await line.cancel_job() == "accepted"
            if refusal == "403 twice":
                server.script("upgrade", Answer(403), Answer(403))
                server.socket.cut("rst")
            else:
                server.socket.close(1008, "message rate exceeded")
            assert (await gave_up(line)).reason == "revoked"


async def test_the_state_call_does_not_use_up_the_fresh_token_of_the_dial(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(401))
        asked = []

        async def provider() -> str:
            asked.append(1)
            return "t1" if len(asked) == 1 else server.renew(job)

        async with follow(server, token=provider) as line:
            await line.wait_for(State.CONNECTED)
            server.script("upgrade", Answer(401))
            server.socket.cut("rst")
            await line.wait_for(State.RECONNECTING)
            await line.wait_for(State.CONNECTED, timeout=60)
            assert len(asked) == 3


async def test_a_state_call_that_asks_to_wait_a_day_holds_nothing_back(follow: Follow) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(503, headers={"Retry-After": "86400"}))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


@pytest.mark.parametrize(
    "body",
    [
        {"status": "success", "data": {"state": "running", "processedCount": 3}},
        {"status": "success", "data": {"status": "running", "processedCount": 3}},
        {"status": "success", "data": None},
        {"status": "success", "result": {"status": "running"}},
    ],
    ids=str,
)
async def test_a_status_that_describes_the_call_is_no_end_of_the_job(follow: Follow, body: Any) -> None:
    async with scripted(numbered=False) as (server, job):
        server.always("state", Answer(200, body))
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            job.fail()
            assert isinstance(await line.result(), JobFailed)
