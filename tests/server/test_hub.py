"""The hub over real sockets: exact replay, tokens, refusals, cancel, large results, uploads."""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_process
import pytest

import towline.blocking
from towline import ForbiddenRequest
from towline.server import Hub, HubLimits, HubStorageError, JobContext, JobFailure, Lifetimes, Upload, read_events
from towline.server.pipelines._csv_import import MEDIA_TYPES, csv_import
from towline.server.web.calls import _pages

ROWS = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(30))


class Gate:
    """A job that counts to ten and then waits for its test to let it end."""

    all: ClassVar[dict[str, "Gate"]] = {}

    def __init__(self) -> None:
        self.open = False
        self.stopped = False
        self.name = f"gate {len(self.all)}"
        self.all[self.name] = self


async def waiting(context: JobContext, upload: Upload) -> dict[str, Any]:
    gate = Gate.all[upload.path.read_text()]
    for done in range(1, 11):
        await context.progress(done, 10, f"item {done}")
    try:
        while not gate.open:  # noqa: ASYNC110 - set from another thread
            await anyio.sleep(0.005)
    except anyio.get_cancelled_exc_class():
        gate.stopped = True
        raise
    return {"said": gate.name}


async def large(context: JobContext, upload: Upload) -> dict[str, Any]:
    return {"text": "å" * 300_000}


async def linked(context: JobContext, upload: Upload) -> dict[str, Any]:
    return {"resultUrl": "https://files.example/report.pdf"}


async def listing(context: JobContext, upload: Upload) -> Any:
    return [1, 2]


async def failing(context: JobContext, upload: Upload) -> None:
    raise JobFailure("NO_GOOD", "it is no good", details={"why": [1]}, retryable=True)


async def blocking(context: JobContext, upload: Upload) -> None:
    """Tell a process's id, and hold it with work that looks at nothing."""
    pid = await anyio.to_process.run_sync(os.getpid)
    await context.progress(1, item=str(pid))
    await anyio.to_process.run_sync(time.sleep, 600, cancellable=True)


async def absurd(context: JobContext, upload: Upload) -> None:
    await context.progress(2**70)


async def broken(context: JobContext, upload: Upload) -> None:
    raise ZeroDivisionError("secret words")


async def failing_without_json(context: JobContext, upload: Upload) -> None:
    raise JobFailure("NO_GOOD", "it is no good", details=object())


async def exiting(context: JobContext, upload: Upload) -> None:
    sys.exit(3)


async def cancelling_itself(context: JobContext, upload: Upload) -> None:
    task = asyncio.ensure_future(asyncio.sleep(600))
    task.cancel()
    await task


async def replacing_its_folder(context: JobContext, upload: Upload) -> None:
    shutil.rmtree(context.directory)
    context.directory.write_text("not a folder")
    raise ZeroDivisionError


async def failing_over_a_name(context: JobContext, upload: Upload) -> None:
    raise JobFailure("NO_GOOD", "no such file: \udcff")


ODD = (failing_without_json, exiting, cancelling_itself, replacing_its_folder)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open = True


class ShiftedHub(Hub):
    """A hub whose clock a test can set forward."""

    ahead = 0.0

    def now(self) -> int:
        return Hub.now() + round(self.ahead * 1000)


def make_hub(folder: Path, **options: Any) -> ShiftedHub:
    options = {"limits": HubLimits(upload=100_000, ready_wait=0.3, starts=10_000)} | options
    hub = ShiftedHub(folder / "hub.db", **options)
    hub.job("csv_import", path="/api/imports/csv", media_types=MEDIA_TYPES)(csv_import())
    for function in (large, linked, listing, failing, broken, absurd, waiting, blocking, *ODD, failing_over_a_name):
        hub.job(function.__name__, path=f"/start/{function.__name__}")(function)
    return hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def url(folder: Path, serving: Any) -> Iterator[str]:
    """One hub for all tests that need nothing special."""
    with serving(make_hub(folder)) as client:
        yield client.url


@pytest.fixture
def client(url: str, client_of: Any) -> Iterator[Any]:
    with client_of(url) as client:
        yield client


def start(client: Any, name: str, gate: Gate | None = None) -> None:
    body = gate.name.encode() if gate else b"hello"
    assert client.start(body, f"/start/{name}", content_type="application/octet-stream").status_code == 202


def test_a_csv_is_followed_to_its_end(client: Any, folder: Path) -> None:
    client.start(ROWS)
    seen = client.follow()
    assert seen.code == 1000
    assert seen.ack["from"] == 1
    assert seen.seqs == list(range(1, 33))
    assert [event["type"] for event in seen.events] == ["job_started", *["job_progress"] * 30, "job_complete"]
    assert seen.events[-1]["payload"]["successRate"] == "30/30"
    assert seen.events[-1]["payload"]["type"] == "job_complete"
    logged = read_events(folder / "hub.db", client.job)
    assert [(e.seq, e.epoch, e.type, e.payload) for e in logged] == [
        (e["seq"], e["epoch"], e["type"], e["payload"]) for e in seen.events
    ]


