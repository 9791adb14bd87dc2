"""What is kept on record, told by what another process finds."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from towline import (
    AmbiguousJob,
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
from towline._facts import Mark, Numbered
from towline._updates import dump_outcome, load_outcome
from towline.engine.delivery.journal import dump_cursor, load_cursor
from towline.storage import Parameter, RecordKey
from towline.testing import ScriptedServer

pytestmark = pytest.mark.anyio
RESULT = {"books": [], "errors": [], "successRate": "1/1"}
ADDRESS = "http://hub:80/ws/progress"
Follow = Callable[..., Connection]


def key(job: str, address: str = ADDRESS, protocol: str = "towline") -> RecordKey:
    """The key of a job's record."""
    return RecordKey(protocol, address, job)


class Store(MemoryTokenStore):
    """Counts the saves of a cursor; fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[tuple[float, int]] = []
        self.broken = False

    async def save(self, key: RecordKey, token: Secret | str | None, expires: float | None = None, **maps: Any) -> None:
        if self.broken:
            raise WriteFailed("the disk is full")
        await super().save(key, token, expires, **maps)

    async def save_cursor(self, key: RecordKey, cursor: bytes | str) -> bool:
        if self.broken:
            raise WriteFailed("the disk is full")
        assert isinstance(cursor, str)
        position = load_cursor(cursor)
        assert isinstance(position, Numbered)
        self.saves.append((anyio.current_time(), position.seq))
        return await super().save_cursor(key, cursor)


async def stored_token(store: Store) -> Secret | None:
    """The token on record of the job `j1`."""
    record = await store.read(key("j1"))
    assert record is not None
    return record.token


async def test_a_job_is_taken_up_by_its_id_alone(follow: Follow, server: ScriptedServer) -> None:
    store, job = Store(), server.job("j2", token="t2")
    async with follow(server, url="ws://hub/ws/progress?v=2", job="j2", token="t2", store=store) as line:
        await line.wait_for(State.CONNECTED)
        job.progress(0.1)
        job.progress(0.2)
        async for update in line:
            if update.seq == 2:
                break
    record = await store.read(key("j2"))
    assert record is not None
    assert record.cursor == '{"seq":1,"epoch":"e1"}', "the second was in hand, and is told again"
    async with Connection(job="j2", store=store, network=server.network) as line:
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
    record = await store.read(key("j1"))
    assert record is not None
    assert not record.ended, "nobody took it"
    async with follow(server, store=store) as line:
        outcome = await line.result()
    dials = len(server.network.dials)
    async with Connection(job="j1", store=store, network=server.network) as line:
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
    record = await store.read(key("j1"))
    assert record is not None
    assert record.cursor == '{"seq":2,"epoch":"e1"}'


async def test_a_given_token_replaces_the_one_on_record_only_if_the_server_accepts_it(
    follow: Follow, server: ScriptedServer
) -> None:
    """The given one may be wrong: for example what the environment holds for another server."""
    store = Store()
    await store.save(key("j1"), "t1", None)
    async with follow(server, store=store, token="bad") as line:
        await line.wait_for(State.EXHAUSTED)
    assert await stored_token(store) == Secret("t1")
    await store.save(key("j1"), "old", None)
    async with follow(server, store=store, token="t1") as line:
        await line.wait_for(State.CONNECTED)
    assert await stored_token(store) == Secret("t1")


async def test_another_token_given_later_is_put_on_record(follow: Follow, server: ScriptedServer) -> None:
    store = Store()
    async with follow(server, store=store, token="bad") as line:
        await line.wait_for(State.EXHAUSTED)
        with pytest.raises(Exception, match="this very token"):
            line.connect()
        line.connect(token="t1")
        await line.wait_for(State.CONNECTED, timeout=10)
    assert await stored_token(store) == Secret("t1")


@pytest.mark.parametrize(
    "other", [key("j1", "https://elsewhere:443/ws/progress"), key("j1", "http://hub:80/other"), key("j1", protocol="x")]
)
async def test_a_token_for_another_server_is_not_used(server: ScriptedServer, other: RecordKey) -> None:
    store = Store()
    await store.save(other, "hunter2")
    url = "ws://hub/ws/progress?key=hunter2"
    with pytest.raises(RecordMismatch) as caught:
        async with Connection(url, job="j1", store=store, network=server.network):
            pass
    assert f"{other.protocol} at {other.address}" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert server.network.dials == []


async def test_a_record_is_used_only_where_its_key_says(server: ScriptedServer) -> None:
    """What a program saved with a URL of another server than its address, or for a protocol that this is not."""
    for other, error, problem in (
        (key("j1", "http://hub:80/other"), RecordMismatch, "not of towline at http://hub:80/ws/progress"),
        (key("j1", protocol="x"), InvalidArgument, "the protocol x .*: pass the protocol again"),
    ):
        store = Store()
        await store.save(other, "hunter2", parameters={"url": "ws://hub/ws/progress"})
        with pytest.raises(error, match=problem):
            async with Connection(job="j1", store=store, network=server.network):
                pass
    assert server.network.dials == []


@pytest.mark.parametrize("places", [("one:80/ws", "two:80/ws"), ("hub:80/one/ws", "hub:80/two/ws")])
async def test_two_servers_may_have_a_job_of_the_same_id(follow: Follow, places: tuple[str, str]) -> None:
    """Two hosts, or two paths of one: each resume goes on at its own server, with its own token and position."""
    store = Store()
    async with ScriptedServer() as one, ScriptedServer() as two:
        urls = [f"ws://{place}" for place in places]
        addresses = [f"http://{place}" for place in places]
        servers = list(zip((one, two), urls, ("t-one", "t-two"), (1, 2), strict=True))
        for server, url, token, count in servers:
            job = server.job("1", token=token)
            async with follow(server, url=url, job="1", token=token, store=store) as line:
                await line.wait_for(State.CONNECTED)
                for number in range(count + 1):
                    job.progress(number / 10)
                async for update in line:
                    if update.seq == count + 1:
                        break
        dials = len(one.network.dials)
        with pytest.raises(AmbiguousJob) as caught:
            async with Connection(job="1", store=store, network=one.network):
                pass
        assert caught.value.servers == tuple(f"towline at {address}" for address in addresses)
        assert all(server in str(caught.value) for server in caught.value.servers)
        assert "t-one" not in str(caught.value)
        assert len(one.network.dials) == dials
        for server, url, _, count in servers:
            async with Connection(url, job="1", store=store, network=server.network) as line:
                server._jobs["1"].complete(RESULT)
                assert [update.seq async for update in line if update.seq] == [count + 1, count + 2]
        await store.delete(key("1", addresses[0]))
        async with Connection(job="1", store=store, network=two.network) as line:
            assert isinstance(await line.result(), JobComplete)


async def test_a_server_with_a_token_begins_its_own_record(follow: Follow, server: ScriptedServer) -> None:
    """Another server's record of the same id neither stops it nor is changed."""
    store = Store()
    other = key("j1", "https://elsewhere:443/ws/progress")
    await store.save(other, "t-other")
    await store.save_cursor(other, '{"seq":9,"epoch":"e1"}')
    before = await store.read(other)
    server._jobs["j1"].progress(0.5)
    async with follow(server, store=store) as line:
        assert [update.seq async for update in _first(line)] == [1]
    assert await store.read(other) == before
    assert await store.jobs() == [key("j1"), other]


