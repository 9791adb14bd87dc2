"""Event streams, bytes in, events out: what the standard says and the web platform tests check, however it is cut.

The names of the cases are those of the web platform tests (eventsource/format-*.any.js). Each stream here ends as it
stands: where a case needs its last event, the blank line is written.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import httpx_sse
import pytest

from towline._exceptions import InvalidArgument, MessageTooBig
from towline.transport import MAX_RETRY, EventParser, LineParser, StreamEvent, check_headers, is_event_stream

#: How many random streams are compared with httpx-sse; `make soak` compares 100,000.
STREAMS = 3000


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for place in range(len(data) + 1):
        yield [data[:place], data[place:]]


def parsed(pieces: Iterable[bytes], **options: Any) -> tuple[list[StreamEvent], EventParser]:
    parser = EventParser(**options)
    return [event for piece in pieces for event in parser.feed(piece)], parser


def read(wire: bytes) -> list[tuple[str, str, str | None]]:
    """The events of a stream, after a look at every cut of it."""
    events, whole = parsed([wire])
    for pieces in cuts(wire):
        again, parser = parsed(pieces)
        assert again == events
        assert (parser.last_id, parser.retry, parser.comments) == (whole.last_id, whole.retry, whole.comments)
    return [(event.type, event.data, event.id) for event in events]


def data_of(wire: bytes) -> list[str]:
    return [data for _, data, _ in read(wire)]


def state_of(wire: bytes) -> EventParser:
    read(wire)
    return parsed([wire])[1]


BOM = b"\xef\xbb\xbf"


def test_bom() -> None:
    """One byte order mark at the beginning is no part of the stream; one further on is a part of its field's name."""
    assert data_of(BOM + b"data:one\n\n" + BOM + b"data:two\n\ndata:three\n\n") == ["one", "three"]


def test_bom_2() -> None:
    """Of two byte order marks the second belongs to the first line."""
    assert data_of(BOM + BOM + b"data:one\n\ndata:two\n\n") == ["two"]


def test_comments() -> None:
    wire = b"data:1\r:\0\n:\r\ndata:2\n:" + b"x" * 50 + b"\rdata:3\n:data:no\r\n:\rdata:4\n\n"
    assert data_of(wire) == ["1\n2\n3\n4"]
    assert state_of(wire).comments == 5


def test_data_before_final_empty_line() -> None:
    """What stands before the end of the stream without its blank line is dropped, with its id, but not its retry."""
    wire = b"data:first\n\nretry:1000\nid:2\ndata:second"
    for end in (b"", b"\n"):
        assert read(wire + end) == [("message", "first", None)]
        assert state_of(wire + end).last_id is None
        assert state_of(wire + end).retry == 1.0


def test_field_data() -> None:
    assert data_of(b"data:\n\ndata\ndata\n\ndata:x\n\n") == ["", "\n", "x"]


def test_field_event() -> None:
    """The type holds for one event; the last one given wins."""
    wire = b"event:a\nevent:tick\ndata:1\n\ndata:2\n\n"
    assert read(wire) == [("tick", "1", None), ("message", "2", None)]


def test_field_event_without_data() -> None:
    assert read(b"event:tick\n\ndata:1\n\n") == [("message", "1", None)]


def test_field_event_empty() -> None:
    assert read(b"event:tick\nevent: \ndata:1\n\n") == [("message", "1", None)]


def test_field_id() -> None:
    """The id stays with later events, and is what the next connection must ask for."""
    wire = b"id:1\ndata:a\n\ndata:b\n\ndata:c\nid: 2\n\n"
    assert read(wire) == [("message", "a", "1"), ("message", "b", "1"), ("message", "c", "2")]
    assert state_of(wire).last_id == "2"


def test_field_id_2() -> None:
    """An empty id clears it."""
    wire = b"id:1\ndata:a\n\nid:\ndata:b\n\ndata:c\n\n"
    assert read(wire) == [("message", "a", "1"), ("message", "b", None), ("message", "c", None)]
    assert state_of(wire).last_id is None


