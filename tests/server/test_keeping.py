"""A hub deletes nothing that it cannot prove to be its own and out of date."""

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from towline.server import Hub, HubStorageError, JobContext, Lifetimes, Upload
from towline.server._files import RESULT_FILE
from towline.server._keeping import DAY, Clock, look_at_clock
from towline.server.log._base import Change, EventLog, Job, Missing
from towline.server.log._sqlite import SqliteLog

pytestmark = pytest.mark.anyio

LARGE = {"text": "å" * 300_000}
MakeHub = Callable[..., Hub]


class ShiftedHub(Hub):
    """A hub whose clock is ahead."""

    ahead = 0.0

    def now(self) -> int:
        return Hub.now() + round(self.ahead * 1000)


def add_jobs(hub: Hub) -> None:
    @hub.job("large")
    async def large(context: JobContext, upload: Upload) -> dict[str, Any]:
        return LARGE

    @hub.job("endless")
    async def endless(context: JobContext, upload: Upload) -> None:
        await context.progress(1)
        await anyio.sleep_forever()


@pytest.fixture(params=["sqlite", "redis"])
def make_hub(request: pytest.FixtureRequest, tmp_path: Path) -> MakeHub:
    """Make hubs on one log, or on another one by its name."""
    prefix = uuid.uuid4().hex

    def make(name: str = "hub", files: Path = tmp_path / "files", **options: Any) -> Hub:
        if request.param == "redis":
            options["prefix"] = f"{prefix}-{name}"
            database: Any = request.getfixturevalue("redis_url")
        else:
            database = tmp_path / f"{name}.db"
        hub = ShiftedHub(database, files=files, **options)
        add_jobs(hub)
        return hub

    return make


async def ended(log: EventLog, job_id: str) -> Job:
    with anyio.fail_after(20), log.subscribe(job_id) as bell:
        while True:
            job = await log.job(job_id)
            assert isinstance(job, Job)
            if not job.running:
                return job
            await bell.wait_ring()


async def with_large_result(hub: Hub) -> str:
    """Run a job to its end, whose result is in a file."""
    async with hub:
        started = await hub.start("large", b"hello")
        await ended(hub.log, started.job_id)
        await until(lambda: not (hub.directory(started.job_id) / "upload").exists())
    return started.job_id


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - files are watched
            await anyio.sleep(0.01)


async def test_another_database_with_the_same_folder_is_refused(make_hub: MakeHub, tmp_path: Path) -> None:
    """Its uploads would be orphans to the other."""
    hub = make_hub()
    async with hub:
        started = await hub.start("endless", b"hello")
        other = make_hub("other")
        with pytest.raises(HubStorageError, match="name the database that belongs to it"):
            async with other:
                pass
        assert (hub.directory(started.job_id) / "upload").read_bytes() == b"hello"
    elsewhere = make_hub("other", tmp_path / "others")
    async with elsewhere:
        await elsewhere.start("endless", b"hello")
    with pytest.raises(HubStorageError, match="belongs to another database"):
        async with make_hub("other"):
            pass


async def test_an_empty_database_deletes_no_results(make_hub: MakeHub, tmp_path: Path) -> None:
    job_id = await with_large_result(make_hub())
    (tmp_path / "files" / "hub-id").unlink()  # a folder of before there were ids
    with pytest.raises(HubStorageError, match="the files of 1 jobs: name the database"):
        async with make_hub("new"):
            pass
    assert (tmp_path / "files" / job_id / RESULT_FILE).exists()


async def test_a_folder_that_is_not_mounted_is_refused_and_found_again(make_hub: MakeHub, tmp_path: Path) -> None:
    job_id = await with_large_result(make_hub())
    (tmp_path / "files").rename(tmp_path / "not mounted")
    (tmp_path / "files").mkdir()
    with pytest.raises(HubStorageError, match="mount it") as refusal:
        async with make_hub():
            pass
    assert not list((tmp_path / "files").iterdir())
    (tmp_path / "files").rmdir()
    (tmp_path / "not mounted").rename(tmp_path / "files")
    async with make_hub():
        assert (tmp_path / "files" / job_id / RESULT_FILE).exists()
    # What the sentence says to do for the case that the files are lost works.
    shutil.rmtree(tmp_path / "files")
    (tmp_path / "files").mkdir()
    identity = refusal.value.problem.partition("write ")[2].partition(" ")[0]
    (tmp_path / "files" / "hub-id").write_text(identity)
    async with make_hub() as hub:
        assert isinstance(await hub.log.job(job_id), Job)


