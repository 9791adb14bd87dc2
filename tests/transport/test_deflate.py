"""permessage-deflate: the same messages as wsproto's own, and the bounds and manners that one does not have."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate

from towline._exceptions import InvalidArgument, MessageTooBig, ProtocolViolation
from towline.transport import Deflate, Limits, WebSocketProtocol
from towline.transport.websocket._deflate import DeflateExtension


def client(max_message: int = 1 << 20, *, keeps: bool = False, **limits: int) -> WebSocketProtocol:
    extension = DeflateExtension(max_message, keeps_context=keeps, min_size=0)
    return WebSocketProtocol(limits=Limits(max_message=max_message, **limits), deflate=extension)


def server(*, keeps: bool = False) -> Connection:
    extension = PerMessageDeflate(client_no_context_takeover=not keeps, server_no_context_takeover=not keeps)
    extension.finalize("")
    return Connection(ConnectionType.SERVER, [extension])


def raw(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    form = (
        bytes([size])
        if size < 126
        else b"\x7e" + size.to_bytes(2, "big")
        if size < 65536
        else b"\x7f" + size.to_bytes(8, "big")
    )
    return bytes([head]) + form + payload


def take(protocol: WebSocketProtocol, wire: bytes, step: int) -> list[str | bytes]:
    messages = []
    for i in range(0, len(wire), step):
        messages += protocol.receive_data(wire[i : i + step])
        while protocol.has_more:
            messages += protocol.receive_data(b"")
    return messages


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_messages_of_wsproto(keeps: bool, step: int) -> None:
    rng = random.Random(step)
    peer, ours = server(keeps=keeps), client(keeps=keeps)
    messages: list[str | bytes] = [
        "",
        "a",
        "é" * 300,
        "x" * 3000,
        bytes(5000),
        rng.randbytes(300),
        "again " * 20,
        "again " * 20,
    ]
    wire = b"".join(peer.send(TextMessage(m) if isinstance(m, str) else BytesMessage(m)) for m in messages)
    assert take(ours, bytes(wire), step) == messages
    assert ours.end is None


@pytest.mark.parametrize("keeps", [False, True])
@given(messages=st.lists(st.text() | st.binary(), max_size=6))
def test_ours_to_wsproto(keeps: bool, messages: list[str | bytes]) -> None:
    peer, ours = server(keeps=keeps), client(keeps=keeps)
    for message in messages:
        peer.receive_data(ours.send_message(message))
        events = list(peer.events())
        assert type(message)().join(event.data for event in events) == message  # type: ignore[attr-defined, arg-type]


def test_without_takeover_each_message_stands_alone() -> None:
    ours = client()
    ours.send_message("the same words " * 10)
    second = ours.send_message("the same words " * 10)
    mask, payload = second[2:6], second[6:]
    plain = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    assert zlib.decompressobj(wbits=-15).decompress(plain + b"\x00\x00\xff\xff") == b"the same words " * 10


def test_small_messages_go_as_they_are() -> None:
    protocol = WebSocketProtocol(deflate=DeflateExtension(100, keeps_context=False, min_size=10))
    assert protocol.send_message("x" * 9)[0] == 0x81
    assert protocol.send_message("x" * 10)[0] == 0xC1


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_ping_between_the_fragments_of_a_compressed_message(step: int) -> None:
    packed = raw(b"hello " * 50)
    wire = (
        frame(0x41, packed[:5])
        + frame(0x89, b"p")
        + frame(0x00, packed[5:9])
        + frame(0x8A, b"")
        + frame(0x80, packed[9:])
    )
    ours = client()
    assert take(ours, wire + frame(0xC1, raw(b"next")) + frame(0x81, b"plain"), step) == [
        "hello " * 50,
        "next",
        "plain",
    ]
    assert ours.wants_to_send


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize("fragments", [1, 3])
def test_a_message_inflates_to_its_limit_and_no_further(step: int, fragments: int) -> None:
    for size, fits in ((100_000, True), (100_001, False)):
        packed = raw(b"a" * size)
        cut = len(packed) // fragments
        pieces = [packed[i * cut : (i + 1) * cut if i < fragments - 1 else None] for i in range(fragments)]
        wire = b"".join(
            frame((0x41 if i == 0 else 0) | (0x80 if i == fragments - 1 else 0), piece)
            for i, piece in enumerate(pieces)
        )
        ours = client(100_000)
        messages = take(ours, wire, step)
        if fits:
            assert messages == ["a" * size]
        else:
            assert messages == []
            assert isinstance(ours.end, MessageTooBig)
            ours = client(100_000)
            assert take(ours, frame(0xC1, raw(b"ok")) + wire, step) == ["ok"]


@pytest.mark.parametrize("limit", [1, 100, 126, 1000, 65_535, 70_000])
@pytest.mark.parametrize("step", [997, 1 << 20])
def test_what_deflating_makes_larger_is_met_at_its_limit_too(limit: int, step: int) -> None:
    """The limit is of the message; RFC 1951's fixed code may need nine bits for each byte of it (section 3.2.6)."""
    noise = random.Random(limit).choices(range(144, 256), k=limit + 1)
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED):
        deflater = zlib.compressobj(level=1, wbits=-15, memLevel=1, strategy=strategy)
        packed = [
            (deflater.compress(bytes(noise[:size])) + deflater.flush(zlib.Z_FULL_FLUSH))[:-4]
            for size in (limit, limit + 1)
        ]
        assert len(packed[0]) > limit
        ours = client(limit)
        assert take(ours, frame(0xC2, packed[0]), step) == [bytes(noise[:limit])]
        assert take(ours, frame(0xC2, packed[1]), step) == []
        assert isinstance(ours.end, MessageTooBig)
        ours = client(limit)
        half = len(packed[0]) // 2
        wire = frame(0x42, packed[0][:half]) + frame(0x80, packed[0][half:])
        assert take(ours, wire, step) == [bytes(noise[:limit])]


