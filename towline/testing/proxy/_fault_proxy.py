"""A TCP proxy on loopback that injects network faults on real sockets (docs/testing.md).

Lasting faults (latency, bandwidth, black holes, refusal) affect all links, present and new, until `heal()`. An armed
fault (`cut_after`, `flip_bit`) strikes once, or as often as requested. "up" is towards the server, "down" towards the
client.

It uses plain sockets and `anyio.wait_readable`, because anyio's own streams cannot end with a reset. It runs in real
time and does not work with virtual clocks.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Self

import anyio
from anyio import AsyncContextManagerMixin

from ..._exceptions import InvalidArgument
from ..._tasks import Tasks
from ..memory._stream import Direction, Ending
from ._link import ArmedFault, ArmedMessageFault, Link, Sky
from ._message_faults import MessageFault


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """Counts of a proxy: `dials` seen, `links` open now, bytes forwarded in each direction, links ended by a fault."""

    dials: int
    links: int
    bytes_up: int
    bytes_down: int
    cuts: int


class FaultProxy(AsyncContextManagerMixin):
    """A proxy in front of `target` that injects faults. You may change `target`: it applies to the next connection.

    `seed` decides what is random (jitter). `port` is the proxy's own on 127.0.0.1 and stays the same. `dials` holds the
    time of each accepted connection. The proxy cannot see connections that the system refuses or whose packets are
    dropped. If the target cannot be reached, the client sees a reset.
    """

    def __init__(self, target_host: str, target_port: int, *, seed: int = 0) -> None:
        self.target = (target_host, target_port)
        self.host: Final = "127.0.0.1"
        self.port = 0
        self.seed: Final = seed
        self.dials: list[float] = []
        self._sky = Sky(seed)
        self._door: Literal["open", "refusing", "dropping", "hanging up"] = "open"
        self._farewell: Ending = "fin"
        self._listener: socket.socket | None = None
        self._plugs: list[socket.socket] = []

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        self._open_door()
        try:
            async with Tasks() as tasks:
                tasks.start_soon(self._accept, tasks, name="towline proxy")
                yield self
        finally:
            self._close_door()

    # --- faults that act now ---------------------------------------------------------------------------------------

    async def cut(self, ending: Ending = "fin") -> int:
        """End every open link on both sides; returns how many there were. New connections are accepted."""
        links = list(self._sky.links)
        for link in links:
            link.end(ending)
        for link in links:
            await link.ended.wait()
        return len(links)

    # --- faults that last ------------------------------------------------------------------------------------------

    def black_hole(self, *directions: Direction) -> None:
        """Forward nothing any more (in both directions if none is named), without a sign of it.

        Connections are accepted, as by a system whose server is stopped. Data on its way arrives after `heal()`, as TCP
        would resend it.
        """
        self._sky.set(directions, blocked=True)

    async def drop_dials(self) -> None:
        """Leave new connection attempts unanswered: they hang. Open links stay. (Linux: with a full accept queue.)"""
        self._close_door()
        self._door = "dropping"
        self._listener = self._bind()
        self._listener.listen(0)
        await self._fill_accept_queue(self._listener)

    async def refuse(self) -> None:
        """Refuse new connections, as a system without the server does. Open links stay: `cut` ends them."""
        self._close_door()
        self._door = "refusing"
        self._listener = self._bind()  # bound but not listening, so that the port stays ours
        await anyio.lowlevel.checkpoint()

    def hang_up(self, ending: Ending = "fin") -> None:
        """Accept new connections and end them at once, as a failing server does. They count in `dials`."""
        self._listen_again()
        self._door, self._farewell = "hanging up", ending

    def delay(self, latency: float, *directions: Direction, jitter: float = 0.0) -> None:
        """Delay all data by `latency` seconds plus up to `jitter` seconds, and keep its order.

        Raises `InvalidArgument` unless both are finite and not negative.
        """
        _check_seconds(latency=latency, jitter=jitter)
        self._sky.set(directions, latency=latency, jitter=jitter)

    def throttle(self, bytes_per_second: float, *directions: Direction) -> None:
        """Limit the bytes per second. Raises `InvalidArgument` unless the limit is positive and finite."""
        if not 0 < bytes_per_second < math.inf:
            raise InvalidArgument(
                "bytes_per_second", "must be positive and finite: to stop everything, use black_hole()"
            )
        self._sky.set(directions, bytes_per_second=bytes_per_second)

    def chop(self, piece: int = 1, *directions: Direction, pause: float = 0.0) -> None:
        """Write at most `piece` bytes at once, `pause` seconds apart: one-byte reads, or a slow loris.

        Raises `InvalidArgument` for less than a byte, and unless the pause is finite and not negative.
        """
        if piece < 1:
            raise InvalidArgument("piece", "must be at least one byte")
        _check_seconds(pause=pause)
        self._sky.set(directions, piece=piece, pause=pause)

    def gather(self, seconds: float, *directions: Direction) -> None:
        """Collect bytes for some time and forward them together: many frames in one segment.

        Raises `InvalidArgument` unless `seconds` is finite and not negative.
        """
        _check_seconds(seconds=seconds)
        self._sky.set(directions, gather=seconds)

    async def heal(self, *, disarm: bool = True) -> None:
        """Remove all lasting faults: data passes, connections are accepted. Links that were cut stay cut.

        Armed faults are removed too, unless `disarm` is False.
        """
        self._sky.clear(disarm=disarm)
        self._listen_again()
        self._door = "open"
        self._sky.touch()
        await anyio.lowlevel.checkpoint()

    # --- armed faults ----------------------------------------------------------------------------------------------

    def cut_after(self, count: int, direction: Direction, ending: Ending = "rst", *, times: int = 1) -> None:
        """End a link when it has forwarded exactly `count` bytes in one direction, counted from its start.

        It strikes the first link that gets there, `times` times in all. The bytes before `count` are delivered.
        """
        self._sky.armed.append(ArmedFault(count, direction, times, ending))
        for link in list(self._sky.links):
            link.strike(direction)

    def flip_bit(self, number: int, direction: Direction, *, times: int = 1) -> None:
        """Flip one bit (8n+k is bit k of byte n, counted from a link's start) when it passes."""
        place, bit = divmod(number, 8)
        self._sky.armed.append(ArmedFault(place, direction, times, bit=bit))

    def fault_message(self, fault: MessageFault, number: int, *, times: int = 1) -> None:
        """Drop, duplicate or swap the `number`-th message of a WebSocket (from 1), or replay all before it.

        It affects messages from the server, on links opened from now on.
        """
        self._sky.armed_messages.append(ArmedMessageFault(fault, number, times))

    # --- observe ---------------------------------------------------------------------------------------------------

    def statistics(self) -> ProxyStatistics:
        """Counts since the proxy was created."""
        return ProxyStatistics(
            len(self.dials), len(self._sky.links), self._sky.passed["up"], self._sky.passed["down"], self._sky.cuts
        )

    async def wait_dials(self, count: int) -> None:
        """Wait until `count` connections have been accepted since the proxy was created."""
        while len(self.dials) < count:
            await self._sky.wait_changed()

    async def wait_links(self, count: int) -> None:
        """Wait until exactly `count` links are open."""
        while len(self._sky.links) != count:
            await self._sky.wait_changed()

    async def wait_passed(self, count: int, direction: Direction) -> None:
        """Wait until `count` bytes have been forwarded in one direction since the proxy was created."""
        while self._sky.passed[direction] < count:
            await self._sky.wait_changed()

    # --- accepting connections -------------------------------------------------------------------------------------

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((self.host, self.port))
        except BaseException:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        return listener

    def _open_door(self) -> None:
        self._listener = self._bind()
        self._listener.listen(1024)
        self._sky.touch()

    def _listen_again(self) -> None:
        if self._door in ("refusing", "dropping"):
            self._close_door()
            self._open_door()

    def _close_door(self) -> None:
        for one in [*self._plugs, *([self._listener] if self._listener else [])]:
            anyio.notify_closing(one)
            one.close()
        self._plugs.clear()
        self._listener = None

    async def _fill_accept_queue(self, listener: socket.socket) -> None:
        # A queue of length 0 still accepts a connection or two. When one of ours hangs, everyone else's hangs too.
        for _ in range(16):
            plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._plugs.append(plug)
            plug.setblocking(False)
            plug.connect_ex(listener.getsockname())
            with anyio.move_on_after(0.05) as waiting:
                await anyio.wait_writable(plug)
            if waiting.cancelled_caught:
                return
        raise RuntimeError("this system's accept queue cannot be filled, so dials cannot be dropped here")

    async def _accept(self, tasks: Tasks) -> None:
        while True:
            listener = self._listener
            if listener is None or self._door in ("refusing", "dropping"):
                await self._sky.wait_changed()
                continue
            try:
                await anyio.wait_readable(listener)
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, anyio.ClosedResourceError):
                continue
            except OSError:
                if self._listener is listener:
                    raise
                continue  # closed meanwhile
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.dials.append(anyio.current_time())
            link = Link(self._sky, self.target, client)
            self._sky.links.add(link)
            if self._door == "hanging up":
                link.end(self._farewell)
            tasks.start_soon(link.run, name="towline proxy")
            self._sky.touch()


def _check_seconds(**times: float) -> None:
    for name, seconds in times.items():
        if not 0 <= seconds < math.inf:
            raise InvalidArgument(name, "must be finite and not negative")