async def test_a_folder_that_goes_away_costs_no_job(make_hub: MakeHub, tmp_path: Path) -> None:
    """Jobs wait for it, uploads are refused, health says so, and all is well when it is back."""
    files = tmp_path / "files"
    hub = make_hub(lifetimes=Lifetimes(lease=0.2))
    async with hub:
        started = await hub.start("endless", b"hello")
    files.rename(tmp_path / "away")
    hub = make_hub(lifetimes=Lifetimes(lease=0.2))
    with pytest.raises(HubStorageError, match="mount it"):
        async with hub:
            pass
    (tmp_path / "away").rename(files)
    hub = make_hub(lifetimes=Lifetimes(lease=0.2))
    transport = httpx.ASGITransport(hub)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        files.rename(tmp_path / "away")
        assert (await client.get("/healthz")).status_code == 503
        with pytest.raises(OSError, match="not the one"):
            await hub.start("large", b"hello")
        (tmp_path / "away").rename(files)
        assert (await client.get("/healthz")).status_code == 200
        large = await hub.start("large", b"hello")
        assert (await ended(hub.log, large.job_id)).status == "complete"
        job = await hub.log.job(started.job_id)
        assert isinstance(job, Job)
        assert job.running


async def test_hubs_on_one_redis_with_two_folders_do_not_take_each_others_uploads(
    redis_url: str, tmp_path: Path
) -> None:
    prefix = uuid.uuid4().hex
    one = Hub(redis_url, prefix=prefix, files=tmp_path / "one", lifetimes=Lifetimes(lease=0.1))
    add_jobs(one)
    async with one:
        two = Hub(redis_url, prefix=prefix, files=tmp_path / "two", lifetimes=Lifetimes(lease=0.1))
        add_jobs(two)
        with pytest.raises(HubStorageError, match="not the one that this database was used with"):
            async with two:
                pass
        started = await one.start("endless", b"hello")
    async with Hub(redis_url, prefix=prefix, files=tmp_path / "one") as three:
        job = await three.log.job(started.job_id)
        assert isinstance(job, Job)
        assert job.running


