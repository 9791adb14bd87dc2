"""A TCP proxy on loopback that makes a network misbehave, on real sockets, when it is told to.

    async with FaultProxy("127.0.0.1", server_port) as proxy:
        ... dial 127.0.0.1, proxy.port ...
        await proxy.cut("rst")                          # every link, now
        await proxy.refuse()                            # and new dials with it
        await proxy.heal()                              # fair weather again
        proxy.black_hole("down")                        # nothing arrives from the server any more
        proxy.cut_after(1500, "down")                   # the next link to carry 1,500 bytes ends there

Weather (latency, bandwidth, black holes, refusal) holds for all links, present and new, until `heal()`. An armed fault
(`cut_after`, `flip_bit`) strikes once, or as often as asked. "up" is towards the server, "down" towards the client.

It uses plain sockets and `anyio.wait_readable`, because anyio's own streams cannot end with a reset. Its time is real
time: it is not for virtual clocks.
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
from anyio.abc import TaskGroup

from .._exceptions import InvalidArgument
from ._memory_stream import Direction, Ending
from ._message_faults import MessageFault
from ._proxy_link import ArmedFault, ArmedMessageFault, Link, Sky


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """`dials` seen and `links` open now, bytes passed on in each direction, links that a fault has ended."""

    dials: int
    links: int
    bytes_up: int
    bytes_down: int
    cuts: int


class FaultProxy(AsyncContextManagerMixin):
    """See the module's text. `target` may be changed while it runs: it counts for the next dial.

    `seed` decides what is random (jitter). `port` is the proxy's own on 127.0.0.1, the same for the proxy's whole life.
    `dials` holds the time of each dial that was accepted; one that is refused by the system, or whose packets are
    dropped, is never seen. If the target cannot be reached, the client sees a reset.
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
        failure: Exception | None = None
        self._open_door()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._accept, tasks)
                try:
                    yield self
                except Exception as error:
                    # Carried past the task group, which would wrap it: a test's own errors come out as they are.
                    failure = error
                tasks.cancel_scope.cancel()
        finally:
            self._close_door()
        if failure is not None:
            raise failure

    # --- links, now ------------------------------------------------------------------------------------------------

    async def cut(self, ending: Ending = "fin") -> int:
        """End every present link, to both sides; returns how many there were. New dials are let in."""
        links = list(self._sky.links)
        for link in links:
            link.end(ending)
        for link in links:
            await link.ended.wait()
        return len(links)

    # --- weather ---------------------------------------------------------------------------------------------------

    def black_hole(self, *directions: Direction) -> None:
        """Carry nothing any more (both ways, if none is named), and tell nobody. Dials are accepted, as by a system
        whose server is stopped. What was on its way arrives after `heal()`, as TCP would send it again."""
        self._sky.set(directions, blocked=True)

    async def drop_dials(self) -> None:
        """Leave new dials without any answer: they hang. Present links live on. (Linux: by a full accept queue.)"""
        self._close_door()
        self._door = "dropping"
        self._listener = self._bind()
        self._listener.listen(0)
        await self._fill_accept_queue(self._listener)

    async def refuse(self) -> None:
        """Refuse new dials, as a system without the server does. Present links live on: `cut` ends them."""
        self._close_door()
        self._door = "refusing"
        self._listener = self._bind()  # bound but not listening: the port stays ours
        await anyio.lowlevel.checkpoint()

    def hang_up(self, ending: Ending = "fin") -> None:
        """Accept new dials and end them at once, as a dying server does. They are counted in `dials`."""
        self._listen_again()
        self._door, self._farewell = "hanging up", ending

    def delay(self, latency: float, *directions: Direction, jitter: float = 0.0) -> None:
        """Deliver everything `latency` seconds late, and up to `jitter` seconds later still, in order.

        Raises `InvalidArgument` unless both are finite and not negative.
        """
        _check_seconds(latency=latency, jitter=jitter)
        self._sky.set(directions, latency=latency, jitter=jitter)

    def throttle(self, bytes_per_second: float, *directions: Direction) -> None:
        """Limit how much passes in a second. Raises `InvalidArgument` unless it is positive and finite."""
        if not 0 < bytes_per_second < math.inf:
            raise InvalidArgument("bytes_per_second", "must be positive and finite; nothing passes a black hole")
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
        """Keep bytes for some time and pass them on as one: many frames in one segment.

        Raises `InvalidArgument` unless it is finite and not negative.
        """
        _check_seconds(seconds=seconds)
        self._sky.set(directions, gather=seconds)

    async def heal(self, *, disarm: bool = True) -> None:
        """Fair weather: everything passes, dials are accepted. Links that are cut stay cut.

        Nothing is armed any more, unless `disarm` is False.
        """
        self._sky.clear(disarm=disarm)
        self._listen_again()
        self._door = "open"
        self._sky.touch()
        await anyio.lowlevel.checkpoint()

    # --- armed faults ----------------------------------------------------------------------------------------------

    def cut_after(self, count: int, direction: Direction, ending: Ending = "rst", *, times: int = 1) -> None:
        """End a link when it has passed on exactly `count` bytes in one direction, counted from its beginning.

        It strikes the first link that gets there, `times` times in all. What came before byte `count` is delivered.
        """
        self._sky.armed.append(ArmedFault(count, direction, times, ending))
        for link in list(self._sky.links):
            link.strike(direction)

    def flip_bit(self, number: int, direction: Direction, *, times: int = 1) -> None:
        """Turn over one bit (8n+k is bit k of byte n, counted from a link's beginning) as it passes."""
        place, bit = divmod(number, 8)
        self._sky.armed.append(ArmedFault(place, direction, times, bit=bit))

    def fault_message(self, fault: MessageFault, number: int, *, times: int = 1) -> None:
        """Drop, duplicate or swap the `number`-th message of a WebSocket (counted from 1), or replay all before it.

        For messages from the server, on links dialled from now on.
        """
        self._sky.armed_messages.append(ArmedMessageFault(fault, number, times))

    # --- what it tells ---------------------------------------------------------------------------------------------

    def statistics(self) -> ProxyStatistics:
        """Figures since the proxy was made."""
        return ProxyStatistics(
            len(self.dials), len(self._sky.links), self._sky.passed["up"], self._sky.passed["down"], self._sky.cuts
        )

    async def wait_dials(self, count: int) -> None:
        """Wait until `count` dials were seen since the proxy was made."""
        while len(self.dials) < count:
            await self._sky.wait_changed()

    async def wait_links(self, count: int) -> None:
        """Wait until exactly `count` links are open."""
        while len(self._sky.links) != count:
            await self._sky.wait_changed()

    async def wait_passed(self, count: int, direction: Direction) -> None:
        """Wait until `count` bytes were passed on in one direction since the proxy was made."""
        while self._sky.passed[direction] < count:
            await self._sky.wait_changed()

    # --- the door: accepting dials ---------------------------------------------------------------------------------

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
        # A queue of length 0 still takes a connection or two; when one of ours hangs, so does everybody's.
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

    async def _accept(self, tasks: TaskGroup) -> None:
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
                continue  # closed under our hands
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.dials.append(anyio.current_time())
            link = Link(self._sky, self.target, client)
            self._sky.links.add(link)
            if self._door == "hanging up":
                link.end(self._farewell)
            tasks.start_soon(link.run)
            self._sky.touch()


def _check_seconds(**times: float) -> None:
    for name, seconds in times.items():
        if not 0 <= seconds < math.inf:
            raise InvalidArgument(name, "must be finite and not negative")
