"""The calls about a job, against a server that says what the test scripts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import h11
import msgspec
import pytest

from towline._exceptions import (
    ConnectFailed,
    DeadlineExceeded,
    InvalidArgument,
    MalformedMessage,
    MessageTooBig,
    TowlineError,
    UnexpectedResponse,
)
from towline._secret import Secret
from towline.sources import JobCalls, Templates
from towline.testing import MemoryLink, MemoryNetwork, NoAnswer, Reach, Unreachable
from towline.transport import Upload, parse_url

pytestmark = pytest.mark.anyio

TOKEN = Secret("hunter2")
RUNNING = {"status": "running", "pipeline": "csv_import", "processedCount": 3, "seq": 7, "epoch": "e"}


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


class Server:
    """Answers each request with the next of `answers` (status, body, headers), the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.requests: list[tuple[float, h11.Request, bytes]] = []
        self.network = MemoryNetwork(self.serve)

    def will(self, status: int, body: Any = b"", **headers: str) -> None:
        self.answers.append((status, body, {name.replace("_", "-"): value for name, value in headers.items()}))

    async def serve(self, link: MemoryLink) -> None:
        http = h11.Connection(h11.SERVER)
        body = b""
        request: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await link.server.receive())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        assert request is not None
        self.requests.append((anyio.current_time(), request, body))
        status, answer, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        payload = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        pairs = [("Content-Length", str(len(payload))), *headers.items()]
        await link.server.send(
            (http.send(h11.Response(status_code=status, headers=pairs)) or b"")
            + (http.send(h11.Data(data=payload)) or b"")
        )

    def header(self, name: bytes, index: int = -1) -> bytes | None:
        return dict(self.requests[index][1].headers).get(name)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Server, JobCalls]]:
    server = Server()
    async with server.network:
        yield server, JobCalls("http://localhost:8000", network=server.network, **options)


async def error_of(call: Callable[[], Any]) -> TowlineError:
    with pytest.raises(TowlineError) as caught:
        await call()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    return caught.value


# --- the state ---------------------------------------------------------------------------------------------------


async def test_the_state() -> None:
    async with serving() as (server, calls):
        server.will(200, RUNNING)
        state = await calls.fetch_state("a/b", TOKEN)
        assert (state.status, state.processed_count, state.seq, state.epoch) == ("running", 3, 7, "e")
        assert server.requests[0][1].method == b"GET"
        assert server.requests[0][1].target == b"/api/job-state/a%2Fb"
        assert server.header(b"authorization") == b"Bearer hunter2"


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
async def test_a_passing_trouble_is_tried_again(status: int) -> None:
    async with serving() as (server, calls):
        for _ in range(3):
            server.will(status)
        server.will(200, RUNNING)
        assert (await calls.fetch_state("j", TOKEN)).status == "running"
        times = [at for at, *_ in server.requests]
        assert [b - a for a, b in pairwise(times)] == pytest.approx([1, 2, 4])


async def test_four_tries_are_all() -> None:
    async with serving() as (server, calls):
        server.will(503, retry_after="1")
        error = await error_of(lambda: calls.fetch_state("j", TOKEN))
        assert isinstance(error, UnexpectedResponse)
        assert (error.status, error.retry_after, len(server.requests)) == (503, 1, 4)


async def test_retry_after_is_kept_where_it_is_longer() -> None:
    async with serving() as (server, calls):
        server.will(429, retry_after="9")
        server.will(503, retry_after="0")
        server.will(200, RUNNING)
        await calls.fetch_state("j", TOKEN)
        times = [at for at, *_ in server.requests]
        assert [b - a for a, b in pairwise(times)] == pytest.approx([9, 2])


async def test_a_retry_after_beyond_the_deadline_ends_the_tries() -> None:
    """A caller with a working socket must not wait a day for a state."""
    async with serving() as (server, calls):
        server.will(503, retry_after="86400")
        error = await error_of(lambda: calls.fetch_state("j", TOKEN))
        assert isinstance(error, UnexpectedResponse)
        assert (error.retry_after, len(server.requests)) == (86400, 1)


@pytest.mark.parametrize("status", [204, 301, 400, 401, 403, 404, 410, 418])
async def test_every_other_answer_is_one(status: int) -> None:
    async with serving() as (server, calls):
        server.will(status)
        error = await error_of(lambda: calls.fetch_state("j", TOKEN))
        assert isinstance(error, UnexpectedResponse)
        assert (error.status, len(server.requests)) == (status, 1)


async def test_the_network_is_tried_again_and_each_try_has_a_deadline() -> None:
    async with serving() as (server, calls):
        server.will(200, RUNNING)
        server.network.script(Unreachable(), NoAnswer(), Unreachable(resolved=False), Reach())
        began = anyio.current_time()
        await calls.fetch_state("j", TOKEN)
        assert anyio.current_time() - began == pytest.approx(1 + 10 + 2 + 4)
        server.network.weather = NoAnswer()
        assert isinstance(await error_of(lambda: calls.fetch_state("j", TOKEN)), DeadlineExceeded)
        server.network.weather = Unreachable()
        assert isinstance(await error_of(lambda: calls.fetch_state("j", TOKEN, tries=1)), ConnectFailed)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"status":7}', b"\xff", b"[" * 100_000])