def test_a_late_client_gets_everything(client: Any, eventually: Any) -> None:
    client.start(ROWS)
    eventually(lambda: client.state()["status"] == "complete")
    seen = client.follow()
    assert (seen.ack["from"], seen.ack["to"]) == (1, 32)
    assert seen.seqs == list(range(1, 33))


def test_a_cursor_is_gone_on_from(client: Any, gate: Gate, ready: Any, following: Any) -> None:
    start(client, "waiting", gate)
    with client.socket() as socket:
        ready(socket)
        first = following(socket, lambda frame: frame["seq"] == 7)
    with client.socket() as socket:
        ready(socket, first.cursor)
        rest = following(socket, lambda frame: frame["seq"] == 11)
        assert rest.ack["from"] == 8
        gate.open = True
        end = following(socket)
    assert first.seqs + rest.seqs + end.seqs == list(range(1, 13))
    assert end.events[-1]["payload"]["said"] == gate.name


@pytest.mark.parametrize("cursor", [{"epoch": "another", "seq": 5}, {"epoch": "another"}, {}])
def test_a_cursor_of_another_epoch_begins_anew(client: Any, cursor: dict[str, Any]) -> None:
    client.start(ROWS)
    client.follow()  # to the end, so that the log has an event 5
    seen = client.follow(cursor)
    assert seen.ack["from"] == 1
    assert seen.seqs == list(range(1, 33))


def test_a_cursor_beyond_the_log_begins_anew(client: Any) -> None:
    client.start(ROWS)
    epoch = client.follow().events[0]["epoch"]
    assert client.follow({"epoch": epoch, "seq": 1000}).ack["from"] == 1


def test_a_cursor_at_the_end_gets_nothing_more_and_a_close(client: Any, ready: Any, gate: Gate, following: Any) -> None:
    start(client, "waiting", gate)
    gate.open = True
    end = client.follow()
    with client.socket() as socket:
        ready(socket, end.cursor)
        ack = json.loads(socket.recv(timeout=120))
        assert (ack["from"], ack["to"]) == (13, 12)
        assert following(socket).code == 1000


def test_a_silent_client_gets_everything_without_an_acknowledgement(client: Any, following: Any) -> None:
    client.start(ROWS)
    with client.socket() as socket:
        seen = following(socket)
    assert seen.ack == {}
    assert seen.seqs == list(range(1, 33))


@pytest.mark.parametrize("cursor", [{}, {"seq": 2}, {"epoch": "another", "seq": 2}, {"seq": 100}])
def test_a_client_that_speaks_late_is_told_nothing_twice(
    client: Any, gate: Gate, ready: Any, following: Any, cursor: dict[str, Any]
) -> None:
    """Its `ready` finds events under way, from the first on: the hub goes on from there."""
    start(client, "waiting", gate)
    with client.socket() as socket:
        early = following(socket, lambda frame: frame["seq"] == 11)
        assert (early.ack, early.seqs) == ({}, list(range(1, 12)))
        ready(socket, cursor and {"epoch": early.cursor["epoch"], **cursor})
        ack = json.loads(socket.recv(timeout=120))
        assert (ack["type"], ack["from"], ack["to"]) == ("ready_ack", 12, 11)
        gate.open = True
        assert following(socket).seqs == [12]


def test_a_silent_job_has_a_heartbeat(tmp_path: Path, gate: Gate, serving: Any, ready: Any, following: Any) -> None:
    """Pings between the events, as many as the silence is long, and none of them is an event."""
    with serving(make_hub(tmp_path, limits=HubLimits(heartbeat=0.05))) as client:
        start(client, "waiting", gate)
        with client.socket() as socket:
            ready(socket)
            pings = 0
            while pings < 3:
                frame = json.loads(socket.recv(timeout=120))
                pings += frame["type"] == "ping"
                assert ("seq" in frame) == (frame["type"] not in {"ping", "ready_ack"})
            gate.open = True
            assert following(socket).code == 1000


def test_several_watchers_see_the_same(client: Any, gate: Gate, ready: Any, following: Any) -> None:
    start(client, "waiting", gate)
    with client.socket() as one, client.socket() as two:
        for socket in (one, two):
            ready(socket)
        gate.open = True
        first, second = following(one), following(two)
    assert first.events == second.events
    assert first.seqs == list(range(1, 13))


