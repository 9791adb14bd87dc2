"""HTTP calls over an anyio byte stream: drives `HTTPExchange`.

`stream_response` and `request` open a connection for each call. `HTTPClient` keeps its connection for the next call.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
import h11
from anyio.abc import AsyncResource, ByteStream

from ..._exceptions import ConnectionBroken, DeadlineExceeded, InvalidArgument, MessageTooBig, UnexpectedResponse
from ..._headers import Headers, as_pairs
from ..._secret import Secret
from .._url import URL, check_headers, check_method, parse_url
from ..net._network import STREAM_ERRORS, Network, broken, close_now, endpoint_of, is_quiet
from ._protocol import RESERVED, Head, HTTPExchange, parse_retry_after

_READ_SIZE: Final = 64 << 10

#: Methods whose request may be sent again when the connection closed without an answer (RFC 9110 section 9.2.2). Only
#: those that we know to change nothing: PUT and DELETE are idempotent too, but the caller decides about them.
_REPEATED: Final = frozenset({"GET", "HEAD"})

#: Seconds after which an idle connection is not used again: many proxies and gateways forget it without a word.
_MOST_IDLE: Final = 60.0


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
    """A response whose body is still arriving: iterate over it once, inside its block.

    Each step returns the bytes that one read brought. A step that was cancelled, or that raised `DeadlineExceeded`, may
    be repeated.
    """

    def __init__(
        self,
        stream: ByteStream,
        exchange: HTTPExchange,
        first: list[bytes],
        *,
        silence: float | None,
        max_body: int | None,
        wall_time: Callable[[], float],
    ) -> None:
        assert exchange.head is not None
        self.status = exchange.head.status
        self.headers = exchange.head
        #: The server's advice in seconds from now, None if it gave none.
        self.retry_after = parse_retry_after(exchange.head.header(b"retry-after"), wall_time())
        self._stream = stream
        self._exchange = exchange
        self._pieces = first
        self._size = 0
        self._silence = silence
        self._max_body = max_body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._exchange.problem is not None:
                raise self._exchange.problem
            if self._exchange.complete:
                raise StopAsyncIteration
            with anyio.CancelScope() as scope:
                if self._silence is not None:
                    scope.deadline = anyio.current_time() + self._silence
                self._pieces = await _read(self._stream, self._exchange)
            if scope.cancelled_caught and self._silence is not None:
                raise DeadlineExceeded("more of the HTTP response", self._silence)
        if self._size == 0:
            self.check_encoding()
        data = b"".join(self._pieces)
        self._pieces = []
        self._size += len(data)
        if self._max_body is not None and self._size > self._max_body:
            raise MessageTooBig("bytes in an HTTP response", self._max_body)
        return data

    def check_encoding(self) -> None:
        """Raise `UnexpectedResponse` if the body is compressed. Iterating does so at the first bytes."""
        codings = [value.strip().lower() for name, value in self.headers.headers if name == b"content-encoding"]
        if any(coding not in {b"", b"identity"} for coding in codings):
            raise UnexpectedResponse(
                self.status,
                "the body is compressed (Content-Encoding), although the request accepts only identity: turn"
                " compression off on the server or proxy",
                retry_after=self.retry_after,
            )


@asynccontextmanager
async def stream_response(
    method: str,
    url: str | URL,
    *,
    headers: Headers = (),
    body: bytes | Secret | Upload | None = None,
    deadline: float = 10.0,
    silence: float | None = 10.0,
    max_body: int | None = 16 << 20,
    network: Network | None = None,
    wall_time: Callable[[], float] = time.time,
) -> AsyncIterator[Download]:
    """Make a call. The block starts when the response's head is there; read the body inside it.

    `deadline` (seconds) covers everything up to the head; with an `Upload` it restarts with each piece sent. `silence`
    (seconds) is the longest wait for more bytes of the body, None for no limit. `max_body` is in bytes, None for no
    limit. To follow a stream, pass `max_body=None`, and as `silence` what the server promises, or None.

    A `body` that is a `Secret` is sent as UTF-8 and shown nowhere. Redirects are not followed. The connection is closed
    when the block ends, without waiting for the peer.

    Raises as `request`. Iterating raises too: `ConnectionBroken`, `DeadlineExceeded`, `ProtocolViolation`,
    `MessageTooBig`, and `UnexpectedResponse` for a compressed body.
    """
    network = network or Network()
    url = _checked_url(url, network)
    exchange = _new_exchange(method, url, headers, body)
    stream: ByteStream | None = None
    try:
        first: list[bytes] | None = None
        with anyio.CancelScope(deadline=anyio.current_time() + deadline) as scope:
            stream = await network.connect(endpoint_of(url, network.tls))
            first = await _exchange(stream, exchange, body, scope, deadline)
        if stream is None or first is None:
            raise DeadlineExceeded("a response to the HTTP call", deadline)
        yield Download(stream, exchange, first, silence=silence, max_body=max_body, wall_time=wall_time)
    finally:
        if stream is not None:
            await close_now(stream)


async def request(
    method: str,
    url: str | URL,
    *,
    headers: Headers = (),
    body: bytes | Secret | Upload | None = None,
    deadline: float = 10.0,
    max_body: int = 16 << 20,
    network: Network | None = None,
    wall_time: Callable[[], float] = time.time,
) -> Response:
    """Make a call and return the complete response, whatever its status. Redirects are not followed.

    `deadline` (seconds) covers the whole call; with an `Upload` it restarts with each piece sent. `max_body` is in
    bytes. `http` URLs need loopback or a network that allows it.

    Raises `InvalidArgument` before it connects; then `NetworkError`, `DeadlineExceeded`, `ProtocolViolation`,
    `MessageTooBig`, or `UnexpectedResponse` for a compressed body. No connection stays open.
    """
    async with HTTPClient(url, network=network, keep_alive=False, wall_time=wall_time) as client:
        return await client.request(method, url, headers=headers, body=body, deadline=deadline, max_body=max_body)


class HTTPClient(AsyncResource):
    """Makes calls to one origin, one at a time, and keeps its connection for the next call. Use it as a block.

    `url` is any URL of the origin. The connection is used again if the server left it open, the last call read the
    whole response, and at most 60 seconds have passed. After an error, a timeout or a cancellation the next call opens
    a new one. `keep_alive=False` closes the connection after each call.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        network: Network | None = None,
        keep_alive: bool = True,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        self._network = network or Network()
        self._url = _checked_url(url, self._network)
        self._keep_alive = keep_alive
        self._wall_time = wall_time
        self._guard = anyio.ResourceGuard("making calls with")
        self._idle: ByteStream | None = None
        self._idle_since = 0.0
        self._closed = False

    async def request(
        self,
        method: str,
        url: str | URL,
        *,
        headers: Headers = (),
        body: bytes | Secret | Upload | None = None,
        deadline: float = 10.0,
        max_body: int = 16 << 20,
    ) -> Response:
        """Make a call, as the function `request` does.

        If a kept connection ends before any byte of the response, GET and HEAD are sent once more on a new connection,
        within the same deadline. Other methods raise `ConnectionBroken`, because the server may have acted.

        Also raises `InvalidArgument` for a URL of another origin, `anyio.BusyResourceError` while another task makes a
        call, and `anyio.ClosedResourceError` after `aclose`.
        """
        url = _checked_url(url, self._network)
        if url.origin != self._url.origin:
            raise InvalidArgument("url", f"this client calls only {self._url.origin}")
        headers = as_pairs(headers)
        exchange = _new_exchange(method, url, headers, body, keep_alive=self._keep_alive)
        with self._guard:
            if self._closed:
                raise anyio.ClosedResourceError
            with anyio.CancelScope(deadline=anyio.current_time() + deadline) as scope:
                kept = await self._take_kept()
                if kept is not None:
                    try:
                        return await self._complete(kept, exchange, body, scope, deadline, max_body)
                    except ConnectionBroken:
                        if exchange.answered or method not in _REPEATED or isinstance(body, Upload):
                            raise
                    exchange = _new_exchange(method, url, headers, body, keep_alive=self._keep_alive)
                stream = await self._network.connect(endpoint_of(url, self._network.tls))
                return await self._complete(stream, exchange, body, scope, deadline, max_body)
        raise DeadlineExceeded("the whole response to the HTTP call", deadline)

    async def aclose(self) -> None:
        """Close the connection, without waiting for the peer."""
        self._closed = True
        idle, self._idle = self._idle, None
        if idle is not None:
            await close_now(idle)

    async def _take_kept(self) -> ByteStream | None:
        """The idle connection, if it can be used again. It is kept again only after a good call."""
        kept, self._idle = self._idle, None
        if kept is not None and (anyio.current_time() - self._idle_since > _MOST_IDLE or not is_quiet(kept)):
            await close_now(kept)
            return None
        return kept

    async def _complete(
        self,
        stream: ByteStream,
        exchange: HTTPExchange,
        body: bytes | Secret | Upload | None,
        scope: anyio.CancelScope,
        deadline: float,
        max_body: int,
    ) -> Response:
        try:
            first = await _exchange(stream, exchange, body, scope, deadline)
            if isinstance(body, Upload):
                scope.deadline = anyio.current_time() + deadline
            download = Download(stream, exchange, first, silence=None, max_body=max_body, wall_time=self._wall_time)
            whole = b"".join([piece async for piece in download])
        except BaseException:
            await close_now(stream)
            raise
        if exchange.reusable and not self._closed:
            self._idle, self._idle_since = stream, anyio.current_time()
        else:
            await close_now(stream)
        return Response(download.status, download.headers, whole, download.retry_after)


