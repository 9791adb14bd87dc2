"""HTTP calls over an anyio byte stream: drives `HTTPExchange`, with one connection and one deadline per call."""

from __future__ import annotations

import ssl as ssl_module
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio
import h11
from anyio.abc import ByteStream

from ..._exceptions import DeadlineExceeded, InvalidArgument, MessageTooBig
from .._url import URL, Headers, check_headers, parse_url
from ..net._network import STREAM_ERRORS, Network, SystemNetwork, broken, close_now, endpoint_of
from ._protocol import RESERVED, Head, HTTPExchange, parse_retry_after

_READ_SIZE = 64 << 10


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. `retry_after` is the server's advice in seconds from now, None if it gave none."""

    status: int
    headers: Head = field(repr=False)
    body: bytes = field(repr=False)
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A body sent piece by piece. `length` is its size in bytes; None sends it chunked."""

    pieces: AsyncIterable[bytes] = field(repr=False)
    length: int | None = None


class Download:
    """A response whose body is still arriving: iterate over it once, inside its block."""

    def __init__(self, head: Head, retry_after: float | None, pieces: AsyncIterator[bytes]) -> None:
        self.status = head.status
        self.headers = head
        self.retry_after = retry_after
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


@asynccontextmanager
async def stream_response(
    method: str,
    url: str | URL,
    *,
    headers: Headers = (),
    body: bytes | Upload | None = None,
    deadline: float = 10.0,
    max_body: int = 16 << 20,
    network: Network | None = None,
    ssl: ssl_module.SSLContext | None = None,
    allow_insecure: bool = False,
    wall_time: Callable[[], float] = time.time,
) -> AsyncIterator[Download]:
    """Make a call. The block starts when the response's head is there; read the body inside it.

    `deadline` (seconds) covers everything up to the head, and then each wait for more of the body. So a large body may
    take long, but a silent peer may not. Raises as `request`; the iteration raises if the body exceeds `max_body`.
    """
    if not isinstance(url, URL):
        url = parse_url(url, schemes=("https", "http"), allow_insecure=allow_insecure)
    if url.scheme not in {"http", "https"}:
        raise InvalidArgument("url", "the scheme must be https or http")
    length: int | None = None
    if isinstance(body, Upload):
        length = -1 if body.length is None else body.length
    elif body is not None:
        length = len(body)
    exchange = HTTPExchange(method, url, check_headers(headers, reserved=RESERVED), content_length=length)
    stream: ByteStream | None = None
    try:
        first: list[bytes] = []
        with anyio.CancelScope(deadline=anyio.current_time() + deadline) as scope:
            stream = await (network or SystemNetwork()).connect(endpoint_of(url, ssl))
            first = await _exchange(stream, exchange, body, scope, deadline)
        if stream is None or exchange.head is None:
            raise DeadlineExceeded("a response to the HTTP call", deadline)
        retry_after = parse_retry_after(exchange.head.header(b"retry-after"), wall_time())
        async with aclosing(_body(stream, exchange, first, deadline, max_body)) as pieces:
            yield Download(exchange.head, retry_after, pieces)
    finally:
        if stream is not None:
            await close_now(stream)


async def request(
    method: str,
    url: str | URL,
    *,
    headers: Headers = (),
    body: bytes | Upload | None = None,
    deadline: float = 10.0,
    max_body: int = 16 << 20,
    network: Network | None = None,
    ssl: ssl_module.SSLContext | None = None,
    allow_insecure: bool = False,
    wall_time: Callable[[], float] = time.time,
) -> Response:
    """Make a call and return the complete response, whatever its status. Redirects are not followed.

    `deadline` (seconds) covers the whole call; with an `Upload` it restarts with each piece sent. `max_body` is in
    bytes. `http` URLs need loopback or `allow_insecure=True`.

    Raises `InvalidArgument` before it connects; then `NetworkError`, `DeadlineExceeded`, `ProtocolViolation` or
    `MessageTooBig`. No connection stays open.
    """
    ends = anyio.current_time() + deadline
    async with stream_response(
        method,
        url,
        headers=headers,
        body=body,
        deadline=deadline,
        max_body=max_body,
        network=network,
        ssl=ssl,
        allow_insecure=allow_insecure,
        wall_time=wall_time,
    ) as download:
        pieces: list[bytes] = []
        if isinstance(body, Upload):
            ends = anyio.current_time() + deadline
        with anyio.CancelScope(deadline=ends):
            pieces = [piece async for piece in download]
            return Response(download.status, download.headers, b"".join(pieces), download.retry_after)
    raise DeadlineExceeded("the whole response to the HTTP call", deadline)


async def _exchange(
    stream: ByteStream, exchange: HTTPExchange, body: bytes | Upload | None, scope: anyio.CancelScope, deadline: float
) -> list[bytes]:
    """Send the request and read up to the response's head; returns the first pieces of the response's body."""
    first: list[bytes] = []

    async def read_head() -> None:
        while exchange.head is None:
            first.extend(await _read(stream, exchange))

    if not isinstance(body, Upload):
        head = exchange.request_head + (exchange.body_chunk(body) if body else b"") + exchange.body_end()
        with suppress(*STREAM_ERRORS):  # a server may refuse and close early: its response says more than our error
            await stream.send(head)
        await read_head()
        return first

    async def send_body() -> None:
        try:
            await stream.send(exchange.request_head)
            async with _closing(body.pieces) as pieces:
                async for piece in pieces:
                    if piece:
                        await stream.send(_piece(exchange, piece))
                        scope.deadline = anyio.current_time() + deadline
            await stream.send(_end(exchange))
        except STREAM_ERRORS:
            pass

    # A server that refuses a large upload responds before reading all of it, so both directions run at once.
    problems: list[BaseException] = []
    async with anyio.create_task_group() as tasks:

        async def sending() -> None:
            try:
                await send_body()
            except Exception as error:
                problems.append(error)
                tasks.cancel_scope.cancel()

        async def reading() -> None:
            try:
                await read_head()
            except Exception as error:
                problems.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(sending)
        tasks.start_soon(reading)
    if problems:
        raise problems[0]
    return first


@asynccontextmanager
async def _closing(pieces: AsyncIterable[bytes]) -> AsyncIterator[AsyncIterable[bytes]]:
    """Close an unfinished generator in this task, so that the garbage collector need not."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _piece(exchange: HTTPExchange, piece: bytes) -> bytes:
    try:
        return exchange.body_chunk(piece)
    except h11.LocalProtocolError:
        raise InvalidArgument("body", "is longer than the declared length") from None


def _end(exchange: HTTPExchange) -> bytes:
    try:
        return exchange.body_end()
    except h11.LocalProtocolError:
        raise InvalidArgument("body", "is shorter than the declared length") from None


async def _read(stream: ByteStream, exchange: HTTPExchange) -> list[bytes]:
    try:
        data = await stream.receive(_READ_SIZE)
    except anyio.EndOfStream:
        data = b""
    except STREAM_ERRORS as error:
        raise broken(error) from error
    return exchange.receive(data)


async def _body(
    stream: ByteStream, exchange: HTTPExchange, first: list[bytes], deadline: float, max_body: int
) -> AsyncGenerator[bytes, None]:
    size = 0
    pieces = first
    while True:
        for piece in pieces:
            size += len(piece)
            if size > max_body:
                raise MessageTooBig("bytes in an HTTP response", max_body)
            yield piece
        if exchange.complete:
            return
        with anyio.CancelScope(deadline=anyio.current_time() + deadline) as scope:
            pieces = await _read(stream, exchange)
        if scope.cancelled_caught:
            raise DeadlineExceeded("more of the HTTP response", deadline)
