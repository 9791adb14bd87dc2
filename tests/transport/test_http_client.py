"""A client that keeps its connection, on links in memory under virtual time: when it is used again, and when not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from towline._exceptions import (
    ConnectFailed,
    ConnectionBroken,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
    UnexpectedResponse,
)
from towline._secret import Secret
from towline.testing import MemoryLink, MemoryNetwork, NoAnswer, Unreachable
from towline.transport import HTTPClient, Upload

pytestmark = pytest.mark.anyio

URL = "http://localhost/job"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


class Server:
    """Answers each request with the next of `script`: the bytes, and what happens to the connection then.

    "keep" reads the next request, "fin" and "rst" end the connection, "hang" does nothing. Without a script: OK, keep.
    """

    def __init__(self, *script: tuple[bytes, str]) -> None:
        self.script = list(script)
        #: The number of the connection and the method, of each request.
        self.requests: list[tuple[int, str]] = []
        self.heads: list[bytes] = []
        self.links: list[MemoryLink] = []
        self.network = MemoryNetwork(self.serve)

    async def serve(self, link: MemoryLink) -> None:
        number = len(self.links)
        self.links.append(link)
        wire = b""
        while True:
            while b"\r\n\r\n" not in wire:
                wire += await link.server.receive()
            head, _, wire = wire.partition(b"\r\n\r\n")
            size = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
            while len(wire) < size:
                wire += await link.server.receive()
            wire = wire[size:]
            self.heads.append(head)
            self.requests.append((number, head.split()[0].decode()))
            answer, then = self.script.pop(0) if self.script else (OK, "keep")
            if answer:
                await link.server.send(answer)
            if then == "fin":
                return
            if then == "rst":
                link.cut("rst")
                return
            if then == "hang":
                await anyio.sleep_forever()


@asynccontextmanager
async def calling(server: Server, **options: Any) -> AsyncIterator[HTTPClient]:
    async with server.network, HTTPClient(URL, network=server.network, **options) as client:
        yield client
    for link in server.links:
        await is_closed(link)


async def is_closed(link: MemoryLink) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await link.client.receive()


async def statuses(client: HTTPClient, *methods: str) -> list[int]:
    return [(await client.request(method, URL)).status for method in methods]


# --- used again -------------------------------------------------------------------------------------------------


async def test_one_connection_for_call_after_call() -> None:
    server = Server()
    async with calling(server) as client:
        assert await statuses(client, "GET", "GET", "POST", "HEAD") == [200] * 4
    assert server.requests[:3] == [(0, "GET"), (0, "GET"), (0, "POST")]
    assert not any(b"connection:" in head.lower() for head in server.heads)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 10\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        ("GET", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 3\r\n\r\n"),
        ("GET", b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_every_complete_answer_leaves_it_open(method: str, answer: bytes) -> None:
    server = Server((answer, "keep"))
    async with calling(server) as client:
        await client.request(method, URL)
        await client.request("POST", URL, body=b"x")
    assert server.requests == [(0, method), (0, "POST")]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: X, Close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\n",  # bytes that answer no request
    ],
)
async def test_what_the_server_says_closes_it(answer: bytes) -> None:
    server = Server((answer, "keep"))
    async with calling(server) as client:
        assert await statuses(client, "POST", "POST") == [200, 200]
    assert server.requests == [(0, "POST"), (1, "POST")]


async def test_a_body_that_ends_with_the_stream_closes_it() -> None:
    server = Server((b"HTTP/1.1 200 OK\r\n\r\nok", "fin"))
    async with calling(server) as client:
        assert (await client.request("POST", URL)).body == b"ok"
        assert await statuses(client, "POST") == [200]
    assert server.requests == [(0, "POST"), (1, "POST")]


async def test_an_idle_connection_is_forgotten_after_a_minute() -> None:
    server = Server()
    async with calling(server) as client:
        for wait in (0, 60, 60.5):
            await anyio.sleep(wait)
            await client.request("GET", URL)
        assert server.requests == [(0, "GET"), (0, "GET"), (1, "GET")]


async def test_without_keep_alive() -> None:
    server = Server()
    async with calling(server, keep_alive=False) as client:
        assert await statuses(client, "GET", "GET") == [200, 200]
    assert server.requests == [(0, "GET"), (1, "GET")]
    assert all(b"\r\nConnection: close" in head for head in server.heads)


# --- a kept connection that the server has closed ------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("before", [True, False], ids=["before the request", "instead of an answer"])
async def test_a_get_is_sent_once_more(method: str, ending: str, before: bool) -> None:
    server = Server((OK, ending)) if before else Server((OK, "keep"), (b"", ending))
    async with calling(server) as client:
        assert await statuses(client, "GET", method) == [200, 200]
    assert server.requests[-1] == (1, method)
    assert len(server.requests) == (2 if before else 3)


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_else_is_sent_twice(method: str, ending: str) -> None:
    server = Server((OK, "keep"), (b"", ending))
    async with calling(server) as client:
        await client.request("GET", URL)
        with pytest.raises(ConnectionBroken):
            await client.request(method, URL, body=b"x")
        assert server.requests == [(0, "GET"), (0, method)]
        assert await statuses(client, "POST") == [200]


async def test_an_upload_is_not_sent_twice() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    server = Server((OK, "keep"), (b"", "fin"))
    async with calling(server) as client:
        await client.request("GET", URL)
        with pytest.raises(ConnectionBroken):
            await client.request("GET", URL, body=Upload(pieces(), 1))
    assert len(server.requests) == 2


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("began", [b"H", OK[:-1]])
async def test_an_answer_that_began_is_not_asked_for_again(began: bytes, ending: str) -> None:
    server = Server((OK, "keep"), (began, ending))
    async with calling(server) as client:
        await client.request("GET", URL)
        with pytest.raises(ConnectionBroken):
            await client.request("GET", URL)
    assert len(server.requests) == 2


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_new_connection_gets_one_try(ending: str) -> None:
    server = Server((b"", ending), (OK, "keep"), (b"", ending), (b"", ending))
    async with calling(server) as client:
        with pytest.raises(ConnectionBroken):
            await client.request("GET", URL)
        assert len(server.requests) == 1
        await client.request("GET", URL)
        with pytest.raises(ConnectionBroken):
            await client.request("GET", URL)
        assert server.requests == [(0, "GET"), (1, "GET"), (1, "GET"), (2, "GET")]


async def test_the_second_try_shares_the_deadline() -> None:
    server = Server((OK, "keep"), (b"", "fin"))
    async with calling(server) as client:
        await client.request("GET", URL)
        server.network.script(NoAnswer())
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            await client.request("GET", URL, deadline=5)
        assert anyio.current_time() - began == pytest.approx(5)


# --- after a call that failed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "then", "error"),
    [
        (b"", "hang", DeadlineExceeded),
        (OK[:-1], "hang", DeadlineExceeded),
        (b"SSH-2.0\r\n\r\n", "hang", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b"x" * 99, "keep", MessageTooBig),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: GZip\r\nContent-Length: 2\r\n\r\nxx", "keep", UnexpectedResponse),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
async def test_a_failed_call_costs_its_connection(answer: bytes, then: str, error: Any, kept: bool) -> None:
    server = Server(*[(OK, "keep")] * kept, (answer, then))
    async with calling(server) as client:
        if kept:
            await client.request("GET", URL)
        with pytest.raises(error):
            await client.request("GET", URL, deadline=5, max_body=50)
        await is_closed(server.links[0])
        assert await statuses(client, "POST") == [200]
    assert server.requests[-1] == (1, "POST")


@pytest.mark.parametrize("answer", [b"", OK[:-1]])
async def test_a_cancelled_call_costs_its_connection(answer: bytes) -> None:
    server = Server((OK, "keep"), (answer, "hang"))
    async with calling(server) as client:
        await client.request("GET", URL)
        with anyio.move_on_after(1) as scope:
            await client.request("GET", URL)
        assert scope.cancelled_caught
        await is_closed(server.links[0])
        assert await statuses(client, "POST") == [200]
    assert server.requests[-1] == (1, "POST")


async def test_an_answer_before_the_end_of_the_upload_costs_its_connection() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 10
        await anyio.sleep_forever()

    async def refuse(link: MemoryLink) -> None:
        await link.server.receive()
        await link.server.send(b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n")
        await anyio.sleep_forever()

    network = MemoryNetwork(refuse)
    async with network, HTTPClient(URL, network=network) as client:
        for dials in (1, 2):
            assert (await client.request("POST", URL, body=Upload(pieces(), 100))).status == 413
            assert len(network.dials) == dials


async def test_a_dial_that_fails() -> None:
    server = Server()
    async with calling(server) as client:
        server.network.script(Unreachable())
        with pytest.raises(ConnectFailed):
            await client.request("GET", URL)
        assert await statuses(client, "GET") == [200]


# --- wrong use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1/job", "http://localhost:81/job", "https://localhost/job"])
async def test_another_origin_is_refused(url: str) -> None:
    server = Server()
    async with calling(server) as client:
        with pytest.raises(InvalidArgument, match="calls only http://localhost:80"):
            await client.request("GET", url)
    assert server.requests == []


async def test_one_task_at_a_time() -> None:
    server = Server((b"", "hang"))
    async with calling(server) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, "GET", URL)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await client.request("GET", URL)
            tasks.cancel_scope.cancel()
        assert await statuses(client, "GET") == [200]


async def test_nothing_after_the_end() -> None:
    server = Server()
    async with calling(server) as client:
        await client.request("GET", URL)
        await client.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await client.request("GET", URL)
    assert len(server.requests) == 1


async def test_closed_in_the_middle_of_a_call() -> None:
    """The call completes, and its connection is not kept."""

    async def answer_later(link: MemoryLink) -> None:
        links.append(link)
        await link.server.receive()
        await anyio.sleep(5)
        await link.server.send(OK)
        await anyio.sleep_forever()

    links: list[MemoryLink] = []
    async with MemoryNetwork(answer_later) as network:
        client = HTTPClient(URL, network=network)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, "GET", URL)
            await anyio.sleep(1)
            await client.aclose()
        await is_closed(links[0])


# --- secrets --------------------------------------------------------------------------------------------------------


async def test_a_secret_body_is_sent_as_text() -> None:
    server = Server()
    async with calling(server) as client:
        assert (await client.request("POST", URL, body=Secret("é"))).status == 200
    assert b"\r\nContent-Length: 2\r\n" in server.heads[0] + b"\r\n"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"method": "GET /x"}, "method"), ({"method": ""}, "method"), ({"body": Secret("\ud800")}, "body")],
)
async def test_a_wrong_method_or_body(wrong: dict[str, Any], named: str) -> None:
    server = Server()
    async with calling(server) as client:
        with pytest.raises(InvalidArgument) as caught:
            await client.request(**({"method": "POST", "url": URL} | wrong))
    assert caught.value.name == named
    assert server.requests == []
