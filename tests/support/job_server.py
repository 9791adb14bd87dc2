"""A job on a server of one's own, in memory: over a WebSocket, as server-sent events, and polled.

    async with JobServer("events") as server:
        async with server.follow() as connection:
            server.progress(1)
            server.cut()
            server.end()

All ways show the same log of JSON messages. `/events` gives each message an id and goes on after `Last-Event-ID`; `/ws`
sends what happens while a socket is open, and the end to a late one; `/poll` and `/state` answer the newest message.
HTTP is read with h11 and WebSockets with wsproto, on the links of a `MemoryNetwork`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import anyio
import h11
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from msgspec import structs
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, TextMessage
from wsproto.events import Message as WebSocketMessage
from wsproto.events import Request as UpgradeRequest
from wsproto.utilities import LocalProtocolError

from towline import Connection, JobCancelled, JobComplete, Progress
from towline._facts import Answer as ProtocolAnswer
from towline._facts import CancelAnswer, CancelJob, Promise, Protocol
from towline._facts import Request as ProtocolRequest
from towline._updates import Output, Paused
from towline.protocols import EventStream, Messages, Polling
from towline.testing import MemoryLink, MemoryNetwork

#: How the server is followed: `websocket` has no state call, `websocket+state` and `lines` have one.
Way: TypeAlias = Literal["websocket", "websocket+state", "events", "lines", "poll"]

#: Progress `n` of a job is `n / STEPS`.
STEPS: Final = 10


def each(message: Any) -> Any:
    """What a message of the job means."""
    match message:
        case {"done": done}:
            return Progress(fraction=done / STEPS)
        case {"log": text}:
            return Output(key="log", value=text)
        case {"pause": kind}:
            return Paused(kind=kind)
        case {"end": "cancelled"}:
            return JobCancelled()
        case {"end": result}:
            return JobComplete(result=result)
    return None


class _WithCancel:
    """Adds a cancel call, as a user's own protocol does."""

    def ask(self, want: Any, token: Any) -> ProtocolRequest | None:
        if not isinstance(want, CancelJob):
            return super().ask(want, token)  # type: ignore[misc, no-any-return]
        headers = self.placed(token, "http://hub/cancel", ("Idempotency-Key", want.key)).headers  # type: ignore[attr-defined]
        return ProtocolRequest(via="call", url="http://hub/cancel", method="POST", headers=headers)

    def read(self, want: Any, received: Any) -> Any:
        if isinstance(want, CancelJob):
            told = isinstance(received, ProtocolAnswer) and received.status == 200
            return (CancelAnswer(json.loads(received.body)["answer"]),) if told else ()
        return super().read(want, received)  # type: ignore[misc]


@dataclass(frozen=True)
class CancellableMessages(_WithCancel, Messages):
    """Messages with a cancel call."""


@dataclass(frozen=True)
class CancellableEvents(_WithCancel, EventStream):
    """Events with a cancel call."""


class LateEvents(EventStream):
    """Events that are in step at their first fact, as where a server begins with the whole job."""

    def ask(self, want: Any, token: Any) -> Any:
        asked = super().ask(want, token)
        return structs.replace(asked, in_step="first_fact") if asked is not None and asked.via == "events" else asked


