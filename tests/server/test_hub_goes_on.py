"""No error of the hub's own work, or of a job's function, ends the hub."""

import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from towline.server import Hub, HubStorageError, JobContext, Lifetimes, Upload
from towline.server.log._base import Job

pytestmark = pytest.mark.anyio


class Crash(BaseException):
    """What a library might raise that is no `Exception`."""


async def exits() -> None:
    sys.exit(3)


async def crashes() -> None:
    raise Crash


async def exits_in_a_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exits)
        tasks.start_soon(anyio.sleep_forever)


async def crashes_in_a_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crashes)
        tasks.start_soon(anyio.sleep_forever)


async def raises_a_group() -> None:
    raise BaseExceptionGroup("both", [Crash(), ValueError("a bug")])


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(20):
        while not await holds():  # noqa: ASYNC110 - the hub's own tasks do it
            await anyio.sleep(0.01)


async def is_in(hub: Hub, job_id: str, status: str) -> bool:
    job = await hub.log.job(job_id)
    return isinstance(job, Job) and job.status == status


@pytest.mark.parametrize("function", [exits, crashes, exits_in_a_group, crashes_in_a_group, raises_a_group])
async def test_whatever_a_function_raises_ends_only_its_job(
    tmp_path: Path, anyio_backend_name: str, function: Callable[[], Awaitable[None]]
) -> None:
    if function is exits_in_a_group and anyio_backend_name == "asyncio":
        pytest.skip("asyncio itself ends the loop if any task raises SystemExit")
    hub = Hub(tmp_path / "hub.db")

    @hub.job("odd")
    async def odd(context: JobContext, upload: Upload) -> None:
        await function()

    @hub.job("good")
    async def good(context: JobContext, upload: Upload) -> None:
        pass

    async with hub:
        for pipeline, status in (("odd", "failed"), ("good", "complete")):
            started = await hub.start(pipeline, b"hello")
            await until(lambda started=started, status=status: is_in(hub, started.job_id, status))


@pytest.mark.parametrize("in_group", [False, True])
async def test_a_job_that_is_stopped_has_not_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_group: bool
) -> None:
    """A function may well raise something while it is stopped; the next hub runs it again."""
    running = anyio.Event()

    async def work() -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            raise OSError("the connection it used is closed")

    def add_job(hub: Hub) -> Hub:
        @hub.job("endless")
        async def endless(context: JobContext, upload: Upload) -> None:
            if in_group:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    tasks.start_soon(anyio.sleep_forever)
            else:
                await work()

        return hub

    async with add_job(Hub(tmp_path / "hub.db")) as hub:
        started = await hub.start("endless", b"hello")
        await running.wait()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    running = anyio.Event()
    async with add_job(Hub(tmp_path / "hub.db")) as hub:
        await running.wait()
        assert await is_in(hub, started.job_id, "running")


class BrokenHub(Hub):
    """A hub whose log raises for once what no log should."""

    def break_once(self, name: str, error: Exception) -> None:
        call = getattr(self.log, name)

        async def broken(*args: Any, **kwargs: Any) -> Any:
            setattr(self.log, name, call)
            raise error

        setattr(self.log, name, broken)


@pytest.mark.parametrize("error", [ValueError("unforeseen"), HubStorageError("the disk is full")])
@pytest.mark.parametrize("call", ["unfinished", "remove_ended", "claim", "count_attempt", "read", "append_all"])
async def test_an_error_of_the_log_is_tried_again(tmp_path: Path, call: str, error: Exception) -> None:
    hub = BrokenHub(tmp_path / "hub.db", lifetimes=Lifetimes(lease=0.05, result=0.4))

    @hub.job("good")
    async def good(context: JobContext, upload: Upload) -> None:
        await context.progress(1)

    # A value that no log can take is the job's failure; whatever else goes wrong once is not.
    end = "error" if (call, type(error)) == ("append_all", ValueError) else "job_complete"
    async with hub:
        hub.break_once(call, error)
        started = await hub.start("good", b"hello")
        with anyio.fail_after(20):
            while not hub.statistics().jobs_ended.get(end):  # noqa: ASYNC110 - the hub's own tasks do it
                await anyio.sleep(0.01)
        await until(lambda: gone(hub, started.job_id))


async def gone(hub: Hub, job_id: str) -> bool:
    return not isinstance(await hub.log.job(job_id), Job)