def test_the_state_holds_its_events(client: Any, gate: Gate, ready: Any, following: Any) -> None:
    start(client, "waiting", gate)
    with client.socket() as socket:
        ready(socket)
        following(socket, lambda frame: frame["seq"] == 11)
        state = client.state()
        assert (state["seq"], state["status"], state["processedCount"], state["totalCount"]) == (11, "running", 10, 10)
        assert state["currentItem"] == "item 10"
        gate.open = True
        end = following(socket).events[-1]
    state = client.state()
    assert (state["seq"], state["status"], state["epoch"]) == (12, "complete", end["epoch"])
    assert state["results"] == {key: value for key, value in end["payload"].items() if key != "type"}


# --- how jobs end ----------------------------------------------------------------------------------------------


def test_a_failure_says_why(client: Any) -> None:
    start(client, "failing")
    end = client.follow().events[-1]
    expected = {"code": "NO_GOOD", "message": "it is no good", "details": {"why": [1]}, "retryable": True}
    assert end["type"] == "error"
    assert end["payload"] == {"type": "error"} | expected
    state = client.state()
    assert (state["status"], state["error"]) == ("failed", expected)


def test_a_bug_is_not_shown(client: Any) -> None:
    start(client, "broken")
    seen = client.follow()
    assert seen.events[-1]["payload"]["code"] == "INTERNAL"
    assert "secret words" not in json.dumps(seen.events)


@pytest.mark.parametrize("function", ODD)
def test_an_odd_end_is_the_jobs_failure_only(client: Any, function: Any) -> None:
    """Details that are no JSON, an exit, a cancellation of its own, a folder that is none any more."""
    start(client, function.__name__)
    assert client.follow().events[-1]["payload"]["code"] == "INTERNAL"
    assert client.http.get("/healthz").status_code == 200


def test_a_failure_may_speak_of_any_file(client: Any) -> None:
    start(client, "failing_over_a_name")
    payload = client.follow().events[-1]["payload"]
    assert (payload["code"], payload["message"]) == ("NO_GOOD", "no such file: ?")


def test_a_count_no_log_has_room_for_is_the_jobs_failure_only(client: Any) -> None:
    start(client, "absurd")
    assert client.follow().events[-1]["payload"]["code"] == "INTERNAL"
    assert client.http.get("/healthz").status_code == 200


def test_a_large_result_goes_by_url(client: Any) -> None:
    start(client, "large")
    payload = client.follow().events[-1]["payload"]
    assert payload == {"type": "job_complete", "pipeline": "large", "resultUrl": f"/api/jobs/{client.job}/results"}
    assert client.state()["results"]["resultUrl"] == payload["resultUrl"]
    response = client.http.get(payload["resultUrl"], headers=client.auth)
    assert response.json() == {"pipeline": "large", "text": "å" * 300_000}
    assert client.http.get(payload["resultUrl"]).status_code == 200  # by its owner, who is this machine
    assert client.http.get(payload["resultUrl"], headers={"x-forwarded-for": "10.0.0.1"}).status_code == 401


def test_a_result_with_a_result_url_of_its_own_is_not_taken_for_a_reference(client: Any) -> None:
    start(client, "linked")
    seen = client.follow()
    assert seen.events[-1]["payload"]["resultUrl"] == f"/api/jobs/{client.job}/results"
    url = f"{client.url.replace('http', 'ws', 1)}/ws/progress"
    with towline.blocking.Connection(url, job=client.job, token=client.token) as line:
        line.result()
        result = line.fetch_result()
    assert result == {"pipeline": "linked", "resultUrl": "https://files.example/report.pdf"}


