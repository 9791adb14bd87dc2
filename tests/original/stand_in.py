"""A stand-in for the original backend: plays its recordings in memory and keeps to what is known of it.

    async with StandIn("newest-batch") as server:
        server.start()
        async with Connection(Bookstrack(URL, JOB), token=server.token, network=server.network) as line:
            await line.result()
        assert server.complaints == []

Made from `recorded/` and its README alone. It reads and writes plain JSON and must not import Towline's message types:
a stand-in that is made of them agrees with them about everything. `test_stand_in.py` plays the client's half of each
recording against it. Answers that no recording has (401 to an upgrade, a refresh that is accepted) are either text that
no client reads, or not given at all.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import anyio
import h11
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from recordings import JOB, STATE_PATH, TERMINAL, Recording
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.events import Request as UpgradeRequest
from wsproto.utilities import LocalProtocolError

from towline.testing import MemoryLink, MemoryNetwork, Reach, Unreachable

URL: Final = "ws://backend/ws/progress"
TOKEN_LIFE: Final = 7200.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP call is answered with."""

    status: int
    body: str = ""
    type: str = "text/plain"

    @classmethod
    def recorded(cls, entry: dict[str, Any], *, token: str = "TOKEN") -> Self:
        """The answer in an entry of a recording."""
        return cls(entry["status"], entry["body"].replace("TOKEN", token), entry["headers"]["content-type"])


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came, and the status it was answered with."""

    at: float
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(slots=True, eq=False)
class Socket:
    """One WebSocket: what it was sent, what the client said, when it was open."""

    link: MemoryLink
    opened_at: float
    protocol: WSConnection = field(repr=False)
    sent: list[str] = field(default_factory=list)
    received: list[str | bytes] = field(default_factory=list)
    pings: int = 0
    client_close: int | None = None
    gone_at: float | None = None  # when the backend saw that it is gone
    over_at: float | None = None  # when its TCP connection ended
    lock: anyio.Lock = field(default_factory=anyio.Lock, repr=False)

    async def send(self, event: Event) -> bool:
        """Whether it was put on the wire."""
        with suppress(LocalProtocolError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with self.lock:
                await self.link.server.send(self.protocol.send(event))
            return True
        return False


class StandIn(AsyncContextManagerMixin):
    """See the module's text.

    `spacing` seconds at least lie between two messages of the job (a job with longer items). `cut_after=n` cuts the
    first link right after the n-th message to the client, the answer to `ready` being number 0. `state_delay` is how
    long the state call takes.
    """

    def __init__(
        self, name: str, *, spacing: float = 0.0, cut_after: int | None = None, state_delay: float = 0.0
    ) -> None:
        self.recording = Recording(name)
        self.network = MemoryNetwork(self._serve)
        self.token = str(uuid.uuid4())
        self.token_deleted = False
        self.started_at = 0.0
        self.calls: list[Call] = []
        self.sockets: list[Socket] = []
        #: The socket that gets the job's messages.
        self.current: Socket | None = None
        #: The job's messages that went to a socket, and those that found none.
        self.sent: list[str] = []
        self.lost: list[str] = []
        self.ended = self.canceled = False
        #: What a client did that this backend punishes or that it must not rely on.
        self.complaints: list[str] = []
        self.state_delay = state_delay
        self._cut_after = cut_after
        self._story = list(_spaced(self.recording.story, spacing))
        self._work = anyio.CancelScope()
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        async with self.network, background_tasks() as self._tasks:
            yield self

    # --- the job -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the job, as its start call does."""
        assert self._tasks is not None
        self.started_at = anyio.current_time()
        self._tasks.start_soon(self._run_job)

    @property
    def duration(self) -> float:
        """When the last message is due, in seconds after the start."""
        return self._story[-1][0]

    @property
    def overlaps(self) -> int:
        """How often a socket was opened while the one before it still had its TCP connection."""
        pairs = itertools.pairwise(self.sockets)
        return sum(older.over_at is None or older.over_at > newer.opened_at for older, newer in pairs)

    @property
    def end_was_sent(self) -> bool:
        """Whether the job's end went to a socket."""
        return any(json.loads(text)["type"] in TERMINAL for text in self.sent)

    def cut(self, socket: Socket) -> None:
        """Reset a link; the backend sees it at once."""
        socket.link.cut("rst")
        self._lose(socket)

    def kill(self) -> None:
        """End the process: every link breaks, and nothing takes a dial."""
        self._work.cancel()
        for socket in self.sockets:
            self.cut(socket)
        self.network.weather = Unreachable()

    def restart(self) -> None:
        """Start the process again: state and token are there, the work is gone."""
        self.network.weather = Reach()

    async def _run_job(self) -> None:
        with self._work:
            for at, text in self._story:
                await anyio.sleep_until(self.started_at + at)
                if self.current is not None and await self._send(self.current, text):
                    self.sent.append(text)
                else:
                    self.lost.append(text)
            self.ended = self.recording.ends
            if self.end_was_sent:
                closed = self.recording.closed
                await anyio.sleep(closed["t"] - self.recording.began - self.recording.story[-1][0])
                if self.current is not None:
                    await self._close(self.current, closed["code"], closed["reason"])
                self.token_deleted = self.recording.version == "newest"

    async def _send(self, socket: Socket, text: str) -> bool:
        sent = await socket.send(Message(data=text))
        if sent:
            socket.sent.append(text)
            if socket is self.sockets[0] and len(socket.sent) - 1 == self._cut_after:
                self.cut(socket)
        return sent

    async def _close(self, socket: Socket, code: int, reason: str = "") -> None:
        self._lose(socket)
        await socket.send(CloseConnection(code=code, reason=reason))

    def _lose(self, socket: Socket) -> None:
        """The socket is gone. It is the job's only one as far as the backend knows, so the current one goes with it."""
        if socket.gone_at is None:
            socket.gone_at = anyio.current_time()
            self.current = None

    def _token_is_good(self, token: str | None) -> bool:
        in_time = anyio.current_time() < self.started_at + TOKEN_LIFE
        return token == self.token and in_time and not self.token_deleted

    # --- HTTP --------------------------------------------------------------------------------------------------

    async def _serve(self, link: MemoryLink) -> None:
        http = h11.Connection(h11.SERVER)
        head: h11.Request | None = None
        body = b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await link.server.receive())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
        assert head is not None
        method, target = head.method.decode(), head.target.decode()
        headers = {name.decode().lower(): value.decode() for name, value in head.headers}
        if target.startswith("/api/job-state/"):
            await anyio.sleep(self.state_delay)
        answer = self._answer(method, target, headers, body)
        self.calls.append(Call(anyio.current_time(), method, target, headers, body, answer.status))
        if answer.status == 101:
            await self._serve_socket(link, target, headers)
            return
        text = answer.body.encode()
        fields = [("content-type", answer.type), ("content-length", str(len(text))), ("connection", "close")]
        pieces = [
            http.send(h11.Response(status_code=answer.status, headers=fields)),
            http.send(h11.Data(data=text)),
            http.send(h11.EndOfMessage()),
        ]
        await link.server.send(b"".join(piece for piece in pieces if piece))

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request; 101 opens a WebSocket."""
        url = urlsplit(target)
        bearer = headers.get("authorization", "").partition(" ")[2] or None
        match method, url.path:
            case "GET", "/ws/progress":
                return self._answer_upgrade(url.query, headers)
            case "GET", path if path.startswith("/api/job-state/"):
                return self._answer_state(path, bearer)
            case "POST", "/api/token/refresh":
                # The answer to a refresh in the token's last 30 minutes was not recorded: no test may need it.
                assert anyio.current_time() < self.started_at + TOKEN_LIFE - 1800 or self.token_deleted
                return self._refused("POST", "/api/token/refresh")
            case "POST", "/api/enrichment/cancel" if self.recording.version == "newest":
                return self._cancel(body)
        start = self.recording.entries[0]
        if (method, target) == ("POST", start["path"]):
            if start["status"] == 202:
                self.start()
            return Answer.recorded(start, token=self.token)
        if self.ended and (seen := self.recording.calls(method, url.path)):
            return Answer.recorded(seen[-1])
        like = {"newest": ("newest-batch", "/v1/jobs/job-1/results"), "first": ("first-scan", "/v1/scan/results/job-1")}
        name, path = like[self.recording.version]
        return Answer.recorded(Recording(name).calls("GET", path)[0])

    def _refused(self, method: str, path: str, *, bearer: bool = False) -> Answer:
        """The answer that stands in the recording of refusals, to a call with or without a bearer token."""
        calls = Recording(f"{self.recording.version}-refused").calls(method, path)
        return Answer.recorded(next(call for call in calls if bool(call["request_headers"]) == bearer))

    def _answer_upgrade(self, query: str, headers: Mapping[str, str]) -> Answer:
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if "jobId" not in asked:
            return self._refused("GET", "/ws/progress")
        if headers.get("upgrade", "").lower() != "websocket":
            return self._refused("GET", "/ws/progress?jobId=x&token=y")
        if any(self.token in value for value in headers.values()):
            self.complaints.append("the token stands in a header of the upgrade, where this backend does not look")
        if asked["jobId"] != JOB or not self._token_is_good(asked.get("token")):
            return Answer(401, "Unauthorized", "text/plain")
        return Answer(101)

    def _answer_state(self, path: str, bearer: str | None) -> Answer:
        if bearer is None:
            return self._refused("GET", "/api/job-state/none")
        if path != STATE_PATH:
            return self._refused("GET", "/api/job-state/none", bearer=True)
        if not self._token_is_good(bearer):
            return Answer.recorded(Recording("newest-batch").calls("GET", STATE_PATH)[-1])
        return Answer.recorded(self.recording.states[1 if self.sent or self.lost else 0])

    def _cancel(self, body: bytes) -> Answer:
        try:
            named = json.loads(body)["jobId"] == JOB
        except (ValueError, TypeError, KeyError):
            named = False
        if not named:
            return self._refused("GET", "/ws/progress")  # as there: a parameter is missing
        recording = Recording("newest-batch-canceled")
        self.canceled = self.token_deleted = True
        self._work.cancel()
        if self.current is not None and self._tasks is not None:
            closed = recording.closed
            self._tasks.start_soon(self._close, self.current, closed["code"], closed["reason"])
        return Answer.recorded(recording.calls("POST", "/api/enrichment/cancel")[-1])

    # --- one WebSocket -----------------------------------------------------------------------------------------

    async def _serve_socket(self, link: MemoryLink, target: str, headers: Mapping[str, str]) -> None:
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.initiate_upgrade_connection(
            [(name.encode(), value.encode()) for name, value in headers.items()], target
        )
        assert all(isinstance(event, UpgradeRequest) for event in protocol.events())
        await link.server.send(protocol.send(AcceptConnection()))
        socket = Socket(link, anyio.current_time(), protocol)
        self.sockets.append(socket)
        before, self.current = self.current, socket
        if "reconnect=true" in target:
            self.complaints.append("reconnect=true in the query")
            if before is not None:
                self.token_deleted, self.current = True, None
                before.link.cut("rst")
                link.cut("rst")
            else:
                await self._send(socket, self.recording.answer_on_socket("reconnected"))
        try:
            await self._read(socket)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            self._lose(socket)
            socket.over_at = anyio.current_time()

    async def _read(self, socket: Socket) -> None:
        while True:
            socket.protocol.receive_data(await socket.link.server.receive())
            for event in socket.protocol.events():
                if isinstance(event, TextMessage | BytesMessage):
                    await self._receive_message(socket, event.data)
                elif isinstance(event, Ping):
                    socket.pings += 1
                    await socket.send(event.response())
                elif isinstance(event, CloseConnection):
                    if socket.gone_at is None:
                        await self._receive_close(socket, event.code)
                    return

    async def _receive_message(self, socket: Socket, message: str | bytes | bytearray) -> None:
        socket.received.append(message if isinstance(message, str) else bytes(message))
        try:
            is_ready = isinstance(message, str) and json.loads(message)["type"] == "ready"
        except (ValueError, TypeError, KeyError):
            is_ready = False
        if is_ready:
            await self._send(socket, self.recording.answer_on_socket("ready_ack"))
        elif socket.gone_at is None:
            self.complaints.append(f"a message that is not `ready`: {message!r}")
            self.token_deleted = True
            await self._close(socket, 1002)

    async def _receive_close(self, socket: Socket, code: int) -> None:
        """A client's close is not answered: the link stays open until the client ends it."""
        socket.client_close = code
        self._lose(socket)
        self.token_deleted = self.token_deleted or code == 1000
        if code != 1001 and not (self.end_was_sent or self.canceled):
            self.complaints.append(f"closed with {code} before the job's end was sent")
        while True:
            await socket.link.server.receive()


def _spaced(story: tuple[tuple[float, str], ...], spacing: float) -> Iterator[tuple[float, str]]:
    last = 0.0
    for at, text in story:
        last = max(at, last + spacing)
        yield last, text


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """A task group that ends with its block, and lets the block's own error come out as it is."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # carried past the task group, which would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
