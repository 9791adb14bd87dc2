"""The primary Redis is killed under load and its replica takes over: what followers saw is the log, once."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import websockets.exceptions
from websockets.asyncio.client import connect

from towline.server.log._redis_store import RedisStore
from towline.testing import FaultProxy

redis = pytest.importorskip("redis", reason="the redis extra is not installed")

JOBS = 4
FOLLOWERS = 3
HUB = """
import sys
from pathlib import Path
import anyio
from towline.server import Hub, HubLimits, Lifetimes, serve
limits = HubLimits(calls=100_000, running_jobs=100, idle_attempts=1000, behind=600)
hub = Hub(sys.argv[1], files=Path(sys.argv[2]), replicas=1, limits=limits, lifetimes=Lifetimes(lease=4))

@hub.job("count", path="/start")
async def count(context, upload):
    done = context.checkpoint or 0
    while not Path(sys.argv[2], "end").exists():
        done += 1
        await context.progress(done, item=str(done), checkpoint=done if done % 20 == 0 else context.checkpoint)
        await anyio.sleep(0.005)
    return {"last": done}

serve(port=0, hub=hub)
"""


class Follower:
    """A client that comes back until the end, as docs/wire.md says."""

    def __init__(self, url: str, job: dict[str, str]) -> None:
        self.job = job["jobId"]
        self.seen: list[dict[str, Any]] = []
        self._url = url.replace("http", "ws", 1) + f"/ws/progress?jobId={self.job}"
        self._headers = {"authorization": f"Bearer {job['token']}"}

    @property
    def has_ended(self) -> bool:
        return bool(self.seen) and self.seen[-1]["type"] != "job_progress" and self.seen[-1]["seq"] > 1

    async def run(self) -> None:
        while not self.has_ended:
            with contextlib.suppress(OSError, EOFError, websockets.exceptions.WebSocketException):
                async with connect(self._url, additional_headers=self._headers, proxy=None) as socket:
                    cursor = {name: self.seen[-1][name] for name in ("epoch", "seq")} if self.seen else {}
                    await socket.send(json.dumps({"type": "ready", **cursor}))
                    acknowledged = False
                    async for message in socket:
                        frame = json.loads(message)
                        acknowledged = acknowledged or frame["type"] == "ready_ack"
                        if "seq" in frame and (acknowledged or frame["seq"] > cursor.get("seq", 0)):
                            self.seen.append(frame)
            await anyio.sleep(0.1)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    with anyio.fail_after(seconds):
        while not await holds():  # noqa: ASYNC110 - other processes do it
            await anyio.sleep(0.02)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def replicate(new: Any, primary: Any) -> None:
    """Make a server the replica of the primary, and wait until it is."""

    def is_linked() -> bool:
        with contextlib.closing(redis.Redis.from_url(new.url)) as client:
            return client.info("replication").get("master_link_status") == "up"

    def ask() -> None:
        with contextlib.closing(redis.Redis.from_url(new.url)) as client:
            client.replicaof("127.0.0.1", port_of(primary.url))

    await anyio.to_thread.run_sync(ask)
    await until(partial(anyio.to_thread.run_sync, is_linked))


def promote(server: Any) -> None:
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        client.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def running_hub(url: str, files: Path) -> AsyncIterator[str]:
    arguments = [sys.executable, "-c", HUB, url, str(files)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - it is short
        assert process.stdout is not None
        try:
            yield (await anyio.to_thread.run_sync(process.stdout.readline)).split()[-1]
        finally:
            process.kill()


def as_text(payload: dict[str, Any]) -> str:
    return json.dumps(payload, sort_keys=True)


def wrong_in(store: RedisStore, follower: Follower) -> list[str]:
    """What is lost, doubled or ends wrong in what one follower saw."""
    log = [(e.seq, e.epoch, e.type, as_text(json.loads(e.payload))) for e in store.read(follower.job, 0, 1_000_000)]
    seen = [(e["seq"], e["epoch"], e["type"], as_text(e["payload"])) for e in follower.seen]
    wrong = [f"lost: {event}" for event in sorted({*log} - {*seen})]
    wrong += [f"not in the log: {event}" for event in sorted({*seen} - {*log})]
    if [event[0] for event in seen] != list(range(1, len(seen) + 1)):
        wrong.append("out of order, or doubled")
    if [event[2] for event in seen].count("job_complete") != 1 or seen[-1][2] != "job_complete":
        wrong.append("no right end")
    return wrong


async def run_failovers(kills: int, redis_server: Callable[[], Any], files: Path, chance: random.Random) -> list[str]:
    """Kill the primary so often, each time in the middle of the load; all that is wrong afterwards."""
    primary, replica = redis_server(), redis_server()
    await replicate(replica, primary)
    async with (
        FaultProxy("127.0.0.1", port_of(primary.url)) as proxy,
        running_hub(f"redis://127.0.0.1:{proxy.port}", files) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
        anyio.create_task_group() as tasks,
    ):
        headers = {"content-type": "application/octet-stream"}
        jobs = [(await client.post("/start", content=b"x", headers=headers)).json() for _ in range(JOBS)]
        followers = [Follower(url, job) for job in jobs for _ in range(FOLLOWERS)]
        for follower in followers:
            tasks.start_soon(follower.run)

        async def all_go_on(reached: list[int]) -> bool:
            return all(len(follower.seen) > before + 5 for follower, before in zip(followers, reached, strict=True))

        for _ in range(kills):
            await until(partial(all_go_on, [len(follower.seen) for follower in followers]))
            await anyio.sleep(chance.random() * 0.1)
            await anyio.to_thread.run_sync(primary.stop)
            await anyio.to_thread.run_sync(promote, replica)
            proxy.target = ("127.0.0.1", port_of(replica.url))
            await anyio.to_thread.run_sync(primary.start)
            await replicate(primary, replica)
            primary, replica = replica, primary
        await until(partial(all_go_on, [len(follower.seen) for follower in followers]))
        (files / "end").touch()
    with contextlib.closing(RedisStore(primary.url)) as store:
        return [wrong for follower in followers for wrong in wrong_in(store, follower)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_primary_is_killed_and_its_replica_takes_over(redis_server: Any, tmp_path: Path) -> None:
    seed = time.time_ns() % 10**6
    assert await run_failovers(2, redis_server, tmp_path, random.Random(seed)) == [], seed