def test_a_result_without_fields_is_the_jobs_failure_and_the_log_says_what_to_return(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    start(client, "listing")
    assert client.follow().events[-1]["payload"]["code"] == "INTERNAL"
    assert "the job's function gave a list: return a mapping" in caplog.text


def test_a_small_result_is_there_by_url_too(client: Any) -> None:
    client.start(ROWS)
    end = client.follow().events[-1]["payload"]
    response = client.http.get(f"/api/jobs/{client.job}/results", headers=client.auth)
    assert response.json() == {key: value for key, value in end.items() if key != "type"}


def test_no_result_before_the_end(client: Any, gate: Gate) -> None:
    start(client, "waiting", gate)
    response = client.http.get(f"/api/jobs/{client.job}/results", headers=client.auth)
    assert response.status_code == 409


def test_cancel_stops_the_work(client: Any, gate: Gate, ready: Any, following: Any, eventually: Any) -> None:
    start(client, "waiting", gate)
    with client.socket() as socket:
        ready(socket)
        following(socket, lambda frame: frame["seq"] == 11)
        body = {"reason": "enough"}
        answer = client.http.post(f"/api/jobs/{client.job}/cancel", headers=client.auth, json=body)
        assert answer.json() == {"jobId": client.job, "result": "accepted"}
        end = following(socket)
    assert end.code == 1000
    assert end.events[-1]["payload"] == {"type": "job_canceled", "processedCount": 10, "reason": "enough"}
    eventually(lambda: gate.stopped)
    assert client.cancel() == "accepted"
    assert client.state()["status"] == "canceled"


def test_cancel_kills_work_in_a_process(client: Any, ready: Any, following: Any, eventually: Any) -> None:
    start(client, "blocking")
    with client.socket() as socket:
        ready(socket)
        told = following(socket, lambda frame: frame["type"] == "job_progress").events[-1]
        pid = int(told["payload"]["currentItem"])
        os.kill(pid, 0)
        assert client.cancel() == "accepted"
        assert following(socket).events[-1]["type"] == "job_canceled"

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    eventually(gone)


def test_cancel_after_the_end_is_too_late(client: Any) -> None:
    client.start(ROWS)
    client.follow()
    assert client.cancel() == "too_late"
    assert client.state()["status"] == "complete"


def test_cancel_racing_the_end_has_one_winner(client: Any) -> None:
    results = set()
    for _ in range(20):
        client.start(b"title,author\na,b\n")
        answer = client.cancel()
        end = client.follow().events[-1]["type"]
        assert (answer, end) in {("accepted", "job_canceled"), ("too_late", "job_complete")}
        assert client.cancel() == answer
        results.add(answer)
    assert results  # which of them came up is the machine's luck


# --- who may -----------------------------------------------------------------------------------------------------


def test_refusals_at_the_upgrade(client: Any) -> None:
    client.start(ROWS)
    path, good = f"/ws/progress?jobId={client.job}", {"additional_headers": client.auth}
    assert client.refusal("/ws/progress", **good).status_code == 400
    assert client.refusal(path).status_code == 401
    assert client.refusal(path, additional_headers={"authorization": "Bearer nonsense"}).status_code == 401
    assert client.refusal(path + "&token=" + client.token).status_code == 401
    assert client.refusal("/ws/progress?jobId=nope").status_code == 401
    unknown = client.refusal("/ws/progress?jobId=nope", **good)
    assert unknown.status_code == 404
    assert json.loads(unknown.body)["error"]["code"] == "unknown_job"
    assert client.http.get(path, headers=client.auth).status_code == 426


def test_a_token_opens_its_own_job_only(client: Any) -> None:
    client.start(ROWS)
    first = client.job
    client.start(ROWS)
    assert client.http.get(f"/api/job-state/{first}", headers=client.auth).status_code == 401


def test_unauthorized_comes_before_unknown(client: Any) -> None:
    assert client.http.get("/api/job-state/nope").status_code == 401
    assert client.http.get("/api/job-state/nope", headers={"authorization": "Bearer x"}).status_code == 404
    assert client.http.post("/api/jobs/nope/cancel").status_code == 401


@pytest.mark.parametrize("job", ["'; DROP TABLE jobs; --", "%2e%2e%2fetc", "..", "\u202e", "a" * 5000])
def test_a_job_id_is_only_data(client: Any, job: str) -> None:
    response = client.http.get(f"/api/job-state/{job}", headers={"authorization": "Bearer x"})
    assert response.status_code in {401, 404}
    client.start(ROWS)
    assert client.follow().code == 1000


def test_a_token_by_subprotocol(client: Any, ready: Any, following: Any) -> None:
    client.start(ROWS)
    carrier = f"towline.{client.token}"
    for offered, answered in (([carrier], carrier), (["towline", carrier], "towline")):
        with client.socket(additional_headers={}, subprotocols=offered) as socket:
            assert socket.subprotocol == answered
            ready(socket)
            assert following(socket).code == 1000


def test_a_token_in_the_query_where_it_is_allowed(tmp_path: Path, serving: Any) -> None:
    with serving(make_hub(tmp_path, token_in_query=True)) as client:
        client.start(ROWS)
        assert client.refusal(f"/ws/progress?jobId={client.job}&token=x").status_code == 401
        client.job += f"&token={client.token}"
        with client.socket(additional_headers={}) as socket:
            assert socket.response.status_code == 101


def test_starting_is_for_this_machine_only(client: Any) -> None:
    assert client.start(ROWS, x_forwarded_for="10.0.0.1").status_code == 403
    assert client.start(ROWS, host="evil.example").status_code == 403
    assert client.start(ROWS, origin="https://evil.example").status_code == 403
    assert client.start(ROWS, origin=client.url).status_code == 202


def test_authorize_decides(tmp_path: Path, serving: Any) -> None:
    async def by_header(request: Any) -> str | None:
        return request.headers.get("x-user")

    with serving(make_hub(tmp_path, authorize=by_header)) as client:
        assert client.start(ROWS).status_code == 403
        assert client.start(ROWS, x_user="ann", x_forwarded_for="10.0.0.1").status_code == 202


def test_an_owner_has_a_quota(tmp_path: Path, gate: Gate, serving: Any) -> None:
    async def by_header(request: Any) -> str | None:
        return request.headers.get("x-user")

    def post(client: Any, user: str) -> Any:
        headers = {"content_type": "application/octet-stream", "x_user": user}
        return client.start(gate.name.encode(), "/start/waiting", **headers)

    with serving(make_hub(tmp_path, authorize=by_header, limits=HubLimits(jobs_of_owner=2))) as client:
        assert [post(client, "ann").status_code for _ in range(3)] == [202, 202, 429]
        assert post(client, "ann").headers["retry-after"] == "30"
        assert post(client, "bob").status_code == 202
        gate.open = True
        assert client.follow().code == 1000
        assert post(client, "bob").status_code == 202


def test_a_repeated_start_needs_no_room(tmp_path: Path, gate: Gate, serving: Any) -> None:
    """Its answer was lost, and its job is among those that the owner has."""
    with serving(make_hub(tmp_path, limits=HubLimits(jobs_of_owner=1))) as client:
        call = {"path": "/start/waiting", "content_type": "application/octet-stream"}
        assert client.start(gate.name.encode(), idempotency_key="k", **call).status_code == 202
        first = client.job
        assert client.start(gate.name.encode(), idempotency_key="k", **call).status_code == 202
        assert client.job == first
        assert client.start(gate.name.encode(), idempotency_key="another", **call).status_code == 429


def test_starts_and_calls_have_a_rate(tmp_path: Path, serving: Any) -> None:
    with serving(make_hub(tmp_path, limits=HubLimits(starts=2, calls=5))) as client:
        answers = [client.start(ROWS) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
        path = f"/api/job-state/{client.job}"
        assert [client.http.get(path, headers=client.auth).status_code for _ in range(6)] == [200] * 5 + [429]
        refused = client.refusal(f"/ws/progress?jobId={client.job}", additional_headers=client.auth)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 12


def test_a_rate_does_not_hang_on_the_wall_clock(tmp_path: Path, serving: Any) -> None:
    """A clock that is set back an hour shuts nobody out for that hour."""
    hub = make_hub(tmp_path, limits=HubLimits(starts=1000, calls=1000))
    with serving(hub) as client:
        client.start(ROWS)
        client.state()
        hub.ahead = -3600
        client.state()
        assert client.start(ROWS).status_code == 202


def test_health_and_numbers(tmp_path: Path, serving: Any) -> None:
    hub = make_hub(tmp_path, metrics=True)
    with serving(hub) as client:
        assert client.http.get("/healthz").json() == {"status": "ok"}
        client.start(ROWS)
        client.follow()
        client.refusal(f"/ws/progress?jobId={client.job}")
        numbers = client.http.get("/metrics")
        assert numbers.status_code == 200
        assert "token" not in numbers.text
        for line in (
            "towline_jobs_started_total 1.0",
            'towline_jobs_ended_total{type="job_complete"} 1.0',
            "towline_frames_sent_total 33.0",
            'towline_refusals_total{status="401"} 1.0',
            'towline_closes_total{code="1000"} 1.0',
            "towline_sockets 0.0",
        ):
            assert line in numbers.text.splitlines()
        assert client.http.get("/metrics", headers={"x-forwarded-for": "10.0.0.1"}).status_code == 403
    assert hub.statistics().jobs_at_work == 0


def test_the_page_is_for_who_may_start_jobs(tmp_path: Path, serving: Any) -> None:
    async def by_header(request: Any) -> str | None:
        return request.headers.get("x-user")

    with serving(make_hub(tmp_path, authorize=by_header)) as client:
        client.start(ROWS, x_user="ann")
        client.follow()
        ann, bob = {"x-user": "ann"}, {"x-user": "bob"}
        for path in ("/", "/api/jobs"):
            assert client.http.get(path).status_code == 403
        page = client.http.get("/", headers=ann)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in ("page.css", "page.js", "towline.js"):
            assert client.http.get(f"/{name}").status_code == 200
        [listed] = client.http.get("/api/jobs", headers=ann).json()["jobs"]
        assert (listed["jobId"], listed["status"], listed["processedCount"]) == (client.job, "complete", 30)
        assert listed["startTime"] <= listed["lastUpdate"] == listed["endTime"]
        assert client.http.get("/api/jobs", headers=bob).json() == {"jobs": [], "next": None}
        results = f"/api/jobs/{client.job}/results"
        assert client.http.get(results, headers=ann).json()["successRate"] == "30/30"
        assert client.http.get(results, headers=bob).status_code == 404
        assert client.http.get(results).status_code == 401
        assert client.http.get(results, headers=ann | {"origin": "https://evil.example"}).status_code == 403
        path = f"/api/jobs/{client.job}/token"
        assert client.http.post(path).status_code == 403
        assert client.http.post(path, headers=bob).status_code == 404
        client.token = client.http.post(path, headers=ann).json()["token"]
        assert client.follow().code == 1000


def test_the_list_of_jobs_says_why_one_ended(
    tmp_path: Path, gate: Gate, serving: Any, ready: Any, following: Any
) -> None:
    with serving(make_hub(tmp_path, limits=HubLimits(running_jobs=1))) as client:
        start(client, "failing")
        client.follow()
        start(client, "waiting", gate)
        running = client.job
        with client.socket() as socket:
            ready(socket)
            following(socket, lambda event: event["payload"].get("processedCount") == 10)
        start(client, "waiting", gate)  # its turn does not come
        path = f"/api/jobs/{client.job}/cancel"
        waits, runs, failed = client.http.get("/api/jobs").json()["jobs"]
        assert (waits["status"], waits["lastUpdate"], waits["message"]) == ("running", None, None)
        assert (runs["jobId"], runs["processedCount"], runs["lastUpdate"] > 0) == (running, 10, True)
        assert (failed["status"], failed["message"]) == ("failed", "it is no good")
        assert client.http.post(path, headers=client.auth, json={"reason": "not needed"}).json()["result"] == "accepted"
        [canceled, *_] = client.http.get("/api/jobs").json()["jobs"]
        assert (canceled["status"], canceled["message"]) == ("canceled", "not needed")
        gate.open = True


def test_the_list_of_jobs_has_pages(tmp_path: Path, serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pages, "_MOST_JOBS", 20)
    with serving(make_hub(tmp_path)) as client:
        started = []
        for _ in range(23):
            client.start(b"title,author\na,b\n")
            started.append(client.job)
        first = client.http.get("/api/jobs").json()
        second = client.http.get("/api/jobs", params={"before": first["next"]}).json()
        assert (len(first["jobs"]), second["next"]) == (20, None)
        assert sorted(job["jobId"] for job in first["jobs"] + second["jobs"]) == sorted(started)
        for before in ("x", "", "1e3.a", "99999999999999999999.a"):
            assert client.http.get("/api/jobs", params={"before": before}).status_code == 400


def test_pages_of_other_origins(tmp_path: Path, serving: Any) -> None:
    with serving(make_hub(tmp_path, origins=["https://app.example"])) as client:
        client.start(ROWS)
        path = f"/ws/progress?jobId={client.job}"
        assert client.refusal(path, additional_headers=client.auth, origin="https://evil.example").status_code == 403
        for origin in (client.url, "https://app.example"):
            with client.socket(origin=origin) as socket:
                assert socket.response.status_code == 101


@pytest.mark.parametrize("headers", [{"host": "["}, {"origin": "http://["}])
def test_an_address_that_is_none_is_refused(client: Any, headers: dict[str, str]) -> None:
    assert client.start(ROWS, **headers).status_code == 403


def test_numbers_only_where_they_are_wanted(client: Any) -> None:
    assert client.http.get("/metrics").status_code == 404


def test_a_token_is_not_on_the_disk(client: Any, folder: Path) -> None:
    client.start(ROWS)
    client.follow()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # of a job that has ended, and is tidied up just now
                assert client.token.encode() not in Path(parent, name).read_bytes()


# --- refresh -----------------------------------------------------------------------------------------------------


def refresh(client: Any, token: str | None = None) -> Any:
    return client.http.post("/api/token/refresh", json={"jobId": client.job, "oldToken": token or client.token})


def test_a_refresh_too_early(client: Any) -> None:
    client.start(ROWS)
    response = refresh(client)
    assert response.status_code == 425
    assert 0 < int(response.headers["retry-after"]) <= 18 * 3600


def test_a_lost_refresh_costs_nothing(tmp_path: Path, gate: Gate, serving: Any) -> None:
    hub = make_hub(tmp_path, lifetimes=Lifetimes(token=3600, grace=60))
    with serving(hub) as client:
        start(client, "waiting", gate)
        old = client.token
        lost, kept = refresh(client).json(), refresh(client).json()
        assert lost["token"] != kept["token"]
        assert client.state()["status"] == "running"
        client.token = kept["token"]
        assert client.state()["status"] == "running"
        # The new token was used, so the answer arrived, and the old one's grace begins.
        client.token = old
        hub.ahead = 50
        assert client.state()["status"] == "running"
        hub.ahead = 70
        assert client.http.get(f"/api/job-state/{client.job}", headers=client.auth).status_code == 401
        assert refresh(client, "nonsense").status_code == 401


def test_an_expired_token(tmp_path: Path, gate: Gate, serving: Any) -> None:
    hub = make_hub(tmp_path, lifetimes=Lifetimes(token=3600, grace=30))
    with serving(hub) as client:
        start(client, "waiting", gate)
        hub.ahead = 3601
        response = client.http.get(f"/api/job-state/{client.job}", headers=client.auth)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        hub.ahead = 3640
        assert refresh(client).status_code == 401
        hub.ahead = 3620
        assert refresh(client).status_code == 200


def test_a_token_lives_as_long_as_the_result(tmp_path: Path, serving: Any) -> None:
    hub = make_hub(tmp_path, lifetimes=Lifetimes(token=60, result=600))
    with serving(hub) as client:
        client.start(b"title,author\na,b\n")
        assert client.follow().code == 1000
        hub.ahead = 500
        assert client.state()["status"] == "complete"


def test_a_job_is_gone_after_its_time(tmp_path: Path, serving: Any, eventually: Any) -> None:
    with serving(make_hub(tmp_path, lifetimes=Lifetimes(result=0.2))) as client:
        start(client, "large")
        assert client.follow().code == 1000

        def status() -> int:
            return client.http.get(f"/api/job-state/{client.job}", headers=client.auth).status_code

        eventually(lambda: status() == 410)
        assert client.refusal(f"/ws/progress?jobId={client.job}", additional_headers=client.auth).status_code == 410
        assert refresh(client).status_code == 401
        eventually(lambda: [path.name for path in (tmp_path / "hub.db.files").iterdir()] == ["hub-id"])


# --- uploads -----------------------------------------------------------------------------------------------------


def test_a_socket_that_is_behind_when_its_job_is_removed(
    tmp_path: Path, gate: Gate, serving: Any, following: Any
) -> None:
    hub = make_hub(tmp_path, lifetimes=Lifetimes(result=1), limits=HubLimits(ready_wait=600))
    with serving(hub) as client:
        start(client, "waiting", gate)
        with client.socket() as socket:
            gate.open = True
            seen = following(socket)
        assert (seen.events, seen.code) == ([], 1001)


def test_a_form_and_a_raw_body_are_the_same(client: Any) -> None:
    client.start(ROWS, idempotency_key="k1")
    first = client.job
    response = client.http.post(
        "/api/imports/csv",
        files={"other": (None, b"x"), "file": ("../b\u00f6oks.csv", ROWS)},
        headers={"idempotency-key": "k1"},
    )
    assert response.status_code == 202
    assert response.json()["jobId"] == first
    client.token = response.json()["token"]
    assert client.follow().events[-1]["payload"]["successRate"] == "30/30"


def test_a_key_used_for_another_upload(client: Any) -> None:
    assert client.start(ROWS, idempotency_key="k").status_code == 202
    assert client.start(ROWS + b"more,more,\n", idempotency_key="k").status_code == 422
    assert client.start(ROWS, idempotency_key="").status_code == 400


def test_the_upload_limit(client: Any, folder: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b"a" * 10_000] * 11

    exact = b"title,author\n" + b"a" * (100_000 - 13)
    assert client.start(exact).status_code == 202
    client.follow()
    assert client.start(exact + b"a").status_code == 413
    response = client.http.post("/api/imports/csv", content=chunks(), headers={"content-type": "text/csv"})
    assert response.status_code == 413
    response = client.http.post("/api/imports/csv", files={"file": ("a.csv", exact + b"a")})
    assert response.status_code == 413
    assert not list((folder / "hub.db.files").glob("incoming-*"))


def test_bad_uploads(client: Any) -> None:
    post = client.http.post
    assert post("/api/imports/csv", content=b"{}", headers={"content-type": "application/json"}).status_code == 415
    assert post("/api/imports/csv", files={"field": (None, b"x")}).status_code == 400
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert post("/api/imports/csv", content=b"--b\r\nbroken", headers=form).status_code == 400
    long = {"content-type": f"multipart/form-data; boundary={'b' * 300}"}
    assert post("/api/imports/csv", content=b"x", headers=long).status_code == 400
    assert post("/api/imports/csv", content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400


def test_a_disk_that_takes_nothing(tmp_path: Path, serving: Any) -> None:
    with serving(make_hub(tmp_path)) as client:
        files = tmp_path / "hub.db.files"
        files.rename(tmp_path / "elsewhere")
        files.write_text("where the folder should be")
        response = client.start(ROWS)
        assert (response.status_code, response.json()["error"]["code"]) == (507, "no_space")
        assert response.headers["retry-after"] == "60"
        files.unlink()
        assert client.start(ROWS).status_code == 507  # a folder made anew would not be the hub's disk
        (tmp_path / "elsewhere").rename(files)
        assert client.start(ROWS).status_code == 202


def test_bad_bodies(client: Any) -> None:
    client.start(ROWS)
    path = f"/api/jobs/{client.job}/cancel"
    assert client.http.post(path, headers=client.auth, content=b"[").status_code == 400
    assert client.http.post("/api/token/refresh", content=b"[" * 10_000).status_code == 400
    assert client.http.post("/api/token/refresh", content=b" " * 20_000).status_code == 413
    assert client.http.post("/api/token/refresh", json={"jobId": client.job}).status_code == 400


# --- sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x00", 1003),
        ("not json", 1007),
        ("[" * 4000, 1007),
        ('{"type":"ready","seq":-1,"timestamp":1}', 1007),
        ('{"type":"x","pad":"' + "x" * 5000 + '"}', 1009),
    ],
)
def test_what_a_client_may_not_say(client: Any, gate: Gate, following: Any, message: str | bytes, code: int) -> None:
    start(client, "waiting", gate)
    with client.socket() as socket:
        socket.send(message)
        assert following(socket).code == code


def test_other_messages_are_ignored_up_to_a_point(client: Any, ready: Any, gate: Gate, following: Any) -> None:
    start(client, "waiting", gate)
    with client.socket() as socket:
        for _ in range(100):
            socket.send('{"type":"ping","timestamp":1}')
        ready(socket)
        gate.open = True
        assert following(socket).code == 1000
    start(client, "waiting", Gate())
    with client.socket() as socket:
        for _ in range(101):
            socket.send('{"no":"type"}')
        assert following(socket).code == 1008


@pytest.mark.anyio
@pytest.mark.parametrize("among", [(), (ValueError("a bug"),)])
async def test_a_failure_out_of_a_task_group_is_the_jobs(tmp_path: Path, among: tuple[Exception, ...]) -> None:
    """A task group wraps what its tasks raise; a bug beside it is a bug all the same."""
    hub = make_hub(tmp_path)

    @hub.job("grouped")
    async def grouped(context: JobContext, upload: Upload) -> None:
        failures = (JobFailure("NO_GOOD", "the first"), JobFailure("WORSE", "the second"), *among)

        async def fail(failure: Exception) -> None:
            raise failure  # without a wait in which the others could be cancelled

        async with anyio.create_task_group() as outer:
            outer.start_soon(anyio.sleep_forever)
            async with anyio.create_task_group() as inner:
                for failure in failures:
                    inner.start_soon(fail, failure)

    async with hub:
        started = await hub.start("grouped", b"hello")
        with hub.log.subscribe(started.job_id) as bell:
            while not (events := await hub.log.read(started.job_id, 0, 9)):
                await bell.wait_ring()
    payload = json.loads(events[-1].payload)
    # Which of two at one moment is the first is the task group's to say, on trio at random.
    assert payload["code"] in ({"INTERNAL"} if among else {"NO_GOOD", "WORSE"})


@pytest.mark.anyio
async def test_a_hub_that_was_not_entered_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HubStorageError, match=r"`async with hub:`\) in your application's lifespan"):
        await make_hub(tmp_path).start("large", b"hello")


