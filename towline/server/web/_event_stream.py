"""A watcher on an event stream (Server-Sent Events): the job's events as the body of an answer without a length.

Each event is one block, `id: <epoch>:<seq>` and `data:` with the very text that a socket sends. A client drops a block
that the connection cut (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6), so a cut at any
byte loses and repeats nothing. A text frame is compact JSON, so it has no line breaks and fits in one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...protocols.wire.messages import Ready
from .._settings import HubLimits
from .._statistics import Counters
from ..log._base import Event, EventLog, Job
from ..log._bells import Bell
from ._watcher import Advice, PeerGone, Watcher

_CLOSE_WAIT: Final = 2.0
_ID: Final = re.compile(r"([!-9;-~]{1,64}):([1-9][0-9]{0,17})")  # below 2^63, as all that a log can hold
#: A client keeps the last `retry:` that it was sent, also that of a hub that stopped, so each stream sets it again. It
#: is a range, so that the clients of a killed hub come back at different moments.
_USUALLY: Final = Advice(1.0, 2.0)
_HEADERS: Final = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # to nginx, whose buffer may otherwise keep events
    "x-content-type-options": "nosniff",
}


def read_id(text: str | None) -> Ready:
    """Read an event's id as the cursor that a socket's `ready` holds; any text that is no id is no cursor."""
    found = _ID.fullmatch(text or "")
    return Ready(timestamp=0) if found is None else Ready(timestamp=0, epoch=found[1], seq=int(found[2]))


class StreamWatcher(Watcher):
    """Serves one event stream."""

    def __init__(
        self, ready: Ready, job: Job, log: EventLog, limits: HubLimits, counters: Counters, now: Callable[[], int]
    ) -> None:
        super().__init__(job, log, limits, counters, now, limits.comment_every)
        self._ready = ready
        self._start: Message
        self._started = False
        self._receive: Receive
        self._asgi_send: Send
        self._whole = True  # no block was left unfinished

    async def run(self, start: Message, receive: Receive, send: Send) -> None:
        """Send the answer, to its end."""
        self._start, self._receive, self._asgi_send = start, receive, send
        await self._serve()
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        if self._ending is None:
            return
        code, reason = self._ending
        self._counters.closes[code] += 1
        # After a part of a block, the advice would be read as the rest of it.
        advice = _retry(reason) if isinstance(reason, Advice) and self._whole else b""
        with anyio.move_on_after(_CLOSE_WAIT, shield=True):
            # The peer was faster, or the answer had started after all.
            with suppress(OSError, RuntimeError):
                if not self._started:  # a framework that gets no answer at all makes it an error of the server
                    await self._asgi_send(self._start)
                await self._asgi_send({"type": "http.response.body", "body": advice, "more_body": False})

    async def _listen(self, bell: Bell) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._scope.cancel()

    async def _begin(self, bell: Bell) -> None:
        await self._send(self._write_start(), frames=0)
        await self._send(self._write_block(_retry(_USUALLY)))

    async def _write_start(self) -> None:
        # Also this waits for a client that does not read what it asked for before on the same connection.
        await self._give(self._start)
        self._started = True

    async def _write(self, text: str, event: Event | None) -> None:
        name = "" if event is None else f"id: {event.epoch}:{event.seq}\n"
        await self._write_block(f"{name}data: {text}\n\n".encode())

    async def _write_sign(self) -> None:
        await self._write_block(b":\n\n")

    async def _write_block(self, block: bytes) -> None:
        self._whole = False
        await self._give({"type": "http.response.body", "body": block, "more_body": True})
        self._whole = True

    async def _give(self, message: Message) -> None:
        try:
            await self._asgi_send(message)
        except OSError as error:
            raise PeerGone from error


class EventStream(Response):
    """The answer that is an event stream; `watching` keeps its watcher among those of the hub while it is sent."""

    def __init__(self, watcher: StreamWatcher, watching: Callable[[], AbstractContextManager[None]]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)  # without a body there is no length
        self._watcher = watcher
        self._watching = watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send status and headers, and to a GET the events."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        with self._watching():
            await self._watcher.run(start, receive, send)


def _retry(advice: Advice) -> bytes:
    return b"retry: %d\n\n" % round(advice.draw() * 1000)
