"""Event streams and lines without I/O: bytes in, events or lines out.

The rules are those of the WHATWG HTML standard, section "Server-sent events". The parser knows no connection, no clock
and no meaning of an event. It may be fed any cut of the bytes; the events are the same.

The caller judges liveness. Any bytes are a sign of life of the link, and so are comments, which servers send as
keep-alives. Neither says anything about the job: only an event does.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, TypeVar

from msgspec import Struct

from ..._exceptions import InvalidArgument, MessageTooBig

#: The most seconds that a server's `retry:` can ask for. A larger number counts as this.
MAX_RETRY: Final = 3600.0

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D  # a number is found in bytes several times as fast as bytes are
_T = TypeVar("_T")

# A whole event in the form that most servers write: id, event, data, each at most once and not empty. One match for it
# is several times as fast as one for each line. Possessive quantifiers keep the time linear.
_EVENT: Final = r"(?:id: ?+([^\n\0]++)\n|)(?:event: ?+(.++)\n|)data: ?+(.++)\n\n"  # `.` stops at a line feed only
_find_events: Final = re.compile(_EVENT + r"|((?s:.++))").findall  # and what follows the last of them
_match_event: Final = re.compile(_EVENT).fullmatch
_find_lines: Final = re.compile(_EVENT + r"|(.*+)\n").findall
# What counts before the end of its event: a blank line, a comment, `retry`.
_find_other: Final = re.compile(r"\n[\n:r]").search
# What waits of an event is copied with each piece that follows: beyond this many characters it is read line by line.
_MOST_UNFINISHED: Final = 16 << 10


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
        # A piece and what waits before it are no larger than a line may be, so that no line in them is too long. A
        # character has 4 bytes at most.
        self._most_unfinished = min(_MOST_UNFINISHED, max_line // 8)
        self._room = max_line - 4 * self._most_unfinished
        self._problem: MessageTooBig | None = None
        # The event whose blank line has not come.
        self._type = ""
        self._data: list[str] = []
        self._size = 0
        self._id = last_id
        self._has_id = False
        # Whether nothing of an event has come: the next line begins one.
        self._between = True
        # The beginning of an event that waits for its end; None if the next piece is to be read line by line.
        self._unfinished: str | None = None
        # The first bytes of a character that stand after it.
        self._cut = b""

    def feed(self, data: bytes) -> Iterable[StreamEvent]:
        """Take the next bytes and return the events that they complete.

        Past a limit, iterating raises `MessageTooBig` after the events before it; every later call does the same. At
        the end of the stream, drop the parser: an unfinished event does not count.
        """
        text = self._unfinished
        if text is None:
            return self._take_lines(data)
        if self._cut:
            data, self._cut = self._cut + data, b""
        if _CR in data or len(data) > self._room:
            return self._take_lines(text.encode() + data)
        try:
            more = data.decode()
        except UnicodeDecodeError:
            try:
                more, used = utf_8_decode(data, None, False)
            except UnicodeDecodeError:
                return self._take_lines(text.encode() + data)
            self._cut = data[used:]
        if text:
            more = text + more
        elif match := _match_event(more):
            event_id, event_type, value = match.groups()
            if event_id is None:
                return (StreamEvent(event_type or "message", value, self.last_id),)
            self.last_id = event_id
            return (StreamEvent(event_type or "message", value, event_id, True),)
        found = _find_events(more)
        rest = found.pop()[3] if found and not found[-1][2] else ""
        events: list[StreamEvent] = []
        last_id = self.last_id
        for event_id, event_type, value, _ in found:
            if event_id:
                last_id = event_id
                events.append(StreamEvent(event_type or "message", value, event_id, True))
            else:
                events.append(StreamEvent(event_type or "message", value, last_id))
        self.last_id = last_id
        if rest and (len(rest) > self._most_unfinished or rest[0] in "\n:r" or _find_other(rest)):
            cut, self._cut = self._cut, b""
            return chain(events, self._take_lines(rest.encode() + cut))
        self._unfinished = rest
        return events

    def _take_lines(self, data: bytes) -> Iterable[StreamEvent]:
        if self._problem is None:
            if not self._lines.is_started:
                if not self._lines.start(data):
                    return []
                self._unfinished = ""
                return self.feed(self._lines.take_rest())
            self._unfinished = None
            lines = self._lines.take(data)
            events: Iterable[StreamEvent] = self._parse(lines.decode("utf-8", "replace")) if lines else []
            if self._between and self._lines.is_plain and self._problem is None:
                self._unfinished = ""
            if self._problem is not None or self._lines.problem is None:
                return events  # which raise the problem of an event themselves
            self._problem = self._lines.problem
        else:
            events = []
        return _then_raise(events, self._problem)

    def _parse(self, text: str) -> Iterable[StreamEvent]:
        events: list[StreamEvent] = []
        last_id, between = self.last_id, self._between
        for event_id, event_type, data, line in _find_lines(text):
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
