"""HTTP calls on links in memory, under virtual time: bounds, deadlines, uploads and downloads in pieces."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import h11
import pytest
from anyio.abc import ByteStream

from towline._exceptions import (
    ConnectionBroken,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
    TowlineError,
)
from towline.testing import MemoryLink
from towline.transport import Endpoint, Network, Upload, request, stream_response

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


@dataclass
class Exchange(Network):
    """A network with one server behind it that reads a request and does what the test says."""

    serve: Callable[["Exchange"], Awaitable[None]]
    link: MemoryLink = field(default_factory=MemoryLink)
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))
    request: h11.Request | None = None
    body_size: int = 0

    async def run(self) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the client has hung up
            await self.serve(self)

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        return self.link.client

    async def read(self) -> None:
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.link.server.receive())
            elif isinstance(event, h11.Request):
                self.request = event
            elif isinstance(event, h11.Data):
                self.body_size += len(event.data)
            else:
                return

    async def raw(self, data: bytes) -> None:
        await self.link.server.send(data)

    async def answer(self, body: bytes = b"ok", status: int = 200, headers: dict[str, str] | None = None) -> None:
        pairs = [("Content-Length", str(len(body))), *(headers or {}).items()]
        await self.raw(
            (self.http.send(h11.Response(status_code=status, headers=pairs)) or b"")
            + (self.http.send(h11.Data(data=body)) or b"")
        )
        await self.link.server.aclose()


async def reads_and_answers(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.answer()


async def call(exchange: Exchange, method: str = "GET", **options: Any) -> Any:
    result: Any = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        try:
            result = await request(method, "http://localhost/x?token=hunter2", network=exchange, **options)
        except TowlineError as error:
            result = error
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await is_closed(exchange)
    assert "hunter2" not in repr(result)
    if isinstance(result, TowlineError):
        raise result
    return result


async def is_closed(exchange: Exchange) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await exchange.link.client.receive()


async def test_a_call() -> None:
    exchange = Exchange(reads_and_answers)
    response = await call(exchange, headers={"X-A": "b"})
    assert (response.status, response.body, response.retry_after) == (200, b"ok", None)
    assert response.headers.header(b"content-length") == b"2"
    assert exchange.request is not None
    assert exchange.request.target == b"/x?token=hunter2"
    assert (b"x-a", b"b") in exchange.request.headers
    assert (b"accept-encoding", b"identity") in exchange.request.headers


@pytest.mark.parametrize("status", [204, 301, 302, 401, 404, 500])
async def test_every_status_is_an_answer_and_no_redirect_is_followed(status: int) -> None:
    async def serve(exchange: Exchange) -> None:
        await exchange.read()
        body = "" if status == 204 else "Content-Length: 0\r\n"
        await exchange.raw(
            f"HTTP/1.1 {status} x\r\nLocation: http://elsewhere/\r\nRetry-After: 3\r\n{body}\r\n".encode()
        )

    response = await call(Exchange(serve))
    assert (response.status, response.retry_after) == (status, 3)


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_is_bounded(size: int, chunked: bool) -> None:
    async def serve(exchange: Exchange) -> None:
        await exchange.read()
        if chunked:
            await exchange.raw(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
            await exchange.raw(b"1\r\na\r\n" * size + b"0\r\n\r\n")
        else:
            await exchange.answer(b"a" * size)

    if size == 1000:
        assert (await call(Exchange(serve), max_body=1000)).body == b"a" * size
    else:
        with pytest.raises(MessageTooBig):
            await call(Exchange(serve), max_body=1000)


async def hangs(exchange: Exchange) -> None:
    await exchange.read()
    await anyio.sleep_forever()


async def hangs_in_the_head(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.raw(b"HTTP/1.1 200 O")
    await anyio.sleep_forever()


async def hangs_in_the_body(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await anyio.sleep_forever()


async def drips(exchange: Exchange) -> None:
    await exchange.read()
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await exchange.raw(b"a")
        await anyio.sleep(1)


@pytest.mark.parametrize("serve", [hangs, hangs_in_the_head, hangs_in_the_body, drips])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_one_deadline_over_the_whole_call(serve: Any, cancelled: bool) -> None:
    exchange = Exchange(serve)
    began = anyio.current_time()
    if cancelled:
        with anyio.move_on_after(2):
            await call(exchange)
        await is_closed(exchange)
        assert anyio.current_time() - began == pytest.approx(2)
    else:
        with pytest.raises(DeadlineExceeded):
            await call(exchange, deadline=5)
        assert anyio.current_time() - began == pytest.approx(5)


async def test_a_server_that_hangs_up_or_talks_nonsense() -> None:
    async def ends(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.link.server.aclose()

    async def resets(exchange: Exchange) -> None:
        await exchange.read()
        exchange.link.cut("rst")

    async def nonsense(exchange: Exchange) -> None:
        await exchange.raw(b"SSH-2.0\r\n\r\n")
        await anyio.sleep_forever()

    for serve in (ends, resets):
        with pytest.raises(ConnectionBroken):
            await call(Exchange(serve))
    with pytest.raises(ProtocolViolation):
        await call(Exchange(nonsense))


async def test_a_bad_argument_dials_nothing() -> None:
    class Nowhere(Network):
        async def connect(self, endpoint: Endpoint) -> ByteStream:
            raise AssertionError

    for url, headers in (("ws://localhost/", {}), ("http://api.example/", {}), ("http://localhost/", {"Host": "x"})):
        with pytest.raises(InvalidArgument):
            await request("GET", url, headers=headers, network=Nowhere())


# --- in pieces ---------------------------------------------------------------------------------------------------


async def pieces(count: int, size: int = 65536, wait: float = 0) -> AsyncIterator[bytes]:
    for _ in range(count):
        if wait:
            await anyio.sleep(wait)
        yield b"x" * size


@pytest.mark.parametrize("known", [True, False])
async def test_an_upload_in_pieces(known: bool) -> None:
    exchange = Exchange(reads_and_answers)
    upload = Upload(pieces(100), 100 * 65536 if known else None)
    assert (await call(exchange, "POST", body=upload)).body == b"ok"
    assert exchange.body_size == 100 * 65536
    assert exchange.request is not None
    assert ((b"transfer-encoding", b"chunked") in exchange.request.headers) is not known


async def test_an_upload_is_not_read_ahead() -> None:
    """A gigabyte goes out in bounded memory: the source is asked for no more than the link takes."""
    asked = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 65536

    with pytest.raises(DeadlineExceeded):
        await call(Exchange(lambda exchange: anyio.sleep_forever()), "POST", body=Upload(source()), deadline=5)
    assert asked <= 3


async def test_the_deadline_of_an_upload_is_for_each_piece() -> None:
    exchange = Exchange(reads_and_answers)
    assert (await call(exchange, "POST", body=Upload(pieces(20, 10, wait=4)), deadline=5)).status == 200
    with pytest.raises(DeadlineExceeded):
        await call(Exchange(reads_and_answers), "POST", body=Upload(pieces(2, 10, wait=6)), deadline=5)


async def test_a_refusal_in_the_middle_of_an_upload() -> None:
    async def serve(exchange: Exchange) -> None:
        exchange.http.receive_data(await exchange.link.server.receive())
        await exchange.raw(b"HTTP/1.1 413 x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await anyio.sleep_forever()

    response = await call(Exchange(serve), "POST", body=Upload(pieces(10_000)))
    assert (response.status, response.body) == (413, b"big")


@pytest.mark.parametrize("length", [65536 * 2 - 1, 65536 * 2 + 1])
async def test_an_upload_that_is_not_as_long_as_it_says(length: int) -> None:
    with pytest.raises(InvalidArgument):
        await call(Exchange(reads_and_answers), "POST", body=Upload(pieces(2), length))


async def test_an_error_of_the_source_comes_out() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    exchange = Exchange(reads_and_answers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        with pytest.raises(ZeroDivisionError):
            await request("POST", "http://localhost/", body=Upload(source()), network=exchange)
        tasks.cancel_scope.cancel()
    await is_closed(exchange)


async def test_a_download_in_pieces() -> None:
    async def serve(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.raw(b"HTTP/1.1 200 x\r\nContent-Length: 655360\r\n\r\n")
        for _ in range(10):
            await exchange.raw(b"y" * 65536)
            await anyio.sleep(4)

    exchange = Exchange(serve)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        async with stream_response("GET", "http://localhost/", network=exchange, silence=5) as download:
            assert download.status == 200
            sizes = [len(piece) async for piece in download]
        tasks.cancel_scope.cancel()
    assert sum(sizes) == 655360
    assert len(sizes) >= 10
    await is_closed(exchange)


async def test_a_download_that_stops_coming() -> None:
    exchange = Exchange(hangs_in_the_body)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run)
        async with stream_response("GET", "http://localhost/", network=exchange, silence=5) as download:
            got = []
            with pytest.raises(DeadlineExceeded):
                async for piece in download:
                    got.append(piece)  # noqa: PERF401 - what came before the raise is looked at
            assert got == [b"half"]
        tasks.cancel_scope.cancel()
