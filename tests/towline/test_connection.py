"""`Connection` as its users meet it: the whole of a job, entering and leaving; in memory and on real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

import towline
from towline import (
    Backoff,
    Cancelled,
    Connection,
    ForbiddenRequest,
    InvalidArgument,
    JobComplete,
    JobStarted,
    MemoryTokenStore,
    Policy,
    Progress,
    Resynced,
    State,
    StateUnreachable,
)
from towline._facts import Numbered
from towline.engine.delivery.inbox import INBOX_LIMIT
from towline.protocols import Towline
from towline.storage import RecordKey
from towline.testing import FaultProxy, MemoryLink, ScriptedServer

pytestmark = pytest.mark.anyio
RESULT = {"books": [], "errors": [], "successRate": "2/2"}
Follow = Callable[..., Connection]


# --- the whole of a job ------------------------------------------------------------------------------------------


async def test_a_job_is_followed_to_its_end(follow: Follow) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=2)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            job.progress(0.5, processed=1)
            job.progress(1.0, processed=2)
            job.complete(RESULT)
            updates = [update async for update in line]
        assert [type(update) for update in updates] == [JobStarted, Progress, Progress, JobComplete]
        assert [update.seq for update in updates] == [1, 2, 3, 4]
        assert line.outcome is updates[-1]
        assert server.socket.client_close == (1000, "")


async def test_the_end_while_away_is_told_once(follow: Follow) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=2)
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED, timeout=5)
            server.socket.cut("rst")
            job.progress(0.5, processed=1)
            job.complete(RESULT)
            updates = [update async for update in line]
        assert isinstance(updates[-1], JobComplete)
        assert sum(isinstance(update, JobComplete) for update in updates) == 1


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_drop_during_the_sync_is_no_stall(follow: Follow, numbered: bool) -> None:
    async with ScriptedServer(numbered=numbered) as server:
        job = server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.SYNCING)
            await server.wait_sockets(1)  # its own task may be the later one to know
            server.socket.cut("rst")
            await line.wait_for(State.CONNECTED, timeout=60)
            job.complete(RESULT)
            assert isinstance(await line.result(), JobComplete)


async def test_a_result_too_large_for_its_message_is_fetched(follow: Follow) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        async with follow(server) as line:
            with pytest.raises(StateUnreachable, match=r"wait for `result\(\)` first"):
                await line.fetch_result()
            await line.wait_for(State.CONNECTED)
            job.silent = True
            job.complete(RESULT)
            payload = {"resultUrl": "/api/jobs/j1/results"}
            end = {"type": "job_complete", "jobId": "j1", "pipeline": "csv_import", "seq": 1, "epoch": "e1"}
            server.socket.send_text(json.dumps({**end, "payload": payload}))
            outcome = await line.result()
            assert isinstance(outcome, JobComplete)
            assert outcome.result is None
            assert (await line.fetch_result())["successRate"] == "2/2"


async def test_a_consumer_far_behind_gets_every_update_and_the_end(follow: Follow) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            subscription = line.updates()
            for _ in range(3 * INBOX_LIMIT):
                job.start(1)
                await anyio.sleep(0.01)
            # Nothing is read meanwhile, and that is no silence of the job.
            await anyio.sleep(1000)
            job.complete(RESULT)
            updates = [update async for update in subscription]
            told = [update for update in updates if update.seq and not isinstance(update, Resynced)]
            assert [update.seq for update in told] == list(range(1, job.last_seq + 1))
            assert isinstance(told[-1], JobComplete)
            statistics = line.statistics()
            assert (statistics.overflows, statistics.gaps, statistics.retries) == (0, 0, 0)


async def test_a_consumer_that_comes_too_late_is_told_what_it_missed_and_the_end(follow: Follow) -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
            for _ in range(INBOX_LIMIT + 10):
                job.start(1)
                await anyio.sleep(0.01)
            subscription = line.updates()
            await anyio.sleep(5)
            assert line.statistics().overflows == 1
            assert line.statistics().gaps == 1
            job.complete(RESULT)
            told, *rest = [update async for update in subscription]
            assert isinstance(told, Resynced)
            assert told.from_seq == 1
            assert told.missed is not None
            assert told.missed > INBOX_LIMIT
            assert [update.seq for update in rest] == list(range(told.missed + 1, job.last_seq + 1))


# --- entering and leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target": "http://hub/"}, "url"),
        ({"target": "ws://hub/"}, "url"),
        ({"job": ".."}, "job"),
        ({"token": ""}, "token"),
        ({"token": b"t1"}, "token: must be text"),
        ({"target": Towline("wss://hub/", "j1", api_origin="https://hub/path")}, "origin"),
    ],
)
async def test_what_cannot_be_right_is_refused_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Connection(**{"target": "wss://hub/", "job": "j1", "token": "t1", **options})


async def test_before_it_is_entered_nothing_is_lawful_but_cancel(follow: Follow) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        line = follow(server)
        for call in (line.connect, line.retry, line.background, line.statistics, line.updates):
            with pytest.raises(ForbiddenRequest):
                call()  # type: ignore[operator]
        assert line.cancel() is True
        assert line.state is State.CANCELLED
        with pytest.raises(Cancelled):
            async with line:
                pytest.fail("never entered")
        assert server.network.dials == []


async def test_cancel_while_the_store_is_read(follow: Follow) -> None:
    class Slow(MemoryTokenStore):
        async def find(self, job: str) -> Any:
            await anyio.sleep_forever()

        async def read(self, key: RecordKey) -> Any:
            await anyio.sleep_forever()

    async with ScriptedServer() as server:
        line = follow(server, token=None, store=Slow())

        async def enter() -> None:
            with pytest.raises(Cancelled):
                async with line:
                    pytest.fail("never entered")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            await anyio.sleep(1)
            line.cancel()
        assert anyio.current_time() < 2


async def test_it_is_entered_once_and_after_it_was_left_only_looked_at(follow: Follow) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            await line.wait_for(State.CONNECTED)
        with pytest.raises(ForbiddenRequest):
            async with line:
                pytest.fail("entered twice")
        assert line.state is State.IDLE
        assert line.statistics().connects == 1
        assert [update async for update in line] == []
        with pytest.raises(StateUnreachable, match="make a new Connection"):
            await line.result()
        for call in (line.connect, line.retry):
            with pytest.raises(ForbiddenRequest):
                call()
        assert line.cancel() is True


async def test_a_wait_for_no_state_is_refused(follow: Follow) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        async with follow(server) as line:
            with pytest.raises(InvalidArgument):
                await line.wait_for()


# --- on real sockets -----------------------------------------------------------------------------------------------


async def carry(stream: ByteStream, server: ScriptedServer) -> None:
    """Serve a real connection by a scripted server."""
    link = MemoryLink()

    async def pump(source: ByteStream, target: ByteStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async for data in source:
                await target.send(data)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            await target.send_eof()

    async with stream, anyio.create_task_group() as tasks:
        tasks.start_soon(pump, stream, link.client)
        tasks.start_soon(pump, link.client, stream)
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            async with link.server:
                await server._serve(link)
            await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_through_cuts_at_many_bytes_every_event_is_told_once_and_in_order(backend: str) -> None:
    """Real TCP through a proxy that cuts each link a little later than the one before."""
    policy = Policy(
        dial_spacing=0,
        dials_per_window=1000,
        violations=1000,
        backoff=Backoff(base=0.01, cap=0.02, floor=0, shared_window=0.01, attempts=1000),
    )

    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            ScriptedServer() as server,
            anyio.create_task_group() as tasks,
        ):
            job = server.job("j1", token="t1")
            tasks.start_soon(listener.serve, lambda stream: carry(stream, server))
            port = listener.extra(SocketAttribute.local_port)
            async with FaultProxy("127.0.0.1", port, seed=1) as proxy:
                url = f"ws://127.0.0.1:{proxy.port}/ws/progress"
                for cut in range(100, 1500, 60):
                    proxy.cut_after(cut, "down", "rst" if cut % 120 else "fin")
                async with Connection(url, job="j1", token="t1", policy=policy) as line:
                    updates: list[towline.AnyUpdate] = []

                    async def tell() -> None:
                        for number in range(1, 40):
                            job.progress(number / 40, processed=number)
                            await anyio.sleep(0.01)
                        while line.statistics().cursor != Numbered(39, "e1"):  # noqa: ASYNC110 - there is no event for it
                            await anyio.sleep(0.01)
                        job.complete(RESULT)

                    tasks.start_soon(tell)
                    with anyio.fail_after(20):
                        updates += [update async for update in line]
                assert proxy.statistics().cuts > 5
            last = 0
            for update in updates:
                if isinstance(update, Resynced):
                    assert not update.missed, "the server replays all of it"
                    continue
                first = update.first_seq if isinstance(update, Progress) else update.seq
                assert first == last + 1
                last = update.seq or 0
            assert last == len(job.log) == 40
            assert isinstance(updates[-1], JobComplete)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancel_on_a_black_hole_leaves_nothing_within_a_second(backend: str) -> None:
    async def main() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            ScriptedServer() as server,
            anyio.create_task_group() as tasks,
        ):
            server.job("j1", token="t1")
            tasks.start_soon(listener.serve, lambda stream: carry(stream, server))
            async with FaultProxy("127.0.0.1", listener.extra(SocketAttribute.local_port)) as proxy:
                url = f"ws://127.0.0.1:{proxy.port}/ws/progress"
                async with Connection(url, job="j1", token="t1") as line:
                    await line.wait_for(State.CONNECTED, timeout=5)
                    proxy.black_hole()
                    before = anyio.current_time()
                    assert await anyio.to_thread.run_sync(line.cancel)
                    assert line.state is State.CANCELLED
                assert anyio.current_time() - before < 1
                await proxy.heal()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