def test_field_id_3() -> None:
    """So does an id without a colon."""
    assert read(b"id:1\ndata:a\n\nid\ndata:b\n\n") == [("message", "a", "1"), ("message", "b", None)]


def test_an_id_without_data() -> None:
    """Nothing is dispatched, but the id is remembered."""
    wire = b"data:a\n\nid:7\n\n"
    assert read(wire) == [("message", "a", None)]
    assert state_of(wire).last_id == "7"
    assert read(wire + b"data:b\n\n")[1] == ("message", "b", "7")


@pytest.mark.parametrize("bad", [b"\0", b"x\0", b"\0x", b"x\0x"])
def test_field_id_null(bad: bytes) -> None:
    """An id with NUL is ignored: the one before it stays."""
    assert read(b"id:1\ndata:a\n\nid:" + bad + b"\ndata:b\n\n") == [("message", "a", "1"), ("message", "b", "1")]


def test_an_id_cannot_hold_a_line_break() -> None:
    """It ends its line, so no id puts a second header into our next request; and no such header can be sent."""
    assert read(b"id: 1\r\nX-Evil: y\r\ndata:a\n\n") == [("message", "a", "1")]
    for value in ("1\r\nX-Evil: y", "1\n", "\n1", "1\0", "é\n", " é", "é ", "\ud800", "a\x01b"):
        with pytest.raises(InvalidArgument):
            check_headers({"Last-Event-ID": value}, reserved=frozenset())


def test_an_id_is_sent_as_utf_8() -> None:
    pairs = check_headers({"last-event-id": "läuft €\t𝄞"}, reserved=frozenset())
    assert pairs == [(b"last-event-id", "läuft €\t𝄞".encode())]
    with pytest.raises(InvalidArgument):
        check_headers({"X": "é"}, reserved=frozenset())


def test_field_parsing() -> None:
    """Names are exact: case, NUL, dash and space count. One space after the colon goes."""
    wire = b"data:\0\ndata:  2\rData:no\ndata\0:no\ndata:1\r\0data:no\nda-ta:no\rdata_no\n"
    wire += b"data:3\rdata:\r\n data:no\ndata:4\n\n"
    assert data_of(wire) == ["\0\n 2\n1\n3\n\n4"]


def test_field_retry() -> None:
    assert state_of(b"retry:03000\ndata:x\n\n").retry == 3.0
    assert state_of(b"retry: 0\n").retry == 0
    assert state_of(b"data:x\n\n").retry is None


@pytest.mark.parametrize("bogus", [b"1000x", b"-1", b"1.5", b"1e3", b"1_000", b" 1", "٣".encode(), "²".encode()])
def test_field_retry_bogus(bogus: bytes) -> None:
    assert state_of(b"retry:3000\nretry: " + bogus + b"\ndata:x\n\n").retry == 3.0


def test_field_retry_empty() -> None:
    assert state_of(b"retry:3000\nretry\nretry:\ndata:x\n\n").retry == 3.0


@pytest.mark.parametrize("digits", [b"1" + b"0" * 12, b"9" * 5000, b"3600001"])
def test_retry_is_bounded(digits: bytes) -> None:
    parser = EventParser()
    assert list(parser.feed(b"retry:" + digits + b"\n")) == []
    assert parser.retry == MAX_RETRY == 3600.0
    list(parser.feed(b"retry:" + b"0" * 5000 + b"3599999\n"))
    assert parser.retry == 3599.999


def test_field_unknown() -> None:
    wire = b"data:a\n data\ndata\nfoo:bar\nwords only\n:a comment\ndata:b\n\n"
    assert data_of(wire) == ["a\n\nb"]


def test_leading_space() -> None:
    """One space goes, a tab does not."""
    assert data_of(b"data:\ta\rdata: \ndata:  b\ndata:c \n\n") == ["\ta\n\n b\nc "]


