"""P4, through the whole driver and with the default figures: each limit is met at its value and refused one past it."""

import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from wsproto.utilities import generate_accept_token

from towline._exceptions import HandshakeRefused, MessageTooBig, ProtocolViolation, TowlineError
from towline.testing import MemoryLink
from towline.transport import Deflate, Endpoint, Limits, Network, WebSocket, connect_websocket

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


def test_the_figures() -> None:
    assert Limits() == Limits(
        max_message=MIB,
        max_fragments=4096,
        max_rejection_body=64 << 10,
        max_response_head=16 << 10,
        max_informational=16,
        read_size=256 << 10,
        frames_per_turn=1000,
    )


class Server(Network):
    """Answers the upgrade: `ahead`, then a 101 with `headers` or `instead` of one, then says `wire` and listens."""

    def __init__(self, wire: bytes = b"", *, ahead: bytes = b"", headers: bytes = b"", instead: bytes = b"") -> None:
        super().__init__(allow_insecure=True)
        self.link = MemoryLink()
        self.heard = bytearray()
        self._answer = (ahead, headers, instead)
        self._wire = wire

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        return self.link.client

    async def run(self) -> None:
        stream = self.link.server
        request = await stream.receive()
        (key,) = [line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: ")]
        ahead, headers, instead = self._answer
        upgrade = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        answer = ahead + (instead or upgrade + generate_accept_token(key) + b"\r\n" + headers + b"\r\n")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            for data in (answer, self._wire):
                await anyio.wait_all_tasks_blocked()
                with suppress(anyio.BrokenResourceError):  # it has hung up
                    for place in range(0, len(data), 4096):
                        await stream.send(data[place : place + 4096])

    async def _listen(self) -> None:
        with suppress(anyio.EndOfStream):
            while True:
                self.heard += await self.link.server.receive()


@asynccontextmanager
async def opened(server: Server, **options: Any) -> AsyncIterator[WebSocket]:
    failure: TowlineError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        try:
            socket = await connect_websocket("ws://localhost/", network=server, **options)
        except TowlineError as error:
            failure = error
        else:
            try:
                yield socket
            finally:
                await socket.aclose_forcefully()
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def frame(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 1 << 16:
        return bytes((head, 126)) + size.to_bytes(2, "big") + payload
    return bytes((head, 127)) + size.to_bytes(8, "big") + payload


def fragments(head: int, payload: bytes, count: int, between: bytes = b"") -> bytes:
    """A message in `count` frames, the last ones empty if it is too short, with something between them."""
    step = -(-len(payload) // count)
    pieces = [payload[i * step : (i + 1) * step] for i in range(count)]
    first, *rest = pieces
    last = rest.pop()
    return between.join([frame(head & 0x7F, first), *(frame(0x00, piece) for piece in rest), frame(0x80, last)])


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


PING = frame(0x89, b"p")

NOISE = random.Random(7).randbytes(MIB + 1)  # more bytes when deflated than as they are

FORMS = {
    "text": lambda size: frame(0x81, b"a" * size),
    "binary": lambda size: frame(0x82, b"a" * size),
    "two fragments": lambda size: fragments(0x81, b"a" * size, 2),
    "many fragments": lambda size: fragments(0x82, b"a" * size, 400),
    "pings between": lambda size: fragments(0x81, b"a" * size, 5, PING),
    "deflated": lambda size: frame(0xC1, deflated(b"a" * size)),
    "deflated, binary": lambda size: frame(0xC2, deflated(b"a" * size)),
    "deflated in vain": lambda size: frame(0xC2, deflated(NOISE[:size])),
    "deflated in vain, many fragments": lambda size: fragments(0xC2, deflated(NOISE[:size]), 400),
    "deflated, two fragments": lambda size: fragments(0xC1, deflated(b"a" * size), 2),
    "deflated, a byte each": lambda size: fragments(0xC1, deflated(b"a" * size), len(deflated(b"a" * size))),
    "deflated, pings between": lambda size: fragments(0xC1, deflated(b"a" * size), 5, PING),
}


async def take(server: Server, **options: Any) -> tuple[list[str | bytes], TowlineError | None]:
    """The messages up to `end`, or what was raised instead of them."""
    messages: list[str | bytes] = []
    async with opened(server, **options) as socket:
        try:
            while not messages or messages[-1] != "end":
                messages += await socket.receive_batch()
        except TowlineError as error:
            await anyio.wait_all_tasks_blocked()
            return messages, error
    return messages, None


def said_1009(server: Server) -> bool:
    """Whether the last thing it heard is our close frame with that code, masked (RFC 6455 section 5.3)."""
    head, length, *mask = server.heard[-8:-2]
    code = bytes(byte ^ mask[i] for i, byte in enumerate(server.heard[-2:]))
    return (head, length, code) == (0x88, 0x82, (1009).to_bytes(2, "big"))


@pytest.mark.parametrize("form", FORMS)
async def test_the_size_of_a_message(form: str) -> None:
    options: dict[str, Any] = {}
    if form.startswith("deflated"):
        options = {"headers": b"Sec-WebSocket-Extensions: permessage-deflate\r\n"}
    deflate = Deflate() if options else None
    end = frame(0x81, b"end")
    (message, *rest), error = await take(Server(FORMS[form](MIB) + end, **options), deflate=deflate)
    assert (len(message), rest, error) == (MIB, ["end"], None)
    server = Server(FORMS[form](MIB + 1) + end, **options)
    messages, error = await take(server, deflate=deflate)
    assert messages == []
    assert isinstance(error, MessageTooBig)
    assert said_1009(server)


async def test_the_number_of_fragments() -> None:
    end = frame(0x81, b"end")
    assert await take(Server(fragments(0x81, b"a", 4096) + end)) == (["a", "end"], None)
    assert await take(Server(fragments(0x81, b"a", 4096, PING) + end)) == (["a", "end"], None)
    server = Server(fragments(0x81, b"a", 4097) + end)
    messages, error = await take(server)
    assert messages == []
    assert isinstance(error, MessageTooBig)
    assert said_1009(server)


async def test_the_payload_of_a_control_frame() -> None:
    end = frame(0x81, b"end")
    for head in (0x89, 0x8A):
        assert await take(Server(frame(head, b"x" * 125) + end)) == (["end"], None)
        messages, error = await take(Server(frame(head, b"x" * 126) + end))
        assert messages == []
        assert isinstance(error, ProtocolViolation)


async def test_the_frames_of_a_turn() -> None:
    """However many have come, whoever receives gets at most 1,000 events' worth at once, and others run between."""
    async with opened(Server(frame(0x81, b"") * 2001)) as socket:
        await anyio.wait_all_tasks_blocked()
        assert [len(await socket.receive_batch()) for _ in range(3)] == [1000, 1000, 1]


async def test_the_interim_answers() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    end = frame(0x81, b"end")
    assert await take(Server(end, ahead=interim * 16)) == (["end"], None)
    with pytest.raises(ProtocolViolation, match="1xx"):
        await take(Server(end, ahead=interim * 17))


async def test_the_head_of_the_answer() -> None:
    plain = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \r\n\r\n"
    room = (16 << 10) - len(plain) - 28 - len(b"X: \r\n")  # the accept token has 28 bytes
    end = frame(0x81, b"end")
    assert await take(Server(end, headers=b"X: " + b"a" * room + b"\r\n")) == (["end"], None)
    with pytest.raises(ProtocolViolation):
        await take(Server(end, headers=b"X: " + b"a" * (room + 1) + b"\r\n"))


@pytest.mark.parametrize("size", [65_536, 65_537, 13 << 20])
async def test_the_body_of_a_refusal(size: int) -> None:
    head = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % size
    server = Server(instead=head + b"a" * size)
    with pytest.raises(HandshakeRefused) as caught:
        await take(server)
    assert caught.value.body == b"a" * 65_536
    # It hung up then: what was under way at most was sent in vain.
    assert server.link.carried("down") <= len(head) + 65_536 + 2 * 65_536


async def test_reading_pauses_when_nobody_takes_the_messages() -> None:
    message = frame(0x82, b"x" * 1000)
    server = Server(message * 10_000)
    async with opened(server) as socket:
        carried = []
        for _ in range(5):
            await anyio.sleep(60)
            carried.append(server.link.carried("down"))
            batch = await socket.receive_batch()
            assert len(batch) <= Limits().read_size // 1000
        # The link holds 64 KiB, and one read is in our hands.
        assert carried[0] <= 65_536 + 4096
        assert all(later - before <= Limits().read_size for before, later in pairwise(carried))
        assert socket.statistics().bytes_received <= carried[-1]
