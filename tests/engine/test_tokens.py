"""Where the token comes from, and that it goes nowhere else."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from towline import Connection, Exhausted, Policy, Secret, State, Token, TokenProviderFailed, TokenRefused
from towline.testing import Answer, ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]
CANARY = "canary-3f9c1d"


class Provider:
    """Gives the tokens it was made with, one after the other, the last for ever; counts the calls."""

    def __init__(self, *answers: object, takes: float = 0.0) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.takes = takes

    async def __call__(self) -> Token:
        self.calls += 1
        await anyio.sleep(self.takes)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]


async def test_a_provider_is_asked_once_not_at_every_drop(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("t1")
    async with follow(server, token=provider) as line:
        for number in range(1, 4):
            await server.wait_ready(number)
            await line.wait_for(State.CONNECTED)
            server.socket.cut()
        await server.wait_ready(4)
    assert provider.calls == 1


async def test_a_rejected_token_is_replaced_once_without_waiting(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("old", "t1")
    async with follow(server, token=provider) as line:
        await line.wait_for(State.CONNECTED, timeout=0.1)
    assert provider.calls == 2


async def test_the_second_rejection_in_a_row_is_the_end_of_it(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("old")
    async with follow(server, token=provider) as line:
        with pytest.raises(Exhausted, match="auth"):
            await line.result()
        await anyio.sleep(3600)
    assert len(server.times("upgrade")) == 2


async def test_a_token_near_its_end_is_renewed_in_time_while_connected(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider(Token(Secret("t1"), 300.0), Token(Secret("t1"), 100000.0))
    async with follow(server, token=provider, wall_time=anyio.current_time):
        await anyio.sleep(230)
        assert provider.calls == 1
        await anyio.sleep(20)
        assert provider.calls == 2
        assert len(server.times("upgrade")) == 1


async def test_renewing_too_early_changes_nothing(follow: Follow, server: ScriptedServer) -> None:
    server.always("refresh", Answer(425, headers={"Retry-After": "30"}))
    async with follow(server, token=Token("t1", expires=100.0, refresh=True), wall_time=anyio.current_time) as line:
        await anyio.sleep(99)
        assert line.state is State.CONNECTED
        assert 1 <= len(server.times("refresh")) <= 12


async def test_a_provider_that_refuses_is_not_asked_again(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider(TokenRefused("logged out"))
    async with follow(server, token=provider) as line:
        with pytest.raises(Exhausted, match="logged out") as raised:
            await line.result()
    assert raised.value.reason == "auth"
    assert provider.calls == 1
    assert server.network.dials == []


@pytest.mark.parametrize("trouble", [ValueError(f"bad {CANARY}"), "not a\ntoken", 5])
async def test_a_provider_that_fails_is_asked_again_within_the_budget(
    follow: Follow, server: ScriptedServer, trouble: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider = Provider(trouble, "t1")
    async with follow(server, token=provider) as line:
        await line.wait_for(State.RECONNECTING)
        assert isinstance(line._engine.failures.last, TokenProviderFailed)  # type: ignore[union-attr]
        await line.wait_for(State.CONNECTED, timeout=60)
    assert provider.calls == 2, "the status fetch does not bother it"
    assert CANARY not in caplog.text


async def test_a_plain_function_is_told_to_be_an_async_one(follow: Follow, server: ScriptedServer) -> None:
    provider: Any = lambda: CANARY  # noqa: E731
    async with follow(server, token=provider) as line:
        await line.wait_for(State.RECONNECTING)
        cause = line.statistics().cause
    assert cause is not None
    assert cause.text == "the token provider is not an async function: define it with async def"


async def test_a_provider_has_its_own_deadline(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("t1", takes=29)
    async with follow(server, token=provider) as line:
        await line.wait_for(State.CONNECTED, timeout=29.5)
    slow = Provider("t1", takes=31)
    async with follow(server, token=slow) as line:
        await line.wait_for(State.RECONNECTING, timeout=30.5)


async def test_callers_that_come_meanwhile_share_one_answer(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("t1", takes=5)
    async with follow(server, token=provider) as line, anyio.create_task_group() as tasks:
        await anyio.sleep(1)
        tasks.start_soon(line.cancel_job)
        tasks.start_soon(line.cancel_job)
    assert provider.calls == 1


async def test_nobody_uses_a_rejected_token_while_another_is_fetched(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("old", "t1", takes=5)
    async with follow(server, token=provider) as line:
        await anyio.sleep(7)
        assert provider.calls == 2, "the server has rejected the first"
        await line.cancel_job()
    assert [request.token for request in server.requests if request.call == "cancel"] == ["t1"]
    assert provider.calls == 2


async def test_a_fixed_token_is_exchanged_only_if_that_is_wanted(follow: Follow, server: ScriptedServer) -> None:
    async with follow(server, token=Token("t1", refresh=True)) as line:
        await line.wait_for(State.CONNECTED)
        server.socket.close(4401)
        await line.wait_for(State.CONNECTING, timeout=5)
        await line.wait_for(State.CONNECTED, timeout=10)
    assert len(server.times("refresh")) == 1


@pytest.mark.parametrize(
    ("answer", "state"),
    [(Answer(401), State.EXHAUSTED), (Answer(425), State.RECONNECTING), (Answer(429), State.RECONNECTING)],
)
async def test_an_exchange_that_fails(follow: Follow, server: ScriptedServer, answer: Answer, state: State) -> None:
    server.always("refresh", answer)
    async with follow(server, token=Token("t1", refresh=True)) as line:
        await line.wait_for(State.CONNECTED)
        server.socket.close(4401)
        assert await line.wait_for(State.EXHAUSTED, State.RECONNECTING, timeout=5) is state


async def test_another_token_given_during_a_renewal_counts_for_more(follow: Follow, server: ScriptedServer) -> None:
    provider = Provider("old", takes=5)
    async with follow(server, token=provider) as line:
        await anyio.sleep(1)
        line.connect(token="t1")
        await line.wait_for(State.CONNECTED, timeout=30)
        assert {request.token for request in server.requests} == {"t1"}


async def test_no_token_at_all_is_told(server: ScriptedServer) -> None:
    from towline import MemoryTokenStore

    line = Connection("ws://hub/", job="j1", store=MemoryTokenStore(), network=server.network)
    async with line:
        with pytest.raises(Exhausted, match="no token"):
            await line.result()
    assert server.network.dials == []


async def test_a_token_goes_where_it_was_asked_to_go(follow: Follow, server: ScriptedServer) -> None:
    server.job("c", token=CANARY)
    async with follow(server, job="c", token=CANARY):
        await server.wait_requests("upgrade", 1)
    async with follow(server, job="c", token=CANARY, own={"token_in": "query"}):
        await server.wait_requests("upgrade", 2)
    async with follow(server, job="c", token=CANARY, own={"token_in": "subprotocol:bearer"}):
        await server.wait_requests("upgrade", 3)
    header, query, subprotocol = [r for r in server.requests if r.call == "upgrade"]
    assert header.headers["authorization"] == f"Bearer {CANARY}"
    assert CANARY not in header.target
    assert f"token={CANARY}" in query.target
    assert "authorization" not in query.headers
    assert subprotocol.headers["sec-websocket-protocol"] == f"bearer.{CANARY}"
    assert "authorization" not in subprotocol.headers


@pytest.mark.parametrize("way", ["header", "query", "subprotocol:bearer"])
async def test_a_token_is_shown_nowhere(
    follow: Follow, server: ScriptedServer, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.job("c", token=CANARY)
    shown: list[str] = []
    policy = Policy()
    async with follow(server, job="c", token=Token(CANARY, refresh=True), policy=policy, own={"token_in": way}) as line:
        await line.wait_for(State.CONNECTED)
        server.socket.cut()
        await line.wait_for(State.RECONNECTING)
        await line.wait_for(State.CONNECTED, timeout=60)
        server.script("upgrade", Answer(403))
        server.always("refresh", Answer(401))
        server.socket.close(4401)
        try:
            await line.result()
        except Exhausted as error:
            shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
        shown += [repr(line), repr(vars(line)), repr(line.statistics()), line.history().to_json().decode(), caplog.text]
    gc.collect()
    assert CANARY not in "".join(shown)
