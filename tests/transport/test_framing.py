"""The short cut and wsproto: same bytes, same meaning; and the bounds that wsproto does not have.

`TOWLINE_SOAK_STREAMS` sets how many random streams the differential test compares (4,000).
"""

import dataclasses
import os
import random
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from towline._exceptions import InvalidArgument, MessageTooBig, ProtocolViolation
from towline.transport import Limits, Liveness, Message
from towline.transport.websocket._framing import FrameReader

STREAMS = int(os.environ.get("TOWLINE_SOAK_STREAMS", "4000"))

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = None) -> bytes:
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask is not None else 0
    size = len(payload)
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    return head + (mask or b"") + payload


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


def drain(reader: FrameReader, data: bytes) -> list[Message]:
    messages = reader.receive(data)
    while reader.has_more:
        messages += reader.receive(b"")
    return messages


# --- the same meaning as wsproto alone -------------------------------------------------------------------------


class Reference:
    """wsproto alone, its events brought to the same terms."""

    def __init__(self) -> None:
        self.connection = Connection(ConnectionType.CLIENT)
        self.pings = deque[bytes](maxlen=16)
        self.close: tuple[int, str] | None = None
        self.failure: int | None = None
        self.parts: list[str | bytes] = []

    def receive(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        if self.close is not None or self.failure is not None:
            return messages
        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                self.parts.append(event.data)
                if event.message_finished:
                    messages.append(type(self.parts[0])().join(self.parts))  # type: ignore[arg-type]
                    self.parts = []
            elif isinstance(event, Ping):
                self.pings.append(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                if self.connection.state is ConnectionState.OPEN:
                    self.failure = int(event.code)
                else:
                    self.close = int(event.code), event.reason or ""
        return messages


def random_frames(rng: random.Random) -> Iterator[bytes]:
    """A stream that is mostly lawful, with some of everything that is not."""
    sizes = [0, 1, 2, 5, 20, 124, 125, 126, 127, 200, 1000]
    for _ in range(rng.randint(1, 12)):
        size = rng.choice(sizes) if rng.random() < 0.99 else rng.choice([65535, 65536, 70000])
        text = ("aé€𝄞"[rng.randint(0, 3)] * size).encode()[:size].decode(errors="ignore").encode()
        kind = rng.random()
        if kind < 0.35:
            yield frame(TEXT, text)
        elif kind < 0.45:
            yield frame(BINARY, rng.randbytes(size))
        elif kind < 0.60:
            opcode, payload = rng.choice([(TEXT, text), (BINARY, rng.randbytes(size))])
            places = sorted(rng.randint(0, len(payload)) for _ in range(rng.randint(0, 4)))
            pieces = [payload[a:b] for a, b in zip([0, *places], [*places, len(payload)], strict=True)]
            for index, piece in enumerate(pieces):
                yield frame(opcode if index == 0 else 0, piece, fin=index == len(pieces) - 1)
                if rng.random() < 0.3:
                    yield frame(rng.choice([PING, PONG]), rng.randbytes(rng.randint(0, 125)))
        elif kind < 0.75:
            yield frame(rng.choice([PING, PONG]), rng.randbytes(rng.randint(0, 125)))
        elif kind < 0.78:
            code = rng.choice(
                [1000, 1001, 1011, 1012, 3000, 4401, 4999, 1004, 1005, 1006, 1015, 1016, 2999, 999, 5000, 0]
            )
            yield frame(CLOSE, rng.choice([b"", b"x", close_payload(code), close_payload(code, b"why \xc3\xa9")]))
        elif kind < 0.84:
            yield frame(
                TEXT, rng.choice([b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"a" * 300 + b"\xfe", text + b"\xc0\xaf"])
            )
        elif kind < 0.88:
            yield frame(rng.choice([0, TEXT, BINARY]), text, fin=rng.random() < 0.5)
        elif kind < 0.91:
            yield frame(rng.randint(0, 15), text[:50], fin=rng.random() < 0.8, rsv=rng.randint(0, 7))
        elif kind < 0.93:
            yield frame(rng.choice([TEXT, PING, CLOSE]), text[:100], mask=rng.randbytes(4))
        elif kind < 0.96:
            head = rng.choice([0x81, 0x82, 0x89, 0x01, 0x8B, 0x09])
            yield bytes([head, 126]) + rng.choice([0, 5, 125, 126]).to_bytes(2, "big") + text[:5]
        elif kind < 0.98:
            yield bytes([0x81, 127]) + rng.choice([0, 125, 65535, 65536, 1 << 63]).to_bytes(8, "big") + text[:5]
        else:
            yield rng.randbytes(rng.randint(1, 30))


def random_cuts(rng: random.Random, data: bytes) -> Iterator[bytes]:
    if len(data) < 1000 and rng.random() < 0.2:
        yield from (data[i : i + 1] for i in range(len(data)))
        return
    position = 0
    most = max(rng.choice([3, 10, 100, 1000, 100_000]), len(data) // 100)
    while position < len(data):
        step = rng.randint(1, most)
        yield data[position : position + step]
        position += step


@pytest.mark.parametrize("part", range(4))
def test_the_short_cut_means_what_wsproto_means(part: int) -> None:
    limits = Limits(max_message=1 << 62)
    ended = 0
    for number in range(STREAMS // 4):
        seed = part * (STREAMS // 4) + number
        rng = random.Random(seed)
        data = b"".join(random_frames(rng))
        if rng.random() < 0.1 and data:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randint(0, 7)]) + data[place + 1 :]
        ours, theirs = FrameReader(limits), Reference()
        for piece in random_cuts(rng, data):
            assert drain(ours, piece) == theirs.receive(piece), f"seed {seed}"
            if ours.failure is not None and ours.failure.close_code == 1009:
                break  # a length past any limit, which wsproto alone would wait for
            failure = None if ours.failure is None else ours.failure.close_code
            assert (ours.pings, ours.close, failure) == (
                list(theirs.pings),
                theirs.close,
                theirs.failure,
            ), f"seed {seed}"
        ended += ours.failure is not None or ours.close is not None
    assert 0.2 < ended / (STREAMS // 4) < 0.8, "the streams are no longer a mix of good and broken ones"


@given(st.lists(st.text() | st.binary(), max_size=5), st.data())
def test_messages_survive_any_cut(messages: list[Message], data: st.DataObject) -> None:
    wire = b"".join(
        frame(TEXT, message.encode(errors="replace")) if isinstance(message, str) else frame(BINARY, message)
        for message in messages
    )
    expected = [m.encode(errors="replace").decode() if isinstance(m, str) else m for m in messages]
    place = data.draw(st.integers(0, len(wire)))
    reader = FrameReader(Limits(frames_per_turn=2))
    assert drain(reader, wire[:place]) + drain(reader, wire[place:]) == expected
    assert reader.failure is None


# --- how a batch comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 300_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_one_frame_of_each_length_form(size: int, opcode: int) -> None:
    payload = b"x" * size
    expected = payload.decode() if opcode == TEXT else payload
    wire = frame(opcode, payload)
    assert FrameReader(Limits()).receive(wire) == [expected]
    assert FrameReader(Limits()).receive(wire + b"\x81")[:1] == [expected]
    for place in {1, 2, 3, 4, 9, 10, 11, size // 2 + 1}:
        reader = FrameReader(Limits())
        assert reader.receive(wire[:place]) + reader.receive(wire[place:]) == [expected]


def test_a_large_frame_in_very_many_pieces() -> None:
    payload = ("é" * 10_000).encode()
    for wire in (frame(TEXT, payload), frame(TEXT, payload[:9999], fin=False) + frame(0, payload[9999:])):
        reader = FrameReader(Limits())
        assert [m for i in range(len(wire)) for m in reader.receive(wire[i : i + 1])] == ["é" * 10_000]


def test_other_tasks_get_their_turn() -> None:
    reader = FrameReader(Limits(frames_per_turn=3))
    wire = frame(TEXT, b"a") * 4 + frame(PING) * 4 + frame(0x1, b"b", fin=False) + frame(0, b"c")
    turns = [reader.receive(wire)]
    while reader.has_more:
        turns.append(reader.receive(b""))
    assert turns == [["a"] * 3, ["a"], [], ["bc"]]


def test_bytes_may_come_while_there_is_more() -> None:
    reader = FrameReader(Limits(frames_per_turn=1))
    assert reader.receive(frame(TEXT, b"a") + frame(TEXT, b"b")) == ["a"]
    assert drain(reader, frame(TEXT, b"c")) == ["b", "c"]


def test_messages_before_the_end_come_out() -> None:
    reader = FrameReader(Limits())
    assert reader.receive(frame(TEXT, b"a") + frame(CLOSE, close_payload(1001, b"bye")) + frame(TEXT, b"b")) == ["a"]
    assert reader.close is None, "who takes the message may answer it first"
    assert reader.receive(b"") == []
    assert reader.close == (1001, "bye")
    assert reader.receive(frame(TEXT, b"c")) == []
    reader = FrameReader(Limits())
    assert reader.receive(frame(TEXT, b"a") + b"\xff\xff" + frame(TEXT, b"b")) == ["a"]
    assert reader.failure is None
    assert reader.receive(b"") == []
    assert reader.failure is not None
    assert reader.receive(frame(TEXT, b"c")) == []


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_text_is_refused_at_its_first_bad_byte(opcode: int) -> None:
    reader = FrameReader(Limits())
    reader.receive(frame(opcode, b"a" * 10 + b"\xff" + b"a" * 10)[:15])
    assert (reader.failure is not None) is (opcode == TEXT)


def test_a_failure_holds_no_bytes_of_the_message() -> None:
    for wire in (frame(TEXT, b"hunter2 \xff"), frame(TEXT, b"hunter2 \xff", fin=False), frame(TEXT, b"hunter2", rsv=1)):
        reader = FrameReader(Limits())
        reader.receive(wire)
        assert reader.failure is not None
        assert reader.failure.error.__cause__ is reader.failure.error.__context__ is None
        assert "hunter2" not in f"{reader.failure.error!r} {reader.failure.error}"


# --- P4: each limit is met at the limit, and refused one past it ------------------------------------------------------


def outcome(wire: bytes, limits: Limits, *, step: int | None = None) -> tuple[int, int | None]:
    """How many messages came, and the close code of the failure."""
    reader = FrameReader(limits)
    step = step or len(wire)
    count = sum(len(drain(reader, wire[i : i + step])) for i in range(0, len(wire), step))
    if reader.failure is not None and reader.failure.close_code == 1009:
        assert isinstance(reader.failure.error, MessageTooBig)
    return count, None if reader.failure is None else reader.failure.close_code


@pytest.mark.parametrize("limit", [1, 10, 125, 126, 1000, 65535, 65536, 100_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_size_of_a_message(limit: int, opcode: int) -> None:
    limits = Limits(max_message=limit)
    for step in (None, 7 if limit < 2000 else 7777):
        assert outcome(frame(opcode, b"a" * limit), limits, step=step) == (1, None)
        assert outcome(frame(opcode, b"a" * (limit + 1)), limits, step=step) == (0, 1009)
        half = limit // 2
        fragments = frame(opcode, b"a" * half, fin=False) + frame(0, b"a" * (limit - half), fin=False)
        assert outcome(fragments + frame(0), limits, step=step) == (1, None)
        assert outcome(fragments + frame(0, b"a"), limits, step=step) == (0, 1009)


def test_a_huge_length_is_refused_from_its_header() -> None:
    for length in (1 << 20 | 1, 1 << 40, (1 << 63) - 1):
        assert outcome(bytes([0x82, 127]) + length.to_bytes(8, "big"), Limits()) == (0, 1009)
        assert outcome(bytes([0x02, 127]) + length.to_bytes(8, "big"), Limits()) == (0, 1009)


def test_the_number_of_fragments() -> None:
    limits = Limits(max_fragments=4096)
    first, empty, last = frame(TEXT, b"a", fin=False), frame(0, fin=False), frame(0)
    assert outcome(first + empty * 4094 + last, limits) == (1, None)
    assert outcome(first + empty * 4095 + last, limits) == (0, 1009)
    assert outcome((first + last) * 5000, limits) == (5000, None)


def test_control_frames_between_fragments_are_no_fragments() -> None:
    wire = frame(TEXT, b"a", fin=False) + frame(PING) * 100 + frame(0, b"b")
    assert outcome(wire, Limits(max_fragments=2)) == (1, None)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"])
def test_a_limit_is_a_positive_number(name: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("ping", "lost"), [(0, 1), (5, 5), (6, 5), (-1, 5), (1, float("inf")), (float("nan"), 1)])
def test_liveness_pings_before_it_gives_up(ping: float, lost: float) -> None:
    with pytest.raises(InvalidArgument):
        Liveness(ping_after=ping, lost_after=lost)


# --- illegal closes and the rest of section 5 -----------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_an_illegal_close_code(code: int) -> None:
    assert outcome(frame(CLOSE, close_payload(code)), Limits()) == (0, 1002)


def test_other_illegal_closes() -> None:
    assert outcome(frame(CLOSE, b"x"), Limits()) == (0, 1002)
    assert outcome(frame(CLOSE, close_payload(1000, b"\xff")), Limits()) == (0, 1007)


def test_a_close_without_a_code_is_1005() -> None:
    reader = FrameReader(Limits())
    reader.receive(frame(CLOSE))
    assert reader.close == (1005, "")


def test_only_the_newest_pings_are_kept_and_pongs_are_nothing() -> None:
    reader = FrameReader(Limits())
    assert reader.receive(frame(PING, b"1") + frame(PONG, b"x") + frame(PING, b"2")) == []
    assert list(reader.pings) == [b"1", b"2"]
    reader.receive(b"".join(frame(PING, b"%d" % number) for number in range(1000)))
    assert list(reader.pings) == [b"%d" % number for number in range(984, 1000)]


def test_an_exception_inside_wsproto_becomes_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FrameReader(Limits())

    def explode(self: Connection, data: bytes) -> None:
        raise IndexError("hunter2")

    monkeypatch.setattr(Connection, "receive_data", explode)
    monkeypatch.setattr(Connection, "__init__", lambda self, *arguments: None)
    assert reader.receive(frame(CLOSE)) == []
    assert reader.failure is not None
    assert reader.failure.close_code == 1002
    assert isinstance(reader.failure.error, ProtocolViolation)
    assert "hunter2" not in str(reader.failure.error)
    assert reader.failure.error.__context__ is None


# --- large frames: stored while they arrive, decoded once -----------------------------------------------------------

LARGE = Limits(max_message=4 << 20)


@pytest.mark.parametrize("size", [8191, 65_535, 65_536, 65_537, 1 << 20])
@pytest.mark.parametrize("piece", [4096, 65_536, 262_144, 3 << 20])
def test_large_frames_however_they_are_cut(size: int, piece: int) -> None:
    """The store that one message leaves behind never shows in the next."""
    text = ("aé€😀" * size)[: size // 3]
    wanted: list[Message] = [text, bytes(range(256)) * (size // 256), "short", text[::-1], text[: size // 9]]
    wire = b"".join(
        frame(TEXT, item.encode()) if isinstance(item, str) else frame(BINARY, item)
        for item in wanted
        for _ in range(2)
    )
    reader = FrameReader(LARGE)
    got: list[Message] = []
    for start in range(0, len(wire), piece):
        got += drain(reader, wire[start : start + piece])
        reader.release()
    assert got == [item for item in wanted for _ in range(2)]
    assert all(type(item) in {str, bytes} for item in got)


@pytest.mark.parametrize("size", [60_000, 70_000, 1 << 20])
@pytest.mark.parametrize("whole", [True, False])
def test_invalid_text_in_a_large_frame(size: int, whole: bool) -> None:
    wire = frame(TEXT, b"x" * (size - 2) + b"\xc3\x28")
    reader = FrameReader(LARGE)
    for start in [0] if whole else range(0, len(wire), 1000):
        assert drain(reader, wire if whole else wire[start : start + 1000]) == []
    assert reader.failure is not None
    assert reader.failure.close_code == 1007
    assert isinstance(reader.failure.error, ProtocolViolation)


def test_short_text_is_refused_where_it_becomes_invalid() -> None:
    reader = FrameReader(LARGE)
    wire = frame(TEXT, b"x" * 1000 + b"\xc3\x28" + b"x" * 1000)
    assert reader.receive(wire[:1010]) == []
    assert reader.failure is not None


def test_memory_follows_what_came_and_not_what_is_announced() -> None:
    reader = FrameReader(LARGE)
    wire = frame(BINARY, bytes(4 << 20))
    assert reader.receive(wire[:1000]) == []
    assert len(reader._store) < 2000
    assert drain(reader, wire[1000:]) == [bytes(4 << 20)]
    reader.release()
    assert len(reader._store) == 0
