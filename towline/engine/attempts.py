"""Connection attempts and their sockets: one task and one scope each, and never two sockets at once.

A socket that is no longer used is closed before the next attempt opens one. Only the job's end, `aclose()` and
`cancel()` wait for the peer's close frame. Every such wait is shielded and has a deadline.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import anyio

from .._exceptions import DeadlineExceeded, TowlineError
from .._secret import Secret
from .._tasks import Tasks, failure_of
from ..protocols.wire import Ready, encode
from ..statemachine import AbandonDial, CloseSocket, Dial, Place, Probe
from ..transport import Liveness, WebSocket, connect_websocket
from .recovery import Cursor
from .settings import Settings

#: Seconds, beyond the timeout of the closing handshake, that a new attempt waits for earlier ones to close.
CLOSE_MARGIN: Final = 1.0


_WORK: Final = {
    Place.TOKEN: "getting a token",
    Place.UPGRADE: "an attempt to connect",
    Place.SOCKET: "the open socket",
}


class GetToken(Protocol):
    """Returns the token to use; with `fresh`, another one than the current."""

    async def __call__(self, *, fresh: bool = False) -> Secret: ...


class Link:
    """One connection attempt and the socket it opens: one task, one scope."""

    __slots__ = ("closing", "generation", "greeting", "left", "scope", "websocket")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.scope = anyio.CancelScope()
        self.websocket: WebSocket | None = None
        self.greeting: Ready | None = None
        #: `left`: the link's task has ended. `closing`: another task closes the socket.
        self.left = anyio.Event()
        self.closing = False


class Attempts:
    """Performs the effects on attempts and sockets.

    - `token` returns the token to send.
    - `dialled` is called when an attempt begins to connect, `opened` (with the attempt's generation) when it has.
    - `received` gets the messages of each read, `failed` the error that ended an attempt or a socket.
    """

    __slots__ = (
        "_client",
        "_dialled",
        "_failed",
        "_greeted",
        "_leaving",
        "_one_left",
        "_opened",
        "_received",
        "_settings",
        "_tasks",
        "_token",
        "current",
    )

    def __init__(
        self,
        settings: Settings,
        tasks: Tasks,
        *,
        token: GetToken,
        dialled: Callable[[], object],
        opened: Callable[[int], object],
        received: Callable[[Link, list[str | bytes]], object],
        failed: Callable[[TowlineError, Place, int], Awaitable[object]],
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._token = token
        self._dialled = dialled
        self._opened = opened
        self._received = received
        self._failed = failed
        #: The current attempt or open socket.
        self.current: Link | None = None
        # Attempts that were given up and sockets that are being closed, until they are gone.
        self._leaving: set[Link] = set()
        self._one_left: anyio.Event | None = None
        # With these a server recognizes the sockets of this connection, and the newest of them.
        self._client = secrets.token_hex(8)
        self._greeted = 0

    def dial(self, effect: Dial) -> None:
        """Start a connection attempt."""
        self.current = Link(effect.generation)
        self._tasks.start_soon(self._run, self.current, effect, name="towline link")

    def abandon_dial(self, effect: AbandonDial) -> None:
        """Give up the current attempt."""
        link, self.current = self.current, None
        if link is not None:
            self._release(link)

    def greet(self, cursor: Cursor | None) -> None:
        """Make the open socket send `ready` with this cursor before it reads."""
        if self.current is not None:
            now = self._settings.wall_time() * 1000
            epoch, seq = (cursor.epoch, cursor.seq) if cursor is not None and cursor.seq > 0 else (None, None)
            self._greeted += 1
            self.current.greeting = Ready(
                timestamp=round(now), epoch=epoch, seq=seq, client=self._client, socket=self._greeted
            )

    def probe(self, effect: Probe) -> None:
        """Ping now; if nothing answers in time, treat the link as lost."""
        if self.current is not None and self.current.websocket is not None:
            self.current.websocket.probe(self._settings.policy.probe)

    def close_socket(self, effect: CloseSocket) -> None:
        """Close the socket; a background task finishes the closing handshake."""
        link, self.current = self.current, None
        if link is None:
            return
        self._release(link)
        if link.websocket is not None:
            link.closing = True
            self._tasks.start_soon(self._close, link, link.websocket, effect, name="towline close")

    async def all_gone(self) -> None:
        """Wait until all attempts that were given up, and all sockets being closed, are gone."""
        while self._leaving:
            if self._one_left is None:
                self._one_left = anyio.Event()
            await self._one_left.wait()

    def is_silent_since(self, moment: float) -> bool:
        """Whether the socket has received nothing after `moment`, which is on the loop's clock."""
        link = self.current
        return link is not None and link.websocket is not None and link.websocket.last_received <= moment

    def _release(self, link: Link) -> None:
        self._leaving.add(link)
        link.scope.cancel()

    def _note_closed(self, link: Link) -> None:
        self._leaving.discard(link)
        if self._one_left is not None:
            self._one_left.set()
            self._one_left = None

    async def _close(self, link: Link, websocket: WebSocket, effect: CloseSocket) -> None:
        try:
            # The reader was cancelled, and uses the socket until it has ended.
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                await link.left.wait()
            if effect.wait:
                await websocket.aclose(effect.code, timeout=effect.wait)
            else:
                await websocket.abandon(effect.code)
        except BaseException as error:
            await failure_of(error, "closing a socket")  # the socket is gone in any case
        finally:
            self._note_closed(link)

    async def _run(self, link: Link, dial: Dial) -> None:
        try:
            with link.scope:
                await self._follow(link, dial)
        finally:
            link.left.set()
            if link in self._leaving and not link.closing:
                # It was given up as an attempt. If it opened in that very moment, no one else closes it.
                try:
                    if link.websocket is not None:
                        await link.websocket.abandon()
                except BaseException as error:
                    await failure_of(error, "closing a socket")
                finally:
                    self._note_closed(link)

    async def _follow(self, link: Link, dial: Dial) -> None:
        """Run one attempt and its socket until it ends."""
        place = Place.TOKEN
        try:
            settings, policy = self._settings, self._settings.policy
            with anyio.move_on_after(policy.close_wait + CLOSE_MARGIN):
                await self.all_gone()
            await anyio.sleep_until(dial.not_before)
            token = await self._token(fresh=dial.fresh_token)
            place = Place.UPGRADE
            self._dialled()
            link.websocket = await connect_websocket(
                settings.url_with(token),
                headers=settings.headers_with(token),
                subprotocols=settings.subprotocols_with(token),
                ssl=settings.ssl,
                limits=settings.limits,
                liveness=Liveness(ping_after=policy.ping_after, lost_after=policy.lost_after),
                network=settings.network,
                deadline=policy.connect_deadline,
                wall_time=settings.wall_time,
            )
            place = Place.SOCKET
            self._opened(link.generation)
            await self._read(link, link.websocket)
        except BaseException as error:
            failure = await failure_of(error, _WORK[place])
            await self._failed(failure, place, link.generation)

    async def _read(self, link: Link, websocket: WebSocket) -> None:
        if link.greeting is not None:
            limit = self._settings.policy.probe
            # If writing fails, the server may have sent the reason: reading will find it.
            with suppress(TowlineError), anyio.move_on_after(limit) as sending:
                await websocket.send(encode(link.greeting).decode())
            if sending.cancelled_caught:
                raise DeadlineExceeded("room to send `ready`", limit)
        while True:
            self._received(link, await websocket.receive_batch())
