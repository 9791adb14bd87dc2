"""The driver on links in memory, under virtual time: order, silence, ends, cancellation at each step."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from towline._exceptions import (
    ConnectFailed,
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    ForbiddenRequest,
    HandshakeRefused,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
    TowlineError,
)
from towline.testing import MemoryLink
from towline.transport import Endpoint, Limits, Liveness, Network, WebSocket, connect_websocket, open_websocket

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


@dataclass
class Peer(Network):
    """The server's end of a link, played by hand."""

    link: MemoryLink = field(default_factory=MemoryLink)
    protocol: WSConnection = field(default_factory=lambda: WSConnection(ConnectionType.SERVER))
    endpoints: list[Endpoint] = field(default_factory=list)
    request: Request | None = None

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        self.endpoints.append(endpoint)
        return self.link.client

    async def send(self, *events: Event) -> None:
        await self.raw(b"".join(self.protocol.send(event) for event in events))

    async def raw(self, data: bytes) -> None:
        await self.link.server.send(data)

    async def read(self) -> list[Event]:
        """The events of the next read that has any."""
        while True:
            self.protocol.receive_data(await self.link.server.receive())
            if events := list(self.protocol.events()):
                return events

    async def accept(self, **options: Any) -> None:
        (request,) = await self.read()
        assert isinstance(request, Request)
        self.request = request
        await self.send(AcceptConnection(**options))


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[WebSocket, Peer]]:
    """An open WebSocket and its peer; what is left of it is closed without a word."""
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.accept)
        socket = await connect_websocket("ws://localhost/ws", network=peer, **options)
    try:
        yield socket, peer
    finally:
        await socket.aclose_forcefully()


async def ends_with(socket: WebSocket) -> TowlineError:
    """Receive to the end; twice, for it is told each time."""
    with pytest.raises(TowlineError) as first:
        while True:
            await socket.receive_batch()
    with pytest.raises(type(first.value)) as second:
        await socket.receive_batch()
    assert second.value is first.value
    return first.value


# --- messages --------------------------------------------------------------------------------------------------


async def test_messages_go_both_ways() -> None:
    async with opened() as (socket, peer):
        await peer.send(TextMessage("a"), BytesMessage(b"b"))
        assert await socket.receive_batch() == ["a", b"b"]
        await socket.send("é")
        await socket.send(b"x")
        events = await peer.read()
        if len(events) == 1:
            events += await peer.read()
        assert [event.data for event in events if isinstance(event, TextMessage | BytesMessage)] == ["é", b"x"]
        numbers = socket.statistics()
        assert (numbers.messages_received, numbers.messages_sent) == (2, 2)
        assert (numbers.bytes_received, numbers.bytes_sent) == (6, 2 + 4 + 2 + 2 + 4 + 1)


async def test_iteration_ends_with_a_normal_close() -> None:
    for code in (1000, 1001):
        async with opened() as (socket, peer):
            await peer.send(TextMessage("a"), TextMessage("b"), CloseConnection(code))
            assert [message async for message in socket] == ["a", "b"]


async def test_iteration_raises_any_other_end() -> None:
    async with opened() as (socket, peer):
        await peer.send(TextMessage("a"), CloseConnection(1011, "oh"))
        seen = []
        with pytest.raises(ConnectionClosed, match="oh"):
            async for message in socket:
                seen.append(message)  # noqa: PERF401 - what came before the raise is looked at
        assert seen == ["a"]


async def test_an_iteration_that_is_left_loses_nothing() -> None:
    async with opened() as (socket, peer):
        await peer.send(*(TextMessage(letter) for letter in "abcde"))
        async for message in socket:
            assert message == "a"
            break
        async for message in socket:
            assert message == "b"
            break
        assert await socket.receive_batch() == ["c", "d", "e"]


