"""Attempts alone: one source at a time, what it brings, and what ended it, on a scripted server in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import pytest

from towline import Secret, TokenRefused, TowlineError
from towline._facts import Meaning, Message, Numbered, Position, Received
from towline._tasks import Tasks
from towline.engine.attempts import Attempts, Link
from towline.engine.reader import Reader
from towline.engine.settings import Settings
from towline.statemachine import CloseSocket, Dial, Place
from towline.testing import Answer, ScriptedJob, ScriptedServer

pytestmark = pytest.mark.anyio


class Attempting:
    """Attempts, and what they call, in order."""

    def __init__(self, settings: Settings, tasks: Tasks) -> None:
        self.did: list[tuple[object, ...]] = []
        self.position: Position | None = None
        self.token: Secret | TokenRefused | None = Secret("t1")
        self.no_room: anyio.Event | None = None
        #: What a message asks for: a text to send, and what it means for the link.
        self.says: tuple[str, Meaning] | None = None
        self.attempts = Attempts(
            settings,
            tasks,
            Reader(settings.protocol),
            token=self._token,
            position=lambda: self.position,
            dialled=lambda: self.did.append(("dialled",)),
            opened=lambda link: self.did.append(("opened", link.generation)),
            received=self._received,
            room=lambda: self.no_room.wait() if self.no_room is not None else None,
            failed=self._failed,
            meant=self._meant,
        )

    async def _token(self, *, fresh: bool = False) -> Secret | None:
        if fresh:
            self.did.append(("fresh token",))
        if self.token is None:
            await anyio.sleep_forever()
        if isinstance(self.token, TokenRefused):
            raise self.token
        return self.token

    def _received(self, link: Link, batch: Sequence[Received]) -> None:
        self.did += [("received", one.data) for one in batch if isinstance(one, Message)]
        if self.says is not None:
            link.to_send.append(self.says[0])
            link.meant = self.says[1]

    async def _failed(self, error: TowlineError, place: Place, generation: int) -> None:
        self.did.append(("failed", type(error).__name__, place, generation))

    async def _meant(self, meaning: Meaning, link: Link) -> None:
        self.did.append(("meant", meaning, link.generation))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
async def job(server: ScriptedServer) -> ScriptedJob:
    return server.job("j1", token="t1")


@pytest.fixture
async def attempting(
    server: ScriptedServer, job: ScriptedJob, make_settings: Callable[..., Settings]
) -> AsyncIterator[Attempting]:
    async with Tasks() as tasks:
        yield Attempting(make_settings(server.network), tasks)


def dial(generation: int = 1, *, after: float = 0.0, fresh_token: bool = False) -> Dial:
    return Dial(generation=generation, not_before=anyio.current_time() + after, fresh_token=fresh_token)


async def test_an_attempt_opens_a_source_and_hands_on_what_it_brings(
    attempting: Attempting, server: ScriptedServer, job: ScriptedJob
) -> None:
    attempting.attempts.dial(dial(3, after=5.0, fresh_token=True))
    assert anyio.current_time() == 0.0
    socket = await server.wait_ready()
    assert anyio.current_time() == pytest.approx(5.0)
    await anyio.sleep(1)
    attempting.did.clear()
    event = job.start()
    await anyio.sleep(1)
    assert attempting.did == [("received", event.text)]
    link = attempting.attempts.current
    assert link is not None
    assert (link.generation, link.in_step, link.may_be_silent) == (3, "state", False)
    assert not attempting.attempts.is_silent_since(5.5)
    assert attempting.attempts.is_silent_since(7.0)
    socket.cut()
    await anyio.sleep(1)
    assert attempting.did[1:] == [("failed", "ConnectionBroken", Place.SOCKET, 3)]


async def test_the_steps_of_an_attempt_come_in_order(attempting: Attempting, server: ScriptedServer) -> None:
    attempting.attempts.dial(dial(2, fresh_token=True))
    await server.wait_ready()
    await anyio.sleep(1)
    assert attempting.did[:3] == [("fresh token",), ("dialled",), ("opened", 2)]


async def test_an_error_names_the_place_at_which_it_came(attempting: Attempting, server: ScriptedServer) -> None:
    attempting.token = TokenRefused()
    attempting.attempts.dial(dial(1))
    await anyio.sleep(1)
    attempting.token = Secret("t1")
    server.script("upgrade", Answer(503))
    attempting.attempts.dial(dial(2))
    await anyio.sleep(1)
    assert attempting.did == [
        ("failed", "TokenRefused", Place.TOKEN, 1),
        ("dialled",),
        ("failed", "HandshakeRefused", Place.UPGRADE, 2),
    ]


async def test_an_attempt_that_is_given_up_fails_nothing_and_is_gone(attempting: Attempting) -> None:
    attempting.token = None
    attempting.attempts.dial(dial())
    await anyio.sleep(100)
    attempting.attempts.abandon_dial()
    assert attempting.attempts.current is None
    await attempting.attempts.all_gone()
    assert attempting.did == []


async def test_the_next_attempt_waits_until_the_last_source_is_closed(
    attempting: Attempting, server: ScriptedServer
) -> None:
    attempting.attempts.dial(dial(1))
    socket = await server.wait_ready()
    socket.hold("up")  # the server hears no close frame
    began = anyio.current_time()
    attempting.attempts.close_socket(CloseSocket(code=1001, wait=2.0))
    attempting.attempts.dial(dial(2))
    await server.wait_sockets(2)
    assert anyio.current_time() - began == pytest.approx(2.0)
    await server.wait_ready(2)
    link = attempting.attempts.current
    assert link is not None
    assert (link.generation, link.want.socket) == (2, 2)


async def test_a_closed_source_is_not_kept_until_the_next_attempt(
    attempting: Attempting, server: ScriptedServer
) -> None:
    """With its buffers: a connection may be in the background for hours."""
    attempting.attempts.dial(dial())
    await server.wait_ready()
    link = attempting.attempts.current
    assert link is not None
    closed = weakref.ref(link.source)
    del link
    attempting.attempts.close_socket(CloseSocket(code=1001))
    await anyio.sleep(1)
    gc.collect()
    assert closed() is None


async def test_nothing_more_is_read_while_there_is_no_room(attempting: Attempting, job: ScriptedJob) -> None:
    attempting.attempts.dial(dial())
    await anyio.sleep(1)
    attempting.no_room = no_room = anyio.Event()
    events = [job.start()]
    await anyio.sleep(1)
    events.append(job.start())
    await anyio.sleep(100)
    assert attempting.did[-1] == ("received", events[0].text)
    attempting.no_room = None
    no_room.set()
    await anyio.sleep(1)
    assert attempting.did[-1] == ("received", events[1].text)


async def test_what_a_message_asks_for_is_sent_before_its_meaning_ends_the_link(
    attempting: Attempting, server: ScriptedServer, job: ScriptedJob
) -> None:
    attempting.says = ("bye", "ended")
    attempting.attempts.dial(dial(4))
    socket = await server.wait_ready()
    await anyio.sleep(1)
    assert socket.received[1:] == ["bye"]
    assert attempting.did[-1] == ("meant", "ended", 4)
    attempting.did.clear()
    job.start()
    await anyio.sleep(1)
    assert attempting.did == []


async def test_a_position_that_the_server_refused_is_left_out(attempting: Attempting, server: ScriptedServer) -> None:
    attempting.position = Numbered(3, "e")
    attempting.attempts.dial(dial(1))
    socket = await server.wait_ready()
    assert socket.ready is not None
    assert (socket.ready.epoch, socket.ready.seq) == ("e", 3)
    assert attempting.attempts.resumes_at(Numbered(5, "e"))
    attempting.attempts.forget_cursor()
    attempting.attempts.close_socket(CloseSocket(code=1001))
    attempting.attempts.dial(dial(2))
    socket = await server.wait_ready(2)
    assert (socket.ready.epoch, socket.ready.seq) == (None, None)
    attempting.position = Numbered(4, "e")
    attempting.attempts.close_socket(CloseSocket(code=1001))
    attempting.attempts.dial(dial(3))
    socket = await server.wait_ready(3)
    assert (socket.ready.epoch, socket.ready.seq) == ("e", 4)


async def test_a_probe_without_an_answer_loses_the_link(attempting: Attempting, server: ScriptedServer) -> None:
    attempting.attempts.probe()  # before there is a source it is no error
    attempting.attempts.dial(dial())
    socket = await server.wait_ready()
    await anyio.sleep(1)
    socket.hold("up", "down")
    attempting.attempts.probe()
    await anyio.sleep(30)
    assert attempting.did[-1][0::2] == ("failed", Place.SOCKET)