async def test_a_state_that_is_none(body: bytes) -> None:
    async with serving() as (server, calls):
        server.will(200, body)
        assert isinstance(await error_of(lambda: calls.fetch_state("j", TOKEN)), MalformedMessage)
        assert len(server.requests) == 1


async def test_a_state_is_bounded() -> None:
    async with serving(max_state=1000) as (server, calls):
        server.will(200, b" " * 1001)
        assert isinstance(await error_of(lambda: calls.fetch_state("j", TOKEN)), MessageTooBig)


@pytest.mark.parametrize("job", ["", ".", ".."])
async def test_a_bad_job_id_dials_nothing(job: str) -> None:
    async with serving() as (server, calls):
        for call in (
            lambda: calls.fetch_state(job, TOKEN),
            lambda: calls.cancel_job(job, TOKEN, "k"),
            lambda: calls.fetch_result(job, None, TOKEN, max_body=1),
        ):
            assert isinstance(await error_of(call), InvalidArgument)
        assert server.network.dials == []


# --- the token ---------------------------------------------------------------------------------------------------


async def test_a_new_token() -> None:
    async with serving() as (server, calls):
        server.will(200, {"jobId": "j", "token": "frisch", "expiresIn": 3600})
        refreshed = await calls.refresh_token("j", TOKEN)
        assert (refreshed.token.reveal(), refreshed.expires_in) == ("frisch", 3600)
        assert "frisch" not in repr(refreshed)
        _, request, body = server.requests[0]
        assert (request.method, request.target) == (b"POST", b"/api/token/refresh")
        assert msgspec.json.decode(body) == {"jobId": "j", "oldToken": "hunter2"}
        assert server.header(b"content-type") == b"application/json"


@pytest.mark.parametrize(("status", "advice"), [(401, None), (425, "5"), (429, "9"), (503, None)])
async def test_no_new_token(status: int, advice: str | None) -> None:
    async with serving() as (server, calls):
        server.will(status, **({"retry_after": advice} if advice else {}))
        error = await error_of(lambda: calls.refresh_token("j", TOKEN))
        assert isinstance(error, UnexpectedResponse)
        assert (error.status, error.retry_after) == (status, None if advice is None else float(advice))
        assert len(server.requests) == 1


async def test_a_new_token_in_an_envelope() -> None:
    async with serving() as (server, calls):
        server.will(201, {"data": {"token": "frisch", "expiresIn": "soon"}, "metadata": {}})
        refreshed = await calls.refresh_token("j", TOKEN)
        assert (refreshed.token.reveal(), refreshed.expires_in) == ("frisch", None)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"token":""}', b'{"token":["hunter2"]}', b'{"token":"hunter2"'])
async def test_an_answer_without_a_token(body: bytes) -> None:
    async with serving() as (server, calls):
        server.will(200, body)
        error = await error_of(lambda: calls.refresh_token("j", TOKEN))
        assert isinstance(error, MalformedMessage)


# --- stopping a job ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["accepted", "too_late", "unknown", "later"])
async def test_stopping(result: str) -> None:
    async with serving() as (server, calls):
        server.will(200, {"jobId": "j", "result": result})
        answer = await calls.cancel_job("j", TOKEN, "key-1")
        assert answer == ("unknown" if result == "later" else result)
        assert server.requests[0][1].target == b"/api/jobs/j/cancel"
        assert server.header(b"idempotency-key") == b"key-1"
        assert server.header(b"authorization") == b"Bearer hunter2"
        assert server.header(b"content-type") == b"application/json"
        assert msgspec.json.decode(server.requests[0][2]) == {"jobId": "j"}


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, {"jobId": "j", "status": "canceled"}), (202, {"jobId": "j"}), (204, b""), (200, b"OK")],
)
async def test_a_success_without_a_result_is_accepted(status: int, body: Any) -> None:
    async with serving(templates=Templates(cancel="/api/enrichment/cancel")) as (server, calls):
        server.will(status, body)
        assert await calls.cancel_job("a/b", TOKEN, "k") == "accepted"
        assert server.requests[0][1].target == b"/api/enrichment/cancel"
        assert msgspec.json.decode(server.requests[0][2]) == {"jobId": "a/b"}


async def test_stopping_is_refused() -> None:
    async with serving() as (server, calls):
        server.will(404)
        refusal = await error_of(lambda: calls.cancel_job("j", TOKEN, "k"))
        assert isinstance(refusal, UnexpectedResponse)
        assert "`templates=`" in str(refusal)
        server.will(200, b"<html>")
        server.answers.pop(0)
        assert isinstance(await error_of(lambda: calls.cancel_job("j", TOKEN, "k")), MalformedMessage)
        assert isinstance(await error_of(lambda: calls.cancel_job("j", TOKEN, "a\r\nb")), InvalidArgument)