def test_packed_bytes_that_come_to_nothing_are_bounded() -> None:
    empty = b"\x00\x00\x00\xff\xff"  # a stored block of no bytes
    ours = client(1000)
    assert take(ours, frame(0x42, empty * 220), 1 << 20) == []
    assert ours.end is None
    assert take(ours, frame(0x00, empty * 20), 1 << 20) == []
    assert isinstance(ours.end, MessageTooBig)


def test_a_bomb_costs_no_memory() -> None:
    import tracemalloc

    packed = raw(bytes(64 << 20))
    assert len(packed) < 70_000
    wire = frame(0xC2, packed)
    tracemalloc.start()
    try:
        ours = client(1 << 20)
        assert take(ours, wire, 1 << 20) == []
        assert isinstance(ours.end, MessageTooBig)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fragmented", [False, True])
def test_many_small_bombs_in_one_read_cost_no_memory_either(fragmented: bool) -> None:
    """A read may hold 250 messages of the largest size: a turn ends when as much as one may be has been inflated."""
    import tracemalloc

    packed = raw(bytes(64 << 10))
    wire = frame(0x42, packed[:50]) + frame(0x80, packed[50:]) if fragmented else frame(0xC2, packed)
    ours = client(64 << 10)
    count = 0
    tracemalloc.start()
    try:
        batch = ours.receive_data(wire * 250)
        while batch or ours.has_more:
            assert len(batch) <= 1
            count += len(batch)
            batch = ours.receive_data(b"")
        assert count == 250
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    # Small ones still come together.
    assert len(ours.receive_data(frame(0xC1, raw(b"a" * 100)) * 100)) == 100


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_block_marked_as_the_last(step: int) -> None:
    deflater = zlib.compressobj(wbits=-15)
    last = deflater.compress(b"hello") + deflater.flush(zlib.Z_FINISH) + b"\x00"
    ours = client()
    assert take(ours, frame(0xC1, last) + frame(0xC1, raw(b"next")), step) == ["hello", "next"]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(0xC1, b"\xff\xff\xff"), 1007),
        (frame(0xC1, raw(b"\xff")), 1007),
        (frame(0xC9, b""), 1002),
        (frame(0x41, raw(b"a")) + frame(0xC0, b""), 1002),
        (frame(0xA1, b""), 1002),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_broken_ones(wire: bytes, code: int, step: int) -> None:
    ours = client()
    assert take(ours, wire, step) == []
    assert isinstance(ours.end, ProtocolViolation)
    assert ours.end.close_code == code


def test_a_compressed_frame_that_was_not_agreed_on() -> None:
    ours = WebSocketProtocol()
    assert ours.receive_data(frame(0xC1, raw(b"a"))) == []
    assert isinstance(ours.end, ProtocolViolation)


@pytest.mark.parametrize(
    ("extensions", "keeps"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", False),
        ("Permessage-Deflate;server_max_window_bits=9", True),
        ("permessage-deflate; client_max_window_bits=9", True),
        ('permessage-deflate; server_max_window_bits="15"; client_no_context_takeover', False),
    ],
)
def test_what_a_server_may_agree_to(extensions: str, keeps: bool) -> None:
    flush = Deflate(context_takeover=True).accepted(extensions, 1)._flush
    assert flush == (zlib.Z_SYNC_FLUSH if keeps else zlib.Z_FULL_FLUSH)
    assert Deflate().accepted(extensions, 1)._flush == zlib.Z_FULL_FLUSH


@pytest.mark.parametrize(
    "extensions",
    [
        "x-other",
        "permessage-deflate, permessage-deflate",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; unknown",
    ],
)
def test_what_it_may_not(extensions: str) -> None:
    with pytest.raises(ProtocolViolation):
        Deflate(context_takeover=True).accepted(extensions, 1)


@pytest.mark.parametrize("bits", [8, 9, 12])
def test_the_window_the_server_asks_of_us(bits: int) -> None:
    extension = Deflate(context_takeover=True, min_size=0).accepted(
        f"permessage-deflate; client_max_window_bits={bits}", 1
    )
    rng = random.Random(bits)
    text = rng.randbytes(1 << bits).hex().encode() * 3
    packed = extension.deflate(text)
    if bits == 8:
        assert packed is None
    else:
        assert packed is not None
        assert zlib.decompressobj(wbits=-bits).decompress(packed + b"\x00\x00\xff\xff") == text


def test_the_offer() -> None:
    assert Deflate().offer.endswith("server_no_context_takeover; client_no_context_takeover")
    assert Deflate(context_takeover=True).offer == "permessage-deflate; client_max_window_bits"
    with pytest.raises(InvalidArgument):
        Deflate(min_size=-1)


def test_an_answering_pong_is_not_compressed() -> None:
    peer, ours = server(), client()
    ours.receive_data(bytes(peer.send(Ping(b"x" * 100))))
    assert ours.data_to_send()[0] == 0x8A