def _checked_url(url: str | URL, network: Network) -> URL:
    if not isinstance(url, URL):
        url = parse_url(url, schemes=("https", "http"), allow_insecure=network.allow_insecure)
    if url.scheme not in {"http", "https"}:
        raise InvalidArgument("url", "the scheme must be https or http")
    return url


def _new_exchange(
    method: str, url: URL, headers: Headers, body: bytes | Secret | Upload | None, *, keep_alive: bool = False
) -> HTTPExchange:
    length: int | None = None
    check_method(method)
    if isinstance(body, Upload):
        length = -1 if body.length is None else body.length
    elif body is not None:
        length = len(_encoded(body))
    return HTTPExchange(
        method, url, check_headers(headers, reserved=RESERVED), content_length=length, keep_alive=keep_alive
    )


def _encoded(body: bytes | Secret) -> bytes:
    """The body as sent. A frame that may raise must not hold it in a variable."""
    try:
        return body.reveal().encode() if isinstance(body, Secret) else body
    except UnicodeEncodeError:
        raise InvalidArgument("body", "holds a lone surrogate, which UTF-8 cannot encode") from None


async def _exchange(
    stream: ByteStream,
    exchange: HTTPExchange,
    body: bytes | Secret | Upload | None,
    scope: anyio.CancelScope,
    deadline: float,
) -> list[bytes]:
    """Send the request and read up to the response's head; returns the first pieces of the response's body."""
    first: list[bytes] = []

    async def read_head() -> None:
        while exchange.head is None:
            first.extend(await _read(stream, exchange))

    if not isinstance(body, Upload):
        with suppress(*STREAM_ERRORS):  # a server may refuse and close early: its response says more than our error
            # No variable of this frame holds the request: it may hold a token.
            await stream.send(exchange.request_head + exchange.body_chunk(_encoded(body or b"")) + exchange.body_end())
        await read_head()
        return first

    async def send_body() -> None:
        try:
            await stream.send(exchange.request_head)
            async with _closing(body.pieces) as pieces:
                async for piece in pieces:
                    if piece:
                        await stream.send(exchange.body_chunk(piece))
                        scope.deadline = anyio.current_time() + deadline
            await stream.send(exchange.body_end())
        except STREAM_ERRORS:
            pass
        except h11.LocalProtocolError:
            raise InvalidArgument("body", "is longer or shorter than the declared length") from None

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


async def _read(stream: ByteStream, exchange: HTTPExchange) -> list[bytes]:
    try:
        data = await stream.receive(_READ_SIZE)
    except anyio.EndOfStream:
        data = b""
    except STREAM_ERRORS as error:
        raise broken(error) from error
    return exchange.receive(data)
