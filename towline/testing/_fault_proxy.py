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

import errno
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .._exceptions import InvalidArgument
from ._memory_stream import Direction, Ending

_READ_SIZE: Final = 65_536
#: Pieces under way in one direction; a full queue makes the sender wait, as a full window does.
_QUEUE_SIZE: Final = 64
#: How long an orderly end waits for the peers to close too; closing sooner could turn it into a reset.
_LINGER: Final = 1.0
#: With `SO_LINGER` on and 0 seconds, `close` sends a reset.
_RESET: Final = struct.pack("ii", 1, 0)
#: A throttled direction writes what may pass in this time, in seconds.
_SLICE: Final = 0.05
_BOTH: Final[tuple[Direction, ...]] = ("up", "down")


@dataclass(slots=True)
class _Weather:
    """What one direction is like; times in seconds."""

    blocked: bool = False
    latency: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float | None = None
    piece: int | None = None
    pause: float = 0.0
    gather: float = 0.0


@dataclass(slots=True)
class _Armed:
    """A fault that waits for byte `at` of a link in one direction. `bit` is None for a cut."""

    at: int
    direction: Direction
    times: int
    ending: Ending = "rst"
    bit: int | None = None


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
        self.random: Final = random.Random(seed)
        self._weather: dict[Direction, _Weather] = {"up": _Weather(), "down": _Weather()}
        self._armed: list[_Armed] = []
        self._door: Literal["open", "refusing", "dropping", "hanging up"] = "open"
        self._farewell: Ending = "fin"
        self._listener: socket.socket | None = None
        self._plugs: list[socket.socket] = []
        self._links: set[_Link] = set()
        self._passed: dict[Direction, int] = {"up": 0, "down": 0}
        self._cuts = 0
        self._changed = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        self._open_door()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._accept, tasks)
                yield self
                tasks.cancel_scope.cancel()
        finally:
            self._close_door()

    # --- links, now ------------------------------------------------------------------------------------------------

    async def cut(self, ending: Ending = "fin") -> int:
        """End every present link, to both sides; returns how many there were. New dials are let in."""
        links = list(self._links)
        for link in links:
            link.end(ending)
        for link in links:
            await link.ended.wait()
        return len(links)

    # --- weather ---------------------------------------------------------------------------------------------------

    def black_hole(self, *directions: Direction) -> None:
        """Carry nothing any more (both ways, if none is named), and tell nobody. Dials are accepted, as by a system
        whose server is stopped. What was on its way arrives after `heal()`, as TCP would send it again."""
        self._set(directions, blocked=True)

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
        self._door, self._farewell = "hanging up", ending

    def delay(self, latency: float, *directions: Direction, jitter: float = 0.0) -> None:
        """Deliver everything `latency` seconds late, and up to `jitter` seconds later still, in order."""
        self._set(directions, latency=latency, jitter=jitter)

    def throttle(self, bytes_per_second: float, *directions: Direction) -> None:
        """Limit how much passes in a second. Raises `InvalidArgument` unless it is positive."""
        if bytes_per_second <= 0:
            raise InvalidArgument("bytes_per_second", "must be positive; nothing passes a black hole")
        self._set(directions, bytes_per_second=bytes_per_second)

    def chop(self, piece: int = 1, *directions: Direction, pause: float = 0.0) -> None:
        """Write at most `piece` bytes at once, `pause` seconds apart: one-byte reads, or a slow loris."""
        if piece < 1:
            raise InvalidArgument("piece", "must be at least one byte")
        self._set(directions, piece=piece, pause=pause)

    def gather(self, seconds: float, *directions: Direction) -> None:
        """Keep bytes for some time and pass them on as one: many frames in one segment."""
        self._set(directions, gather=seconds)

    async def heal(self) -> None:
        """Fair weather: everything passes, dials are accepted, nothing is armed. Links that are cut stay cut."""
        self._weather = {"up": _Weather(), "down": _Weather()}
        self._armed.clear()
        if self._door in ("refusing", "dropping"):
            self._close_door()
            self._open_door()
        self._door = "open"
        self._touch()
        await anyio.lowlevel.checkpoint()

    # --- armed faults ----------------------------------------------------------------------------------------------

    def cut_after(self, count: int, direction: Direction, ending: Ending = "rst", *, times: int = 1) -> None:
        """End a link when it has passed on exactly `count` bytes in one direction, counted from its beginning.

        It strikes the first link that gets there, `times` times in all. What came before byte `count` is delivered.
        """
        self._armed.append(_Armed(count, direction, times, ending))
        for link in list(self._links):
            link.strike(direction)

    def flip_bit(self, number: int, direction: Direction, *, times: int = 1) -> None:
        """Turn over one bit (8n+k is bit k of byte n, counted from a link's beginning) as it passes."""
        place, bit = divmod(number, 8)
        self._armed.append(_Armed(place, direction, times, bit=bit))

    # --- what it tells ---------------------------------------------------------------------------------------------

    def statistics(self) -> ProxyStatistics:
        """Figures since the proxy was made."""
        return ProxyStatistics(len(self.dials), len(self._links), self._passed["up"], self._passed["down"], self._cuts)

    async def wait_dials(self, count: int) -> None:
        """Wait until `count` dials were seen since the proxy was made."""
        while len(self.dials) < count:
            await self._changed.wait()

    async def wait_links(self, count: int) -> None:
        """Wait until exactly `count` links are open."""
        while len(self._links) != count:
            await self._changed.wait()

    async def wait_passed(self, count: int, direction: Direction) -> None:
        """Wait until `count` bytes were passed on in one direction since the proxy was made."""
        while self._passed[direction] < count:
            await self._changed.wait()

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
        self._touch()

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
            changed, listener = self._changed, self._listener
            if listener is None or self._door in ("refusing", "dropping"):
                await changed.wait()
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
            link = _Link(self, client)
            self._links.add(link)
            if self._door == "hanging up":
                link.end(self._farewell)
            tasks.start_soon(link.run)
            self._touch()

    # --- for the links ---------------------------------------------------------------------------------------------

    def _set(self, directions: tuple[Direction, ...], **changes: float | bool | None) -> None:
        for direction in directions or _BOTH:
            self._weather[direction] = replace(self._weather[direction], **changes)  # type: ignore[arg-type]
        self._touch()

    def _touch(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _gone(self, link: _Link, *, cut: bool) -> None:
        self._links.discard(link)
        self._cuts += cut
        self._touch()

    def _count(self, direction: Direction, size: int) -> None:
        self._passed[direction] += size
        self._touch()

    def _disarm(self, fault: _Armed) -> None:
        fault.times -= 1
        if fault.times <= 0:
            self._armed.remove(fault)

    async def _wait_open(self, direction: Direction) -> None:
        while self._weather[direction].blocked:
            await self._changed.wait()


@dataclass(eq=False, slots=True)
class _Link:
    """One dial and its connection to the target."""

    proxy: FaultProxy
    client: socket.socket
    server: socket.socket | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)
    _ending: Ending | None = None
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _carried: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def end(self, ending: Ending) -> None:
        """End it by a fault; the first ending counts."""
        self._ending = self._ending or ending
        self._scope.cancel()

    async def run(self) -> None:
        torn = False
        try:
            with self._scope:
                await anyio.lowlevel.checkpoint()
                await self.proxy._wait_open("up")
                self.server = await _dial(self.proxy.target)
                for direction in _BOTH:
                    self.strike(direction)
                async with anyio.create_task_group() as pumps:
                    self._start_pump(pumps, "up", self.client, self.server)
                    self._start_pump(pumps, "down", self.server, self.client)
        except* OSError:
            torn = True  # one side tore it, or the target is not there: tear the other side too
        finally:
            await self._close(reset=torn or self._ending == "rst")

    async def _close(self, *, reset: bool) -> None:
        # The end is told to both sides before anybody learns that it has come.
        sockets = [one for one in (self.client, self.server) if one is not None]
        for one in sockets:
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.close()
            else:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_WR)
        self.proxy._gone(self, cut=self._ending is not None)
        self.ended.set()
        try:
            if not reset:
                with anyio.move_on_after(_LINGER):
                    async with anyio.create_task_group() as group:
                        for one in sockets:
                            group.start_soon(_read_away, one)
        finally:
            for one in sockets:
                one.close()

    def _start_pump(self, pumps: TaskGroup, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        pieces_in, pieces_out = anyio.create_memory_object_stream[tuple[float, bytes]](_QUEUE_SIZE)
        pumps.start_soon(self._read, direction, source, pieces_in)
        pumps.start_soon(self._write, direction, sink, pieces_out)

    async def _read(
        self, direction: Direction, source: socket.socket, pieces: MemoryObjectSendStream[tuple[float, bytes]]
    ) -> None:
        due = 0.0
        with pieces:
            while True:
                await self.proxy._wait_open(direction)
                await anyio.wait_readable(source)
                weather = self.proxy._weather[direction]
                if weather.blocked:
                    continue
                try:
                    data = source.recv(_READ_SIZE)
                except BlockingIOError:
                    continue
                late = weather.latency + self.proxy.random.uniform(0, weather.jitter)
                due = max(due, anyio.current_time() + late)  # bytes never overtake each other
                await pieces.send((due, data))
                if not data:
                    return

    async def _write(
        self, direction: Direction, sink: socket.socket, pieces: MemoryObjectReceiveStream[tuple[float, bytes]]
    ) -> None:
        with pieces:
            async for due, data in pieces:
                await anyio.sleep_until(due)
                gathering = self.proxy._weather[direction].gather
                if data and gathering:
                    await anyio.sleep(gathering)
                    data, finished = _join(data, pieces)
                else:
                    finished = not data
                await self._pass_on(direction, sink, data)
                if finished:
                    await self.proxy._wait_open(direction)
                    sink.shutdown(socket.SHUT_WR)
                    return

    async def _pass_on(self, direction: Direction, sink: socket.socket, data: bytes) -> None:
        while data:
            await self.proxy._wait_open(direction)
            weather = self.proxy._weather[direction]
            size = min([len(data), weather.piece or len(data), *self._distances(direction)])
            pause = weather.pause
            if weather.bytes_per_second is not None:
                size = min(size, max(1, int(weather.bytes_per_second * _SLICE)))
                pause = max(pause, size / weather.bytes_per_second)
            piece, data = data[:size], data[size:]
            await _send_all(sink, self._damage(direction, piece))
            self._carried[direction] += size
            self.proxy._count(direction, size)
            self.strike(direction)
            await anyio.sleep(pause)

    # --- armed faults ----------------------------------------------------------------------------------------------

    def _distances(self, direction: Direction) -> list[int]:
        """How many bytes from here the armed cuts are."""
        here = self._carried[direction]
        return [
            fault.at - here
            for fault in self.proxy._armed
            if fault.direction == direction and fault.bit is None and fault.at > here
        ]

    def strike(self, direction: Direction) -> None:
        """End the link if a cut is armed for just this byte."""
        for fault in self.proxy._armed:
            if fault.direction == direction and fault.bit is None and fault.at == self._carried[direction]:
                self.proxy._disarm(fault)
                self.end(fault.ending)
                return

    def _damage(self, direction: Direction, piece: bytes) -> bytes:
        here = self._carried[direction]
        damaged = bytearray(piece)
        for fault in list(self.proxy._armed):
            if fault.direction == direction and fault.bit is not None and here <= fault.at < here + len(piece):
                damaged[fault.at - here] ^= 1 << fault.bit
                self.proxy._disarm(fault)
        return bytes(damaged)


# --- sockets -----------------------------------------------------------------------------------------------------


async def _dial(target: tuple[str, int]) -> socket.socket:
    (family, kind, proto, _, address), *_ = await anyio.getaddrinfo(*target, type=socket.SOCK_STREAM)
    server = socket.socket(family, kind, proto)
    try:
        server.setblocking(False)
        problem = server.connect_ex(address)
        if problem in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            await anyio.wait_writable(server)
            problem = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise OSError(problem, os.strerror(problem))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        server.close()
        raise
    return server


async def _send_all(sink: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sink.send(data) :]
        except BlockingIOError:
            await anyio.wait_writable(sink)


async def _read_away(source: socket.socket) -> None:
    with suppress(OSError):
        while True:
            await anyio.wait_readable(source)
            with suppress(BlockingIOError):
                if not source.recv(_READ_SIZE):
                    return


def _join(first: bytes, pieces: MemoryObjectReceiveStream[tuple[float, bytes]]) -> tuple[bytes, bool]:
    """What else has arrived, in one piece; and whether the end-of-file was among it."""
    gathered = [first]
    with suppress(anyio.WouldBlock, anyio.EndOfStream):
        while gathered[-1]:
            gathered.append(pieces.receive_nowait()[1])
    return b"".join(gathered), not gathered[-1]
