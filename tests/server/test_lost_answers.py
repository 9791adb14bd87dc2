"""Redis did what it was asked, and the link broke before it could say so: nothing is told twice, no upload is lost."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from towline.server import Hub, HubStorageError, JobContext, Lifetimes, Upload, _hub
from towline.server._statistics import Counters
from towline.server.log._base import Entry, Job, Request
from towline.testing import FaultProxy

pytest.importorskip("redis", reason="the redis extra is not installed")

from towline.server.log._redis import RedisLog
from towline.server.log._redis_store import RedisStore
from towline.server.reporter import Reporter

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(redis_port_process: Any) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", int(redis_port_process.url.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: FaultProxy) -> str:
    """Of Redis, by the way that loses answers."""
    return f"redis://127.0.0.1:{proxy.port}"


@pytest.fixture
async def store(redis_port_process: Any, url: str) -> AsyncIterator[RedisStore]:
    """The same Redis, by the straight way."""
    with contextlib.closing(RedisStore(redis_port_process.url)) as store:
        for job in ("warm", "j"):
            store.create(Job(id=job, pipeline="p", owner="o", epoch="e", created=5), None)
        store.append("warm", "error", b"{}", 5, None)  # Redis knows the scripts from now on
        yield store


async def cut_when(proxy: FaultProxy, done: Callable[[], bool]) -> None:
    """Cut the links when Redis has done what it was asked; the answer is still on its way."""
    while not done():  # noqa: ASYNC110 - another process does it
        await anyio.sleep(0.005)
    await proxy.cut("rst")
    await proxy.heal()


async def test_what_a_worker_tells_again_is_told_once(proxy: FaultProxy, url: str, store: RedisStore) -> None:
    def written(before: int) -> bool:
        return len(store.read("j", 0, 9)) > before

    with await anyio.to_thread.run_sync(Reporter.from_url, url, "j") as reporter:
        calls: list[Callable[[], None]] = [
            lambda: reporter.start(3),
            lambda: reporter.progress(1, item="a", checkpoint=1),
            lambda: reporter.progress(2),
            reporter.complete,
        ]
        for call in calls:
            proxy.black_hole("down")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cut_when, proxy, partial(written, len(store.read("j", 0, 9))))
                with pytest.raises(HubStorageError):
                    await anyio.to_thread.run_sync(call)
            await anyio.to_thread.run_sync(call)
    types = [event.type for event in store.read("j", 0, 9)]
    assert types == ["job_started", "job_progress", "job_progress", "job_complete"]


class LossyLog(RedisLog):
    """A log whose first answer to a batch is lost: a proxy cannot tell it from the answers that lead up to it."""

    batches = 0

    async def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        written = await super().append_all(job_id, entries)
        self.batches += 1
        if self.batches == 1:
            raise HubStorageError("redis: TimeoutError")
        return written


async def test_a_hub_begins_a_job_once(redis_process: Any, tmp_path: Path) -> None:
    async with LossyLog(redis_process.url) as log:
        job = await log.create(Job(id="j", pipeline="p", owner="o", epoch="e", created=5), None)
        context = JobContext(log, job, tmp_path, 1, Counters(), lambda: 6)
        async with context.writing():
            await context.start(3)
            await context.wait_kept()
            await context.progress(1, checkpoint=1)
            await context.progress(2)
        types = [event.type for event in await log.read("j", 0, 9)]
    assert types == ["job_started", "job_progress", "job_progress"]


class LossyStart(RedisLog):
    """A log whose first answer to a new job is lost. A proxy cannot: the hub asks other things first."""

    jobs = 0

    async def create(self, job: Job, request: Request | None) -> Job:
        kept = await super().create(job, request)
        self.jobs += 1
        if self.jobs == 1:
            raise HubStorageError("redis: TimeoutError")
        return kept


async def test_a_start_that_is_asked_again_finds_its_upload(
    redis_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub, "_open_log", lambda url, prefix, replicas: LossyStart(url))
    hub = Hub(redis_process.url, files=tmp_path, lifetimes=Lifetimes(lease=0.2))

    @hub.job("echo", path="/start")
    async def run(context: JobContext, upload: Upload) -> dict[str, str]:
        return {"text": upload.path.read_text()}

    headers = {"idempotency-key": "once", "content-type": "application/octet-stream"}
    transport = httpx.ASGITransport(hub)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        assert (await client.post("/start", content=b"hello again")).status_code == 503
        answer = await client.post("/start", content=b"hello again")
        job_id = answer.json()["jobId"]
        with hub.log.subscribe(job_id) as bell:
            while not (events := await hub.log.read(job_id, 0, 9)):
                await bell.wait_ring()
    assert json.loads(events[-1].payload) == {"type": "job_complete", "pipeline": "echo", "text": "hello again"}