async def test_frames_that_came_with_the_upgrade() -> None:
    peer = Peer()

    async def serve() -> None:
        (request,) = await peer.read()
        assert isinstance(request, Request)
        await peer.send(AcceptConnection(), TextMessage("early"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        async with open_websocket("ws://localhost/ws", network=peer) as socket:
            tasks.start_soon(answer_close, peer)
            assert await socket.receive_batch() == ["early"]


async def answer_close(peer: Peer) -> None:
    while True:
        for event in await peer.read():
            if isinstance(event, CloseConnection):
                await peer.send(event.response())
                return


async def test_the_request_carries_what_was_asked_for() -> None:
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: peer.accept(subprotocol="b"))
        socket = await connect_websocket(
            "ws://localhost:81/ws?x=1", headers={"Authorization": "Bearer t"}, subprotocols=["a", "b"], network=peer
        )
    assert socket.subprotocol == "b"
    assert peer.request is not None
    assert (peer.request.host, peer.request.target) == ("localhost:81", "/ws?x=1")
    assert (b"authorization", b"Bearer t") in peer.request.extra_headers
    assert [(e.host, e.port, e.tls) for e in peer.endpoints] == [("localhost", 81, None)]
    await socket.aclose_forcefully()


async def test_many_messages_come_in_turns_and_others_run_between() -> None:
    async with opened(limits=Limits(frames_per_turn=10)) as (socket, peer):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        await peer.send(*[TextMessage("x")] * 100)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            batches = [await socket.receive_batch() for _ in range(10)]
            tasks.cancel_scope.cancel()
        assert [len(batch) for batch in batches] == [10] * 10
        assert turns >= 8


async def test_one_task_receives() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(socket.receive_batch)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ForbiddenRequest):
            await socket.receive_batch()
        await peer.send(TextMessage("x"))


async def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async with opened() as (socket, peer):
        for _ in range(5):
            with anyio.move_on_after(1):
                await socket.receive_batch()
        await peer.raw(b"\x81\x04ab")
        with anyio.move_on_after(1):
            await socket.receive_batch()
        await peer.raw(b"cd")
        assert await socket.receive_batch() == ["abcd"]


# --- control frames --------------------------------------------------------------------------------------------


async def test_pings_are_answered_by_the_receiving_task() -> None:
    async with opened() as (socket, peer):
        await peer.send(Ping(b"1"), Ping(b"2"), TextMessage("x"))
        assert await socket.receive_batch() == ["x"]
        pongs = await peer.read()
        assert [pong.payload for pong in pongs if isinstance(pong, Pong)] == [b"1", b"2"]


async def test_a_pong_waits_for_a_sender_and_goes_out_with_it() -> None:
    """A pong must not stop the reader while a large message is stuck, and must not be forgotten."""
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(socket.send, b"x" * 65536)  # fills the link
        tasks.start_soon(socket.send, b"y" * 65536)  # is stuck in it
        await anyio.wait_all_tasks_blocked()
        await peer.send(Ping(b"p"), TextMessage("x"))
        assert await socket.receive_batch() == ["x"]
        seen: list[Event] = []
        while not any(isinstance(event, Pong) for event in seen):
            seen += await peer.read()


async def test_a_batch_waits_for_a_full_link_and_comes_whole() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        await socket.send(b"x" * 65536)  # fills the link
        tasks.start_soon(socket.send_batch, [str(number) for number in range(100)])
        await anyio.wait_all_tasks_blocked()  # trio starts tasks in any order
        tasks.start_soon(socket.send, "after")
        await anyio.wait_all_tasks_blocked()
        texts: list[str] = []
        while texts[-1:] != ["after"]:
            texts += [event.data for event in await peer.read() if isinstance(event, TextMessage)]
        assert texts == [*(str(number) for number in range(100)), "after"]


async def test_a_batch_with_a_message_that_cannot_be_sent_sends_none() -> None:
    async with opened() as (socket, peer):
        with pytest.raises(InvalidArgument):
            await socket.send_batch(["a", "\ud800"])
        await socket.send("b")
        assert [event.data for event in await peer.read() if isinstance(event, TextMessage)] == ["b"]


async def test_a_ping_of_ours() -> None:
    async with opened() as (socket, peer):
        await socket.ping()
        (ping,) = await peer.read()
        assert isinstance(ping, Ping)


# --- silence -----------------------------------------------------------------------------------------------------


