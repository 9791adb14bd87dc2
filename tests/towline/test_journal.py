"""What is kept on record, told by what another process finds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from towline import (
    Connection,
    Damaged,
    InvalidArgument,
    JobComplete,
    JobFailed,
    MemoryTokenStore,
    RecordMismatch,
    Secret,
    State,
    WriteFailed,
)
from towline._updates import dump_outcome, load_outcome
from towline.testing import ScriptedServer

pytestmark = pytest.mark.anyio
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
ORIGIN = "http://hub:80"
Follow = Callable[..., Connection]


class Store(MemoryTokenStore):
    """Counts the saves of a cursor; fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[tuple[float, int]] = []
        self.broken = False

    async def save(
        self,
        job: str,
        token: Secret | str | None,
        origin: str,
        expires: float | None = None,
        *,
        context: Mapping[str, str] | None = None,
    ) -> None:
        if self.broken:
            raise WriteFailed("the disk is full")
        await super().save(job, token, origin, expires, context=context)

    async def save_cursor(self, job: str, epoch: str, seq: int) -> bool:
        if self.broken:
            raise WriteFailed("the disk is full")
        self.saves.append((anyio.current_time(), seq))
        return await super().save_cursor(job, epoch, seq)


async def test_a_job_is_taken_up_by_its_id_alone(follow: Follow, server: ScriptedServer) -> None:
    store, job = Store(), server.job("j2", token="t2")
    async with follow(server, url="ws://hub/ws/progress?v=2", job="j2", token="t2", store=store) as line:
        await line.wait_for(State.CONNECTED)
        job.progress(0.1)
        job.progress(0.2)
        async for update in line:
            if update.seq == 2:
                break
    record = await store.read("j2")
    assert record is not None
    assert record.cursor == ("e1", 1), "the second was in hand, and is told again"
    async with Connection(job="j2", store=store, network=server.network, allow_insecure=True) as line:
        job.complete(RESULT)
        seen = [update.seq async for update in line if update.seq]
    assert seen == [2, 3]
    assert all("v=2&jobId=j2" in request.target for request in server.requests if request.call == "upgrade")


async def test_the_end_is_marked_once_taken_and_given_again_without_a_dial(
    follow: Follow, server: ScriptedServer
) -> None:
    store, job = Store(), server._jobs["j1"]
    job.complete(RESULT)
    async with follow(server, store=store) as line:
        await line.wait_for(State.IDLE)
        assert line.outcome is not None
    record = await store.read("j1")
    assert record is not None
    assert not record.ended, "nobody took it"
    async with follow(server, store=store) as line:
        outcome = await line.result()
    dials = len(server.network.dials)
    async with Connection(job="j1", store=store, network=server.network, allow_insecure=True) as line:
        assert await line.result() == outcome
        assert [type(update) async for update in line] == [JobComplete]
        with pytest.raises(Exception, match="has ended"):
            line.connect()
    assert len(server.network.dials) == dials


async def test_the_cursor_is_saved_at_most_every_five_seconds_and_when_the_link_ends(
    follow: Follow, server: ScriptedServer
) -> None:
    store, job = Store(), server._jobs["j1"]

    async def consume(line: Connection) -> None:
        async for _ in line:
            pass

    async with follow(server, store=store) as line, anyio.create_task_group() as tasks:
        tasks.start_soon(consume, line)
        await line.wait_for(State.CONNECTED)
        for number in range(100):
            job.progress(number / 100)
            await anyio.sleep(0.2)
        times = [at for at, _ in store.saves]
        assert 3 <= len(times) <= 6
        assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(times))
        job.progress(0.99)
        await anyio.sleep(0.01)
        server.socket.cut()
        await line.wait_for(State.RECONNECTING)
        await anyio.sleep(0.01)
        assert store.saves[-1][1] == 101
        tasks.cancel_scope.cancel()


