"""The server's end of one WebSocket, played by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from wsproto import WSConnection
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

from ..transport._messages import Ready
from ._memory_stream import Direction, Ending, MemoryLink

if TYPE_CHECKING:
    from ._scripted_job import LoggedEvent, ScriptedJob


@dataclass(frozen=True, slots=True)
class Accept:
    """How an accepted socket behaves.

    `subprotocol` is told to the client. `close_after` seconds the server closes with `close_code` (a flapping server).
    The others leave things out: `answers_ready=False` hangs in the sync, `answers_close=False` never answers a close,
    `answers_pings=False` never a ping.
    """

    subprotocol: str | None = None
    close_after: float | None = None
    close_code: int = 1001
    answers_ready: bool = True
    answers_close: bool = True
    answers_pings: bool = True
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True, eq=False)
class ServerSocket:
    """One open WebSocket. What it is told to send goes out in order, at once; it can be told from anywhere on the loop.

    `received` are the client's messages, `ready` the newest `ready` of them, `sent` the events of the job that went
    out here (replayed ones included), `client_close` the code and reason of the client's close frame.
    """

    job: ScriptedJob | None
    link: MemoryLink
    manner: Accept
    opened_at: float
    received: list[str | bytes] = field(default_factory=list)
    ready: Ready | None = None
    sent: list[LoggedEvent] = field(default_factory=list)
    client_close: tuple[int, str] | None = None
    over: bool = False
    _protocol: WSConnection = field(kw_only=True, repr=False)
    _outbox: list[bytes] = field(default_factory=list, repr=False)
    _wake: anyio.Event = field(default_factory=anyio.Event, repr=False)

    # --- what a test tells it --------------------------------------------------------------------------------------

    def send_text(self, text: str) -> None:
        """Send one text message, whatever it says."""
        self._send(Message(data=text))

    def send_bytes(self, data: bytes) -> None:
        """Send one binary message."""
        self._send(Message(data=data))

    def send_event(self, event: LoggedEvent) -> None:
        """Send an event of the log (again, out of order, as the test likes)."""
        if self._send(Message(data=event.text)):
            self.sent.append(event)

    def send_raw(self, data: bytes) -> None:
        """Put bytes on the wire as they are: a broken frame, half a frame, an illegal close."""
        self._outbox.append(data)
        self._wake.set()

    def ping(self, payload: bytes = b"") -> None:
        """Send a protocol ping."""
        self._send(Ping(payload=payload))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; the link ends when the client answers it, or `cut` does."""
        self._send(CloseConnection(code=code, reason=reason))

    def cut(self, ending: Ending = "rst") -> None:
        """End the link without a word."""
        self.link.cut(ending)

    def hold(self, *directions: Direction) -> None:
        """Make the link a black hole, one way or both."""
        self.link.hold(*directions)

    # --- what the server runs --------------------------------------------------------------------------------------

    def _send(self, event: Event) -> bool:
        # After a close nothing can be sent: a story that goes on telling is no error, nobody listens any more.
        try:
            data = self._protocol.send(event)
        except LocalProtocolError:
            return False
        self.send_raw(data)
        return True

    def _end(self) -> None:
        self.over = True
        self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._outbox:
                try:
                    await self.link.server.send(self._outbox.pop(0))
                except anyio.BrokenResourceError:
                    return  # the reader meets the same end, and tells of it
            if self.over:
                return
            await self._wake.wait()
            self._wake = anyio.Event()

    async def _read(self, early: bytes, heard: Callable[[str | bytes], None]) -> None:
        """Hand on the client's whole messages until the WebSocket or the link ends; answer its control frames."""
        text, binary = "", b""
        data: bytes | None = early
        while data is not None:
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        self._take(text, heard)
                        text = ""
                elif isinstance(event, BytesMessage):
                    binary += event.data
                    if event.message_finished:
                        self._take(binary, heard)
                        binary = b""
                elif isinstance(event, Ping):
                    if self.manner.answers_pings:
                        self._send(event.response())
                elif isinstance(event, CloseConnection):
                    self.client_close = (event.code, event.reason or "")
                    if self.manner.answers_close:
                        self._send(event.response())
                        return
            try:
                data = await self.link.server.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                data = None

    def _take(self, message: str | bytes, heard: Callable[[str | bytes], None]) -> None:
        self.received.append(message)
        heard(message)