async def test_silence_is_pinged_and_then_fatal() -> None:
    async with opened() as (socket, peer):
        began = socket.last_received
        error = await ends_with(socket)
        assert isinstance(error, DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(25)
        assert any(isinstance(event, Ping) for event in await peer.read())


async def test_a_pong_keeps_it_alive_and_so_does_a_single_byte() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        pinged: list[float] = []

        async def answer() -> None:
            began = anyio.current_time()
            for number in range(10):
                await peer.read()
                pinged.append(anyio.current_time() - began)
                await peer.raw(b"\x8a\x00"[number % 2 :][:1])
            tasks.cancel_scope.cancel()

        tasks.start_soon(answer)
        await socket.receive_batch()
    assert pinged == pytest.approx([15 * n for n in range(1, 11)])


async def test_what_we_send_does_not_count() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        peer.link.hold()

        async def chatter() -> None:
            with pytest.raises(DeadlineExceeded):
                while True:
                    await anyio.sleep(1)
                    await socket.send("x")

        tasks.start_soon(chatter)
        began = anyio.current_time()
        assert isinstance(await ends_with(socket), DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(25)


async def test_other_figures_and_none() -> None:
    async with opened(liveness=Liveness(ping_after=2, lost_after=3)) as (socket, peer):
        began = anyio.current_time()
        assert isinstance(await ends_with(socket), DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(3)
    async with opened(liveness=None) as (socket, peer):
        with anyio.move_on_after(100_000):
            await socket.receive_batch()
        await peer.send(TextMessage("late"))
        assert await socket.receive_batch() == ["late"]


async def test_who_was_away_finds_what_came_meanwhile() -> None:
    """Messages wait in the kernel while nobody receives: they come before any verdict about silence."""
    async with opened() as (socket, peer):
        await peer.send(TextMessage("kept"))
        await anyio.sleep(1000)
        assert await socket.receive_batch() == ["kept"]


async def test_who_was_away_after_the_ping_looks_once_more() -> None:
    async with opened() as (socket, peer):
        with anyio.move_on_after(20):
            await socket.receive_batch()
        (ping,) = await peer.read()
        await anyio.sleep(1000)
        await peer.send(ping.response(), TextMessage("kept"))  # type: ignore[attr-defined]
        assert await socket.receive_batch() == ["kept"]


async def test_who_polls_notices_silence_too() -> None:
    async with opened() as (socket, _):
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            while True:
                with anyio.move_on_after(0.3):
                    await socket.receive_batch()
                await anyio.sleep(0.3)
        assert 25 <= anyio.current_time() - began <= 27.5


@pytest.mark.parametrize("liveness", [None, Liveness()])
async def test_a_probe_that_is_not_answered(liveness: Liveness | None) -> None:
    async with opened(liveness=liveness) as (socket, peer), anyio.create_task_group() as tasks:

        async def probe() -> None:
            await anyio.sleep(3)
            socket.probe()

        tasks.start_soon(probe)
        began = anyio.current_time()
        error = await ends_with(socket)
        assert isinstance(error, DeadlineExceeded)
        assert error.seconds == 5
        assert anyio.current_time() - began == pytest.approx(8)
        assert isinstance((await peer.read())[0], Ping)


async def test_a_probe_that_is_answered() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:

        async def scene() -> None:
            await anyio.sleep(1)
            socket.probe(5)
            assert isinstance((await peer.read())[0], Ping)
            await anyio.sleep(4.9)
            await peer.send(Pong())
            await anyio.sleep(10)
            await peer.send(TextMessage("alive"))

        tasks.start_soon(scene)
        assert await socket.receive_batch() == ["alive"]


async def test_a_probe_before_anybody_receives() -> None:
    async with opened() as (socket, _peer):
        socket.probe(5)
        began = anyio.current_time()
        assert isinstance(await ends_with(socket), DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(5)


async def test_a_stuck_ping_does_not_outlast_the_limit() -> None:
    async with opened() as (socket, _peer):
        await socket.send(b"x" * 65536)  # the link is full: the ping cannot be written
        began = anyio.current_time()
        assert isinstance(await ends_with(socket), DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(25)


async def test_a_stuck_pong_does_not_outlast_the_limit() -> None:
    async with opened() as (socket, peer):
        await socket.send(b"x" * 65536)  # the link is full: the pong cannot be written
        await peer.send(Ping(b"p"))
        began = anyio.current_time()
        assert isinstance(await ends_with(socket), DeadlineExceeded)
        assert anyio.current_time() - began == pytest.approx(25)


async def test_a_probe_harms_no_write_of_the_receiving_task() -> None:
    """A probe wakes the receiving task while it waits, never while it writes."""
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        await socket.send(b"x" * 65536)
        await peer.send(Ping(b"p"))
        tasks.start_soon(socket.receive_batch)
        await anyio.wait_all_tasks_blocked()
        socket.probe(5)
        await anyio.wait_all_tasks_blocked()
        seen: list[Event] = []
        while not (any(isinstance(e, Pong) for e in seen) and any(isinstance(e, Ping) for e in seen)):
            seen += await peer.read()
        await peer.send(TextMessage("alive"))


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1008, 1012, 4401])
async def test_the_peer_closes(code: int) -> None:
    async with opened() as (socket, peer):
        await peer.send(TextMessage("last"), CloseConnection(code, "why"))
        assert await socket.receive_batch() == ["last"]
        error = await ends_with(socket)
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.reason, error.sent_code, error.by_us) == (code, "why", code, False)
        (answer,) = await peer.read()
        assert isinstance(answer, CloseConnection)
        assert answer.code == code
        with pytest.raises(ConnectionClosed):
            await socket.send("x")
        with pytest.raises(anyio.EndOfStream):
            await peer.link.server.receive()


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_the_link_ends(ending: Any) -> None:
    async with opened() as (socket, peer):
        await peer.send(TextMessage("last"))
        peer.link.cut(ending)
        assert await socket.receive_batch() == ["last"]
        assert isinstance(await ends_with(socket), ConnectionBroken)
        with pytest.raises(ConnectionBroken):
            await socket.send("x")
        await socket.ping()  # nobody is there to be pinged: the receiving task is who tells


@pytest.mark.parametrize(
    ("wire", "kind", "code"),
    [
        (b"\x83\x00", ProtocolViolation, 1002),
        (b"\x81\x01\xff", ProtocolViolation, 1007),
        (b"\x81\x0b", MessageTooBig, 1009),
    ],
)
async def test_a_broken_rule(wire: bytes, kind: type[TowlineError], code: int) -> None:
    async with opened(limits=Limits(max_message=10)) as (socket, peer):
        await peer.raw(b"\x81\x01a" + wire)
        assert await socket.receive_batch() == ["a"]
        assert isinstance(await ends_with(socket), kind)
        (close,) = await peer.read()
        assert isinstance(close, CloseConnection)
        assert close.code == code


async def test_a_message_ahead_of_a_broken_rule_can_still_be_answered() -> None:
    async with opened() as (socket, peer):
        await peer.raw(b"\x81\x01a\x83\x00")
        assert await socket.receive_batch() == ["a"]
        await socket.send("answer")
        assert isinstance(await ends_with(socket), ProtocolViolation)
        seen: list[Event] = []
        while len(seen) < 2:
            seen += await peer.read()
        assert [type(event) for event in seen] == [TextMessage, CloseConnection]


async def test_what_was_said_before_a_failed_write_is_still_heard() -> None:
    """The server says why, and hangs up; our next write fails before we have read it."""
    async with opened() as (socket, peer):
        await peer.send(TextMessage("last"), CloseConnection(1008, "token"))
        await peer.link.server.aclose()
        with suppress(ConnectionBroken):
            await socket.send("x")
            await socket.send("y")
        assert await socket.receive_batch() == ["last"]
        error = await ends_with(socket)
        assert isinstance(error, ConnectionClosed)
        assert error.code == 1008


async def test_aclose_waits_for_the_frame_and_not_for_the_end_of_the_stream() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:

        async def answer() -> None:
            (close,) = await peer.read()
            assert isinstance(close, CloseConnection)
            assert (close.code, close.reason) == (1001, "later")
            await anyio.sleep(1)
            await peer.raw(b"\x81\x08too late" + bytes(peer.protocol.send(close.response())))

        tasks.start_soon(answer)
        began = anyio.current_time()
        await socket.aclose(1001, "later")
        assert anyio.current_time() - began == pytest.approx(1)
        error = await ends_with(socket)
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.sent_code, error.by_us) == (1001, 1001, True)


@pytest.mark.parametrize("full", [False, True])
async def test_aclose_is_bounded(full: bool) -> None:
    async with opened() as (socket, _):
        if full:
            await socket.send(b"x" * 65536)
        began = anyio.current_time()
        await socket.aclose(timeout=2)
        assert anyio.current_time() - began == pytest.approx(2)
        error = await ends_with(socket)
        assert isinstance(error, ConnectionClosed)
        assert (error.code, error.sent_code, error.by_us) == (1006, 1000, True)
        await socket.aclose()
        assert anyio.current_time() - began == pytest.approx(2)


async def test_aclose_is_bounded_when_cancelled_too() -> None:
    async with opened() as (socket, _):
        began = anyio.current_time()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await socket.aclose(timeout=0.5)
        assert anyio.current_time() - began == pytest.approx(0.5)


async def test_aclose_while_another_task_receives() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        ended: list[TowlineError] = []

        async def receive() -> None:
            ended.append(await ends_with(socket))

        tasks.start_soon(receive)
        tasks.start_soon(answer_close, peer)
        await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        await socket.aclose()
        assert anyio.current_time() == began
    assert isinstance(ended[0], ConnectionClosed)
    assert ended[0].code == 1000


@pytest.mark.parametrize("receives", [False, True])
async def test_whoever_closes_beside_another_waits_no_longer(receives: bool) -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        if receives:
            tasks.start_soon(ends_with, socket)
            await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        async with anyio.create_task_group() as closing:
            for _ in range(3):
                closing.start_soon(socket.aclose)
            await answer_close(peer)
        assert anyio.current_time() == began


@pytest.mark.parametrize("end", ["aclose", "abandon", "aclose_forcefully"])
async def test_the_receiving_task_is_told(end: str) -> None:
    async with opened() as (socket, _), anyio.create_task_group() as tasks:
        ended: list[TowlineError] = []

        async def receive() -> None:
            ended.append(await ends_with(socket))

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await getattr(socket, end)()
    assert isinstance(ended[0], ConnectionClosed)
    assert ended[0].by_us


async def test_abandon_says_so_and_does_not_wait() -> None:
    async with opened() as (socket, peer):
        began = anyio.current_time()
        await socket.abandon(1001)
        assert anyio.current_time() == began
        (close,) = await peer.read()
        assert isinstance(close, CloseConnection)
        assert close.code == 1001
        await socket.abandon()


@pytest.mark.parametrize("busy", [False, True])
async def test_abandon_does_not_wait_for_a_stuck_link(busy: bool) -> None:
    async with opened() as (socket, _), anyio.create_task_group() as tasks:
        await socket.send(b"x" * 65536)
        failed: list[TowlineError] = []

        async def send() -> None:
            try:
                await socket.send("stuck")
            except TowlineError as error:
                failed.append(error)

        if busy:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
        began = anyio.current_time()
        await socket.abandon()
        assert anyio.current_time() - began <= 0.1 + 1e-9
        await anyio.wait_all_tasks_blocked()
        assert len(failed) == busy
        with pytest.raises(ConnectionClosed):
            await socket.send("x")


async def test_abandon_lets_a_frame_that_is_on_its_way_go_first() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        await socket.send(b"x" * 65536)
        tasks.start_soon(socket.send, "second")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(socket.abandon, 1001)
        await anyio.wait_all_tasks_blocked()
        seen: list[Event] = []
        while not any(isinstance(event, CloseConnection) for event in seen):
            seen += await peer.read()
        assert [type(event) for event in seen if getattr(event, "message_finished", True)][-2:] == [
            TextMessage,
            CloseConnection,
        ]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_a_ping_due_in_the_instant_of_a_farewell(turns: int, cancelled_first: bool) -> None:
    """The receiving task writes its ping just when another one parts from the socket: the peer reads both, whole."""
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        scope, left = anyio.CancelScope(), anyio.Event()

        async def receive() -> None:
            try:
                with scope, suppress(ConnectionClosed):
                    await socket.receive_batch()
            finally:
                left.set()

        tasks.start_soon(receive)
        await anyio.sleep(15)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        if cancelled_first:
            scope.cancel()
            await left.wait()
        await socket.abandon()
        seen: list[Event] = []
        while not any(isinstance(event, CloseConnection) for event in seen):
            seen += await peer.read()
        assert [type(event) for event in seen] in ([CloseConnection], [Ping, CloseConnection])


@pytest.mark.parametrize("call", ["aclose", "abandon"])
async def test_a_close_that_may_not_be_sent_changes_nothing(call: str) -> None:
    async with opened() as (socket, peer):
        with pytest.raises(InvalidArgument):
            await getattr(socket, call)(1005)
        await peer.send(TextMessage("x"))
        assert await socket.receive_batch() == ["x"]


async def test_the_block_closes_with_1000_and_with_1001_when_it_raises() -> None:
    codes: list[int] = []

    async def serve(peer: Peer) -> None:
        await peer.accept()
        (close,) = await peer.read()
        assert isinstance(close, CloseConnection)
        codes.append(int(close.code))
        await peer.send(close.response())

    for fails in (False, True):
        peer = Peer()
        with suppress(ZeroDivisionError):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, peer)
                try:
                    async with open_websocket("ws://localhost/", network=peer):
                        if fails:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
    assert codes == [1000, 1001]


