"""The server's end of one WebSocket, controlled by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from wsproto import WSConnection
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from ...protocols.wire.messages import Ready
from ._stream import Direction, Ending, MemoryLink

if TYPE_CHECKING:
    from ._scripted_job import LoggedEvent, ScriptedJob


@dataclass(frozen=True, slots=True)
class Accept:
    """The behavior of an accepted socket.

    `subprotocol` is sent to the client. After `close_after` seconds the server closes with `close_code` (a flapping
    server). The others disable behavior: `answers_ready=False` hangs in the sync, `answers_close=False` never answers a
    close, `answers_pings=False` never answers a ping.
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
    """One open WebSocket. Sends go out at once and in order; call them from any task of the loop.

    `received` holds the client's messages, `ready` its newest `ready`. `sent` holds the events of the job sent here
    (replayed ones too). `client_close` is the code and reason of the client's close frame.
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

    # --- scripting -------------------------------------------------------------------------------------------------

    def send_text(self, text: str) -> None:
        """Send one text message with any content."""
        self._send(Message(data=text))

    def send_bytes(self, data: bytes) -> None:
        """Send one binary message."""
        self._send(Message(data=data))

    def send_event(self, event: LoggedEvent) -> None:
        """Send an event of the log; repeats and a wrong order are allowed."""
        if self._send(Message(data=event.text)):
            self.sent.append(event)

    def send_raw(self, data: bytes) -> None:
        """Write raw bytes: a broken frame, half a frame, an illegal close."""
        self._outbox.append(data)
        self._wake.set()

    def ping(self, payload: bytes = b"") -> None:
        """Send a protocol ping."""
        self._send(Ping(payload=payload))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame; the link ends when the client answers it, or with `cut`."""
        self._send(CloseConnection(code=code, reason=reason))

    def cut(self, ending: Ending = "rst") -> None:
        """End the link without a close frame."""
        self.link.cut(ending)

    def hold(self, *directions: Direction) -> None:
        """Make the link a black hole, in one direction or both."""
        self.link.hold(*directions)

    # --- run by the server -----------------------------------------------------------------------------------------

    def _send(self, event: Event) -> bool:
        # After a close nothing can be sent. A script that goes on is not an error: no one receives its events any more.
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
                    return  # the reader meets the same end and reports it
            if self.over:
                return
            await self._wake.wait()
            self._wake = anyio.Event()

    async def _read(self, early: bytes, on_message: Callable[[str | bytes], None]) -> None:
        """Pass on the client's complete messages until the WebSocket or the link ends; answer control frames."""
        text, binary = "", b""
        data: bytes | None = early
        while data is not None:
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        self._take(text, on_message)
                        text = ""
                elif isinstance(event, BytesMessage):
                    binary += event.data
                    if event.message_finished:
                        self._take(binary, on_message)
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

    def _take(self, message: str | bytes, on_message: Callable[[str | bytes], None]) -> None:
        self.received.append(message)
        on_message(message)
