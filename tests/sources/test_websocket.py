"""The WebSocket source, against a server of wsproto in memory under virtual time."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from scripted_wire import Script, access, answer, shown
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, TextMessage
from wsproto.events import Request as Upgrade

from towline._exceptions import (
    ConnectionBroken,
    ConnectionClosed,
    DeadlineExceeded,
    HandshakeRefused,
    InvalidArgument,
    ProtocolViolation,
    TowlineError,
)
from towline._facts import Answer, Closed, Message, Received, Request
from towline._secret import Secret
from towline.sources import Source, open_source, received_of
from towline.testing import MemoryLink, MemoryNetwork, NoAnswer
from towline.transport import Liveness

pytestmark = pytest.mark.anyio

LARGE = "x" * 70_000  # more than a link holds


class Peer:
    """Accepts the upgrade; then reads and answers pings and closes, unless a flag says otherwise."""

    def __init__(self, *, reads: bool = True, pings: bool = True, closes: bool = True) -> None:
        self.reads, self.pings, self.closes = reads, pings, closes
        self.texts: list[str] = []
        self.close: tuple[int, str | None] | None = None
        self.paths: list[str] = []
        self.links: list[MemoryLink] = []
        self.network = MemoryNetwork(self._serve)
        self._wire = WSConnection(ConnectionType.SERVER)

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.links[0].server.send(self._wire.send(TextMessage(text)))

    async def hang_up(self, code: int, reason: str = "") -> None:
        await self.links[0].server.send(self._wire.send(CloseConnection(code, reason)))

    async def _serve(self, link: MemoryLink) -> None:
        self.links.append(link)
        while True:
            self._wire.receive_data(await link.server.receive())
            for event in self._wire.events():
                if isinstance(event, Upgrade):
                    self.paths.append(event.target)
                    await link.server.send(self._wire.send(AcceptConnection()))
                    if not self.reads:
                        await anyio.sleep_forever()
                elif isinstance(event, TextMessage):
                    self.texts.append(event.data)
                elif isinstance(event, Ping) and self.pings:
                    await link.server.send(self._wire.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self.close = (event.code, event.reason)
                    if self.closes:
                        await link.server.send(self._wire.send(event.response()))
                        return


async def never() -> Request:
    raise AssertionError("a WebSocket is not asked again")


async def opened(peer: Peer, *opening: str | Secret, url: str = "ws://localhost/ws?a=b", **changes: Any) -> Source:
    asked = Request(via="websocket", url=url, opening=opening)
    source = await open_source(asked, access(peer.network, **changes), never)
    await source.start(asked.opening)
    return source


def texts(received: Sequence[Received]) -> list[str | bytes]:
    assert all(isinstance(one, Message) for one in received)
    return [one.data for one in received if isinstance(one, Message)]


async def settle() -> None:
    await anyio.sleep(0.001)


# --- open -----------------------------------------------------------------------------------------------------------


async def test_opening_messages_come_first() -> None:
    """They are sent although nothing was received, in order, and a `Secret` as its text."""
    peer = Peer()
    async with peer.network:
        source = await opened(peer, "hello", Secret("token"), "é")
        await settle()
        assert peer.texts == ["hello", "token", "é"]
        assert peer.paths == ["/ws?a=b"]
        await peer.say("a", "b")
        assert texts(await source.receive()) == ["a", "b"]
        assert source.retry is None
        source.advise(5)  # has no effect, and is no error
        await source.leave(1001)


async def test_the_url_may_have_the_scheme_http() -> None:
    peer = Peer()
    async with peer.network:
        await (await opened(peer, url="http://localhost/x")).leave(1001)
    assert peer.paths == ["/x"]


async def test_a_server_that_does_not_take_the_opening() -> None:
    peer = Peer(reads=False)
    async with peer.network:
        began = anyio.current_time()
        source = await opened(peer)
        with pytest.raises(DeadlineExceeded, match="after 5 s waiting for the server to read the opening messages"):
            await source.start([LARGE, "second"])
        assert anyio.current_time() - began == pytest.approx(5)
        with pytest.raises(ConnectionBroken):
            await source.receive()


async def test_a_server_that_closes_instead_of_reading_says_why() -> None:
    """Writing fails, and reading finds the reason."""
    peer = Peer(reads=False)
    async with peer.network:
        source = await opened(peer)
        await peer.hang_up(4401, "no token")
        peer.links[0].cut("fin")
        await source.start(["hello", "again"])
        with pytest.raises(ConnectionClosed) as caught:
            await source.receive()
    assert received_of(caught.value) == Closed(4401, "no token")


async def test_an_opening_that_cannot_be_sent_is_an_error() -> None:
    peer = Peer()
    async with peer.network:
        source = await opened(peer)
        for wrong in ("\ud800", Secret("\ud800"), 5):
            with pytest.raises(InvalidArgument, match="message: "):
                await source.start([wrong])  # type: ignore[list-item]
        await source.leave(1001)
    assert peer.texts == []


async def test_a_refusal_is_an_answer_to_read() -> None:
    script = Script([answer(429, b'{"why":"busy"}', Retry_After="7")])
    async with script.running():
        with pytest.raises(HandshakeRefused) as caught:
            await open_source(Request(via="websocket", url="ws://localhost/"), access(script.network), never)
    assert received_of(caught.value) == Answer(429, {}, b'{"why":"busy"}')
    assert caught.value.retry_after == 7


async def test_a_dial_without_an_answer() -> None:
    peer = Peer()
    peer.network.weather = NoAnswer()
    async with peer.network:
        with pytest.raises(DeadlineExceeded) as caught:
            await opened(peer, connect_deadline=3.0)
    assert received_of(caught.value) is None


# --- open, then lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionClosed(1000, "done"), Closed(1000, "done")),
        (ConnectionClosed(1005), Closed(1005)),
        (ConnectionClosed(1006, by_us=True), Closed()),
        (ConnectionBroken("reset"), Closed()),
        (ProtocolViolation("x"), None),
        (TowlineError("x"), None),
    ],
)
def test_what_an_end_says(error: TowlineError, said: Received | None) -> None:
    assert received_of(error) == said


async def test_messages_before_the_close_come_first() -> None:
    peer = Peer()
    async with peer.network:
        source = await opened(peer)
        await peer.say("last")
        await peer.hang_up(1000, "done")
        assert texts(await source.receive()) == ["last"]
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="done"):
                await source.receive()


async def test_silence_and_a_probe() -> None:
    """The pings hold a silent link; a probe that nobody answers ends it within its time."""
    peer = Peer()
    async with peer.network:
        source = await opened(peer, liveness=Liveness(ping_after=15, lost_after=25))
        with anyio.move_on_after(1000):
            await source.receive()
        assert anyio.current_time() - source.last_received <= 15
        peer.pings = False
        async with anyio.create_task_group() as tasks:

            async def look() -> None:
                await anyio.sleep(1)
                source.probe(5)

            tasks.start_soon(look)
            began = anyio.current_time()
            with pytest.raises(DeadlineExceeded, match="after 5 s"):
                await source.receive()
        assert anyio.current_time() - began == pytest.approx(6)
        await source.leave(1001)


async def test_a_message_is_sent_and_a_secret_is_not_shown(canary: str) -> None:
    peer = Peer()
    async with peer.network:
        source = await opened(peer)
        await source.send(Secret(canary))
        await source.send("plain text")
        await settle()
        assert peer.texts == [canary, "plain text"]
        peer.links[0].cut("rst")
        for sent in (Secret(canary), "plain text"):
            with pytest.raises(TowlineError) as caught:
                await source.send(sent)
            lines = list(shown(caught.value))
            assert not [line for line in lines if canary in line]
        assert [line for line in lines if "plain text" in line], "otherwise this test would see nothing"


# --- leave ----------------------------------------------------------------------------------------------------------


async def test_leave_without_waiting() -> None:
    """1001 is sent, and a peer that does not answer costs no time."""
    peer = Peer(closes=False)
    async with peer.network:
        source = await opened(peer)
        began = anyio.current_time()
        await source.leave(1001)
        assert anyio.current_time() == began
        await settle()
        assert peer.close is not None
        assert peer.close[0] == 1001
        with pytest.raises(anyio.ClosedResourceError):
            await peer.links[0].client.receive()


@pytest.mark.parametrize(("closes", "took"), [(True, 0.2), (False, 2.0)])
async def test_leave_and_wait(closes: bool, took: float) -> None:
    peer = Peer(closes=closes)
    async with peer.network:
        source = await opened(peer)
        peer.links[0].set_latency(0.1)
        began = anyio.current_time()
        await source.leave(1000, wait=2.0)
        assert anyio.current_time() - began == pytest.approx(took)
        assert peer.close is not None
        assert peer.close[0] == 1000
        with pytest.raises(anyio.ClosedResourceError):
            await peer.links[0].client.receive()


async def test_leave_after_the_reader_was_cancelled() -> None:
    peer = Peer()
    async with peer.network:
        source = await opened(peer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(source.receive)
            await settle()
            tasks.cancel_scope.cancel()
        await source.leave(1001)
        await settle()
        assert peer.close is not None
