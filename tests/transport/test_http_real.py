"""The HTTP client on real sockets: uvicorn, plain and with TLS, and a server that closes idle connections."""

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import pytest
import trustme
import uvicorn
from anyio.to_thread import run_sync

from towline.transport import EventParser, HTTPClient, LineParser, Network, is_event_stream, stream_response
from towline.transport.net._dialling import dial_address, literal

pytestmark = pytest.mark.anyio

#: Seconds for what takes milliseconds.
PATIENCE = 120


@pytest.fixture
def anyio_backend(real_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return real_backend


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class App:
    """`/port` answers with the port of the client; `/events` and `/lines` go on until the client leaves."""

    def __init__(self) -> None:
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = await receive()
        headers = [(b"content-type", b"text/plain")]
        if scope["path"] == "/close":
            headers.append((b"connection", b"close"))
        streams = {
            "/events": (b"text/event-stream; charset=utf-8", [b": hello\r\n\r\n", b"id: 1\r\ndata: ", b"%s\r\n\r\n"]),
            "/lines": (b"application/x-ndjson", [b'{"a":1}\n{"b"', b":2}\n", b"%s\n"]),
        }
        if scope["path"] not in streams:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": str(scope["client"][1]).encode()})
            return
        content_type, pieces = streams[scope["path"]]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        for piece in pieces:
            body = piece % asked["body"] if b"%s" in piece else piece
            await send({"type": "http.response.body", "body": body, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


@contextmanager
def uvicorn_serving(app: App, authority: trustme.CA | None = None) -> Iterator[int]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", http="h11", ws="none", loop="asyncio")
    config.load()
    if authority is not None:
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(config.ssl)
    server = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, authority: trustme.CA) -> trustme.CA | None:
    return authority if request.param == "tls" else None


def trusting(authority: trustme.CA | None) -> ssl.SSLContext | None:
    if authority is None:
        return None
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_polling_uvicorn(tls: trustme.CA | None) -> None:
    with uvicorn_serving(App(), tls) as port:
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        with anyio.fail_after(PATIENCE):
            async with HTTPClient(url, network=Network(tls=trusting(tls))) as client:
                ports = []
                for method, path in [("GET", "/port"), ("POST", "/port"), ("HEAD", "/port"), ("GET", "/close")] * 3:
                    body = b"{}" if method == "POST" else None
                    response = await client.request(method, url + path, body=body)
                    assert response.status == 200
                    ports.append(response.body)
    assert len(set(ports)) == 4  # three connections, and the empty answers to HEAD
    assert [ports.index(place) for place in ports[::4]] == [0, 4, 8]


async def test_following_uvicorn(tls: trustme.CA | None) -> None:
    """Events arrive while the response goes on, and the server sees at once that we leave."""
    app = App()
    with uvicorn_serving(app, tls) as port:
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        network = Network(tls=trusting(tls))
        options: dict[str, Any] = {"body": b"hello", "max_body": None, "silence": None, "network": network}
        with anyio.fail_after(PATIENCE):
            async with stream_response("POST", f"{url}/events", **options) as response:
                assert is_event_stream(response.headers.header(b"content-type"))
                parser, events = EventParser(), []
                async for data in response:
                    events += parser.feed(data)
                    if events:
                        break
            assert [(event.type, event.data, event.id) for event in events] == [("message", "hello", "1")]
            assert parser.comments == 1
            assert await run_sync(app.left.wait, PATIENCE)
            async with stream_response("POST", f"{url}/lines", **options) as response:
                reader, lines = LineParser(), []
                async for data in response:
                    lines += reader.feed(data)
                    if len(lines) == 3:
                        break
            assert lines == ['{"a":1}', '{"b":2}', "hello"]


class OneShot:
    """Answers one request on each connection as if it stayed open, and closes it when the test says, by FIN or RST."""

    def __init__(self, listener: socket.socket, reset: bool, context: ssl.SSLContext | None) -> None:
        self.requests = 0
        self._listener = listener
        self._reset = reset
        self._context = context
        self._close, self._closed = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the test is over
                return
            if self._reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            wire = b""
            while b"\r\n\r\n" not in wire:
                wire += connection.recv(65536)
            self.requests += 1
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            self._close.acquire(timeout=PATIENCE)
            connection.close()
            self._closed.release()

    async def close_connection(self) -> None:
        self._close.release()
        assert await run_sync(self._closed.acquire, True, PATIENCE)


@contextmanager
def one_shot(reset: bool, authority: trustme.CA | None) -> Iterator[tuple[int, OneShot]]:
    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))
    server = OneShot(listener, reset, context)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        listener.close()
        thread.join(PATIENCE)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_closed_idle_connection_costs_no_request(tls: trustme.CA | None, reset: bool) -> None:
    """The socket knows that the server has gone, so that even a POST, which is never sent twice, does not fail."""
    with one_shot(reset, tls) as (port, server):
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}/"
        with anyio.fail_after(PATIENCE):
            async with HTTPClient(url, network=Network(tls=trusting(tls))) as client:
                for calls in (1, 2, 3):
                    assert (await client.request("POST", url, body=b"x")).body == b"ok"
                    assert server.requests == calls
                    await server.close_connection()


async def test_whether_a_stream_is_quiet() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, anyio.fail_after(PATIENCE):
        for act in ("nothing", "bytes", "fin", "rst", "close"):
            stream = await dial_address(literal("127.0.0.1", listener.getsockname()[1]))
            peer, _ = listener.accept()
            with closing(peer):
                assert stream.is_quiet()
                if act == "bytes":
                    peer.sendall(b"x")
                if act == "fin":
                    peer.shutdown(socket.SHUT_WR)
                if act == "rst":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    peer.close()
                if act == "close":
                    stream.close()
                assert stream.is_quiet() is (act == "nothing")
                if act == "bytes":  # it took nothing
                    assert await stream.receive() == b"x"
                    assert stream.is_quiet()
            stream.close()
