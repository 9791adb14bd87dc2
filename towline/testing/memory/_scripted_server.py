"""An in-memory job server that a test scripts: WebSocket and HTTP, on the links of a `MemoryNetwork` (docs/testing.md).

Without a script it behaves like the job hub: it checks tokens, replays its log after `ready`, answers the job calls and
closes with 1000 after the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import h11
import msgspec
from anyio import AsyncContextManagerMixin
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection
from wsproto.events import Request as UpgradeRequest
from wsproto.typing import Headers

from ..._exceptions import InvalidArgument
from ...protocols.wire.messages import Ready, ReadyAckFrame, encode
from ._network import MemoryNetwork
from ._scripted_job import LoggedEvent, ScriptedJob
from ._server_socket import Accept, ServerSocket
from ._stream import Ending, MemoryLink

#: The kinds of request.
Call: TypeAlias = Literal["upgrade", "state", "refresh", "cancel", "results"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, sent after `after` seconds. A body that is not bytes is encoded as JSON."""

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """A request that is read and never answered."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A request that is read, and then the link ends without a response."""

    ending: Ending = "rst"


Reaction: TypeAlias = Accept | Answer | Hang | Drop


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received: `at` in seconds of the loop's clock, `token` wherever the client put it."""

    at: float
    call: Call | None
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    job_id: str
    token: str | None
    link: MemoryLink = field(repr=False)