# --- cancellation ------------------------------------------------------------------------------------------------


async def test_a_cancelled_send_leaves_a_socket_that_knows_it_is_dead() -> None:
    async with opened() as (socket, _):
        await socket.send(b"x" * 65536)
        with anyio.move_on_after(1) as scope:
            await socket.send("stuck")
        assert scope.cancelled_caught
        for _ in range(2):
            with pytest.raises(ConnectionBroken):
                await socket.send("x")
            with pytest.raises(ConnectionBroken):
                await socket.receive_batch()
        assert "ConnectionBroken" in repr(socket)


async def test_a_send_cancelled_while_it_waits_its_turn_harms_nobody() -> None:
    async with opened() as (socket, peer), anyio.create_task_group() as tasks:
        await socket.send(b"x" * 65536)
        tasks.start_soon(socket.send, "first")
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(1):
            await socket.send("second")
        seen: list[Event] = []
        while not any(isinstance(event, TextMessage) for event in seen):
            seen += await peer.read()
        await socket.send("third")
        assert [event.data for event in await peer.read() if isinstance(event, TextMessage)] == ["third"]


async def test_a_cancelled_send_wakes_the_receiving_task() -> None:
    async with opened() as (socket, _), anyio.create_task_group() as tasks:
        ended: list[TowlineError] = []

        async def receive() -> None:
            ended.append(await ends_with(socket))

        tasks.start_soon(receive)
        await socket.send(b"x" * 65536)
        with anyio.move_on_after(1):
            await socket.send("stuck")
    assert isinstance(ended[0], ConnectionBroken)