@pytest.mark.parametrize(
    "good",
    [
        b"text/event-stream",
        b"text/event-stream;",
        b"text/event-stream;charset=utf-8",
        b"TEXT/Event-Stream ; charset=windows-1252",
        b" text/event-stream\t; x=y; z",
    ],
)
def test_mime_good(good: bytes) -> None:
    """mime-trailing-semicolon, mime-valid-bogus: parameters do not matter."""
    assert is_event_stream(good)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        b"",
        b"text/html",
        b"text/html; x=text/event-stream",
        b"text/event-stream-2",
        b"text/event-stream x",
        b"\xff",
    ],
)
def test_mime_bogus(bad: bytes | None) -> None:
    assert not is_event_stream(bad)


def test_newlines() -> None:
    """CR, LF and CRLF end a line, and CR LF is one end, not two."""
    assert data_of(b"data:a\r\ndata\ndata:b\r\n\rdata:c\n\r\ndata:d\r\rdata:e\r\n\r\n") == ["a\n\nb", "c", "d", "e"]
    assert data_of("data:a\u2028\u2029\u0085\x0b\x0c\x1cb\n\n".encode()) == ["a\u2028\u2029\u0085\x0b\x0c\x1cb"]


def test_a_cr_ends_its_line_at_once() -> None:
    """The event is there before the next byte, which may take minutes."""
    parser = EventParser()
    assert [event.data for event in parser.feed(b"data:a\r\r")] == ["a"]
    assert list(parser.feed(b"\n")) == []
    assert [event.data for event in parser.feed(b"data:b\n\n")] == ["b"]


def test_null_character() -> None:
    assert data_of(b"data:\0\n\n\n\n") == ["\0"]


def test_utf_8() -> None:
    """Always UTF-8, also across a cut; what is not becomes U+FFFD, one for each broken sequence."""
    assert data_of("data:läuft €𝄞\n\n".encode()) == ["läuft €𝄞"]
    assert data_of(b"data:\xff\xe2\x82x\xc0\x80\xed\xa0\x80\xf0\x9d\n\n") == ["\ufffd\ufffdx" + "\ufffd" * 6]


def test_the_id_of_the_connection_before() -> None:
    events, parser = parsed([b"data:a\n\nid\ndata:b\n\n"], last_id="9")
    assert [event.id for event in events] == ["9", None]
    assert parser.last_id is None


def test_an_event_says_whether_it_has_the_id_itself() -> None:
    wire = b"id:1\ndata:a\n\ndata:b\n\nid:1\ndata:c\n\nid\ndata:d\n\n"
    wire += b"id:2\n\ndata:e\n\n: x\nid:3\ndata:f\ndata:g\n\ndata:h\n\n"
    for cut in range(len(wire)):
        events, _ = parsed([wire[:cut], wire[cut:]])
        assert [(event.id, event.has_id) for event in events] == [
            ("1", True),
            ("1", False),
            ("1", True),
            (None, True),
            ("2", False),
            ("3", True),
            ("3", False),
        ]


def test_the_page_of_a_portal_has_no_event() -> None:
    page = b"<!DOCTYPE html>\r\n<html>\r\n\r\n<p>Sign in: <a href='x'>here</a>\r\n\r\n</html>"
    assert read(page) == []


# --- limits -----------------------------------------------------------------------------------------------------


