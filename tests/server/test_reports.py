"""Workers elsewhere report by HTTP: each report once, the error to who caused it, and nothing lost for others."""

import json
import logging
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from msgspec import UNSET

from towline import InvalidArgument
from towline.server import Hub, HubLimits, JobContext, Lifetimes, Upload
from towline.server._keeping import Silences
from towline.server.log._base import Job
from towline.server.log._drafts import progressed
from towline.server.web._answers import Refusal
from towline.server.web.reports._reading import check_repeated

pytestmark = pytest.mark.anyio

RAW = {"content-type": "application/octet-stream"}


class Worker:
    """A worker that reports on one job, and what it needs to look at the job as others do."""

    def __init__(self, http: httpx.AsyncClient, hub: Hub, started: dict[str, Any], token: str) -> None:
        self.http, self.hub = http, hub
        self.job, self.follower = started["jobId"], started["token"]
        self.token = token

    async def send(self, body: Any, token: str | None = None) -> httpx.Response:
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"authorization": f"Bearer {self.token if token is None else token}"}
        return await self.http.post(f"/api/jobs/{self.job}/events", content=content, headers=headers)

    async def accepted(self, **report: Any) -> dict[str, Any]:
        answer = await self.send(report)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, body: Any, token: str | None = None) -> tuple[int, str]:
        answer = await self.send(body, token)
        assert answer.json()["error"]["message"]
        return answer.status_code, answer.json()["error"]["code"]

    async def log(self) -> list[tuple[int, str, dict[str, Any]]]:
        events = await self.hub.log.read(self.job, 0, 100)
        return [(event.seq, event.type, json.loads(event.payload)) for event in events]

    async def types(self) -> list[str]:
        return [kind for _, kind, _ in await self.log()]


Start = Callable[[], Any]


@pytest.fixture(params=["sqlite", "redis"])
def make_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Hub]:
    def make(silent_for: float | None = None, **options: Any) -> Hub:
        if request.param == "redis":
            url = request.getfixturevalue("redis_url")
            hub = Hub(url, prefix=uuid.uuid4().hex, files=tmp_path / "files", **options)
        else:
            hub = Hub(tmp_path / "hub.db", **options)

        @hub.dispatch("far", path="/start", silent_for=silent_for)
        async def send(job_id: str, upload: Upload) -> None:
            pass

        @hub.job("near", path="/near")
        async def near(context: JobContext, upload: Upload) -> None:
            await anyio.sleep_forever()

        return hub

    return make


def calling(hub: Hub) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(hub), base_url="http://127.0.0.1")


async def begin(http: httpx.AsyncClient, hub: Hub) -> Worker:
    started = (await http.post("/start", content=b"x", headers=RAW)).json()
    return Worker(http, hub, started, (await hub.worker_token(started["jobId"])).reveal())


@pytest.fixture
async def worker(make_hub: Callable[..., Hub]) -> AsyncIterator[Worker]:
    hub = make_hub()
    async with hub, calling(hub) as http:
        yield await begin(http, hub)


async def test_a_whole_job_and_each_report_twice(worker: Worker) -> None:
    reports: list[dict[str, Any]] = [
        {"number": 1, "type": "job_started", "totalCount": 4, "estimatedDuration": 2.5},
        {"number": 2, "type": "job_progress", "processedCount": 1, "currentItem": "one", "checkpoint": {"at": [1]}},
        {"number": 3, "type": "job_progress", "processedCount": 4, "totalCount": 8, "status": "half"},
        {"number": 4, "type": "job_complete", "result": {"books": 4}},
    ]
    for report in reports:
        first = await worker.accepted(**report)
        assert await worker.accepted(**report) == first
        assert first["number"] == report["number"]
    assert [(seq, kind) for seq, kind, _ in await worker.log()] == [(r["number"], r["type"]) for r in reports]
    payloads = [payload for _, _, payload in await worker.log()]
    assert (payloads[1]["progress"], payloads[1]["currentItem"], payloads[1]["processedCount"]) == (0.25, "one", 1)
    assert (payloads[2]["progress"], payloads[2]["status"]) == (0.5, "half")
    assert payloads[3]["books"] == 4
    for report in reports:  # however late: also one whose share of the total would be another now
        assert await worker.accepted(**report) == {
            "jobId": worker.job,
            "number": 4,
            "status": "complete",
            "processedCount": 4,
        }
    assert len(await worker.log()) == 4


