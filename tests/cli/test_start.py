"""Starting a job on a hub, as `towline import` does, against scripted answers in memory under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from scripted_wire import Script, answer

from towline._exceptions import InvalidArgument, MalformedMessage, TowlineError, UnexpectedResponse
from towline.cli.follow._start import StartedJob, start_job
from towline.testing import run_virtual, virtual_time_backends
from towline.transport import Upload

URL = "http://localhost/api/import/csv"


def started(backend: str, script: Script, upload: bytes | Upload = b"x") -> StartedJob:
    async def main() -> StartedJob:
        async with script.running():
            return await start_job(URL, upload, script.network)

    return run_virtual(main, backend=backend)


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_a_job_is_started(backend: str) -> None:
    async def rows() -> AsyncIterator[bytes]:
        yield b"title,author\n"
        yield b"a,b\n"

    body = b'{"jobId":"j9","token":"fresh","expiresIn":60,"pipeline":"csv_import"}'
    script = Script([answer(202, body)])
    job = started(backend, script, Upload(rows(), 17))
    assert (job.job, job.token.reveal()) == ("j9", "fresh")
    (seen,) = script.seen
    assert (seen.line, seen.body) == ("POST /api/import/csv HTTP/1.1", b"title,author\na,b\n")
    assert seen.headers["content-type"] == "text/csv"
    assert "authorization" not in seen.headers
    assert "fresh" not in repr(job)


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_an_answer_in_an_envelope_is_read(backend: str) -> None:
    script = Script([answer(200, b'{"data":{"jobId":7,"token":"fresh"},"metadata":{}}')])
    assert started(backend, script).job == "7"


@pytest.mark.parametrize("backend", virtual_time_backends())
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [(413, b"", UnexpectedResponse), (202, b"{}", MalformedMessage), (202, b'{"token":"t"}', UnexpectedResponse)],
)
def test_a_job_that_was_not_started(backend: str, status: int, body: bytes, kind: type[TowlineError]) -> None:
    with pytest.raises(kind):
        started(backend, Script([answer(status, body)]))


@pytest.mark.parametrize("url", ["http://api.example/x", "ftp://api.example", "api.example"])
def test_a_bad_url_is_refused_before_a_dial(url: str) -> None:
    with pytest.raises(InvalidArgument):
        run_virtual(lambda: start_job(url, b""))
