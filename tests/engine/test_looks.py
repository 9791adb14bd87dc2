"""The state call that a sync makes: its tries, its waits, and what ends them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from towline import Connection, Resynced, State
from towline.testing import Answer, ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server without a log: only the state brings its followers in step."""
    async with ScriptedServer(numbered=False) as scripted:
        scripted.job("j1", token="t1")
        yield scripted


async def waits(follow: Follow, server: ScriptedServer, *answers: Answer) -> list[float]:
    """The seconds between the state calls until the connection is in step."""
    server.script("state", *answers)
    async with follow(server) as line:
        await line.wait_for(State.CONNECTED)
        return [later - earlier for earlier, later in pairwise(server.times("state"))]


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
async def test_a_passing_trouble_is_tried_again(follow: Follow, server: ScriptedServer, status: int) -> None:
    assert await waits(follow, server, *[Answer(status)] * 3) == pytest.approx([1, 2, 4])


async def test_a_longer_retry_after_is_kept(follow: Follow, server: ScriptedServer) -> None:
    longer, shorter = Answer(429, headers={"retry-after": "9"}), Answer(503, headers={"retry-after": "0"})
    assert await waits(follow, server, longer, shorter) == pytest.approx([9, 2])


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (Answer(503, headers={"retry-after": "1"}), 4),
        # A working link must not wait a day for a state.
        (Answer(503, headers={"retry-after": "86400"}), 1),
        *[(Answer(status), 1) for status in (204, 301, 400, 404, 410, 418)],
        *[(Answer(200, body), 1) for body in (b"<html>", b"", b"[]", b'{"status":7}', b"\xff", b"[" * 100_000)],
        (Answer(200, b" " * ((16 << 20) + 1)), 1),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_the_link_goes_in_step_without_a_state(
    follow: Follow, server: ScriptedServer, answer: Answer, calls: int
) -> None:
    server.always("state", answer)
    async with follow(server) as line:
        await line.wait_for(State.CONNECTED)
        assert len(server.times("state")) == calls
        first: Any = await anext(aiter(line))
        assert isinstance(first, Resynced)
        assert (first.kind, line.statistics().retries) == ("unavailable", 0)