async def test_the_next_worker_goes_on_from_the_checkpoint(worker: Worker) -> None:
    assert (await worker.accepted(type="keep_alive"))["number"] == 0
    await worker.accepted(number=1, type="job_progress", processedCount=38, checkpoint={"row": 38})
    assert await worker.accepted(type="keep_alive") == {
        "jobId": worker.job,
        "number": 1,
        "status": "running",
        "processedCount": 38,
        "checkpoint": {"row": 38},
    }
    assert len(await worker.log()) == 1


async def test_of_two_workers_the_later_one_is_told(worker: Worker) -> None:
    await worker.accepted(number=1, type="job_progress", processedCount=1)
    await worker.accepted(number=2, type="job_progress", processedCount=2, currentItem="mine")
    assert await worker.refused({"number": 2, "type": "job_progress", "processedCount": 2}) == (409, "wrong_number")
    assert await worker.refused({"number": 1, "type": "job_started"}) == (409, "wrong_number")
    assert await worker.refused({"number": 4, "type": "job_progress", "processedCount": 3}) == (409, "wrong_number")
    assert await worker.refused({"number": 3, "type": "job_progress", "processedCount": 1}) == (409, "count_below")
    assert (await worker.accepted(number=3, type="job_progress", processedCount=3))["number"] == 3


async def test_both_workers_at_the_same_moment(worker: Worker) -> None:
    """Each number is one event, whoever comes first, and the other one hears of it."""
    answers: list[int] = []

    async def one(name: str) -> None:
        for number in range(1, 11):
            body = {"number": number, "type": "job_progress", "processedCount": number, "currentItem": name}
            answers.append((await worker.send(body)).status_code)

    async with anyio.create_task_group() as tasks:
        for name in "ab":
            tasks.start_soon(one, name)
    log = await worker.log()
    assert [payload["processedCount"] for _, _, payload in log] == list(range(1, 11))
    assert sorted(answers) == [200] * 10 + [409] * 10


async def test_a_report_after_the_end(worker: Worker) -> None:
    await worker.accepted(number=1, type="job_progress", processedCount=1)
    assert await worker.hub.cancel(worker.job) == "accepted"
    assert (await worker.accepted(number=1, type="job_progress", processedCount=1))["status"] == "canceled"
    for late in (
        {"number": 2, "type": "job_progress", "processedCount": 2},
        {"number": 3, "type": "job_complete"},
        {"type": "keep_alive"},
    ):
        assert await worker.refused(late) == (409, "ended")
    assert await worker.types() == ["job_progress", "job_canceled"]


async def test_another_end_is_refused(worker: Worker) -> None:
    long = "x" * HubLimits().inline_result
    end = {"number": 1, "type": "job_complete", "result": {"text": long}}
    await worker.accepted(**end)
    await worker.accepted(**end)
    other = end | {"result": {"text": long + "y"}}
    assert await worker.refused(other) == (409, "ended")  # although both messages only say where the result is
    headers = {"authorization": f"Bearer {worker.follower}"}
    result = await worker.http.get(f"/api/jobs/{worker.job}/results", headers=headers)
    assert result.json() == {"pipeline": "far", "text": long}