class Phases(Network):
    """A network whose n-th step hangs, one step for each thing a connection waits for."""

    def __init__(self, hangs_at: str) -> None:
        super().__init__(allow_insecure=True)
        self.peer = Peer()
        self.hangs_at = hangs_at

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        if self.hangs_at == "connect":
            await anyio.sleep_forever()
        if self.hangs_at == "send request":
            await self.peer.link.client.send(b"x" * 65536)
        return self.peer.link.client

    async def serve(self) -> None:
        if self.hangs_at in {"connect", "send request"}:
            return
        (request,) = await self.peer.read()
        assert isinstance(request, Request)
        answer = bytes(self.peer.protocol.send(AcceptConnection()))
        if self.hangs_at == "answer":
            return
        if self.hangs_at == "half an answer":
            await self.peer.raw(answer[:20])
        elif self.hangs_at == "body":
            await self.peer.raw(b"HTTP/1.1 401 x\r\nContent-Length: 10\r\n\r\nhalf")
        else:
            await self.peer.raw(answer)


PHASES = ["connect", "send request", "answer", "half an answer", "body"]


@pytest.mark.parametrize("phase", PHASES)
async def test_one_deadline_over_the_whole_attempt(phase: str) -> None:
    network = Phases(phase)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(network.serve)
        began = anyio.current_time()
        with pytest.raises(HandshakeRefused if phase == "body" else DeadlineExceeded) as caught:
            await connect_websocket("ws://localhost/", network=network, deadline=7)
        assert anyio.current_time() - began == pytest.approx(7)
    if isinstance(caught.value, HandshakeRefused):
        assert (caught.value.status, caught.value.body) == (401, b"half")
    if phase != "connect":
        with pytest.raises(anyio.ClosedResourceError):
            await network.peer.link.client.receive()