@dataclass(frozen=True)
class CancellablePolling(_WithCancel, Polling):
    """Polling with a cancel call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as received: `at` in seconds of the loop's clock."""

    at: float
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def token(self) -> str | None:
        """The bearer token."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response; None as its status: the request is never answered."""

    status: int | None
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class JobServer(AsyncContextManagerMixin):
    """One job, followed in one way, and the faults on it.

    `tokens`: the valid ones; None: no token is needed. `refusal` answers instead of the job, for each request.
    """

    def __init__(self, way: Way = "events") -> None:
        self.way: Way = way
        self.network = MemoryNetwork(self._serve)
        self.log: list[dict[str, Any]] = []
        self.requests: list[Asked] = []
        self.tokens: set[str] | None = None
        self.refusal: Callable[[Asked], Reply | None] = lambda asked: None
        self.cancel_answer = "accepted"
        #: The seconds that SSE asks its clients to wait (`retry:`), and those of polls (`Retry-After`).
        self.retry: float | None = None
        self.ended = False
        # The next message breaks off inside; how often the open streams were ended.
        self._tears = False
        self._finishes = 0
        self._open: set[MemoryLink] = set()
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        async with self.network:
            yield self

    # --- the client ------------------------------------------------------------------------------------------------

    def protocol(self) -> Protocol:
        """The protocol that follows the job in this server's way."""
        if self.way == "events":
            return CancellableEvents("http://hub/events", each)
        if self.way == "lines":
            return CancellableEvents("http://hub/lines", each, via="lines", state="/state")
        if self.way == "poll":
            return CancellablePolling("http://hub/poll", each)
        return CancellableMessages("ws://hub/ws", each, state="/state" if self.way == "websocket+state" else None)

    @property
    def promise(self) -> Promise:
        """What this server keeps."""
        return "exact" if self.way == "events" else self.protocol().promise

    def follow(self, protocol: Protocol | None = None, **options: Any) -> Connection:
        """A connection to the job."""
        target = self.protocol() if protocol is None else protocol
        return Connection(target, network=self.network, **options)

    # --- the job ---------------------------------------------------------------------------------------------------

    def publish(self, **message: Any) -> None:
        """Log a message, and send it to those who follow."""
        self.log.append(message)
        self._note()

    def progress(self, done: int) -> None:
        """Report progress `done` of `STEPS`."""
        self.publish(done=done)

    def end(self, result: Any = "result") -> None:
        """End the job."""
        self.ended = True
        self.publish(end=result)

    # --- faults ----------------------------------------------------------------------------------------------------

    @property
    def followers(self) -> int:
        """How many streams and polls are open."""
        return len(self._open)

    def cut(self, ending: Literal["fin", "rst"] = "rst") -> None:
        """End all links now."""
        for link in self.network.links:
            link.cut(ending)

    def tear_next(self) -> None:
        """Break off inside the next message."""
        self._tears = True

    def finish_streams(self) -> None:
        """End the open streams in order, as a server does that limits their time."""
        self._finishes += 1
        self._note()

    def refuse(self, status: int | None, **headers: str) -> None:
        """Answer every request so, until `serve_again`; None: never."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.refusal = lambda asked: Reply(status, headers=named)

    def serve_again(self) -> None:
        """End a refusal."""
        self.refusal = lambda asked: None

    async def wait_requests(self, count: int, path: str | None = None) -> None:
        """Wait until so many requests have come since the start."""
        while len([asked for asked in self.requests if path in (None, asked.path)]) < count:
            await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- serving one link --------------------------------------------------------------------------------------------

    async def _serve(self, link: MemoryLink) -> None:
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            http = h11.Connection(h11.SERVER)
            while (asked := await self._read(link, http)) is not None:
                self.requests.append(asked)
                self._note()
                reply = self._reply(asked)
                if reply is None:
                    await self._stream(link, http, asked)
                    return
                if reply.status is None:
                    while await link.server.receive():
                        pass
                await self._write(link, http, reply, torn=asked.path == "/poll" and self._take_tear())
                if http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()

    async def _read(self, link: MemoryLink, http: h11.Connection) -> Asked | None:
        head: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await link.server.receive())
                except anyio.EndOfStream:
                    return None
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {name.decode(): value.decode() for name, value in head.headers}
                path = urlsplit(head.target.decode()).path
                return Asked(anyio.current_time(), head.method.decode(), path, headers)
            elif not isinstance(event, h11.Data):
                return None

    def _reply(self, asked: Asked) -> Reply | None:
        refused = self.refusal(asked)
        if refused is not None:
            return refused
        if self.tokens is not None and asked.token not in self.tokens:
            return Reply(401)
        advice = {} if self.retry is None else {"retry-after": str(self.retry)}
        if asked.path == "/cancel":
            return Reply(200, {"answer": self.cancel_answer})
        if asked.path in ("/poll", "/state"):
            return Reply(200, self.log[-1] if self.log else {}, advice)
        return None if asked.path in ("/ws", "/events", "/lines") else Reply(404)

    async def _write(self, link: MemoryLink, http: h11.Connection, reply: Reply, *, torn: bool) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"content-length": str(len(body)), "content-type": "application/json", **reply.headers}
        data = http.send(h11.Response(status_code=reply.status or 500, headers=list(headers.items()))) or b""
        data += (http.send(h11.Data(data=body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
        if torn:
            await self._break_off(link, data)
        await link.server.send(data)

    def _take_tear(self) -> bool:
        torn, self._tears = self._tears, False
        return torn

    async def _break_off(self, link: MemoryLink, data: bytes) -> None:
        await link.server.send(data[: len(data) - len(data) // 3])
        link.cut("rst")
        raise anyio.EndOfStream

    # --- streams -----------------------------------------------------------------------------------------------------

    async def _stream(self, link: MemoryLink, http: h11.Connection, asked: Asked) -> None:
        self._open.add(link)
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await self._stream_all(link, http, asked, tasks)
                except (anyio.BrokenResourceError, anyio.EndOfStream):
                    tasks.cancel_scope.cancel()
                await anyio.sleep_forever()  # until the client has closed
        finally:
            self._open.discard(link)

    async def _stream_all(self, link: MemoryLink, http: h11.Connection, asked: Asked, tasks: TaskGroup) -> None:
        first = self._first_of(asked)
        if asked.path == "/ws":
            early, _ = http.trailing_data
            websocket = await self._accept(link, asked)
            tasks.start_soon(self._listen, link, websocket, early, tasks.cancel_scope)
            await self._send_all(link, first, _frame(websocket))
            await link.server.send(websocket.send(CloseConnection(1000)))
            return
        tasks.start_soon(self._listen, link, None, b"", tasks.cancel_scope)
        kind = "text/event-stream" if asked.path == "/events" else "application/x-ndjson"
        headers = [("content-type", kind), ("transfer-encoding", "chunked")]
        await link.server.send(http.send(h11.Response(status_code=200, headers=headers)) or b"")
        if self.retry is not None and asked.path == "/events":
            await link.server.send(http.send(h11.Data(data=b"retry: %d\n\n" % (self.retry * 1000))) or b"")
        await self._send_all(link, first, _chunk(http, with_id=asked.path == "/events"))
        await link.server.send(http.send(h11.EndOfMessage()) or b"")
        await link.server.send_eof()

    def _first_of(self, asked: Asked) -> int:
        """How many messages of the log a new stream leaves out."""
        if asked.path == "/events":
            return int(asked.headers.get("last-event-id", "0"))
        return len(self.log) - 1 if self.ended else len(self.log)

    async def _send_all(self, link: MemoryLink, sent: int, framed: Callable[[int, Any], bytes]) -> None:
        """Send the log from there on, to the end of the job or of this stream."""
        finishes = self._finishes
        while True:
            while sent < len(self.log):
                sent += 1
                data = framed(sent, self.log[sent - 1])
                if self._take_tear():
                    await self._break_off(link, data)
                await link.server.send(data)
            if self.ended:
                return
            changed = self._changed
            await changed.wait()
            if self._finishes > finishes:
                return

    async def _accept(self, link: MemoryLink, asked: Asked) -> WSConnection:
        websocket = WSConnection(ConnectionType.SERVER)
        websocket.initiate_upgrade_connection([(n.encode(), v.encode()) for n, v in asked.headers.items()], asked.path)
        assert [type(event) for event in websocket.events()] == [UpgradeRequest]
        await link.server.send(websocket.send(AcceptConnection()))
        return websocket

    async def _listen(
        self, link: MemoryLink, websocket: WSConnection | None, early: bytes, scope: anyio.CancelScope
    ) -> None:
        """Read what the client sends until it is gone; answer pings and the close."""
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            data = early or await link.server.receive()
            while True:
                if websocket is not None:
                    websocket.receive_data(data)
                    for event in websocket.events():
                        if isinstance(event, Ping):
                            with suppress(LocalProtocolError):  # our close frame was the last to be sent
                                await link.server.send(websocket.send(event.response()))
                        elif isinstance(event, CloseConnection):
                            with suppress(Exception):
                                await link.server.send(websocket.send(event.response()))
                            raise anyio.EndOfStream
                        elif isinstance(event, TextMessage):
                            self.publish(heard=event.data)
                data = await link.server.receive()
        scope.cancel()


def _frame(websocket: WSConnection) -> Callable[[int, Any], bytes]:
    return lambda number, message: websocket.send(WebSocketMessage(data=json.dumps(message)))


def _chunk(http: h11.Connection, *, with_id: bool) -> Callable[[int, Any], bytes]:
    def framed(number: int, message: Any) -> bytes:
        line = json.dumps(message)
        text = f"id: {number}\ndata: {line}\n\n" if with_id else f"{line}\n"
        return http.send(h11.Data(data=text.encode())) or b""

    return framed