async def test_a_failure_with_its_reason(worker: Worker) -> None:
    await worker.accepted(number=1, type="error", code="NO_DISK", message="full", details=[1], retryable=True)
    [(_, kind, payload)] = await worker.log()
    assert kind == "error"
    assert payload == {"type": "error", "code": "NO_DISK", "message": "full", "details": [1], "retryable": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"number": 1, "type": "job_complete", "result": ' + b'{"a":' * 50_000,
        {"type": "job_progress", "processedCount": 1},
        {"number": 0, "type": "job_progress", "processedCount": 1},
        {"number": 1.5, "type": "job_progress", "processedCount": 1},
        {"number": "1", "type": "job_progress", "processedCount": 1},
        {"number": 2**60, "type": "job_progress", "processedCount": 1},
        {"number": 1, "type": "job_progress"},
        {"number": 1, "type": "job_progress", "processedCount": -1},
        {"number": 1, "type": "job_progress", "processedCount": 2**64},
        {"number": 1, "type": "job_progress", "procesedCount": 1, "processedCount": 1},
        {"number": 1, "type": "job_progress", "processedCount": 1, "currentItem": 5},
        {"number": 2, "type": "job_started"},
        {"number": 1, "type": "job_started", "estimatedDuration": -1},
        b'{"number": 1, "type": "job_started", "estimatedDuration": 1e999}',
        b'{"number": 1, "type": "job_started", "estimatedDuration": NaN}',
        {"number": 1, "type": "job_canceled"},
        {"number": 1, "type": "ping"},
        {"number": 1, "type": "job_complete", "result": [1]},
        {"number": 1, "type": "job_complete", "result": {"resultUrl": "/elsewhere"}},
        {"number": 1, "type": "error", "code": "X"},
        {"number": 1, "type": "keep_alive"},
    ],
    ids=lambda body: str(body)[:40],
)
async def test_malformed_reports(worker: Worker, body: Any) -> None:
    assert await worker.refused(body) == (400, "bad_report")
    assert await worker.log() == []
    await worker.accepted(number=1, type="job_complete")