# --- the result --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (None, b"/api/jobs/j/results"),
        ("/files/1?a=b", b"/files/1?a=b"),
        ("files/1", b"/files/1"),
        ("http://localhost:8000/files/1", b"/files/1"),
        ("ws://LOCALHOST:8000/files/1", b"/files/1"),
    ],
)
async def test_a_large_result(url: str | None, target: bytes) -> None:
    async with serving() as (server, calls):
        server.will(200, b"x" * 300_000)
        assert await calls.fetch_result("j", url, TOKEN, max_body=300_000) == b"x" * 300_000
        assert server.requests[0][1].target == target
        assert server.header(b"authorization") == b"Bearer hunter2"
        assert isinstance(await error_of(lambda: calls.fetch_result("j", url, TOKEN, max_body=299_999)), MessageTooBig)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost:8000/x",
        "http://localhost/x",
        "http://localhost:8001/x",
        "http://elsewhere:8000/x",
        "//elsewhere/x",
        "javascript:alert(1)",
        "http://localhost:8000@elsewhere/",
        "",
    ],
)
async def test_the_token_is_shown_to_no_other_origin(url: str) -> None:
    async with serving() as (server, calls):
        error = await error_of(lambda: calls.fetch_result("j", url, TOKEN, max_body=1))
        assert isinstance(error, InvalidArgument)
        assert server.network.dials == []


async def test_no_result() -> None:
    async with serving() as (server, calls):
        server.will(302, location="http://elsewhere/")
        error = await error_of(lambda: calls.fetch_result("j", None, TOKEN, max_body=10))
        assert isinstance(error, UnexpectedResponse)
        assert error.status == 302


# --- the start ---------------------------------------------------------------------------------------------------


async def test_starting_a_job() -> None:
    async with serving(headers={"X-App": "demo"}) as (server, calls):
        server.will(202, {"jobId": "j9", "token": "frisch", "expiresIn": 60, "pipeline": "csv_import"})

        async def rows() -> AsyncIterator[bytes]:
            yield b"title,author\n"
            yield b"a,b\n"

        started = await calls.start_job("/api/import/csv", Upload(rows()))
        assert (started.job, started.token.reveal(), started.expires_in) == ("j9", "frisch", 60)
        _, request, body = server.requests[0]
        assert (request.target, body) == (b"/api/import/csv", b"title,author\na,b\n")
        assert (server.header(b"content-type"), server.header(b"x-app")) == (b"text/csv", b"demo")
        assert server.header(b"authorization") is None
        started = await calls.start_job("/api/import/csv", b"x", token=TOKEN, headers={"X-B": "c"})
        assert (server.header(b"authorization"), server.header(b"x-b")) == (b"Bearer hunter2", b"c")


async def test_starting_a_job_whose_id_the_caller_chose() -> None:
    async with serving() as (server, calls):
        server.will(202, {"data": {"success": True, "totalCount": 8, "token": "frisch"}, "metadata": {}})
        started = await calls.start_job("/v1/enrichment/batch", b"{}", job="j9")
        assert (started.job, started.token.reveal()) == ("j9", "frisch")
        server.will(202, {"data": {"jobId": 7, "token": "frisch"}})
        server.answers.pop(0)
        assert (await calls.start_job("/x", b"", job="j9")).job == "7"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [(413, b"", UnexpectedResponse), (202, b"{}", MalformedMessage), (202, b'{"token":"t"}', MalformedMessage)],
)
async def test_a_job_that_was_not_started(status: int, body: bytes, kind: type[TowlineError]) -> None:
    async with serving() as (server, calls):
        server.will(status, body)
        assert isinstance(await error_of(lambda: calls.start_job("/x", b"")), kind)


# --- construction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://api.example", "https://api.example/x", "ftp://api.example", "api.example"])
async def test_a_bad_origin(origin: str) -> None:
    with pytest.raises(InvalidArgument):
        JobCalls(origin)


async def test_templates() -> None:
    with pytest.raises(InvalidArgument):
        Templates(job_state="/state")
    async with serving(templates=Templates(job_state="/s/{job}?full=1")) as (server, calls):
        server.will(200, RUNNING)
        await calls.fetch_state("j", TOKEN)
        assert server.requests[0][1].target == b"/s/j?full=1"


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("wss://h/ws/progress", "/api/job-state/{job}"),
        ("wss://h/jobs/ws/progress", "/jobs/api/job-state/{job}"),
        ("wss://h/a/b/ws/progress?x=1", "/a/b/api/job-state/{job}"),
        ("wss://h/jobs/stream", "/api/job-state/{job}"),
        ("wss://h/jobs/ws/progress/more", "/api/job-state/{job}"),
        ("wss://h/{job}/ws/progress", "/api/job-state/{job}"),
        ("wss://h/", "/api/job-state/{job}"),
    ],
)
def test_the_calls_are_below_the_path_of_the_stream(url: str, state: str) -> None:
    assert Templates.beside(parse_url(url)).job_state == state
