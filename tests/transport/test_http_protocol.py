"""One HTTP exchange, bytes in, events out: whole, byte by byte, with a tail; and `Retry-After`."""

import h11
import pytest

from towline._exceptions import ConnectionBroken, ProtocolViolation
from towline.transport import HTTPExchange, parse_retry_after, parse_url

URL = parse_url("https://api.example:8443/api/x?y=z", schemes=("https",))


def cuts(data: bytes) -> list[list[bytes]]:
    return [[data], [data[i : i + 1] for i in range(len(data))], [data[:9], data[9:]]]


def take(exchange: HTTPExchange, pieces: list[bytes]) -> bytes:
    return b"".join(part for piece in pieces if not exchange.complete for part in exchange.receive(piece))


def test_the_request() -> None:
    exchange = HTTPExchange("GET", URL, [(b"Authorization", b"Bearer t")])
    assert exchange.request_head + exchange.body_end() == (
        b"GET /api/x?y=z HTTP/1.1\r\nHost: api.example:8443\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
        b"Authorization: Bearer t\r\n\r\n"
    )


def test_a_body_of_known_length() -> None:
    exchange = HTTPExchange("POST", URL, content_length=3)
    wire = exchange.request_head + exchange.body_chunk(b"ab") + exchange.body_chunk(b"c") + exchange.body_end()
    assert wire.endswith(b"Content-Length: 3\r\n\r\nabc")


def test_a_body_of_unknown_length() -> None:
    exchange = HTTPExchange("POST", URL, content_length=-1)
    wire = exchange.request_head + exchange.body_chunk(b"ab") + exchange.body_end()
    assert wire.endswith(b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")


def test_a_body_that_is_not_as_long_as_it_says() -> None:
    exchange = HTTPExchange("POST", URL, content_length=3)
    with pytest.raises(h11.LocalProtocolError):
        exchange.body_chunk(b"abcd")
    exchange = HTTPExchange("POST", URL, content_length=3)
    with pytest.raises(h11.LocalProtocolError):
        exchange.body_end()


def sent() -> HTTPExchange:
    exchange = HTTPExchange("GET", URL)
    exchange.body_end()
    return exchange


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-A: b\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n1\r\nb\r\n3\r\nody\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-A: b\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-A: b\r\n\r\nbody and a tail that nobody asked for",
    ],
)
def test_an_answer(wire: bytes) -> None:
    for pieces in cuts(wire):
        exchange = sent()
        assert take(exchange, pieces) == b"body"
        assert exchange.complete
        assert exchange.head is not None
        assert exchange.head.status == 200
        assert exchange.head.header(b"x-a") == b"b"
        assert exchange.head.header(b"x-b") is None


def test_an_answer_that_ends_with_the_stream() -> None:
    exchange = sent()
    assert take(exchange, [b"HTTP/1.0 200 OK\r\n\r\nbo", b"dy"]) == b"body"
    assert not exchange.complete
    assert exchange.receive(b"") == []
    assert exchange.complete


@pytest.mark.parametrize("wire", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo"])
def test_a_stream_that_ends_too_soon(wire: bytes) -> None:
    exchange = sent()
    if wire:
        exchange.receive(wire)
    with pytest.raises(ConnectionBroken):
        exchange.receive(b"")


@pytest.mark.parametrize(
    "wire",
    [
        b"<html>hunter2</html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nhunter2 hunter2: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: hunter2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhunter2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_a_broken_answer(wire: bytes) -> None:
    exchange = sent()
    with pytest.raises(ProtocolViolation) as caught:
        exchange.receive(wire)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


def test_the_head_of_an_answer_and_what_comes_before_it_are_bounded() -> None:
    early, head = b"HTTP/1.1 103 x\r\n\r\n", b"HTTP/1.1 204 x\r\nX: "
    room = (64 << 10) - len(head) - 4
    for count, size, fits in ((16, 0, True), (17, 0, False), (0, room, True), (0, room + 1, False)):
        for pieces in cuts(early * count + head + b"a" * size + b"\r\n\r\n")[::2]:
            exchange = sent()
            if fits:
                assert take(exchange, pieces) == b""
                assert exchange.complete
            else:
                with pytest.raises(ProtocolViolation):
                    take(exchange, pieces)


def test_a_header_that_came_twice_says_nothing() -> None:
    exchange = sent()
    exchange.receive(b"HTTP/1.1 503 x\r\nRetry-After: 1\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n")
    assert exchange.head is not None
    assert exchange.head.header(b"retry-after") is None
    assert "Retry" not in repr(exchange.head)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"0", 0),
        (b"120", 120),
        (b" 7 ", 7),
        (b"-1", None),
        (b"1.5", None),
        (b"", None),
        (b"\xb2", None),
        (b"soon", None),
        (b"0" * 63 + b"7", 7),
        (b"0" * 64 + b"7", None),
        (b"Thu, 01 Jan 1970 00:16:50 GMT", 10),
        (b"Thu, 01 Jan 1970 00:16:30 GMT", 0),
        (b"Thursday, 01-Jan-70 00:16:50 GMT", 10),
        (b"Thu, 01 Jan 1970 00:16:50", None),
        (b"Thu, 99 Jan 1970 00:16:50 GMT", None),
        (b"Thu, 01 Jan 99999999999 00:16:50 GMT", None),
    ],
)
def test_retry_after(value: bytes | None, seconds: float | None) -> None:
    assert parse_retry_after(value, wall_time=1000.0) == seconds