async def _first(line: Connection) -> Any:
    async for update in line:
        if update.seq:
            yield update
            return


@pytest.mark.parametrize("parameters", [{}, {"url": 7}])
async def test_a_record_without_a_url_needs_one(server: ScriptedServer, parameters: dict[str, Parameter]) -> None:
    store = Store()
    await store.save(key("j1"), "t1", parameters=parameters)
    with pytest.raises(InvalidArgument, match="pass url="):
        async with Connection(job="j1", store=store, network=server.network):
            pass
    async with Connection("ws://hub/ws/progress", job="j1", store=store, network=server.network):
        pass


async def test_an_api_of_another_origin_is_kept(follow: Follow, server: ScriptedServer) -> None:
    store = Store()
    async with follow(server, store=store, own={"api_origin": "http://api"}) as line:
        await line.wait_for(State.CONNECTED)
    record = await store.read(key("j1"))
    assert record is not None
    assert dict(record.parameters) == {"url": "ws://hub/ws/progress", "api_origin": "http://api"}
    async with Connection(job="j1", store=store, network=server.network) as line:
        await line.wait_for(State.CONNECTED)
    assert [dial.host for dial in server.network.dials].count("api") == 2


def test_a_position_is_what_was_saved() -> None:
    assert dump_cursor(Numbered(7, "e1")) == '{"seq":7,"epoch":"e1"}'
    assert dump_cursor(Mark("m")) == '{"mark":"m"}'
    for position in (Numbered(0, "é"), Numbered(7), Mark("m é"), Mark("")):
        assert load_cursor(dump_cursor(position)) == position
    for other in ("{}", "7", '{"mark":7}', '{"seq":"7","epoch":"e"}'):
        with pytest.raises(Damaged, match="position"):
            load_cursor(other)


async def test_a_damaged_record_is_an_error_without_a_token_and_none_with_one(
    follow: Follow, server: ScriptedServer
) -> None:
    class BadStore(Store):
        async def read(self, key: RecordKey) -> Any:
            raise Damaged("a file is not what was written")

    with pytest.raises(Damaged):
        async with Connection("ws://hub/", job="j1", store=BadStore(), network=server.network):
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
    record = await store.read(key("j2", "http://hub:80/jobs/ws/progress"))
    assert record is not None
    assert dict(record.parameters) == {"url": "ws://hub./jobs/ws/progress"}
    async with Connection(job="j2", store=store, network=server.network) as line:
        await line.wait_for(State.CONNECTED)
        job.complete(RESULT)
        await line.result()
    asked = [(request.method, request.target) for request in server.requests if request.call is None]
    assert asked[0] == asked[-1] == ("GET", "/jobs/api/job-state/j2")
