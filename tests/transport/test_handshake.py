"""The opening handshake: bytes in, an answer out; whole, byte by byte, with a tail; and every hostile answer."""

from base64 import b64encode
from collections.abc import Iterable

import pytest
from wsproto.utilities import generate_accept_token

from towline._exceptions import ConnectionBroken, ProtocolViolation
from towline.transport import Accepted, ClientHandshake, Limits, Refused, parse_url

KEY = b64encode(b"k" * 16)
ACCEPT = generate_accept_token(KEY).decode()
URL = parse_url("wss://api.example/ws?jobId=1")


def handshake(**options: object) -> ClientHandshake:
    return ClientHandshake(URL, entropy=lambda size: b"k" * size, **options)  # type: ignore[arg-type]


def answer(*lines: str, status: str = "HTTP/1.1 101 Switching Protocols", tail: bytes = b"") -> bytes:
    return "\r\n".join([status, *lines, "", ""]).encode("latin-1") + tail


UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}")
GOOD = answer(*UPGRADE)


def feed(shake: ClientHandshake, pieces: Iterable[bytes]) -> Accepted | Refused | None:
    for piece in pieces:
        if (result := shake.receive(piece)) is not None:
            return result
    return None


def cuts(data: bytes) -> list[list[bytes]]:
    return [[data], [data[i : i + 1] for i in range(len(data))], [data[:7], data[7:]]]


def test_the_request() -> None:
    shake = handshake(headers=[(b"Authorization", b"Bearer t")], subprotocols=("a", "b"))
    assert shake.request == (
        b"GET /ws?jobId=1 HTTP/1.1\r\nHost: api.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\n"
        b"Authorization: Bearer t\r\n\r\n"
    )


def test_a_long_last_label_with_a_port_is_a_host() -> None:
    url = parse_url(f"wss://api.{'a' * 63}:8443/")
    assert f"Host: api.{'a' * 63}:8443\r\n".encode() in ClientHandshake(url).request


@pytest.mark.parametrize("pieces", cuts(GOOD))
def test_accepted(pieces: list[bytes]) -> None:
    accepted = feed(handshake(), pieces)
    assert isinstance(accepted, Accepted)
    assert (accepted.subprotocol, accepted.extensions, accepted.trailing) == (None, "", b"")


def test_frames_behind_the_answer_are_kept() -> None:
    accepted = handshake().receive(GOOD + b"\x81\x01a")
    assert isinstance(accepted, Accepted)
    assert accepted.trailing == b"\x81\x01a"


def test_names_are_read_without_case_and_lists_over_lines() -> None:
    data = answer("upgrade: WebSocket", "CONNECTION: keep-alive", "Connection: x, uPGRADE", UPGRADE[2])
    assert isinstance(handshake().receive(data), Accepted)


@pytest.mark.parametrize("count", [0, 1, 16])
def test_informational_answers_are_skipped(count: int) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * count + GOOD
    for pieces in cuts(data):
        assert isinstance(feed(handshake(), pieces), Accepted)


def test_but_not_for_ever() -> None:
    with pytest.raises(ProtocolViolation, match="16 1xx"):
        handshake().receive(b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + GOOD)