async def test_an_oversized_report(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(limits=HubLimits(report=1000))
    async with hub, calling(hub) as http:
        worker = await begin(http, hub)
        large = {"number": 1, "type": "job_progress", "processedCount": 1, "currentItem": "x" * 1000}
        answer = await worker.send(large)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"
        assert await worker.log() == []
        await worker.accepted(number=1, type="job_progress", processedCount=1, currentItem="x" * 600)
        [(_, _, payload)] = await worker.log()
        assert len(payload["currentItem"]) == 500


async def test_a_worker_that_reports_too_often_slows_only_itself(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(limits=HubLimits(reports=5, calls=5))
    async with hub, calling(hub) as http:
        one, other = await begin(http, hub), await begin(http, hub)
        for number in range(1, 6):
            await one.accepted(number=number, type="job_progress", processedCount=number)
        answer = await one.send({"number": 6, "type": "job_progress", "processedCount": 6})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "12")
        await other.accepted(number=1, type="job_progress", processedCount=1)
        for _ in range(5):  # calls without a good token take nothing from the worker, and its reports nothing from them
            assert (await other.send({"type": "keep_alive"}, token="wrong")).status_code == 401
        await other.accepted(number=2, type="job_progress", processedCount=2)
        headers = {"authorization": f"Bearer {one.follower}"}
        assert (await http.get(f"/api/job-state/{one.job}", headers=headers)).json()["processedCount"] == 5


async def test_each_token_is_for_one_purpose(worker: Worker) -> None:
    other = await begin(worker.http, worker.hub)
    keep_alive = {"type": "keep_alive"}
    for token in ("", "nonsense", worker.follower, other.token, other.follower):
        assert await worker.refused(keep_alive, token) == (401, "unauthorized")
    for path in ("/api/job-state/{}", "/api/jobs/{}/events", "/api/jobs/{}/results"):
        headers = {"authorization": f"Bearer {worker.token}"}
        assert (await worker.http.get(path.format(worker.job), headers=headers)).status_code == 401
    asked = {"jobId": worker.job, "oldToken": worker.token}
    assert (await worker.http.post("/api/token/refresh", json=asked)).status_code == 401
    assert (await worker.http.post(f"/api/jobs/{worker.job}/cancel", headers=headers)).status_code == 401
    assert await worker.types() == []
    worker.job = "nope"
    assert await worker.refused(keep_alive) == (401, "unauthorized")


async def test_a_wrong_token_costs_no_look_into_the_log(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await worker.accepted(number=1, type="job_progress", processedCount=1)

    async def never(*args: Any) -> Any:
        raise AssertionError("the log was asked")

    with monkeypatch.context() as patch:
        for name in ("job", "token", "read", "append_all", "keep_note"):
            patch.setattr(worker.hub.log, name, never)
        assert await worker.refused({"type": "keep_alive"}, "wrong") == (401, "unauthorized")
    await worker.accepted(number=2, type="job_progress", processedCount=2)


async def test_a_count_without_a_total_is_no_fraction(worker: Worker) -> None:
    await worker.accepted(number=1, type="job_progress", processedCount=5)
    await worker.accepted(number=2, type="job_progress", processedCount=5, totalCount=20)
    assert [payload["progress"] for _, _, payload in await worker.log()] == [None, 0.25]


async def test_a_number_that_came_too_early_is_no_count_below(worker: Worker) -> None:
    """Between the refusal by the log and the look for its reason another worker may have filled the gap."""
    await worker.accepted(number=1, type="job_progress", processedCount=1)
    job = await worker.hub.log.job(worker.job)
    assert isinstance(job, Job)
    for count, code in ((5, "wrong_number"), (0, "count_below")):
        with pytest.raises(Refusal) as refused:
            await check_repeated(worker.hub.log, job, 2, progressed(count, None, None, "", UNSET))
        assert refused.value.code == code


async def test_a_token_is_for_jobs_of_workers_elsewhere(worker: Worker) -> None:
    started = (await worker.http.post("/near", content=b"x", headers=RAW)).json()
    for job_id in ("nope", started["jobId"]):
        with pytest.raises(InvalidArgument, match="handed to workers"):
            await worker.hub.worker_token(job_id)


async def test_control_signs_are_only_text(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    item = "a\x1b[2J\n\x00\u202e\u2028"
    await worker.accepted(number=1, type="job_progress", processedCount=1, currentItem=item, status=item)
    [(_, _, payload)] = await worker.log()
    assert (payload["currentItem"], payload["status"]) == (item, item)
    listed = await worker.http.get("/api/jobs")
    assert listed.json()["jobs"][0]["currentItem"] == item
    assert b"\x1b" not in listed.content
    worker.job = "%1b[2J%0a"
    assert (await worker.send({"type": "keep_alive"})).status_code == 401  # as a wrong token
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[2J"])
def test_the_name_of_a_pipeline_is_printable(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="printable"):
        Hub(tmp_path / "hub.db").dispatch(name)(lambda job_id, upload: anyio.sleep(1))


async def test_a_report_to_a_hub_that_stops_is_sent_again_later(worker: Worker) -> None:
    await worker.hub.drain()
    answer = await worker.send({"number": 1, "type": "job_complete"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_script_of_the_documentation(tmp_path: Path, serving: Any, eventually: Any) -> None:
    """curl and sh report as docs/hub.md says, on the real server, and a second run of the script goes on."""
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
    script = page.partition("```sh\n#!/bin/sh\n")[2].partition("```")[0]
    tokens: dict[str, str] = {}
    hub = Hub(tmp_path / "hub.db")

    @hub.dispatch("far", path="/start")
    async def send(job_id: str, upload: Upload) -> None:
        tokens[job_id] = (await hub.worker_token(job_id)).reveal()

    def run(client: Any, *files: str) -> subprocess.CompletedProcess[str]:
        variables = {"HUB": client.url, "JOB": client.job, "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            ["/bin/sh", "-c", f"read -r TOKEN\n{script}", "report", *files],
            env=variables,
            input=f"{tokens[client.job]}\n",
            capture_output=True,
            text=True,
            timeout=120,
        )

    with serving(hub) as client:
        client.start(b"x", "/start", content_type="application/octet-stream")
        eventually(lambda: client.job in tokens)
        (tmp_path / "a").write_text("1")
        (tmp_path / "b").write_text("2")
        done = run(client, str(tmp_path / "a"), str(tmp_path / "b"))
        assert done.returncode == 0, done.stderr
        events = client.follow().events
        assert [event["type"] for event in events] == ["job_started", *["job_progress"] * 2, "job_complete"]
        assert [event["seq"] for event in events] == [1, 2, 3, 4]
        again = run(client, str(tmp_path / "a"))
        assert again.returncode != 0
        assert "ended" in again.stderr


# --- workers that are silent -------------------------------------------------------------------------------------


def running(job_id: str, pipeline: str = "far", **fields: Any) -> Job:
    return Job(id=job_id, pipeline=pipeline, owner="o", epoch="e", created=5, **fields)


def test_a_silence_is_measured_from_the_last_sign() -> None:
    silences = Silences({"far": 10}, between=30)
    sign = running("j", seq=1, updated=5)
    other = [running("waits", attempts=1), running("near", "near", seq=1, updated=5)]
    assert silences.find([sign, *other], 100) == []  # however old the sign is by its own time
    assert silences.find([sign, *other], 109) == []
    assert silences.find([sign, *other], 110) == [sign]
    assert silences.find([running("j", seq=2, updated=5)], 111) == []  # an event
    assert silences.find([running("j", seq=2, updated=6)], 120) == []  # a keep-alive
    assert silences.find([running("j", seq=2, updated=6)], 129) == []
    assert silences.find([running("j", seq=2, updated=6)], 130) != []
    silences.forget()
    assert silences.find([running("j", seq=2, updated=6)], 131) == []
    assert silences.find([], 132) == []
    assert silences.find([running("j", seq=2, updated=6)], 200) == []


def test_a_time_in_which_the_hub_stood_still_is_no_silence() -> None:
    silences = Silences({"far": 10}, between=4)
    sign = running("j", seq=1, updated=5)
    assert silences.find([sign], 100) == []
    assert silences.find([sign], 104) == []
    assert silences.find([sign], 300) == []
    assert [silences.find([sign], now) for now in (304, 308)] == [[], []]
    assert silences.find([sign], 312) == [sign]


async def test_a_sign_since_the_look_saves_the_job(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(silent_for=60)
    async with hub, calling(hub) as http:
        worker = await begin(http, hub)
        await worker.accepted(number=1, type="job_progress", processedCount=38)
        seen = await hub.log.job(worker.job)
        await hub.log.touch(worker.job, hub.now() + 1)
        await hub._end_silent(seen)
        job = await hub.log.job(worker.job)
        assert isinstance(job, Job)
        assert job.running
        await hub._end_silent(job)
        assert len(await worker.log()) == 2


async def test_a_silent_worker_is_lost_and_a_live_one_is_not(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(silent_for=0.5, lifetimes=Lifetimes(lease=0.04))
    async with hub, calling(hub) as http:
        silent, live, waiting = [await begin(http, hub) for _ in range(3)]
        for worker in (silent, live):
            await worker.accepted(number=1, type="job_progress", processedCount=38)

        async def keep_alive() -> None:
            while True:
                await live.accepted(type="keep_alive")
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_alive)
            with hub.log.subscribe(silent.job) as bell, anyio.fail_after(20):
                while len(await silent.log()) == 1:
                    await bell.wait_ring()
            tasks.cancel_scope.cancel()
        assert (await silent.log())[1][2] == {
            "type": "error",
            "code": "WORKER_LOST",
            "message": "the worker was silent for 0.5 seconds",
            "retryable": True,
        }
        assert await silent.refused({"number": 2, "type": "job_progress", "processedCount": 39}) == (409, "ended")
        assert await live.types() == ["job_progress"]
        assert await waiting.types() == []
        await live.accepted(number=2, type="job_complete")


async def test_a_time_for_silence_is_above_zero(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="silent_for"):
        Hub(tmp_path / "hub.db").dispatch("far", silent_for=0)


# --- many jobs ---------------------------------------------------------------------------------------------------


async def test_ten_thousand_jobs(tmp_path: Path) -> None:
    """The list holds the newest, and looking for jobs to run starts nothing for those that workers have."""
    hub = Hub(tmp_path / "hub.db", lifetimes=Lifetimes(lease=1000))
    hub.dispatch("far")(lambda job_id, upload: anyio.sleep(1))
    async with hub, calling(hub) as http:

        async def create(first: int) -> None:
            for number in range(first, 10_000, 50):
                job = Job(id=f"j{number}", pipeline="far", owner="local", epoch="e", created=number, updated=5)
                await hub.log.create(job, None)

        async with anyio.create_task_group() as tasks:
            for first in range(50):
                tasks.start_soon(create, first)
        listed = (await http.get("/api/jobs")).json()["jobs"]
        assert [job["jobId"] for job in listed] == [f"j{number}" for number in range(9999, 9799, -1)]
        assert len(await hub._runner.resume(hub._running())) == 10_000
        assert hub.statistics().jobs_at_work == 0
