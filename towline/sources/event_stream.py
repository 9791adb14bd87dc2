"""One attempt over an HTTP response that stays open: Server-Sent Events, or lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import anyio

from .._exceptions import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    TowlineError,
    UnexpectedResponse,
)
from .._facts import Line, Received, Request, ServerEvent, Via
from .._headers import is_page
from .._text import escape
from ..transport import Download, EventParser, LineParser, is_event_stream, stream_response
from .access import Access, body_of
from .answers import ResponseEnded, UnusableAnswer, answer_of
from .source import Source

#: A promised keep-alive may be late by its own interval before the link counts as lost.
_LATE: Final = 2.0

#: The bytes and the seconds that are spent on the body of an answer that is no stream.
_REFUSAL_BODY: Final = 64 << 10
_REFUSAL_WAIT: Final = 1.0

#: Seconds to look for bytes that the kernel has kept, if nothing was receiving when the stream became overdue.
_SECOND_LOOK: Final = 1.0

_ACCEPT: Final = {
    "events": "text/event-stream",
    "lines": "application/x-ndjson, application/json;q=0.9, text/plain;q=0.5",
}


class EventStreamSource(Source):
    """An open response of events or lines."""

    def __init__(self, download: Download, asked: Request, opened: AsyncExitStack, limit: int) -> None:
        self.last_received = anyio.current_time()
        self._download = download
        self._opened = opened
        self._events = EventParser(max_line=limit, max_event=limit) if asked.via == "events" else None
        self._lines = LineParser(max_line=limit) if asked.via == "lines" else None
        self._silence = asked.silence
        self._probe_ends = math.inf
        # The scope of a wait for more bytes.
        self._waiting: anyio.CancelScope | None = None
        # How the stream ended, after the events before it were returned.
        self._end: TowlineError | None = None

    @classmethod
    async def open(cls, asked: Request, access: Access) -> EventStreamSource:
        """Send the request and wait for status and headers.

        Raises `UnusableAnswer` for an answer that is no such stream, `InvalidArgument` for a `silence` that is not
        positive, and otherwise as `transport.stream_response`.
        """
        if asked.silence is not None and not asked.silence > 0:
            raise InvalidArgument("silence", "must be a number of seconds greater than 0, or None")
        names = {name.lower() for name, _ in asked.headers}
        own = [("Accept", _ACCEPT[asked.via]), ("Cache-Control", "no-store")]
        headers = [*asked.headers, *(pair for pair in own if pair[0].lower() not in names)]
        opened = AsyncExitStack()
        try:
            download = await opened.enter_async_context(
                stream_response(
                    asked.method,
                    access.url_of(asked),
                    headers=headers,
                    body=body_of(asked),
                    deadline=access.connect_deadline,
                    silence=None,
                    max_body=None,
                    network=access.network,
                    wall_time=access.wall_time,
                )
            )
            problem = _problem(download, asked.via)
            if problem is not None:
                raise await _unusable(download, problem)
        except BaseException:
            await opened.aclose()
            raise
        return cls(download, asked, opened, access.limits.max_message)

    async def receive(self) -> Sequence[Received]:
        """Return what came next; empty for bytes that complete nothing.

        Raises how the stream ended: `ResponseEnded` in order, `ConnectionBroken`, `MessageTooBig`, and
        `DeadlineExceeded` if a promised keep-alive or a probe was not answered.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        late = anyio.current_time() + _SECOND_LOOK
        with anyio.CancelScope(deadline=max(self._lost_at(), late)) as self._waiting:
            try:
                data = await anext(self._download)
            except StopAsyncIteration:
                return self._finish()
            except TowlineError as error:
                self._end = error  # a second read could wait without end
                raise
            finally:
                self._waiting = None
            self.last_received = anyio.current_time()
            self._probe_ends = math.inf
            return self._parse(data)
        if self._end is None:
            silent = anyio.current_time() - self.last_received
            self._end = DeadlineExceeded("the next keep-alive that the server promised", round(silent, 3))
        raise self._end.with_traceback(None)

    def _lost_at(self) -> float:
        """When silence counts as a lost stream."""
        silence = math.inf if self._silence is None else self.last_received + _LATE * self._silence
        return min(silence, self._probe_ends)

    def _parse(self, data: bytes) -> list[Received]:
        received: list[Received] = []
        try:
            # One by one: what came before an event or a line that is too large counts.
            if self._events is not None:
                for event in self._events.feed(data):
                    # An event that sets no id has no position: the stream's last id belongs to an earlier event.
                    own_id = (event.id or "") if event.has_id else None
                    received.append(ServerEvent(event.type, event.data, own_id))
            elif self._lines is not None:
                for line in self._lines.feed(data):
                    if line:
                        received.append(Line(line))  # noqa: PERF401
        except MessageTooBig as error:
            self._end = error
        self.retry = None if self._events is None else self._events.retry
        return received

    def _finish(self) -> list[Received]:
        self._end = ResponseEnded("the server ended the response")
        return [] if self._lines is None else [Line(line) for line in self._lines.finish() if line]

    def probe(self, within: float) -> None:
        """Check the link: wait for the next promised keep-alive and `within` seconds.

        Without a promise nothing can be waited for: the stream counts as lost at once, and a new one shows more.
        """
        if self._silence is None:
            self._end = self._end or DeadlineExceeded("a sign of life after a change of the network or a wake", 0.0)
            if self._waiting is not None:
                self._waiting.cancel()
            return
        self._probe_ends = min(self._probe_ends, anyio.current_time() + self._silence + within)
        if self._waiting is not None:
            self._waiting.deadline = self._lost_at()

    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close the connection."""
        await self._opened.aclose()


def _problem(download: Download, via: Via) -> str | None:
    """Why an answer is not the stream, as a sentence; None if it is."""
    named = download.headers.header(b"content-type") or b""
    content_type = named.partition(b";")[0].strip().lower().decode("latin-1")
    if download.status == 204:
        return "there is nothing to follow, and 204 asks not to reconnect"
    if 300 <= download.status < 400:
        return "a redirect is not followed, because the token must not go elsewhere: use the final URL of the stream"
    if download.status in (404, 410):
        return "it knows no such job or path"
    if download.status != 200:
        return "only an answer with the status 200 is a stream"
    if is_page(content_type):
        return "it is an HTML page and no stream: check the URL, and whether a network's login page answers"
    if via == "events" and not is_event_stream(named):
        given = escape(content_type[:100]) or "missing"
        return f"the Content-Type of an event stream is text/event-stream, and it is {given}: check the URL"
    try:
        download.check_encoding()
    except UnexpectedResponse as error:
        return error.problem
    return None


async def _unusable(download: Download, problem: str) -> UnusableAnswer:
    """The error for an answer that is no stream, with the beginning of its body."""
    body = b""
    try:
        with anyio.move_on_after(_REFUSAL_WAIT):
            async for piece in download:
                body += piece
                if len(body) >= _REFUSAL_BODY:
                    break
    except TowlineError:
        pass  # the status says enough
    answer = answer_of(download.headers, body[:_REFUSAL_BODY])
    return UnusableAnswer(answer, problem, retry_after=download.retry_after)
