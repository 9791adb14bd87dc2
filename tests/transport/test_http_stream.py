"""Following a response over HTTP, on links in memory under virtual time: no end, no total bound, and bad input."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from towline._exceptions import (
    ConnectionBroken,
    DeadlineExceeded,
    MessageTooBig,
    ProtocolViolation,
    UnexpectedResponse,
)
from towline.testing import MemoryLink, MemoryNetwork
from towline.transport import Download, Endpoint, EventParser, Network, is_event_stream, stream_response

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Server:
    """Reads one request and does what the test says."""

    def __init__(self, serve: Callable[[ByteStream], Awaitable[None]]) -> None:
        self._serve = serve
        self.request = b""
        self.links: list[MemoryLink] = []
        self.network = MemoryNetwork(self._run)

    async def _run(self, link: MemoryLink) -> None:
        self.links.append(link)
        while b"\r\n\r\n" not in self.request:
            self.request += await link.server.receive()
        await self._serve(link.server)

    @asynccontextmanager
    async def opened(self, method: str = "GET", **options: Any) -> AsyncIterator[Download]:
        async with self.network:
            async with stream_response(
                method, "http://localhost/events", network=self.network, max_body=None, **options
            ) as response:
                yield response
            with pytest.raises(anyio.ClosedResourceError):
                await self.links[0].client.receive()
        assert len(self.links) == 1


def says(*pieces: bytes, hang: bool = True) -> Server:
    async def serve(stream: ByteStream) -> None:
        for piece in pieces:
            await stream.send(piece)
        if hang:
            await anyio.sleep_forever()

    return Server(serve)


async def test_events_as_they_come() -> None:
    """Status and headers are there before any event; then each event when it comes, however long it takes."""

    async def serve(stream: ByteStream) -> None:
        await stream.send(HEAD)
        for number in range(3):
            await anyio.sleep(86_400)
            await stream.send(chunk(b"id: %d\ndata: x\n\n" % number))
        await stream.send(b"0\r\n\r\n")

    server = Server(serve)
    body = b'{"method":"tasks/resubscribe"}'
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "€7"}
    async with server.opened("POST", body=body, headers=headers, silence=None) as response:
        began = anyio.current_time()
        assert response.status == 200
        assert is_event_stream(response.headers.header(b"content-type"))
        parser, seen = EventParser(), []
        async for data in response:
            seen += [(event.id, round(anyio.current_time() - began)) for event in parser.feed(data)]
    assert seen == [("0", 86_400), ("1", 2 * 86_400), ("2", 3 * 86_400)]
    assert server.request.startswith(b"POST /events HTTP/1.1\r\n")
    assert server.request.endswith(b"\r\n\r\n" + body)
    assert "\r\nLast-Event-ID: €7\r\n".encode() in server.request
    assert b"\r\nAccept-Encoding: identity\r\n" in server.request


async def test_every_byte_alone() -> None:
    server = says(HEAD, chunk(b"\xef\xbb\xbfdata: a\r\n\r\n"), chunk(b"data: b\r\r"), b"0\r\n\r\n", hang=False)
    parser, seen = EventParser(), []
    async with server.network:
        async with stream_response("GET", "http://localhost/", network=_Slow(server.network)) as response:
            async for data in response:
                seen += [event.data for event in parser.feed(data)]
    assert seen == ["a", "b"]


class _Slow(Network):
    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(allow_insecure=True)
        self._network = network

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        stream = await self._network.connect(endpoint)
        link = self._network.dials[-1].link
        assert link is not None
        link.set_largest_read(1)
        return stream


async def test_no_total_bound() -> None:
    """More than any limit of a call, in more time than any deadline."""
    pieces = [chunk(b"data: " + b"x" * 65_000 + b"\n\n")] * 400

    async def serve(stream: ByteStream) -> None:
        await stream.send(HEAD)
        for piece in pieces:
            await anyio.sleep(5)
            await stream.send(piece)
        await stream.send(b"0\r\n\r\n")

    parser, seen = EventParser(), 0
    async with Server(serve).opened() as response:
        async for data in response:
            seen += len(list(parser.feed(data)))
    assert seen == 400


async def test_keep_alives_within_the_silence() -> None:
    """Each wait has its own bound: comments every 20 s hold a stream that may be silent for 30; then nothing comes."""

    async def serve(stream: ByteStream) -> None:
        await stream.send(HEAD)
        for _ in range(180):
            await anyio.sleep(20)
            await stream.send(chunk(b":\n\n"))
        await anyio.sleep(50)
        await stream.send(chunk(b"data: late\n\n"))
        await anyio.sleep_forever()

    parser = EventParser()
    async with Server(serve).opened(silence=30) as response:
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded, match="30 s"):
            async for data in response:
                assert list(parser.feed(data)) == []
        assert anyio.current_time() - began == pytest.approx(3630)
        assert parser.comments == 180
        # The response is as it was: one may go on waiting.
        assert [event.data for event in parser.feed(await anext(response))] == ["late"]


async def test_a_cancelled_wait_loses_nothing() -> None:
    async def serve(stream: ByteStream) -> None:
        await stream.send(HEAD + chunk(b"data: a\n\n"))
        await anyio.sleep(10)
        await stream.send(chunk(b"data: b\n\n") + b"0\r\n\r\n")
        await anyio.sleep_forever()

    async with Server(serve).opened(silence=None) as response:
        got = [await anext(response)]
        for _ in range(3):
            with anyio.move_on_after(3) as scope:
                await anext(response)
            assert scope.cancelled_caught
        got += [data async for data in response]
    assert got == [b"data: a\n\n", b"data: b\n\n"]


class Reluctant(ByteStream):
    """A stream that takes an hour to close."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
        await anyio.sleep(3600)


