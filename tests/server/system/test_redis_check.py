"""A hub checks its Redis: it notices what breaks without an error, says so, and works again without a restart."""

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from towline import InvalidArgument
from towline.server import Hub, HubStorageError
from towline.server.log._base import Event, Job
from towline.testing import FaultProxy

pytest.importorskip("redis", reason="the redis extra is not installed")

import redis

from towline.server.log import _redis
from towline.server.log._redis import RedisLog
from towline.server.reporter import Reporter

pytestmark = pytest.mark.anyio

RunRedis = Callable[[], Any]


@pytest.fixture(autouse=True)
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis, "_CHECK_EVERY", 0.1)
    monkeypatch.setattr(_redis, "_CHECK_AGAIN", 0.1)
    monkeypatch.setattr(_redis, "_HEAR_WITHIN", 0.5)


@pytest.fixture
async def proxy(redis_port_process: Any) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", port_of(redis_port_process.url)) as proxy:
        yield proxy


@pytest.fixture
def admin(redis_port_process: Any) -> Iterator[redis.Redis]:
    """A connection of the operator, not through the proxy."""
    with contextlib.closing(redis.Redis.from_url(redis_port_process.url)) as client:
        yield client


@pytest.fixture
def replica(redis_server: Any) -> Any:
    """A second server, which a test makes a replica or a primary."""
    return redis_server()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def url_of(proxy: FaultProxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


async def healthy(log: RedisLog) -> bool:
    try:
        await log.check()
    except HubStorageError:
        return False
    return True


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(20):
        while not await holds():  # noqa: ASYNC110 - another process does it
            await anyio.sleep(0.02)


async def failed(log: RedisLog) -> bool:
    return not await healthy(log)


async def next_event(log: RedisLog, after: int) -> Event:
    """Wait for the job's next event as a socket does: read, then wait for the bell."""
    with anyio.fail_after(20), log.subscribe("j") as bell:
        while not (events := await log.read("j", after, 1)):
            await bell.wait_ring()
        return events[0]


def job() -> Job:
    return Job(id="j", pipeline="p", owner="o", epoch="e", created=5)


async def append(log: RedisLog) -> Event | None:
    return await log.append("j", "job_progress", b"{}", 7)


async def test_a_half_open_subscription_is_noticed_and_replaced(
    proxy: FaultProxy, redis_port_process: Any, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing arrives on it and no error says so, while all calls work. A follower gets the events all the same."""

    async def subscribed() -> bool:
        return await anyio.to_thread.run_sync(lambda: len(admin.client_list(_type="pubsub")) == 1)

    async with RedisLog(url_of(proxy)) as log:
        await log.create(job(), None)
        await until(subscribed)
        await until(lambda: healthy(log))
        # From here on the calls, and the next subscription, have another way to the server than this subscription.
        log._store._make_pool = partial(redis.ConnectionPool.from_url, redis_port_process.url)
        log._store.reconnect()
        with log.subscribe("j") as bell, anyio.fail_after(20):
            assert await append(log)
            while not await log.read("j", 0, 9):
                await bell.wait_ring()
            proxy.black_hole()
            assert await append(log)
            while not (events := await log.read("j", 1, 9)):
                await bell.wait_ring()
            assert [event.seq for event in events] == [2]
            await until(lambda: healthy(log))
    assert [record.levelname for record in caplog.records if "the log" in record.message] == ["ERROR", "WARNING"]


async def test_no_answer_from_redis_is_noticed_and_recovers(proxy: FaultProxy) -> None:
    async with RedisLog(url_of(proxy)) as log:
        await log.create(job(), None)
        proxy.black_hole()
        await until(lambda: failed(log))
        await proxy.heal()
        await until(lambda: healthy(log))
        assert (await append(log) or job()).seq == 1
        assert (await next_event(log, 0)).seq == 1


async def test_a_demoted_primary_is_left_for_the_new_one(proxy: FaultProxy, admin: redis.Redis, replica: Any) -> None:
    """The address leads to the new primary. Links to the old one stay open and answer READONLY."""
    async with RedisLog(url_of(proxy)) as log:
        await log.create(job(), None)
        assert await append(log)
        with contextlib.closing(redis.Redis.from_url(replica.url)) as new:
            old = admin.connection_pool.connection_kwargs
            new.replicaof(old["host"], old["port"])
            await until(lambda: anyio.to_thread.run_sync(lambda: bool(new.exists("towline:job:j"))))
            new.replicaof("NO", "ONE")
            admin.replicaof("127.0.0.1", port_of(replica.url))
            proxy.target = ("127.0.0.1", port_of(replica.url))
            await until(lambda: healthy(log))
            await until(lambda: writes(log))
            kept = await next_event(log, 1)
            assert kept.seq == 2
            assert new.xlen("towline:events:j") >= 2


async def writes(log: RedisLog) -> bool:
    try:
        return await append(log) is not None
    except HubStorageError:
        return False


async def test_a_demoted_primary_without_another_is_said_and_recovers(
    proxy: FaultProxy, admin: redis.Redis, replica: Any, tmp_path: Path
) -> None:
    hub = Hub(url_of(proxy), files=tmp_path)
    transport = httpx.ASGITransport(hub)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        async def health(status: int) -> bool:
            return (await client.get("/healthz")).status_code == status

        assert await health(200)
        admin.replicaof("127.0.0.1", port_of(replica.url))
        await until(lambda: health(503))
        admin.replicaof("NO", "ONE")
        await until(lambda: health(200))


async def test_a_reporter_leaves_a_demoted_primary(
    proxy: FaultProxy, admin: redis.Redis, replica: Any, redis_port_process: Any
) -> None:
    """A worker has no check. The first READONLY makes it reconnect, so that telling it again works."""
    async with RedisLog(redis_port_process.url) as log:
        await log.create(job(), None)
    with contextlib.closing(redis.Redis.from_url(replica.url)) as new:
        with await anyio.to_thread.run_sync(Reporter.from_url, url_of(proxy), "j") as reporter:
            await anyio.to_thread.run_sync(reporter.start, 3)
            new.replicaof("127.0.0.1", port_of(redis_port_process.url))
            await until(lambda: anyio.to_thread.run_sync(lambda: bool(new.exists("towline:job:j"))))
            new.replicaof("NO", "ONE")
            admin.replicaof("127.0.0.1", port_of(replica.url))
            proxy.target = ("127.0.0.1", port_of(replica.url))
            with pytest.raises(HubStorageError, match="ReadOnlyError"):
                await anyio.to_thread.run_sync(reporter.progress, 1)
            await anyio.to_thread.run_sync(reporter.progress, 1)
        assert new.xlen("towline:events:j") == 2


async def test_a_user_who_may_not_publish_is_refused_at_the_start(redis_port_process: Any, admin: redis.Redis) -> None:
    admin.execute_command("ACL SETUSER hub on >word ~towline:* +@all resetchannels")
    url = redis_port_process.url.replace("://", "://hub:word@")
    with pytest.raises(HubStorageError, match="&towline:\\*") as refusal:
        async with RedisLog(url):
            pass
    assert "word" not in str(refusal.value).replace("password", "")
    admin.execute_command("ACL SETUSER hub &towline:*")
    async with RedisLog(url) as log:
        assert await healthy(log)


async def test_a_write_that_cannot_be_published_leaves_nothing(redis_port_process: Any, admin: redis.Redis) -> None:
    admin.execute_command("ACL SETUSER hub on >word ~towline:* +@all &towline:*")
    async with RedisLog(redis_port_process.url.replace("://", "://hub:word@")) as log:
        await log.create(job(), None)
        admin.execute_command("ACL SETUSER hub resetchannels")
        await until(lambda: failed(log))
        with pytest.raises(HubStorageError, match="NoPermissionError"):
            await append(log)
        kept = await log.job("j")
        assert isinstance(kept, Job)
        assert kept.seq == admin.xlen("towline:events:j") == 0
        admin.execute_command("ACL SETUSER hub &towline:*")
        await until(lambda: healthy(log))
        assert (await append(log) or job()).seq == 1


async def test_redis_is_full(redis_port_process: Any, admin: redis.Redis) -> None:
    async with RedisLog(redis_port_process.url) as log:
        await log.create(job(), None)
        admin.config_set("maxmemory", "1mb")
        await until(lambda: failed(log))
        with pytest.raises(HubStorageError, match="OutOfMemoryError"):
            await append(log)
        admin.config_set("maxmemory", "0")
        await until(lambda: healthy(log))
        assert (await append(log) or job()).seq == 1


async def test_redis_is_killed_and_comes_back(redis_port_process: Any) -> None:
    async with RedisLog(redis_port_process.url) as log:
        await log.create(job(), None)
        await anyio.to_thread.run_sync(redis_port_process.stop)
        await until(lambda: failed(log))
        await anyio.to_thread.run_sync(redis_port_process.start)
        await until(lambda: healthy(log))
        assert (await append(log) or job()).seq == 1
        assert (await next_event(log, 0)).seq == 1


async def test_an_event_is_shown_only_when_a_replica_has_it(
    redis_port_process: Any, admin: redis.Redis, replica: Any
) -> None:
    async def has_replica() -> bool:
        return bool(await anyio.to_thread.run_sync(lambda: admin.wait(1, 100)))

    admin.config_set("repl-diskless-sync-delay", 0)
    with pytest.raises(HubStorageError, match="0 of 1 replicas"):
        async with RedisLog(redis_port_process.url, replicas=1):
            pass
    with contextlib.closing(redis.Redis.from_url(replica.url)) as new:
        new.replicaof("127.0.0.1", port_of(redis_port_process.url))
        await until(has_replica)
        async with RedisLog(redis_port_process.url, replicas=1) as log:
            await log.create(job(), None)
            assert await append(log)
            assert (await next_event(log, 0)).seq == 1
            new.replicaof("NO", "ONE")
            with pytest.raises(HubStorageError, match="0 of 1 replicas"):
                await log.keep_note("key", "ours", replace=False)
            with log.subscribe("j") as bell:
                assert await append(log)  # it is written, and nobody sees it
                with pytest.raises(HubStorageError, match="0 of 1 replicas"):
                    while not await log.read("j", 1, 9):
                        await bell.wait_ring()
            await until(lambda: failed(log))
            new.replicaof("127.0.0.1", port_of(redis_port_process.url))
            await until(lambda: healthy(log))
            assert (await next_event(log, 1)).seq == 2


async def test_a_foreign_message_on_the_channel_is_skipped(redis_port_process: Any, admin: redis.Redis) -> None:
    async with RedisLog(redis_port_process.url) as log:
        await log.create(job(), None)
        for channel in ("towline:events", "towline:arrivals"):
            admin.publish(channel, b"\xc1 not msgpack")
        await append(log)
        assert (await next_event(log, 0)).seq == 1
        await anyio.sleep(0.3)
        assert await healthy(log)


@pytest.mark.parametrize(("policy", "warned"), [("noeviction", False), ("allkeys-lru", True)])
async def test_a_server_that_evicts_keys_is_warned_of(
    redis_port_process: Any, admin: redis.Redis, caplog: pytest.LogCaptureFixture, policy: str, warned: bool
) -> None:
    admin.config_set("maxmemory-policy", policy)
    async with RedisLog(redis_port_process.url):
        pass
    assert ("set it to noeviction" in caplog.text) is warned
    assert caplog.records == [] or {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_hubs_with_different_prefixes_are_two_hubs(redis_url: str, tmp_path: Path) -> None:
    one, two = uuid.uuid4().hex, uuid.uuid4().hex
    hub = Hub(redis_url, files=tmp_path / "1", prefix=one)

    @hub.dispatch("far")
    async def send(job_id: str, upload: object) -> None:
        pass

    async with hub, Hub(redis_url, files=tmp_path / "2", prefix=two) as other:
        started = await hub.start("far", b"hello")
        assert isinstance(await hub.log.job(started.job_id), Job)
        assert not isinstance(await other.log.job(started.job_id), Job)
        with pytest.raises(InvalidArgument):
            await anyio.to_thread.run_sync(lambda: Reporter.from_url(redis_url, started.job_id, prefix=two))
        with await anyio.to_thread.run_sync(
            lambda: Reporter.from_url(redis_url, started.job_id, prefix=one)
        ) as reporter:
            await anyio.to_thread.run_sync(reporter.complete)


def test_a_prefix_is_for_redis(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="SQLite"):
        Hub(tmp_path / "hub.db", prefix="mine")
    with pytest.raises(InvalidArgument, match="SQLite"):
        Hub(tmp_path / "hub.db", replicas=1)
