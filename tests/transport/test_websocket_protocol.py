"""The open WebSocket without I/O: what goes out, in which order, and how it ends."""

import os

import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from towline._exceptions import (
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
)
from towline._secret import Secret
from towline.transport import Limits, WebSocketProtocol
from towline.transport.websocket._deflate import DeflateExtension


def pair() -> tuple[WebSocketProtocol, Connection]:
    return WebSocketProtocol(), Connection(ConnectionType.SERVER)


def read(server: Connection, data: bytes) -> list[Event]:
    server.receive_data(data)
    return list(server.events())


def test_messages_go_both_ways() -> None:
    client, server = pair()
    (text,) = read(server, client.send_message("é" * 100))
    assert isinstance(text, TextMessage)
    assert text.data == "é" * 100
    for data in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        (binary,) = read(server, client.send_message(data))  # type: ignore[arg-type]
        assert isinstance(binary, BytesMessage)
        assert binary.data == b"ab"
    assert client.receive_data(bytes(server.send(TextMessage("hello")))) == ["hello"]
    assert (client.messages_sent, client.messages_received, client.bytes_received) == (4, 1, 7)
    assert client.bytes_sent == 2 + 2 + 4 + 200 + 3 * 8


@pytest.mark.parametrize("message", ["\ud800", 7, None, ["x"]])
def test_what_cannot_be_sent_changes_nothing(message: object) -> None:
    client, server = pair()
    with pytest.raises(InvalidArgument):
        client.send_message(message)  # type: ignore[arg-type]
    (text,) = read(server, client.send_message("x"))
    assert isinstance(text, TextMessage)


def test_a_batch_is_its_messages_in_order() -> None:
    client, server = pair()
    events = read(server, client.send_messages(["a", b"b", Secret("c")]))
    assert [event.data for event in events if isinstance(event, TextMessage | BytesMessage)] == ["a", b"b", "c"]
    assert client.messages_sent == 3


def test_a_batch_with_a_message_that_cannot_be_sent_changes_nothing() -> None:
    extension = DeflateExtension(1 << 20, keeps_context=True, min_size=0)
    client = WebSocketProtocol(deflate=extension, entropy=bytes)
    twin = WebSocketProtocol(deflate=DeflateExtension(1 << 20, keeps_context=True, min_size=0), entropy=bytes)
    with pytest.raises(InvalidArgument):
        client.send_messages(["remembered by the compressor", "\ud800"])
    assert client.messages_sent == 0
    assert client.send_message("remembered by") == twin.send_message("remembered by")


