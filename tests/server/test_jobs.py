"""What a job's function tells, on its way to the log."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pytest

from towline.server import HubStorageError, JobContext
from towline.server._statistics import Counters
from towline.server.log._base import Entry, Job
from towline.server.log._sqlite import SqliteLog

pytestmark = pytest.mark.anyio


class HeldLog(SqliteLog):
    """A log that writes when its test lets it, and may fail."""

    def __init__(self, database: Path) -> None:
        super().__init__(database)
        self.open = anyio.Event()
        self.failures = 0  # still to come
        self.batches: list[int] = []

    async def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        await self.open.wait()
        self.batches.append(len(entries))
        if self.failures:
            self.failures -= 1
            raise HubStorageError("the disk is full")
        return await super().append_all(job_id, entries)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[HeldLog]:
    async with HeldLog(tmp_path / "hub.db") as log:
        await log.create(Job(id="j", pipeline="p", owner="", epoch="e", created=1), None)
        yield log


async def context_of(log: HeldLog, tmp_path: Path, counters: Counters | None = None) -> JobContext:
    job = await log.job("j")
    assert isinstance(job, Job)
    return JobContext(log, job, tmp_path, 1, counters or Counters(), lambda: 2)


async def counts(log: HeldLog) -> list[int | None]:
    return [msgspec.json.decode(event.payload).get("processedCount") for event in await log.read("j", 0, 10_000)]


async def test_progress_does_not_wait_for_the_disk_and_shares_its_writes(log: HeldLog, tmp_path: Path) -> None:
    context = await context_of(log, tmp_path)
    async with context.writing():
        for done in range(1, 101):
            await context.progress(done)
        log.open.set()
    assert sum(log.batches) == 101
    assert len(log.batches) <= 3
    assert await counts(log) == [None, *range(1, 101)]


async def test_a_checkpoint_is_on_disk_when_the_call_returns(log: HeldLog, tmp_path: Path) -> None:
    context = await context_of(log, tmp_path)
    async with context.writing():
        await context.progress(1)
        async with anyio.create_task_group() as tasks:
            returned = anyio.Event()

            async def tell() -> None:
                await context.progress(2, checkpoint="two")
                returned.set()

            tasks.start_soon(tell)
            await anyio.wait_all_tasks_blocked()
            assert not returned.is_set()
            log.open.set()
        assert (await context_of(log, tmp_path)).checkpoint == "two"


async def test_what_waits_for_the_log_is_bounded(log: HeldLog, tmp_path: Path) -> None:
    context = await context_of(log, tmp_path)
    async with context.writing():
        told = 0
        async with anyio.create_task_group() as tasks:

            async def tell() -> None:
                nonlocal told
                for done in range(1, 601):
                    await context.progress(done)
                    told = done

            tasks.start_soon(tell)
            await anyio.wait_all_tasks_blocked()
            assert 200 < told < 300
            log.open.set()
    assert await counts(log) == [None, *range(1, 601)]


async def test_what_was_told_is_written_though_the_job_is_cancelled(log: HeldLog, tmp_path: Path) -> None:
    context = await context_of(log, tmp_path)
    with anyio.CancelScope() as scope:
        async with context.writing():
            await context.progress(1)
            await context.progress(2)
            log.open.set()
            scope.cancel()
            await anyio.sleep_forever()
    assert await counts(log) == [None, 1, 2]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_job_that_is_stopped_may_still_report(log: HeldLog, tmp_path: Path, in_thread: bool) -> None:
    """Shielded, or from a thread, which no cancellation stops: a report that waited forever would hold up the hub."""
    log.open.set()
    context = await context_of(log, tmp_path)

    async def report() -> None:
        with anyio.fail_after(10, shield=True):
            await context.progress(2, checkpoint="two")

    with anyio.CancelScope() as scope:
        async with context.writing():
            await context.progress(1, checkpoint="one")
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                await (anyio.to_thread.run_sync(anyio.from_thread.run, report) if in_thread else report())
    assert await counts(log) == [None, 1, 2]
    assert (await context_of(log, tmp_path)).checkpoint == "two"


async def test_what_a_job_left_behind_reports_to_nobody(log: HeldLog, tmp_path: Path) -> None:
    """A thread that was abandoned, say: it would wait forever, and it would hold what it reports."""
    log.open.set()
    context = await context_of(log, tmp_path)
    async with context.writing():
        await context.progress(1)
    with anyio.fail_after(10):
        for done in range(2, 400):
            await context.progress(done)
        await context.progress(400, checkpoint="late")
    assert await counts(log) == [None, 1]


async def test_a_log_that_fails_does_not_fail_the_job(log: HeldLog, tmp_path: Path) -> None:
    log.failures = 1000
    log.open.set()
    counters = Counters()
    context = await context_of(log, tmp_path, counters)
    async with context.writing():
        await context.progress(1, checkpoint=1)
        failed, log.failures = 1000 - log.failures, 0
        await context.progress(2, checkpoint=2)
    assert await counts(log) == [None, 2]
    assert counters.log_failures == failed > 0


async def test_a_count_is_whole(log: HeldLog, tmp_path: Path) -> None:
    """Another would be kept, and then be a state that some logs cannot read again and no client takes."""
    log.open.set()
    context = await context_of(log, tmp_path)
    async with context.writing():
        for call in (context.start(3.7), context.progress(0.5), context.progress(1, 3.7)):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await call
    assert await counts(log) == []


async def test_the_beginning_is_told_with_the_first_event_that_is_kept(log: HeldLog, tmp_path: Path) -> None:
    """The log fails for the beginning alone, while the next event is on its way already."""
    context = await context_of(log, tmp_path)
    log.failures = 1
    async with context.writing():
        await context.start(2)
        await anyio.wait_all_tasks_blocked()
        await context.progress(1)
        log.open.set()
        await context.progress(2)
    assert [event.type for event in await log.read("j", 0, 10)] == ["job_started", "job_progress", "job_progress"]