@pytest.mark.parametrize("phase", PHASES)
async def test_an_attempt_that_is_cancelled_leaves_nothing_open(phase: str) -> None:
    network = Phases(phase)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(network.serve)
        with anyio.move_on_after(1) as scope:
            await connect_websocket("ws://localhost/", network=network)
        assert scope.cancelled_caught
    if phase != "connect":
        with pytest.raises(anyio.ClosedResourceError):
            await network.peer.link.client.receive()


# --- refusals ----------------------------------------------------------------------------------------------------


async def refused(serve: Callable[[Peer], Any], **options: Any) -> TowlineError:
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, peer)
        with pytest.raises(TowlineError) as caught:
            await connect_websocket("ws://localhost/ws?token=hunter2", network=peer, **options)
    with pytest.raises(anyio.ClosedResourceError):
        await peer.link.client.receive()
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    return caught.value


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 407, 410, 426, 429, 500, 502, 503, 504])
async def test_another_answer_than_101(status: int) -> None:
    async def serve(peer: Peer) -> None:
        await peer.read()
        await peer.send(RejectConnection(status_code=status, headers=[(b"retry-after", b"7")], has_body=True))
        await peer.send(RejectData(b"<html>", body_finished=True))

    error = await refused(serve)
    assert isinstance(error, HandshakeRefused)
    assert (error.status, error.retry_after, error.body) == (status, 7, b"<html>")


