"""Event streams and lines without I/O: bytes in, events or lines out.

The rules are those of the WHATWG HTML standard, section "Server-sent events". The parser knows no connection, no clock
and no meaning of an event. It may be fed any cut of the bytes; the events are the same.

The caller judges liveness. Any bytes are a sign of life of the link, and so are comments, which servers send as
keep-alives. Neither says anything about the job: only an event does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from msgspec import Struct

from ..._exceptions import InvalidArgument, MessageTooBig

#: The most seconds that a server's `retry:` can ask for. A larger number counts as this.
MAX_RETRY: Final = 3600.0

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = 0x0A
_CR: Final = 0x0D  # a number is found in bytes several times as fast as bytes are
_T = TypeVar("_T")

# Either a whole event in the form that most servers write (id, event, data, each at most once and not empty), or one
# line. One match for a whole event is several times as fast as one for each line. Possessive quantifiers keep the time
# linear.
_EVENT: Final = r"(?:id: ?+([^\n\0]++)\n)?+(?:event: ?+(.++)\n)?+data: ?+(.++)\n\n"  # `.` stops at a line feed only
# What waits of an event is copied with each piece that follows: beyond this many bytes it is read line by line instead.
_MOST_UNFINISHED: Final = 16 << 10
_find_all: Final = re.compile(_EVENT + r"|(.*+)\n").findall
_match_event: Final = re.compile(_EVENT).fullmatch
_find_other: Final = re.compile(rb"\n[:r]").search  # a third of the time of looking for each of them


class StreamEvent(Struct, frozen=True, gc=False):
    """One event of an event stream.

    `type` is "message" unless the server named another. `id` is the last event id at this event, which earlier events
    may have set; None if there is none or the server cleared it. `has_id`: this event itself has set or cleared it.
    """

    type: str
    data: str
    id: str | None = None
    has_id: bool = False


class EventParser:
    """Parses one response of the type `text/event-stream`.

    `max_line` is in bytes, without the end of the line. `max_event` is in bytes of UTF-8, for data of several lines.
    A value equal to the limit is accepted. `last_id` is the last event id of the connection before this one.
    """

    def __init__(self, *, max_line: int = 1 << 20, max_event: int = 1 << 20, last_id: str | None = None) -> None:
        if max_event < max_line:
            raise InvalidArgument("max_event", "must not be smaller than max_line")
        #: The last event id: what `Last-Event-ID` must say to go on after the last event. None if there is none. An id
        #: that no header can carry (a control character, a space at an end) raises `InvalidArgument` when it is sent.
        self.last_id = last_id
        #: The last reconnection time that the server asked for, in seconds and at most `MAX_RETRY`; None if it did not.
        self.retry: float | None = None
        #: How many comments came. Servers send them as keep-alives.
        self.comments = 0
        self._lines = _Lines(max_line)
        self._max_event = max_event
        self._max_line = max_line
        self._problem: MessageTooBig | None = None
        # The event whose blank line has not come.
        self._type = ""
        self._data: list[str] = []
        self._size = 0
        self._id = last_id
        self._has_id = False
        # Whether nothing of an event has come: the next line begins one.
        self._between = True
        # Whether the next piece may be taken as events, not line by line; and the beginning of one that waits for its
        # end.
        self._by_event = False
        self._unfinished = b""

    def feed(self, data: bytes) -> Iterable[StreamEvent]:
        """Take the next bytes and return the events that they complete.

        Past a limit, iterating raises `MessageTooBig` after the events before it; every later call does the same. At
        the end of the stream, drop the parser: an unfinished event does not count.
        """
        if self._by_event:
            if self._unfinished:
                data, self._unfinished = self._unfinished + data, b""
            if 2 <= len(data) <= self._max_line and _CR not in data:
                whole: bytes | None = data
                if not data[-1] == data[-2] == _LF:
                    whole = self._set_rest_aside(data)
                if whole is not None:
                    try:
                        text = whole.decode()  # takes half the time that it takes with another error handler
                    except UnicodeDecodeError:
                        text = whole.decode("utf-8", "replace")
                    if whole is not data or (match := _match_event(text)) is None:
                        return self._parse(text) if text else ()
                    event_id, event_type, value = match.groups()
                    if event_id is None:
                        return (StreamEvent(event_type or "message", value, self.last_id),)
                    self.last_id = self._id = event_id
                    return (StreamEvent(event_type or "message", value, event_id, True),)
        if self._problem is None:
            if not self._lines.is_started:
                if not self._lines.start(data):
                    return []
                self._by_event = True
                return self.feed(self._lines.take_rest())
            lines = self._lines.take(data)
            events: Iterable[StreamEvent] = self._parse(lines.decode("utf-8", "replace")) if lines else []
            self._by_event = self._between and self._lines.is_plain and self._problem is None
            if self._problem is not None or self._lines.problem is None:
                return events  # which raise the problem of an event themselves
            self._problem = self._lines.problem
        else:
            events = []
        return _then_raise(events, self._problem)

    def _set_rest_aside(self, data: bytes) -> bytes | None:
        """Keep the beginning of an event at the end of `data`, and return what precedes it; None to read by line.

        That is to be done unless the rest begins an event, and nothing in it counts before its end, as a comment and
        `retry` do.
        """
        end = data.rfind(b"\n\n") + 2
        whole, rest = (data[:end], data[end:]) if end > 1 else (b"", data)
        if len(rest) < len(b"event:"):
            begins = b"id:".startswith(rest[:3]) or b"event:".startswith(rest) or b"data:".startswith(rest[:5])
        else:
            begins = rest.startswith((b"id:", b"event:", b"data:")) and _find_other(rest) is None
        if not begins or len(rest) > _MOST_UNFINISHED:
            return None
        self._unfinished = rest
        return whole

    def _parse(self, text: str) -> Iterable[StreamEvent]:
        events: list[StreamEvent] = []
        last_id, between = self.last_id, self._between
        for event_id, event_type, data, line in _find_all(text):
            if data and between:
                # Nearly every event: it begins and ends here.
                if event_id:
                    last_id = event_id
                    events.append(StreamEvent(event_type or "message", data, event_id, True))
                else:
                    events.append(StreamEvent(event_type or "message", data, last_id))
                continue
            if between:
                self.last_id = self._id = last_id
            if event_id:
                self._id, self._has_id = event_id, True
            if data:
                self._type = event_type or self._type
                self._add_data(data)
            elif line:
                self._take_line(line)
            if self._problem is not None:
                self._by_event = False
                return _then_raise(events, self._problem)
            if not line:
                self._dispatch(events)
            last_id = self.last_id
            between = not (self._data or self._type or self._has_id) and self._id == last_id
        if between:
            self.last_id = self._id = last_id
        self._between = between
        return events

    def _take_line(self, line: str) -> None:
        name, _, value = line.partition(":")
        if value[:1] == " ":
            value = value[1:]
        if name == "data":
            self._add_data(value)
        elif name == "event":
            self._type = value
        elif name == "id":
            if "\0" not in value:
                self._id, self._has_id = value or None, True
        elif not name:
            self.comments += 1
        elif name == "retry" and value.isascii() and value.isdigit():
            digits = value.lstrip("0") or "0"
            self.retry = MAX_RETRY if len(digits) > 9 else min(int(digits) / 1000, MAX_RETRY)

    def _add_data(self, value: str) -> None:
        self._size += len(value.encode()) + bool(self._data)
        self._data.append(value)
        if self._size > self._max_event and len(self._data) > 1:
            self._problem = MessageTooBig("bytes in an event", self._max_event)

    def _dispatch(self, events: list[StreamEvent]) -> None:
        # The id counts from here on, also without an event: a stream may end in the middle of the next block.
        self.last_id = self._id
        if self._data:
            events.append(StreamEvent(self._type or "message", "\n".join(self._data), self.last_id, self._has_id))
            self._data = []
            self._size = 0
        self._type = ""
        self._has_id = False


class LineParser:
    """Splits a response into lines, for newline-delimited JSON and plain text.

    Lines end with LF, CR or CRLF and come without their end; empty ones come too. `max_line` is in bytes. Invalid UTF-8
    becomes U+FFFD.
    """

    def __init__(self, *, max_line: int = 1 << 20) -> None:
        self._lines = _Lines(max_line)

    def feed(self, data: bytes) -> Iterable[str]:
        """Take the next bytes and return the lines that they complete.

        Past the limit, iterating raises `MessageTooBig` after the lines before it; every later call does the same.
        """
        lines = self._lines.take(data).decode("utf-8", "replace").split("\n")
        del lines[-1]
        return lines if self._lines.problem is None else _then_raise(lines, self._lines.problem)

    def finish(self) -> Iterable[str]:
        """Return the last line if it has no end. Call it only if the response is complete, not after an error."""
        rest = self._lines.rest.decode("utf-8", "replace")
        return [rest] if rest else []


def is_event_stream(content_type: bytes | None) -> bool:
    """Whether a `Content-Type` names an event stream. Case and parameters do not matter: it is always UTF-8."""
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


class _Lines:
    """Joins pieces to whole lines with LF as their only end, without the leading byte order mark."""

    def __init__(self, max_line: int) -> None:
        #: The line after the last returned one is too long: nothing follows.
        self.problem: MessageTooBig | None = None
        #: The unfinished line.
        self.rest = bytearray()
        self._max_line = max_line
        #: Whether the byte order mark is decided.
        self.is_started = False
        # Whether the next byte begins as any other: not the stream, not after a CR, not after the end.
        self._plain = False
        self._after_cr = False

    def start(self, data: bytes) -> bool:
        """Take the first bytes without the byte order mark into `rest`; returns False if they may be a part of it."""
        self.rest += data
        if len(self.rest) < len(_BOM) and _BOM.startswith(self.rest):
            return False
        self.is_started = self._plain = True
        self.rest = self.rest.removeprefix(_BOM)
        return True

    def take_rest(self) -> bytes:
        """Take the unfinished line out."""
        rest = bytes(self.rest)
        self.rest.clear()
        return rest

    @property
    def is_plain(self) -> bool:
        """Whether no byte waits, and the next begins as any other."""
        return self._plain and not self.rest

    def take(self, data: bytes) -> bytes:
        if self.is_plain and _CR not in data and data[-1:] == b"\n" and len(data) <= self._max_line:
            return data
        if self.problem is not None or not data:
            return b""
        if not self.is_started:
            if not self.start(data):
                return b""
            data = self.take_rest()
        if self._after_cr or _CR in data:
            data = self._with_lf(data)
        place = data.rfind(b"\n") + 1
        if not place:
            self.rest += data
            self._check_rest()
            return b""
        whole, rest = data[:place], data[place:]
        if self.rest:
            whole = bytes(self.rest) + whole
            self.rest.clear()
        if len(whole) > self._max_line:
            whole = self._checked(whole)
        if rest and self.problem is None:
            self.rest += rest
            self._check_rest()
        return whole

    def _with_lf(self, data: bytes) -> bytes:
        # A CR ends its line at once; the LF that may follow in the next piece is the second half of the same end.
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        self._plain = not self._after_cr
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _checked(self, whole: bytes) -> bytes:
        """The lines before the first that is too long."""
        start = 0
        while (end := whole.find(b"\n", start)) >= 0:
            if end - start > self._max_line:
                self._refuse()
                return whole[:start]
            start = end + 1
        return whole

    def _check_rest(self) -> None:
        if len(self.rest) > self._max_line:
            self.rest.clear()
            self._refuse()

    def _refuse(self) -> None:
        self._plain = False
        self.problem = MessageTooBig("bytes in a line", self._max_line)


def _then_raise(items: Iterable[_T], problem: MessageTooBig) -> Iterator[_T]:
    yield from items
    raise problem
