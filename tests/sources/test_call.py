"""Single calls, against scripted answers in memory under virtual time."""

from typing import Any

import anyio
import pytest
from scripted_wire import WALL, Script, Step, access, answer

from towline._exceptions import (
    ConnectionBroken,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
    UnexpectedResponse,
)
from towline._facts import Answer, Request
from towline._secret import Secret
from towline.sources import Called, call, received_of
from towline.testing import NoAnswer

pytestmark = pytest.mark.anyio

URL = "http://localhost/job/state?x=1"


async def called(
    script: Script, *, deadline: float = 10, max_body: int = 1000, whole: bool = True, **options: Any
) -> Called:
    async with script.running():
        asked = Request(via="call", **({"url": URL} | options))
        return await call(asked, access(script.network), deadline=deadline, max_body=max_body, whole=whole)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 303, 304, 308, 400, 401, 404, 410, 425, 429, 500, 503])
async def test_an_answer_of_any_status_is_returned(status: int) -> None:
    body = b"" if status in (204, 304) else b'{"a":1}'
    script = Script([answer(status, body, X_Y="z", Location="http://elsewhere/")])
    got = await called(script)
    assert (got.answer.status, got.answer.body, got.retry_after) == (status, body, None)
    assert (got.answer.headers["x-y"], got.answer.headers["location"]) == ("z", "http://elsewhere/")
    assert [dial.host for dial in script.network.dials] == ["localhost"]
    assert script.seen[0].line == "GET /job/state?x=1 HTTP/1.1"


async def test_of_a_header_that_occurs_twice_the_last_counts() -> None:
    script = Script([b"HTTP/1.1 200 OK\r\nX: a\r\nx: \xe9\r\nContent-Length: 0\r\n\r\n"])
    assert (await called(script)).answer.headers["x"] == "é"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0", 0), ("Tue, 14 Nov 2023 22:14:50 GMT", 90), ("Tue, 14 Nov 2000 22:14:50 GMT", 0), ("soon", None)],
)
async def test_when_to_call_again(value: str, seconds: float | None) -> None:
    assert WALL == 1_700_000_000  # 22:13:20 on that day
    assert (await called(Script([answer(503, Retry_After=value)]))).retry_after == seconds


@pytest.mark.parametrize("body", [b'{"a":1}', Secret('{"a":1}'), None])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_body_and_headers(method: str, body: bytes | Secret | None) -> None:
    script = Script([answer()])
    await called(script, method=method, body=body, headers=(("Authorization", Secret("Bearer t")), ("X", "y")))
    (seen,) = script.seen
    assert (seen.line, seen.headers["authorization"], seen.headers["x"]) == (
        f"{method} /job/state?x=1 HTTP/1.1",
        "Bearer t",
        "y",
    )
    assert seen.body == (b"" if body is None else b'{"a":1}')
    assert seen.headers["content-length"] == str(len(seen.body))


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["Content-Length: %d\r\n", "", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_largest_body(head: str, size: int) -> None:
    body = b"x" * size
    wire = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body) if "chunked" in head else body
    if "%d" in head:
        head %= size
    script = Script([f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + wire, "fin"])
    if size > 1000:
        with pytest.raises(MessageTooBig, match="more than 1000 bytes in an HTTP response"):
            await called(script)
    else:
        assert (await called(script)).answer.body == body


@pytest.mark.parametrize(
    "steps",
    [
        ["hang"],
        [b"HTTP/1.1 200 OK\r\n", "hang"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[1.0, b"x"] * 100],
    ],
)
async def test_the_deadline_covers_the_whole_call(steps: list[Step]) -> None:
    script = Script(steps)
    with pytest.raises(DeadlineExceeded, match="timed out after 3 s waiting for the whole response") as caught:
        await called(script, deadline=3)
    assert anyio.current_time() - script.seen[0].at == pytest.approx(3)
    assert received_of(caught.value) is None


async def test_a_dial_without_an_answer() -> None:
    script = Script()
    script.network.weather = NoAnswer()
    with pytest.raises(DeadlineExceeded, match="after 3 s"):
        await called(script, deadline=3)


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (["fin"], ConnectionBroken),
        (["rst"], ConnectionBroken),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", "fin"], ConnectionBroken),
        ([b"nonsense\r\n\r\n", "fin"], ProtocolViolation),
        ([answer(200, b"x", Content_Encoding="gzip")], UnexpectedResponse),
    ],
)
async def test_a_broken_answer(steps: list[Step], error: type[Exception]) -> None:
    with pytest.raises(error):
        await called(Script(steps))


async def test_a_large_download_has_a_deadline_for_each_wait() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    script = Script([head, *[2.0, b"x"] * 100])
    assert (await called(script, deadline=3, whole=False)).answer.body == b"x" * 100
    script = Script([head, *[2.0, b"x"] * 9, "hang"])
    with pytest.raises(DeadlineExceeded, match="after 3 s"):
        await called(script, deadline=3, whole=False)
    assert anyio.current_time() - script.seen[0].at == pytest.approx(9 * 2 + 3)


# --- where it goes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://localhost:81/", "http://127.0.0.1/", "https://localhost/", "wss://localhost/"])
async def test_another_origin(url: str) -> None:
    script = Script([answer()])
    with pytest.raises(InvalidArgument, match="another origin"):
        await called(script, url=url)
    assert script.network.dials == []


@pytest.mark.parametrize("url", ["ws://localhost/job", "http://LOCALHOST:80/job", Secret("http://localhost/job")])
async def test_the_own_origin(url: str | Secret) -> None:
    script = Script([answer(200, b"a")])
    assert (await called(script, url=url)).answer == Answer(200, {"content-length": "1"}, b"a")
    assert script.seen[0].line == "GET /job HTTP/1.1"