@pytest.mark.parametrize(
    "data",
    [
        answer(*UPGRADE, status="HTTP/1.0 101 Switching Protocols"),
        answer("Upgrade: h2c, websocket", *UPGRADE[1:]),
        answer("Upgrade: h2c", *UPGRADE),
        answer("Upgrade: websocket", *UPGRADE),
        answer("Upgrade: h2c", *UPGRADE[1:]),
        answer(*UPGRADE[1:]),
        answer("Upgrade: websocket", UPGRADE[2]),
        answer("Upgrade: websocket", "Connection: close", UPGRADE[2]),
        answer("Upgrade: websocket", "Connection: Upgrade"),
        answer("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: nonsense"),
        answer(*UPGRADE, UPGRADE[2]),
        answer(*UPGRADE, "Sec-WebSocket-Protocol: c"),
        answer(*UPGRADE, "Sec-WebSocket-Protocol: \xe9"),
        answer(*UPGRADE, "Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: a"),
        answer(*UPGRADE, "Sec-WebSocket-Protocol: a, b"),
        answer(*UPGRADE, "Sec-WebSocket-Extensions: permessage-deflate"),
        answer(*UPGRADE, "Sec-WebSocket-Extensions: \xff"),
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 101\r\nbad header\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/9.9 101 x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 x\r\nX: " + b"a" * 20_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_a_broken_answer(data: bytes) -> None:
    for pieces in cuts(data):
        with pytest.raises(ProtocolViolation) as caught:
            feed(handshake(subprotocols=("a", "b")), pieces)
        assert caught.value.__cause__ is None
        assert caught.value.close_code is None


def test_no_error_quotes_the_bytes() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        handshake().receive(b"HTTP/1.1 200 OK\r\nhunter2 hunter2: x\r\n\r\n")
    error: BaseException | None = caught.value
    assert "hunter2" not in f"{error} {error!r}"
    assert error is not None
    assert error.__context__ is None


def test_subprotocols() -> None:
    accepted = handshake(subprotocols=("a", "b")).receive(answer(*UPGRADE, "Sec-WebSocket-Protocol: b"))
    assert isinstance(accepted, Accepted)
    assert accepted.subprotocol == "b"
    with pytest.raises(ProtocolViolation, match="one is required"):
        handshake(subprotocols=("a",), require_subprotocol=True).receive(GOOD)


@pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 401, 403, 404, 407, 410, 426, 429, 500, 502, 503, 599])
def test_refused(status: int) -> None:
    body = b"" if status == 204 else b"<html>no</html>"
    data = answer(f"Content-Length: {len(body)}", "Retry-After: 7", status=f"HTTP/1.1 {status} x") + body
    if status == 204:
        data = answer("Retry-After: 7", status="HTTP/1.1 204 x")
    for pieces in cuts(data):
        assert feed(handshake(), pieces) == Refused(status, b"7", body)


def test_refused_by_an_old_server_until_the_end_of_the_stream() -> None:
    shake = handshake()
    assert shake.receive(b"HTTP/1.0 502 Bad Gateway\r\n\r\nhal") is None
    assert shake.receive(b"f") is None
    assert shake.refusal == Refused(502, None, b"half")
    assert shake.receive_eof() == Refused(502, None, b"half")


def test_a_chunked_refusal() -> None:
    data = answer("Transfer-Encoding: chunked", status="HTTP/1.1 401 x") + b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    for pieces in cuts(data):
        assert feed(handshake(), pieces) == Refused(401, None, b"abcd")


def test_a_refusal_whose_body_is_broken_is_still_that_refusal() -> None:
    data = answer("Transfer-Encoding: chunked", status="HTTP/1.1 401 x") + b"3\r\nabc\r\nnonsense\r\n"
    assert handshake().receive(data) == Refused(401, None, b"abc")


@pytest.mark.parametrize("size", [10, 11])
def test_the_body_of_a_refusal_is_bounded(size: int) -> None:
    limits = Limits(max_rejection_body=10)
    data = answer(f"Content-Length: {size}", status="HTTP/1.1 401 x") + b"a" * size
    for pieces in cuts(data):
        assert feed(handshake(limits=limits), pieces) == Refused(401, None, b"a" * 10)


def test_the_head_of_an_answer_is_bounded() -> None:
    limits = Limits(max_response_head=len(GOOD))
    shake = handshake(limits=limits)
    assert shake.receive(GOOD[:-1]) is None
    assert isinstance(shake.receive(GOOD[-1:]), Accepted)
    with pytest.raises(ProtocolViolation):
        handshake(limits=limits).receive(answer(*UPGRADE, "X: aaaa")[:-2])


def test_the_end_before_an_answer() -> None:
    shake = handshake()
    assert shake.receive(b"HTTP/1.1 10") is None
    with pytest.raises(ConnectionBroken):
        shake.receive_eof()


def test_nothing_shows_the_bytes() -> None:
    assert "secret" not in repr(Refused(401, None, b"secret"))
    assert "secret" not in repr(Accepted(None, "", [(b"x", b"secret")], b"secret"))
