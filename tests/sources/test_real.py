"""Each source once on real sockets: Starlette on uvicorn, on plain loops."""

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import anyio
import pytest
import uvicorn
from anyio.to_thread import run_sync
from scripted_wire import access
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from towline._exceptions import ConnectionBroken, ConnectionClosed, HandshakeRefused
from towline._facts import Answer, Line, Message, Received, Request, ServerEvent
from towline._secret import Secret
from towline.sources import Access, Source, UnusableAnswer, call, open_source, received_of

pytestmark = pytest.mark.anyio

#: Seconds for what takes milliseconds.
PATIENCE = 120

BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    *([pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")] if find_spec("uvloop") else []),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


class Server:
    """An application that knows one token, and remembers how its clients left."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.closes: list[int] = []
        self.clients: list[int] = []
        self.port = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                WebSocketRoute("/ws", self.socket),
                Route("/events", self.events, methods=["GET", "POST"]),
                Route("/lines", self.lines),
                Route("/poll", self.poll),
                Route("/moved", lambda _: RedirectResponse("http://elsewhere.example/", 303)),
            ]
        )

    async def socket(self, websocket: WebSocket) -> None:
        if websocket.headers.get("authorization") != "Bearer t":
            await websocket.close()  # before the upgrade: HTTP 403
            return
        await websocket.accept()
        await websocket.send_text(f"hello {await websocket.receive_text()}")
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect as end:
            self.closes.append(end.code)
            self.left.set()

    async def events(self, asked: Asked) -> Response:
        body = await asked.body()

        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b": hello\n\nid: 1\ndata: "
                yield body + b"\n\n"
                await anyio.sleep_forever()
            finally:
                self.left.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def lines(self, asked: Asked) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"a":1}\n{"b'
            yield b'":2}'

        return StreamingResponse(pieces(), media_type="application/x-ndjson")

    async def poll(self, asked: Asked) -> Response:
        assert asked.client is not None
        self.clients.append(asked.client.port)
        if asked.headers.get("if-none-match") == '"1"':
            return Response(status_code=304)
        return Response(asked.headers.get("authorization"), 202 if asked.url.query else 200, {"ETag": '"1"'})


@pytest.fixture
def server() -> Iterator[Server]:
    application = Server()
    config = uvicorn.Config(application.app(), log_config=None, lifespan="off", loop="asyncio")
    running = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        application.port = listener.getsockname()[1]
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield application
        finally:
            running.should_exit = True
            thread.join(PATIENCE)


HEADERS = (("Authorization", Secret("Bearer t")),)


def reached(server: Server) -> Access:
    return access(None, f"http://127.0.0.1:{server.port}/")


async def opened(server: Server, via: Any, path: str, **options: Any) -> Source:
    asked = Request(via=via, url=f"http://127.0.0.1:{server.port}{path}", **({"headers": HEADERS} | options))

    async def again() -> Request:
        return asked

    source = await open_source(asked, reached(server), again)
    await source.start(asked.opening)
    return source


async def test_a_websocket(server: Server) -> None:
    with anyio.fail_after(PATIENCE):
        source = await opened(server, "websocket", "/ws", opening=(Secret("me"),))
        assert await source.receive() == [Message("hello me")]
        await source.send("again")
        assert await source.receive() == [Message("again")]
        await source.leave(1000, wait=2)
        assert await run_sync(server.left.wait, PATIENCE)
        with pytest.raises(ConnectionClosed):
            await source.receive()
        assert server.closes == [1000]


async def test_a_refused_websocket(server: Server) -> None:
    with anyio.fail_after(PATIENCE):
        with pytest.raises(HandshakeRefused) as caught:
            await opened(server, "websocket", "/ws", headers=())
    said = received_of(caught.value)
    assert isinstance(said, Answer)
    assert said.status == 403


async def test_events(server: Server) -> None:
    """They come while the response goes on, and the server notices that we leave."""
    with anyio.fail_after(PATIENCE):
        source = await opened(server, "events", "/events", method="POST", body=b"hello")
        received: list[Received] = []
        while not received:
            received += await source.receive()
        assert received == [ServerEvent("message", "hello", "1")]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.receive)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await source.leave(1001)
        assert await run_sync(server.left.wait, PATIENCE)


async def test_lines_and_a_redirect(server: Server) -> None:
    with anyio.fail_after(PATIENCE):
        source = await opened(server, "lines", "/lines")
        received: list[Received] = []
        with pytest.raises(ConnectionBroken, match="the server ended the response"):
            while True:
                received += await source.receive()
        assert received == [Line('{"a":1}'), Line('{"b":2}')]
        await source.leave(1001)
        with pytest.raises(UnusableAnswer, match="a redirect is not followed") as caught:
            await opened(server, "events", "/moved")
    assert caught.value.answer.headers["location"] == "http://elsewhere.example/"


async def test_polls(server: Server) -> None:
    """On one connection, the second without news; a probe makes a new connection."""
    with anyio.fail_after(PATIENCE):
        source = await opened(server, "poll", "/poll")
        (first,) = await source.receive()
        assert isinstance(first, Answer)
        assert (first.status, first.body) == (200, b"Bearer t")
        source.advise(0)
        assert await source.receive() == []
        source.probe(PATIENCE)
        assert await source.receive() == []
        await source.leave(1001)
    assert server.clients[0] == server.clients[1] != server.clients[2]


async def test_calls(server: Server) -> None:
    with anyio.fail_after(PATIENCE):
        for path, status in [("/poll?x", 202), ("/moved", 303), ("/nowhere", 404)]:
            asked = Request(via="call", url=f"http://127.0.0.1:{server.port}{path}", headers=HEADERS)
            got = await call(asked, reached(server), deadline=PATIENCE, max_body=1000)
            assert got.answer.status == status
