"""A state that is behind what was handed on is not believed: nothing is shown twice, and no count goes back."""

from __future__ import annotations

import anyio
import pytest

from towline import AnyUpdate, Connection, JobComplete, Progress, State
from towline.testing import Accept, Answer, ScriptedServer, audit_updates, run_virtual, virtual_time_backends


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_an_old_state_is_fetched_again(backend: str) -> None:
    run_virtual(_story, backend=backend)


async def _story() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=9)
        job.progress(1 / 9, processed=1)
        old = job.state()
        updates: list[AnyUpdate] = []
        async with Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:

            async def listen() -> None:
                updates.extend([update async for update in line])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await line.wait_for(State.CONNECTED)
                for count in range(2, 6):
                    job.progress(count / 9, processed=count)
                await anyio.sleep(1)
                seen = line.statistics().cursor
                # This server has no log to replay, and its first answer was cached somewhere on the way.
                server.script("upgrade", Accept(answers_ready=False))
                server.script("state", *(Answer(200, body=old, after=0.1) for _ in range(2)))
                server.socket.cut("rst")
                # The status fetch while waiting takes one old answer, the sync the other.
                await line.wait_for(State.RECONNECTING)
                await line.wait_for(State.CONNECTED)
                assert line.statistics().cursor == seen
                assert line.statistics().gaps >= 1
                job.progress(6 / 9, processed=6)
                job.complete({"books": [], "errors": [], "successRate": "6/9"})
        shown = [update.processed_count for update in updates if isinstance(update, Progress)]
        counts = [count for count in shown if count is not None]
        assert counts == sorted(counts)
        assert isinstance(updates[-1], JobComplete)
        assert audit_updates(updates, job.log) == []