def fails(wire: bytes, **options: Any) -> list[tuple[list[str], str, int]]:
    """What came before the error, and the error, for each cut; the error comes again at each later call."""
    outcomes = []
    for pieces in [[wire], [wire[i : i + 1] for i in range(len(wire))], [wire[:7], wire[7:]]]:
        parser, got = EventParser(**options), []
        with pytest.raises(MessageTooBig) as caught:
            for piece in pieces:
                for event in parser.feed(piece):
                    got.append(event.data)  # noqa: PERF401 - what came before the raise counts
        with pytest.raises(MessageTooBig):
            list(parser.feed(b"data: late\n\n"))
        outcomes.append((got, caught.value.what, caught.value.limit))
    return outcomes


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\ndata:c\n\n"])
def test_an_endless_line(end: bytes) -> None:
    good = b"data:a\n\n"
    assert fails(good + b"data:" + b"x" * 96 + end, max_line=100) == [(["a"], "bytes in a line", 100)] * 3
    assert [event.data for event in parsed([good + b"data:" + b"x" * 95 + b"\n\n"], max_line=100)[0]] == ["a", "x" * 95]


def test_the_mark_is_no_part_of_the_line() -> None:
    for pieces in cuts(BOM + b"data:" + b"x" * 95 + b"\n\n"):
        assert [event.data for event in parsed(pieces, max_line=100)[0]] == ["x" * 95]


def test_an_endless_event() -> None:
    line = b"data:" + "é".encode() * 5 + b"\n"
    fits = line * 9 + b"data:x\n\n"
    assert len(parsed([fits], max_line=50, max_event=100)[0][0].data.encode()) == 100
    for over in (line * 9 + b"data:xx\n\n", line * 10, b"data:a\n" * 51, line * 10 + b"\ndata:b\n\n"):
        assert fails(b"data:a\n\n" + over, max_line=50, max_event=100) == [(["a"], "bytes in an event", 100)] * 3


def test_the_size_of_an_event_begins_with_it() -> None:
    wire = b"data:xxxxx\ndata:xxxxx\n\n" * 20
    for pieces in cuts(wire):
        assert len(parsed(pieces, max_line=10, max_event=11)[0]) == 20


def test_one_line_is_bounded_as_it_came() -> None:
    """Each broken byte becomes three of U+FFFD; a line that was short enough is not refused for that."""
    for pieces in cuts(b"data:" + b"\xff" * 95 + b"\n\n"):
        assert [event.data for event in parsed(pieces, max_line=100, max_event=100)[0]] == ["\ufffd" * 95]


def test_an_event_that_broken_bytes_make_too_large_is_refused_in_every_cut() -> None:
    line = b"data:" + b"\xff" * 10 + b"\n"
    for pieces in cuts(line * 2 + b"\n"):
        parser = EventParser(max_line=40, max_event=40)
        with pytest.raises(MessageTooBig):
            assert [event for piece in pieces for event in parser.feed(piece)] == "the event was passed over"
        with pytest.raises(MessageTooBig):
            list(parser.feed(b"data:b\n\n"))


def test_nothing_else_is_bounded() -> None:
    """A stream of comments, ids and types without a blank line goes on for days."""
    parser = EventParser(max_line=20, max_event=20)
    for _ in range(1000):
        assert list(parser.feed(b":keep-alive\nid:1\nevent:tick\nfoo\n")) == []
    assert [event.type for event in parser.feed(b"data:x\n\n")] == ["tick"]
    assert parser.comments == 1000


def test_an_event_must_have_room_for_a_line() -> None:
    with pytest.raises(InvalidArgument):
        EventParser(max_line=11, max_event=10)


# --- lines ------------------------------------------------------------------------------------------------------


def test_lines() -> None:
    wire = BOM + '{"a":"é"}\n\r\n{"b":1}\r{"c":2}\r\nlast'.encode()
    for pieces in cuts(wire):
        parser = LineParser()
        assert [line for piece in pieces for line in parser.feed(piece)] == ['{"a":"é"}', "", '{"b":1}', '{"c":2}']
        assert list(parser.finish()) == ["last"]
    assert list(LineParser().finish()) == []


