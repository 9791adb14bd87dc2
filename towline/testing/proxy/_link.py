"""One link of a `FaultProxy`: a client's connection, its connection to the target, and the faults between them."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ...transport.net._dialling import Address, connect_socket
from ..memory._stream import Direction, Ending
from ._message_faults import MessageFault, MessageTamperer

_READ_SIZE: Final = 65_536
#: Pieces in flight per direction; a full queue makes the sender wait, as a full window does.
_QUEUE_SIZE: Final = 64
#: How long an orderly end waits for the peers to close too; closing sooner could turn it into a reset.
_LINGER: Final = 1.0
#: With `SO_LINGER` on and 0 seconds, `close` sends a reset.
_RESET: Final = struct.pack("ii", 1, 0)
#: Seconds of data that a throttled direction writes at once.
_SLICE: Final = 0.05
BOTH: Final[tuple[Direction, ...]] = ("up", "down")


@dataclass(slots=True)
class Weather:
    """The lasting faults of one direction; times in seconds."""

    blocked: bool = False
    latency: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float | None = None
    piece: int | None = None
    pause: float = 0.0
    gather: float = 0.0


@dataclass(slots=True)
class ArmedFault:
    """A fault at byte `at` of a link in one direction. `bit` is None for a cut."""

    at: int
    direction: Direction
    times: int
    ending: Ending = "rst"
    bit: int | None = None


@dataclass(slots=True)
class ArmedMessageFault:
    """A fault at the `number`-th message that a link carries to its client."""

    fault: MessageFault
    number: int
    times: int


class Sky:
    """The state shared by all links of a proxy: lasting faults per direction, armed faults, and counts."""

    def __init__(self, seed: int) -> None:
        self.random: Final = random.Random(seed)
        self.weather: dict[Direction, Weather] = {direction: Weather() for direction in BOTH}
        self.armed: list[ArmedFault] = []
        self.armed_messages: list[ArmedMessageFault] = []
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.links: set[Link] = set()
        self.cuts = 0
        self._changed = anyio.Event()

    def touch(self) -> None:
        """Wake every task that waits for a change."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_changed(self) -> None:
        """Wait for the next change of anything here."""
        await self._changed.wait()

    async def wait_open(self, direction: Direction) -> None:
        """Wait while a direction is a black hole."""
        while self.weather[direction].blocked:
            await self.wait_changed()

    def set(self, directions: tuple[Direction, ...], **changes: float | bool | None) -> None:
        """Change the lasting faults of some directions; of both if none is named."""
        for direction in directions or BOTH:
            self.weather[direction] = replace(self.weather[direction], **changes)  # type: ignore[arg-type]
        self.touch()

    def clear(self, *, disarm: bool) -> None:
        """Remove the lasting faults, and the armed ones if `disarm`."""
        self.weather = {direction: Weather() for direction in BOTH}
        if disarm:
            self.armed.clear()
            self.armed_messages.clear()
        self.touch()

    def count(self, direction: Direction, size: int) -> None:
        """Count forwarded bytes."""
        self.passed[direction] += size
        self.touch()

    def disarm(self, fault: ArmedFault) -> None:
        """Use up one strike of an armed fault."""
        fault.times -= 1
        if fault.times <= 0:
            self.armed.remove(fault)

    def message_fault(self, number: int) -> MessageFault | None:
        """The fault of a link's `number`-th message, None without one."""
        for armed in self.armed_messages:
            if armed.number == number:
                armed.times -= 1
                if armed.times <= 0:
                    self.armed_messages.remove(armed)
                return armed.fault
        return None

    def forget(self, link: Link, *, cut: bool) -> None:
        """Remove a link that has ended, by a fault or by itself."""
        self.links.discard(link)
        self.cuts += cut
        self.touch()