async def test_a_store_that_fails_is_said_and_does_not_stop_it(
    follow: Follow, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    store, job = Store(), server._jobs["j1"]
    store.broken = True
    async with follow(server, store=store) as line:
        await line.wait_for(State.CONNECTED)
        assert isinstance(line.statistics().store_problem, WriteFailed)
        job.progress(0.5)
        job.complete(RESULT)
        assert isinstance(await line.result(), JobComplete)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_cancelling_the_owner_still_saves_where_it_was(follow: Follow, server: ScriptedServer) -> None:
    store, job = Store(), server._jobs["j1"]
    with anyio.move_on_after(1):
        async with follow(server, store=store) as line:
            await line.wait_for(State.CONNECTED)
            job.progress(0.1)
            job.progress(0.2)
            async for _ in line:
                pass
    record = await store.read("j1")
    assert record is not None
    assert record.cursor == ("e1", 2)


async def test_another_token_given_later_is_put_on_record(follow: Follow, server: ScriptedServer) -> None:
    store = Store()
    async with follow(server, store=store, token="bad") as line:
        await line.wait_for(State.EXHAUSTED)
        with pytest.raises(Exception, match="this very token"):
            line.connect()
        line.connect(token="t1")
        await line.wait_for(State.CONNECTED, timeout=10)
    assert await store.load("j1", ORIGIN) == Secret("t1")


async def test_a_token_for_another_origin_is_not_used(server: ScriptedServer) -> None:
    store = Store()
    await store.save("j1", "t1", "https://elsewhere:443")
    with pytest.raises(RecordMismatch):
        async with Connection("ws://hub/", job="j1", store=store, network=server.network, allow_insecure=True):
            pass
    assert server.network.dials == []


async def test_a_damaged_record_is_an_error_without_a_token_and_none_with_one(
    follow: Follow, server: ScriptedServer
) -> None:
    class BadStore(Store):
        async def read(self, job: str) -> Any:
            raise Damaged("a file is not what was written")

    with pytest.raises(Damaged):
        async with Connection("ws://hub/", job="j1", store=BadStore(), network=server.network, allow_insecure=True):
            pass
    async with follow(server, store=BadStore()) as line:
        await line.wait_for(State.CONNECTED)
        assert line.statistics().store_problem is not None


def test_an_outcome_of_any_size_fits_a_record() -> None:
    for outcome in (
        JobFailed(job="j", code="\x00" * 100_000, message="m" * 100_000, details=["d"] * 100_000),
        JobComplete(job="j", pipeline="p" * 100_000, result="r" * 100_000),
    ):
        text = dump_outcome(outcome, 48 * 1024)
        assert len(text) <= 48 * 1024
        loaded = load_outcome(text, {})
        assert type(loaded) is type(outcome)
        assert loaded.problem is not None


def test_an_outcome_that_is_nested_too_deep_fits_a_record() -> None:
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    loaded = load_outcome(dump_outcome(JobComplete(job="j", result=deep), 48 * 1024), {})
    assert loaded == JobComplete(job="j", problem="the result was too large to be stored with the token")


def test_what_came_with_a_reference_to_a_result_is_not_its_type() -> None:
    outcome = JobComplete(job="j", pipeline="ai_scan", result={"approved": 5}, result_url="/r")
    assert load_outcome(dump_outcome(outcome, 48 * 1024), {}) == outcome


def test_a_result_on_record_that_no_longer_fits_its_type_comes_as_plain_values() -> None:
    text = dump_outcome(JobComplete(job="j", pipeline="mine", result={"a": 1}), 48 * 1024)
    loaded = load_outcome(text, {"mine": list[int]})
    assert isinstance(loaded, JobComplete)
    assert loaded.result == {"a": 1}
    assert loaded.problem is not None
    with pytest.raises(Damaged):
        load_outcome('{"type": "news"}', {})


@pytest.mark.parametrize("bad", ["", "with space", "new\nline", "é"])
def test_a_token_that_no_header_can_carry_is_refused_at_once(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="token"):
        Connection("wss://hub/", job="j1", token=bad)


async def test_what_is_written_with_a_final_dot_and_below_a_path_is_resumed_there(
    follow: Follow, server: ScriptedServer
) -> None:
    store, job = Store(), server.job("j2", token="t2")
    async with follow(server, url="ws://hub./jobs/ws/progress", job="j2", token="t2", store=store) as line:
        await line.wait_for(State.CONNECTED)
    record = await store.read("j2")
    assert record is not None
    assert (record.origin, record.context) == ("http://hub:80", {"url": "ws://hub./jobs/ws/progress"})
    async with Connection(job="j2", store=store, network=server.network, allow_insecure=True) as line:
        await line.wait_for(State.CONNECTED)
        job.complete(RESULT)
        await line.result()
    asked = [(request.method, request.target) for request in server.requests if request.call is None]
    assert asked[0] == asked[-1] == ("GET", "/jobs/api/job-state/j2")