@pytest.mark.parametrize("end", [b"", b"\nmore\n"])
def test_an_endless_plain_line(end: bytes) -> None:
    for pieces in ([b"a\n" + b"x" * 11 + end], [b"a\nx", b"x" * 10 + end]):
        parser, got = LineParser(max_line=10), []
        with pytest.raises(MessageTooBig, match="10 bytes in a line"):
            for piece in pieces:
                for line in parser.feed(piece):
                    got.append(line)  # noqa: PERF402 - what came before the raise counts
        assert got == ["a"]
        assert list(parser.finish()) == []
        late = iter(parser.feed(b"b\n"))
        with pytest.raises(MessageTooBig):
            next(late)


# --- against httpx-sse ------------------------------------------------------------------------------------------

PIECES = ["", "x", "a b", " ", "  y", ":", "é", "€𝄞", "\0", '{"seq":1}', "\u2028", "\ufffd"]


def block(rng: random.Random) -> list[str]:
    """An event with at least one data field, as lines."""

    def value() -> str:
        return rng.choice(["", ":", ": ", ":  "]) + "".join(rng.choices(PIECES, k=rng.randrange(4)))

    fields = [f"data{value()}" if rng.random() < 0.9 else "data"]
    for _ in range(rng.randrange(4)):
        name = rng.choice(["data", "event", "id", "", "foo", " data"])
        fields.append(f"{name}{value()}")
    if rng.random() < 0.2:
        fields.append(f"retry:{' ' * rng.randrange(2)}{rng.randrange(3_600_000)}")
    rng.shuffle(fields)
    # A value without a colon would make another field of the name, or a blank line of nothing.
    lines = [line if ":" in line or line == "data" else f"x{line}" for line in fields]
    return lines if any(line == "data" or line.startswith("data:") for line in lines) else [*lines, "data:z"]


def random_stream(rng: random.Random) -> bytes:
    out = b""
    ends = rng.choice([[b"\n"], [b"\n"], [b"\r\n"], [b"\n", b"\r\n"], [b"\n", b"\r", b"\r\n"]])
    for _ in range(rng.randrange(1, 6)):
        for line in block(rng):
            raw = line.encode()
            if ":" in line and rng.random() < 0.03:
                raw += rng.choice([b"\xff", b"\xe2\x82", b"\xc0\x80"])
            out += raw + rng.choice(ends)
        # A CR before an LF would be one end of a line where two are meant.
        out += b"\n" if not out.endswith(b"\r") else rng.choice([b"\r", b"\r\n"])
    return out


def theirs(wire: bytes) -> tuple[list[tuple[str, str, str]], int | None]:
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=wire)
    events = list(httpx_sse.EventSource(response).iter_sse())
    retries = [event.retry for event in events if event.retry is not None]
    return [(event.event, event.data, event.id) for event in events], retries[-1] if retries else None


def compare_with_httpx_sse(count: int, start: int = 0) -> int:
    """Compare so many random streams, in random cuts; returns the number of events seen."""
    seen = 0
    for seed in range(start, start + count):
        rng = random.Random(seed)
        wire = random_stream(rng)
        places = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.randrange(5)))
        pieces = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]
        events, parser = parsed(pieces)
        expected, retry = theirs(wire)
        assert [(event.type, event.data, event.id or "") for event in events] == expected, (seed, wire)
        assert parser.retry == (None if retry is None else retry / 1000), (seed, wire)
        seen += len(events)
    return seen


def test_httpx_sse_reads_the_same() -> None:
    assert compare_with_httpx_sse(STREAMS) > 2 * STREAMS


def test_a_large_event_in_small_pieces_is_not_copied_with_each_of_them() -> None:
    """Else a server could cost 57 s of processor time with 200 KB."""
    parser = EventParser()
    assert [event.data for event in parser.feed(b"data: before\n\n")] == ["before"]
    for piece in [b"data: ", *[b"x"] * 20_000]:
        assert list(parser.feed(piece)) == []
        assert len(parser._unfinished or "") <= 16 << 10
    assert [event.data for event in parser.feed(b"\n\n")] == ["x" * 20_000]