def test_a_flood_of_ready_is_not_answered_for_ever(client: Any, ready: Any, gate: Gate, following: Any) -> None:
    """Each is a look into the log: a watcher of one job must not take the hub from all others."""
    start(client, "waiting", gate)
    with client.socket() as socket:
        for _ in range(102):
            ready(socket)
        assert following(socket).code == 1008


def test_a_socket_that_comes_while_the_hub_stops(tmp_path: Path, serving: Any) -> None:
    """The hub has told its sockets already when this one is admitted, so it must not be let in untold."""
    hub = make_hub(tmp_path)
    with serving(hub) as client:
        client.start(ROWS)
        find = hub.log.token

        async def find_slowly(digest: bytes) -> Any:
            await hub.drain()
            return await find(digest)

        hub.log.token = find_slowly  # type: ignore[method-assign]
        path = f"/ws/progress?jobId={client.job}"
        assert client.refusal(path, additional_headers=client.auth).status_code == 503


def test_too_many_watchers(tmp_path: Path, gate: Gate, serving: Any) -> None:
    with serving(make_hub(tmp_path, limits=HubLimits(watchers=1, sockets=2))) as client:
        start(client, "waiting", gate)
        path = f"/ws/progress?jobId={client.job}"
        with client.socket():
            refused = client.refusal(path, additional_headers=client.auth)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
            start(client, "waiting", gate)
            with client.socket():
                start(client, "waiting", gate)
                path = f"/ws/progress?jobId={client.job}"
                assert client.refusal(path, additional_headers=client.auth).status_code == 503


def test_left_in_another_task_it_stops_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        hub = make_hub(tmp_path)
        await asyncio.create_task(hub.__aenter__())
        with pytest.raises(ForbiddenRequest, match="one task"):
            await asyncio.create_task(hub.__aexit__(None, None, None))
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() in ("hub", "towline log")] == []
        async with Hub(tmp_path / "hub.db"):  # its files are free again
            pass

    asyncio.run(main())
