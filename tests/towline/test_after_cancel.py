"""After `cancel()`, and after the block: nothing is delivered, nothing is connected. In memory, under virtual time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from towline import AnyUpdate, Connection, Progress, State, StateChange
from towline.testing import ScriptedServer

pytestmark = pytest.mark.anyio


async def test_progress_that_waits_is_not_delivered_after_cancel(follow: Callable[..., Connection]) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        calls: list[int | None] = []

        async def on_update(update: AnyUpdate) -> None:
            if isinstance(update, Progress):
                calls.append(update.processed_count)
                await anyio.sleep(0.5)
                line.cancel()

        async with follow(server, on_update=on_update) as line:
            await line.wait_for(State.CONNECTED)
            for count in range(1, 5):
                job.progress(0.5, processed=count)
            await anyio.sleep(1)
        assert calls == [1]


async def test_nothing_is_connected_while_the_block_is_left(follow: Callable[..., Connection]) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")

        async def on_state(change: StateChange) -> None:
            if change.state is State.IDLE:
                line.connect()

        line = follow(server, on_state=on_state)
        async with line:
            await line.wait_for(State.CONNECTED)
        await anyio.sleep(5)
        assert (line.state, server.open_sockets) == (State.IDLE, [])


async def test_a_second_iterator_gets_nothing_after_cancel(follow: Callable[..., Connection]) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        seen: list[tuple[AnyUpdate, State]] = []

        async def first() -> None:
            async for update in line:
                if isinstance(update, Progress):
                    assert line.cancel()

        async def second() -> None:
            seen.extend([(update, line.state) async for update in line])

        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                tasks.start_soon(second)
                await anyio.sleep(1)
                job.progress(0.5, processed=1)
        # Whichever of the two ran first: none of it came after `cancel()`.
        assert all(state is State.CONNECTED for _, state in seen)