@dataclass(eq=False, slots=True)
class Link:
    """One client's connection and its connection to the target."""

    sky: Sky
    target: tuple[str, int]
    client: socket.socket
    server: socket.socket | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)
    _ending: Ending | None = None
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _carried: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def end(self, ending: Ending) -> None:
        """End the link by a fault; the first ending counts."""
        self._ending = self._ending or ending
        self._scope.cancel()

    async def run(self) -> None:
        torn = False
        try:
            with self._scope:
                await anyio.lowlevel.checkpoint()
                await self.sky.wait_open("up")
                self.server = await _dial(self.target)
                for direction in BOTH:
                    self.strike(direction)
                async with anyio.create_task_group() as pumps:
                    self._start_pump(pumps, "up", self.client, self.server)
                    self._start_pump(pumps, "down", self.server, self.client)
        except* OSError:
            torn = True  # one side reset the connection, or the target is not reachable: reset the other side too
        finally:
            await self._close(reset=torn or self._ending == "rst")

    async def _close(self, *, reset: bool) -> None:
        # End both sides before any waiting task learns of it.
        sockets = [one for one in (self.client, self.server) if one is not None]
        for one in sockets:
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.close()
            else:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_WR)
        self.sky.forget(self, cut=self._ending is not None)
        self.ended.set()
        try:
            if not reset:
                with anyio.move_on_after(_LINGER):
                    async with anyio.create_task_group() as group:
                        for one in sockets:
                            group.start_soon(_discard, one)
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
                await self.sky.wait_open(direction)
                await anyio.wait_readable(source)
                weather = self.sky.weather[direction]
                if weather.blocked:
                    continue
                try:
                    data = source.recv(_READ_SIZE)
                except BlockingIOError:
                    continue
                late = weather.latency + self.sky.random.uniform(0, weather.jitter)
                due = max(due, anyio.current_time() + late)  # bytes never overtake each other
                try:
                    await pieces.send((due, data))
                except anyio.BrokenResourceError:
                    return  # the writer has ended, and its own error ends the link
                if not data:
                    return

    async def _write(
        self, direction: Direction, sink: socket.socket, pieces: MemoryObjectReceiveStream[tuple[float, bytes]]
    ) -> None:
        # Only links opened while such a fault is armed are parsed: the others forward bytes as they come.
        tamperer = None
        if direction == "down" and self.sky.armed_messages:
            tamperer = MessageTamperer(self.sky.message_fault)
        with pieces:
            async for due, data in pieces:
                await anyio.sleep_until(due)
                gathering = self.sky.weather[direction].gather
                if data and gathering:
                    await anyio.sleep(gathering)
                    data, finished = _join(data, pieces)
                else:
                    finished = not data
                if tamperer is not None:
                    data = tamperer.feed(data) + (tamperer.finish() if finished else b"")
                await self._forward(direction, sink, data)
                if finished:
                    await self.sky.wait_open(direction)
                    sink.shutdown(socket.SHUT_WR)
                    return

    async def _forward(self, direction: Direction, sink: socket.socket, data: bytes) -> None:
        while data:
            await self.sky.wait_open(direction)
            weather = self.sky.weather[direction]
            size = min([len(data), weather.piece or len(data), *self._distances(direction)])
            pause = weather.pause
            if weather.bytes_per_second is not None:
                size = min(size, max(1, int(weather.bytes_per_second * _SLICE)))
                pause = max(pause, size / weather.bytes_per_second)
            piece, data = data[:size], data[size:]
            await _send_all(sink, self._damage(direction, piece))
            self._carried[direction] += size
            self.sky.count(direction, size)
            self.strike(direction)
            await anyio.sleep(pause)

    # --- armed faults ----------------------------------------------------------------------------------------------

    def _distances(self, direction: Direction) -> list[int]:
        """How many bytes away the armed cuts are."""
        here = self._carried[direction]
        return [
            fault.at - here
            for fault in self.sky.armed
            if fault.direction == direction and fault.bit is None and fault.at > here
        ]

    def strike(self, direction: Direction) -> None:
        """End the link if a cut is armed for exactly this byte."""
        for fault in self.sky.armed:
            if fault.direction == direction and fault.bit is None and fault.at == self._carried[direction]:
                self.sky.disarm(fault)
                self.end(fault.ending)
                return

    def _damage(self, direction: Direction, piece: bytes) -> bytes:
        here = self._carried[direction]
        damaged = bytearray(piece)
        for fault in list(self.sky.armed):
            if fault.direction == direction and fault.bit is not None and here <= fault.at < here + len(piece):
                damaged[fault.at - here] ^= 1 << fault.bit
                self.sky.disarm(fault)
        return bytes(damaged)


# --- sockets -----------------------------------------------------------------------------------------------------


async def _dial(target: tuple[str, int]) -> socket.socket:
    (family, _, _, _, place), *_ = await anyio.getaddrinfo(*target, type=socket.SOCK_STREAM)
    return await connect_socket(Address(family, place))


async def _send_all(sink: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sink.send(data) :]
        except BlockingIOError:
            await anyio.wait_writable(sink)


async def _discard(source: socket.socket) -> None:
    with suppress(OSError):
        while True:
            await anyio.wait_readable(source)
            with suppress(BlockingIOError):
                if not source.recv(_READ_SIZE):
                    return


def _join(first: bytes, pieces: MemoryObjectReceiveStream[tuple[float, bytes]]) -> tuple[bytes, bool]:
    """The other pieces that have arrived, joined to the first; and whether the end-of-file was among them."""
    gathered = [first]
    with suppress(anyio.WouldBlock, anyio.EndOfStream):
        while gathered[-1]:
            gathered.append(pieces.receive_nowait()[1])
    return b"".join(gathered), not gathered[-1]