@pytest.mark.parametrize("reluctant", [True, False])
@pytest.mark.parametrize("cancelled", [True, False])
async def test_leaving_closes_at_once(reluctant: bool, cancelled: bool) -> None:
    server = says(HEAD, chunk(b"data: a\n\n"))

    class Wrapping(Network):
        async def connect(self, endpoint: Endpoint) -> ByteStream:
            stream = await server.network.connect(endpoint)
            return Reluctant(stream) if reluctant else stream

    async with server.network:
        began = anyio.current_time()
        with anyio.move_on_after(1 if cancelled else 3600):
            async with stream_response("GET", "http://localhost/", network=Wrapping(), silence=None) as response:
                assert await anext(response) == b"data: a\n\n"
                if cancelled:
                    await anext(response)
        assert anyio.current_time() - began == pytest.approx(cancelled + 0.5 * reluctant)
        with pytest.raises(anyio.ClosedResourceError):
            await server.links[0].client.receive()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "identity\r\nContent-Encoding: deflate"])
@pytest.mark.parametrize("status", [200, 503])
async def test_compression_that_nobody_asked_for(coding: str, status: int) -> None:
    head = f"HTTP/1.1 {status} x\r\nRetry-After: 7\r\nContent-Encoding: {coding}\r\nContent-Length: 3\r\n\r\n".encode()
    async with says(head + b"\x1f\x8b\x08").opened() as response:
        assert response.status == status
        with pytest.raises(UnexpectedResponse, match="compressed") as caught:
            await anext(response)
        assert (caught.value.status, caught.value.retry_after) == (status, 7)


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_a_coding_that_is_none(coding: str) -> None:
    head = f"HTTP/1.1 200 x\r\nContent-Encoding: {coding}\r\nContent-Length: 2\r\n\r\n".encode()
    async with says(head + b"ok").opened() as response:
        assert [data async for data in response] == [b"ok"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_returned_as_it_is(status: int) -> None:
    head = b"HTTP/1.1 %d x\r\nLocation: http://elsewhere/events\r\nContent-Length: 0\r\n\r\n" % status
    async with says(head).opened(headers={"Authorization": "Bearer hunter2"}) as response:
        assert response.status == status
        assert response.headers.header(b"location") == b"http://elsewhere/events"
        assert [data async for data in response] == []


@pytest.mark.parametrize("more", [b"", b"Content-Encoding: gzip\r\n"])
async def test_no_content(more: bytes) -> None:
    """204 ends a stream for good (do not reconnect); there is nothing to read or to wait for."""
    async with says(b"HTTP/1.1 204 No Content\r\n" + more + b"\r\n").opened(silence=None) as response:
        assert response.status == 204
        assert [data async for data in response] == []


async def test_the_page_of_a_portal() -> None:
    page = b"<html>Please sign in</html>\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(page)
    async with says(head + page).opened() as response:
        assert not is_event_stream(response.headers.header(b"content-type"))
        assert [event for data in [await anext(response)] for event in EventParser().feed(data)] == []


async def test_two_content_types_are_none() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Type: text/html\r\n\r\n"
    async with says(head).opened() as response:
        assert not is_event_stream(response.headers.header(b"content-type"))


@pytest.mark.parametrize("began", [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n"])
async def test_an_endless_header(began: bytes) -> None:
    async def serve(stream: ByteStream) -> None:
        await stream.send(began)
        while True:
            await stream.send(b"X: y\r\n" * 100 if began.endswith(b"\n") else b"x" * 1000)

    server = Server(serve)
    async with server.network:
        with pytest.raises(ProtocolViolation):
            async with stream_response("GET", "http://localhost/", network=server.network, max_body=None):
                raise AssertionError
        assert server.links[0].carried("down") < 3 * 65_536


@pytest.mark.parametrize("began", [b"5;", b"0\r\nX: ", b"5"])
async def test_an_endless_chunk_header_or_trailer(began: bytes) -> None:
    async def serve(stream: ByteStream) -> None:
        await stream.send(HEAD + began)
        while True:
            await stream.send(b"0" * 1000)

    server = Server(serve)
    async with server.opened(silence=None) as response:
        with pytest.raises(ProtocolViolation):
            await anext(response)
    assert server.links[0].carried("down") < 4 * 65_536


async def test_an_endless_line_and_an_endless_event() -> None:
    for endless in (b"x" * 1000, b"data: x\n" * 100):

        async def serve(stream: ByteStream, endless: bytes = endless) -> None:
            await stream.send(HEAD)
            while True:
                await stream.send(chunk(endless))

        server = Server(serve)
        async with server.opened() as response:
            parser = EventParser(max_line=100_000, max_event=100_000)
            with pytest.raises(MessageTooBig):
                async for data in response:
                    assert list(parser.feed(data)) == []
        assert server.links[0].carried("down") < 1_000_000


async def test_what_came_before_the_nonsense() -> None:
    """A server that dies in the middle of a chunked body: what the same read brought is delivered first."""
    async with says(HEAD + chunk(b"data: a\n\n") + b"Traceback (most recent call last)\r\n").opened() as response:
        assert await anext(response) == b"data: a\n\n"
        for _ in range(2):
            with pytest.raises(ProtocolViolation):
                await anext(response)


async def test_a_stream_that_breaks_off() -> None:
    async with says(HEAD + chunk(b"data: a\n\n"), hang=False).opened() as response:
        assert await anext(response) == b"data: a\n\n"
        with pytest.raises(ConnectionBroken):
            await anext(response)