async def test_hubs_that_start_at_once_agree_on_the_folder(redis_url: str, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex

    async def run(files: Path, refused: list[str]) -> None:
        try:
            async with Hub(redis_url, prefix=prefix, files=files):
                await anyio.sleep(0.5)
        except HubStorageError as error:
            refused.append(str(error))

    for folders, fail in ((["same"] * 4, 0), (["same", "other"], 1)):
        refused: list[str] = []
        async with anyio.create_task_group() as tasks:
            for folder in folders:
                tasks.start_soon(run, tmp_path / folder, refused)
        assert len(refused) == fail


async def test_orphans_stay_in_the_trash_for_a_day(make_hub: MakeHub, tmp_path: Path) -> None:
    files = tmp_path / "files"
    async with make_hub():
        pass
    orphan = files / ("0" * 32)
    orphan.mkdir()
    (orphan / RESULT_FILE).write_text("{}")
    long_ago = time.time() - 3 * DAY / 1000
    os.utime(orphan, (long_ago, long_ago))
    async with make_hub():
        assert not orphan.exists()
    [kept] = (files / "trash").iterdir()
    assert (kept / RESULT_FILE).read_text() == "{}"
    hub = make_hub()
    hub.ahead = 20 * 3600  # type: ignore[attr-defined]
    async with hub:
        assert kept.exists()
    for hours in (40, 60):  # in steps, as a clock goes
        hub = make_hub()
        hub.ahead = hours * 3600  # type: ignore[attr-defined]
        async with hub:
            pass
    assert not kept.exists()


async def test_a_clock_that_is_ahead_deletes_nothing(make_hub: MakeHub, tmp_path: Path) -> None:
    job_id = await with_large_result(make_hub())
    for days in (30, 30.5, 0, 30):
        hub = make_hub()
        hub.ahead = days * 24 * 3600  # type: ignore[attr-defined]
        async with hub:
            await until_housekeeping(hub)
            assert isinstance(await hub.log.job(job_id), Job)
            assert (tmp_path / "files" / job_id / RESULT_FILE).exists()
        if days == 30.5:
            async with make_hub() as right:  # the clock is right again
                await until_housekeeping(right)


async def until_housekeeping(hub: Hub) -> None:
    """Wait until the hub has looked at everything once: an ended job of the right age goes."""
    old = Job(id=uuid.uuid4().hex, pipeline="p", owner="", epoch="e", created=0)
    await hub.log.create(old, None)
    await hub.log.append(old.id, "job_complete", b"{}", 0, Change(outcome=b"{}"))
    await hub._clean()  # one round, as every ten minutes
    if (await hub.log.note("clock") or "").partition(" ")[2] == "":
        assert await hub.log.job(old.id) is Missing.GONE


async def test_a_clock_that_shows_the_new_time_for_a_day_is_believed(make_hub: MakeHub) -> None:
    """So a hub that was stopped for a month removes what is out of date a day after its start."""
    job_id = await with_large_result(make_hub())
    for days, gone in ((30, False), (30.9, False), (31.1, True)):
        hub = make_hub()
        hub.ahead = days * 24 * 3600  # type: ignore[attr-defined]
        async with hub:
            await hub._clean()
            assert (await hub.log.job(job_id) is Missing.GONE) is gone
            if gone:
                await until(lambda hub=hub: not hub.directory(job_id).exists())
            else:
                assert hub.directory(job_id).exists()


def test_the_clock_in_steps() -> None:
    clock = Clock(1000)
    assert clock.look(1000 + DAY) == Clock(1000 + DAY)
    assert clock.look(5) == Clock(5)  # set back
    doubted = clock.look(1001 + DAY)
    assert doubted == Clock(1000, 1001 + DAY)
    assert doubted.look(1001 + DAY + DAY - 1) == doubted
    assert doubted.look(1001 + DAY + DAY) == Clock(1001 + DAY + DAY)
    assert doubted.look(2000) == Clock(2000)  # it was wrong
    assert doubted.look(1001 + DAY - 1) == Clock(1001 + DAY - 1)
    late = Clock(1000, 30 * DAY)
    assert late.look(20 * DAY) == Clock(1000, 20 * DAY)


async def test_a_log_of_before_there_was_a_clock_is_doubted_first(tmp_path: Path) -> None:
    async with SqliteLog(tmp_path / "hub.db") as log:
        await log.create(Job(id="j", pipeline="p", owner="", epoch="e", created=1), None)
        assert await look_at_clock(log, 40 * DAY) == 0
        assert await look_at_clock(log, 41 * DAY) == 41 * DAY


async def test_a_lost_result_is_said(make_hub: MakeHub, tmp_path: Path) -> None:
    """The URL in the outcome is that of this very call: a client would ask forever."""
    job_id = await with_large_result(make_hub(base_path="/jobs"))
    hub = make_hub()
    transport = httpx.ASGITransport(hub)
    async with hub, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        grant = await hub.tokens.grant(job_id)
        headers = {"authorization": f"Bearer {grant.token.reveal()}"}
        answer = await client.get(f"/api/jobs/{job_id}/results", headers=headers)
        assert answer.json()["text"] == LARGE["text"]
        shutil.rmtree(tmp_path / "files" / job_id)
        answer = await client.get(f"/api/jobs/{job_id}/results", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "result_lost")


async def test_a_database_that_lost_its_id_is_tidied_no_more(make_hub: MakeHub) -> None:
    """Somebody has emptied Redis: no job is known, and no file may go for that."""
    hub = make_hub()
    async with hub:
        started = await hub.start("endless", b"hello")
        await hub.log.keep_note("files", "another", replace=True)
        with pytest.raises(HubStorageError, match="restart the hub"):
            await hub._tidy_up(Hub.now() + 10 * DAY)
        assert hub.directory(started.job_id).exists()