async def test_retry_after_as_a_date() -> None:
    async def serve(peer: Peer) -> None:
        await peer.read()
        await peer.send(RejectConnection(status_code=503, headers=[(b"retry-after", b"Thu, 01 Jan 1970 00:16:50 GMT")]))

    error = await refused(serve, wall_time=lambda: 1000.0)
    assert isinstance(error, HandshakeRefused)
    assert error.retry_after == 10


async def test_garbage_and_silence_and_a_reset() -> None:
    async def garbage(peer: Peer) -> None:
        await peer.read()
        await peer.raw(b"\x16\x03\x01 not HTTP\r\n\r\n")

    async def ends(peer: Peer) -> None:
        await peer.read()
        await peer.link.server.aclose()

    async def resets(peer: Peer) -> None:
        await peer.read()
        peer.link.cut("rst")

    assert isinstance(await refused(garbage), ProtocolViolation)
    assert isinstance(await refused(ends), ConnectionBroken)
    assert isinstance(await refused(resets), ConnectionBroken)


async def test_a_refusal_sent_before_the_request_was_read() -> None:
    async def serve(peer: Peer) -> None:
        await peer.raw(b"HTTP/1.1 503 x\r\nContent-Length: 9\r\n\r\nbusy")
        await peer.link.server.aclose()

    error = await refused(serve)
    assert isinstance(error, HandshakeRefused)
    assert (error.status, error.body) == (503, b"busy")


async def test_arguments_are_checked_before_anything_is_dialled() -> None:
    peer = Peer()
    good: dict[str, Any] = {"url": "ws://localhost/"}
    for wrong in (
        {"url": "http://localhost/"},
        {"url": "ws://api.example/"},
        {"headers": {"Host": "x"}},
        {"headers": {"X": "a\r\nb"}},
        {"subprotocols": ["a b"]},
    ):
        with pytest.raises(InvalidArgument):
            await connect_websocket(**{**good, **wrong}, network=peer)
    assert peer.endpoints == []


async def test_an_error_of_the_network_passes_through() -> None:
    class Down(Network):
        async def connect(self, endpoint: Endpoint) -> ByteStream:
            raise ConnectFailed(endpoint.host, endpoint.port, "no route")

    with pytest.raises(ConnectFailed, match="no route"):
        await connect_websocket("ws://localhost/", network=Down())