def test_each_frame_has_a_new_mask() -> None:
    drawn: list[bytes] = []

    def entropy(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    client = WebSocketProtocol(entropy=entropy)
    masks = [client.send_message("x")[2:6] for _ in range(50)]
    random = b"".join(drawn)
    assert masks == [random[i : i + 4] for i in range(0, 200, 4)]


def test_only_the_newest_pings_are_answered() -> None:
    client, server = pair()
    client.receive_data(bytes(b"".join(server.send(Ping(b"%d" % number)) for number in range(100))))
    assert client.wants_to_send
    pongs = read(server, client.data_to_send())
    assert [pong.payload for pong in pongs if isinstance(pong, Pong)] == [b"%d" % number for number in range(84, 100)]
    assert not client.wants_to_send
    assert client.data_to_send() == b""


def test_an_unsolicited_pong_is_nothing() -> None:
    client, server = pair()
    assert client.receive_data(bytes(server.send(Pong(b"x")))) == []
    assert not client.wants_to_send
    assert client.end is None


def test_our_ping() -> None:
    client, server = pair()
    client.queue_ping()
    (ping,) = read(server, client.data_to_send())
    assert isinstance(ping, Ping)


@pytest.mark.parametrize("code", [1000, 1001, 1012, 4401, 1005])
def test_the_peer_closes(code: int) -> None:
    client, server = pair()
    payload = b"" if code == 1005 else code.to_bytes(2, "big") + b"bye"
    assert client.receive_data(b"\x81\x01a" + bytes([0x88, len(payload)]) + payload) == ["a"]
    assert client.has_more
    assert client.receive_data(b"") == []
    assert isinstance(client.end, ConnectionClosed)
    reason = "" if code == 1005 else "bye"
    assert (client.end.code, client.end.reason, client.end.sent_code, client.end.by_us) == (code, reason, code, False)
    (answer,) = read(server, client.data_to_send())
    assert isinstance(answer, CloseConnection)
    assert answer.code == code
    assert not client.wants_to_send
    client.receive_eof()
    assert isinstance(client.end, ConnectionClosed), "the frame decides, not the end of the stream"
    with pytest.raises(ConnectionClosed):
        client.send_message("x")


def test_we_close() -> None:
    client, server = pair()
    (close,) = read(server, client.send_close(1001, "later"))
    assert isinstance(close, CloseConnection)
    assert (close.code, close.reason) == (1001, "later")
    assert client.send_close() == b""
    with pytest.raises(ConnectionClosed):
        client.send_message("x")
    client.queue_ping()
    assert not client.wants_to_send
    assert client.receive_data(b"\x81\x01a" + bytes(server.send(close.response()))) == ["a"]
    assert client.receive_data(b"") == []
    assert isinstance(client.end, ConnectionClosed)
    assert (client.end.code, client.end.sent_code, client.end.by_us) == (1001, 1001, True)
    assert not client.wants_to_send


def test_no_pong_after_our_close() -> None:
    client, server = pair()
    client.send_close()
    client.receive_data(bytes(server.send(Ping(b"x"))))
    assert not client.wants_to_send
    assert client.data_to_send() == b""


def test_what_waits_goes_ahead_of_our_close() -> None:
    client, server = pair()
    client.receive_data(bytes(server.send(Ping(b"x"))))
    client.queue_ping()
    assert [type(event) for event in read(server, client.send_close())] == [Pong, Ping, CloseConnection]
    assert not client.wants_to_send


def test_closed_by_us_and_never_answered() -> None:
    client, _ = pair()
    client.send_close(1001)
    client.receive_eof()
    assert isinstance(client.end, ConnectionClosed)
    assert (client.end.code, client.end.sent_code, client.end.by_us) == (1006, 1001, True)


@pytest.mark.parametrize(
    ("wire", "code", "kind"),
    [
        (b"\x83\x00", 1002, ProtocolViolation),
        (b"\x81\x01\xff", 1007, ProtocolViolation),
        (b"\x88\x01x", 1002, ProtocolViolation),
        (b"\x82\x7f\x00\x00\x00\x00\x7f\x00\x00\x00", 1009, MessageTooBig),
    ],
)
def test_a_broken_rule_is_answered_at_once(wire: bytes, code: int, kind: type[Exception]) -> None:
    client, server = pair()
    messages = client.receive_data(b"\x81\x01a" + bytes(server.send(Ping(b"p"))) + wire)
    while client.has_more:
        messages += client.receive_data(b"")
    assert messages == ["a"]
    assert isinstance(client.end, kind)
    *_, close = read(server, client.data_to_send())
    assert isinstance(close, CloseConnection)
    assert close.code == code
    if isinstance(client.end, ProtocolViolation):
        assert client.end.close_code == code
    assert client.receive_data(b"\x81\x01b") == []


def test_the_end_of_the_stream_without_a_close() -> None:
    client, _ = pair()
    assert client.receive_data(b"\x81\x05hal") == []
    client.receive_eof()
    assert isinstance(client.end, ConnectionBroken)
    with pytest.raises(ConnectionBroken):
        client.send_message("x")
    assert client.send_close() == b""


def test_the_first_end_stays() -> None:
    client, _ = pair()
    client.fail(DeadlineExceeded("x", 1))
    client.receive_eof()
    assert isinstance(client.end, DeadlineExceeded)


def test_a_failed_write_ends_sending_but_not_reading() -> None:
    client, server = pair()
    client.receive_data(bytes(server.send(Ping(b"x"))))
    client.send_failed()
    assert not client.wants_to_send
    assert client.send_close() == b""
    with pytest.raises(ConnectionBroken):
        client.send_message("x")
    assert client.receive_data(bytes(server.send(TextMessage("last")) + server.send(CloseConnection(1011)))) == ["last"]
    client.receive_data(b"")
    assert isinstance(client.end, ConnectionClosed)
    assert not client.wants_to_send


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (999, ""),
        (1004, ""),
        (1005, ""),
        (1006, ""),
        (1015, ""),
        (2000, ""),
        (5000, ""),
        (1000, "é" * 62),
        (1000, "\ud800"),
    ],
)
def test_a_close_that_may_not_be_sent(code: int, reason: str) -> None:
    client, _ = pair()
    with pytest.raises(InvalidArgument):
        client.send_close(code, reason)
    assert not client.closing


def test_the_longest_reason() -> None:
    client, server = pair()
    (close,) = read(server, client.send_close(1000, "a" * 123))
    assert isinstance(close, CloseConnection)
    assert close.reason == "a" * 123


def test_turns() -> None:
    client = WebSocketProtocol(limits=Limits(frames_per_turn=1))
    assert client.receive_data(b"\x81\x01a\x81\x01b") == ["a"]
    assert client.has_more
    assert client.receive_data(b"") == ["b"]