class ScriptedServer(AsyncContextManagerMixin):
    """A scripted job server. `numbered=False` makes it a server without seq, epoch and replay, like the original's.

    Clients connect through `network`, which can refuse, hang or fail to resolve names. `requests` holds every request,
    `sockets` every WebSocket ever opened. `closes_after_end` is the close code after a job's end, or None.
    """

    def __init__(self, *, numbered: bool = True, closes_after_end: int | None = 1000) -> None:
        self.network = MemoryNetwork(self._serve)
        self.requests: list[Request] = []
        self.sockets: list[ServerSocket] = []
        self.closes_after_end = closes_after_end
        self._numbered = numbered
        self._jobs: dict[str, ScriptedJob] = {}
        self._tokens: dict[str, str] = {}  # token → job id
        self._cancel_answers: dict[str, str] = {}  # idempotency key → answer
        self._script: dict[Call, list[Reaction]] = defaultdict(list)
        self._always: dict[Call, Callable[[Request], Reaction | None]] = {}
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        async with self.network:
            yield self

    # --- scripting -------------------------------------------------------------------------------------------------

    def job(self, id: str, *, token: str, pipeline: str = "csv_import") -> ScriptedJob:  # noqa: A002 - a job's own word
        """Add a job. Its token is valid until `revoke`."""
        job = ScriptedJob(id, token=token, pipeline=pipeline, numbered=self._numbered, publish=self._publish)
        self._jobs[id] = job
        self._tokens[token] = id
        return job

    def remove(self, job: ScriptedJob) -> None:
        """Remove the job but not its tokens: calls get 404."""
        del self._jobs[job.id]

    def revoke(self, *tokens: str) -> None:
        """Invalidate tokens: requests with them get 401."""
        for token in tokens:
            self._tokens.pop(token, None)

    def renew(self, job: ScriptedJob) -> str:
        """Give the job another token, as a refresh does; returns it. Older ones stay valid until `revoke`."""
        job.token = f"{job.token}+"
        self._tokens[job.token] = job.id
        return job.token

    def script(self, call: Call, *reactions: Reaction) -> None:
        """Add reactions to the next requests of one kind, one each; after them the server behaves as usual."""
        self._script[call] += reactions

    def always(self, call: Call, reaction: Reaction | Callable[[Request], Reaction | None] | None) -> None:
        """Set the reaction to every request of one kind without a script. None, given or returned: as usual."""
        if reaction is None:
            self._always.pop(call, None)
        elif isinstance(reaction, Accept | Answer | Hang | Drop):
            self._always[call] = lambda request: reaction
        else:
            self._always[call] = reaction

    # --- observing -------------------------------------------------------------------------------------------------

    @property
    def open_sockets(self) -> list[ServerSocket]:
        """The WebSockets that are still open, oldest first."""
        return [socket for socket in self.sockets if not socket.over]

    @property
    def socket(self) -> ServerSocket:
        """The newest WebSocket; raises `LookupError` before the first."""
        if not self.sockets:
            raise LookupError("no WebSocket has been opened yet: await wait_sockets() first")
        return self.sockets[-1]

    def times(self, call: Call) -> list[float]:
        """The times of requests of one kind, in seconds of the loop's clock."""
        return [request.at for request in self.requests if request.call == call]

    async def wait_requests(self, call: Call, count: int = 1) -> None:
        """Wait until `count` requests of one kind have arrived since the start."""
        await self._wait(lambda: len(self.times(call)) >= count)

    async def wait_sockets(self, count: int = 1) -> ServerSocket:
        """Wait until `count` WebSockets have been opened since the start; returns the newest."""
        await self._wait(lambda: len(self.sockets) >= count)
        return self.socket

    async def wait_ready(self, count: int = 1) -> ServerSocket:
        """Wait until `count` WebSockets have sent `ready` since the start; returns the newest."""
        await self._wait(lambda: sum(socket.ready is not None for socket in self.sockets) >= count)
        return self.socket

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- serving one link ------------------------------------------------------------------------------------------

    async def _serve(self, link: MemoryLink) -> None:
        http = h11.Connection(h11.SERVER)
        request = await self._read_request(link, http)
        if request is None:
            return
        self.requests.append(request)
        self._note()
        reaction = self._reaction(request)
        if isinstance(reaction, Accept):
            early, _ = http.trailing_data
            await self._serve_socket(request, reaction, early)
        elif isinstance(reaction, Answer):
            await anyio.sleep(reaction.after)
            await self._write_answer(link, http, reaction)
        elif isinstance(reaction, Drop):
            link.cut(reaction.ending)
        else:
            await self._wait_gone(link)

    async def _read_request(self, link: MemoryLink, http: h11.Connection) -> Request | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await link.server.receive())
                except anyio.EndOfStream:
                    return None
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _parse_request(head, body, link)
            else:
                return None

    async def _write_answer(self, link: MemoryLink, http: h11.Connection, answer: Answer) -> None:
        headers = {"connection": "close", **{name.lower(): value for name, value in answer.headers.items()}}
        body = answer.body
        if not isinstance(body, bytes):
            body = msgspec.json.encode(body)
            headers.setdefault("content-type", "application/json")
        if "transfer-encoding" not in headers:
            headers.setdefault("content-length", str(len(body)))
        pieces = [http.send(h11.Response(status_code=answer.status, headers=list(headers.items())))]
        if body:
            pieces.append(http.send(h11.Data(data=body)))
        pieces.append(http.send(h11.EndOfMessage()))
        await link.server.send(b"".join(piece for piece in pieces if piece))

    async def _wait_gone(self, link: MemoryLink) -> None:
        with suppress(anyio.EndOfStream):
            while True:
                await link.server.receive()

    # --- one WebSocket ---------------------------------------------------------------------------------------------

    async def _serve_socket(self, request: Request, manner: Accept, early: bytes) -> None:
        protocol = WSConnection(ConnectionType.SERVER)
        headers: Headers = [(name.encode(), value.encode()) for name, value in request.headers.items()]
        protocol.initiate_upgrade_connection(headers, request.target)
        for event in protocol.events():
            if not isinstance(event, UpgradeRequest):  # a bad handshake: wsproto has made the refusal
                raise InvalidArgument("upgrade", f"not a WebSocket handshake: {event!r}")
        response = protocol.send(
            AcceptConnection(
                subprotocol=manner.subprotocol,
                extra_headers=[(name.encode(), value.encode()) for name, value in manner.headers],
            )
        )
        await request.link.server.send(response)
        socket = ServerSocket(
            self._jobs.get(request.job_id), request.link, manner, anyio.current_time(), _protocol=protocol
        )
        self.sockets.append(socket)
        self._note()
        async with anyio.create_task_group() as timers:
            if manner.close_after is not None:
                timers.start_soon(self._close_later, socket, manner.close_after, manner.close_code)
            timers.start_soon(self._talk, request, socket)
            async with anyio.create_task_group() as writing:
                writing.start_soon(socket._write)
                try:
                    await socket._read(early, lambda message: self._heard(socket, message))
                finally:
                    socket._end()
                    self._note()
            timers.cancel_scope.cancel()

    async def _talk(self, request: Request, socket: ServerSocket) -> None:
        """Send what a socket gets in any case; a job sends its events itself."""

    async def _close_later(self, socket: ServerSocket, seconds: float, code: int) -> None:
        await anyio.sleep(seconds)
        socket.close(code)

    def _heard(self, socket: ServerSocket, message: str | bytes) -> None:
        try:
            ready = msgspec.json.decode(message, type=Ready)
        except msgspec.DecodeError:
            return
        socket.ready = ready
        if socket.manner.answers_ready:
            self._replay(socket, ready)
        self._note()

    def _replay(self, socket: ServerSocket, ready: Ready) -> None:
        job = socket.job
        if job is None or not job.numbered:
            socket.send_text(encode(ReadyAckFrame(timestamp=anyio.current_time() * 1000)).decode())
            return
        # A cursor of another epoch says nothing about this one.
        replayed = job.events_after(ready.seq if ready.seq is not None and ready.epoch == job.epoch else 0)
        acknowledgement = ReadyAckFrame(
            job_id=job.id,
            pipeline=job.pipeline,
            timestamp=anyio.current_time() * 1000,
            epoch=job.epoch,
            from_=replayed[0].seq if replayed else job.last_seq + 1,
            to=job.last_seq,
        )
        socket.send_text(encode(acknowledgement).decode())
        for event in replayed:
            socket.send_event(event)
        if job.ended:
            self._close_after_end(socket)

    def _publish(self, job: ScriptedJob, event: LoggedEvent) -> None:
        for socket in self.open_sockets:
            if socket.job is job and (socket.ready is not None or not job.numbered) and socket.manner.answers_ready:
                socket.send_event(event)
                if event.terminal:
                    self._close_after_end(socket)

    def _close_after_end(self, socket: ServerSocket) -> None:
        if self.closes_after_end is not None:
            socket.close(self.closes_after_end)

    # --- behavior without a script ---------------------------------------------------------------------------------

    def _reaction(self, request: Request) -> Reaction:
        if request.call is None:
            return Answer(404)
        if self._script[request.call]:
            return self._script[request.call].pop(0)
        always = self._always.get(request.call)
        reaction = always(request) if always is not None else None
        return reaction if reaction is not None else self._usual(request, request.call)

    def _usual(self, request: Request, call: Call) -> Reaction:
        if call == "refresh":
            return self._refresh(request)
        # Check the token before the job: without a token, a caller must not learn which jobs exist.
        if request.token is None or request.token not in self._tokens:
            return Answer(401)
        job = self._jobs.get(request.job_id)
        if job is None or self._tokens[request.token] != job.id:
            return Answer(404)
        if call == "upgrade":
            return Accept()
        if call == "state":
            return Answer(body=job.state())
        if call == "cancel":
            return self._cancel(request, job)
        return Answer(body=job.result) if job.result is not None else Answer(404)

    def _refresh(self, request: Request) -> Answer:
        try:
            asked = msgspec.json.decode(request.body, type=_RefreshRequest)
        except msgspec.DecodeError:
            return Answer(400)
        job = self._jobs.get(asked.job_id)
        if job is None or self._tokens.get(asked.old_token) != job.id:
            return Answer(401)
        return Answer(body={"jobId": job.id, "token": self.renew(job), "expiresIn": 3600})

    def _cancel(self, request: Request, job: ScriptedJob) -> Answer:
        key = request.headers.get("idempotency-key")
        result = self._cancel_answers.get(key) if key is not None else None
        if result is None:
            result = "too_late" if job.ended else "accepted"
            if not job.ended:
                job.cancel("requested by the client")
            if key is not None:
                self._cancel_answers[key] = result
        return Answer(body={"jobId": job.id, "result": result})


class _RefreshRequest(msgspec.Struct, rename="camel"):
    job_id: str
    old_token: str


def _parse_request(head: h11.Request, body: bytes, link: MemoryLink) -> Request:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
    method, target = head.method.decode(), head.target.decode("latin-1")
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    call: Call | None = None
    job_id = query.get("jobId", "")
    if headers.get("upgrade", "").lower() == "websocket":
        call = "upgrade"
    else:
        match [unquote(part) for part in url.path.split("/")[1:]]:
            case ["api", "job-state", job_id] if method == "GET":
                call = "state"
            case ["api", "token", "refresh"] if method == "POST":
                call = "refresh"
            case ["api", "jobs", job_id, "cancel"] if method == "POST":
                call = "cancel"
            case ["api", "jobs", job_id, "results"] if method == "GET":
                call = "results"
    return Request(
        at=anyio.current_time(),
        call=call,
        method=method,
        target=target,
        headers=headers,
        body=body,
        job_id=job_id,
        token=_find_token(headers, query),
        link=link,
    )


def _find_token(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """The token: a bearer, the tail of an offered subprotocol `<name>.<token>`, or in the query."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        _, dot, token = offered.strip().partition(".")
        if dot:
            return token
    return query.get("token")
