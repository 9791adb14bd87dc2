"""The public interface as its users write it. Never run: `make lint` checks its types against the installed copy."""

from __future__ import annotations

from typing import assert_type

import towline
from towline import AnyUpdate, Connection, JobComplete, JobFailed, Outcome, Progress, Resynced, State, Subscription
from towline._facts import Position
from towline.blocking import Connection as BlockingConnection
from towline.statemachine import History


async def provider() -> towline.Token:
    return towline.Token(towline.Secret("t"), expires=1.0)


async def text_provider() -> str:
    return "t"


def on_state(change: towline.StateChange) -> None:
    assert_type(change.state, State)
    assert_type(change.cause, towline.Cause | None)


async def on_update(update: AnyUpdate) -> None:
    assert_type(update.job, str)


async def follow() -> None:
    async with Connection(
        "wss://api.example/ws/progress",
        job="j1",
        token=provider,
        store=towline.MemoryTokenStore(),
        policy=towline.Policy(backoff=towline.Backoff.patient()),
        limits=towline.Limits(),
        network=towline.Network(proxy="http://proxy:3128"),
        on_state=on_state,
        on_update=on_update,
    ) as line:
        assert_type(line, Connection)
        assert_type(line.state, State)
        async for update in line:
            assert_type(update, AnyUpdate)
            match update:
                case Progress():
                    assert_type(update.fraction, float | None)
                case Resynced():
                    assert_type(update.missed, int | None)
                case JobComplete():
                    assert_type(update.result_url, str | None)
                case JobFailed():
                    assert_type(update.code, str)
        assert_type(line.updates(wait=True), Subscription)
        assert_type(await line.wait_for(State.CONNECTED, State.EXHAUSTED, timeout=5), State)
        assert_type(await line.result(), Outcome)
        assert_type(line.outcome, Outcome | None)
        assert_type(line.cancel(), bool)
        answer = await line.cancel_job()
        if answer == "accepted":
            line.background()
            line.foreground()
        line.connect(token="another")
        line.retry()
        line.report_network(True, "eth0")
        assert_type(line.statistics().cursor, Position | None)
        assert_type(line.history(), History)
        await line.aclose()


async def resume() -> None:
    try:
        async with Connection(job="j1") as line:
            await line.result()
    except towline.Exhausted as error:
        assert_type(error.reason, str)
    except (towline.TokenStoreError, towline.UsageError):
        raise


async def every_kind_of_token() -> None:
    for token in ("t", towline.Secret("t"), towline.Token("t", expires=1.0, refresh=True), None):
        Connection("wss://api.example/", job="j", token=token)
    Connection("wss://api.example/", job="j", token=text_provider)


def block() -> None:
    with BlockingConnection("wss://api.example/", job="j1", token=lambda: "t") as line:
        for update in line:
            assert_type(update, AnyUpdate)
        assert_type(line.result(timeout=5), Outcome)
        assert_type(line.cancel(), bool)
