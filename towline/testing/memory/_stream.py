"""One TCP-like connection in memory: two byte streams and the faults between them.

`MemoryLink.client` and `MemoryLink.server` are its ends. They use no socket, no thread and only the event loop's clock,
so they work under virtual time. They raise the same errors as anyio's streams (`EndOfStream`, `BrokenResourceError`,
`ClosedResourceError`, `BusyResourceError`).

A direction is named after where the bytes go: "up" from the client to the server, "down" back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

import anyio
from anyio.abc import ByteStream

#: The direction of bytes: "up" to the server, "down" to the client.
Direction: TypeAlias = Literal["up", "down"]
#: The way a connection ends: orderly with end-of-file ("fin"), or with a reset ("rst").
Ending: TypeAlias = Literal["fin", "rst"]

#: Bytes that a direction holds before its sender must wait.
_CAPACITY = 65_536


class _Flow:
    """One direction: the bytes in flight, each piece with its time of arrival."""

    def __init__(self) -> None:
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.carried = 0
        self.latency = 0.0
        self.held = False
        self.finished_at: float | None = None  # when the sender's end-of-file arrives
        self.torn = False  # whether it is a reset instead
        self.reader_gone = False
        self.largest_read: int | None = None
        self.ends_after: tuple[int, Callable[[], None]] | None = None
        self.flipped_bit: int | None = None
        self._changed = anyio.Event()

    def touch(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_touched(self, until: float | None = None) -> None:
        changed = self._changed
        if until is None:
            await changed.wait()
        else:
            with anyio.move_on_after(max(0, until - anyio.current_time())):
                await changed.wait()

    def finish(self, ending: Ending) -> None:
        if self.finished_at is None:
            self.finished_at = anyio.current_time() + self.latency
        self.torn = self.torn or ending == "rst"
        self.touch()

    def put(self, data: bytes) -> None:
        if self.flipped_bit is not None and self.carried <= self.flipped_bit // 8 < self.carried + len(data):
            place, bit = divmod(self.flipped_bit, 8)
            damaged = bytearray(data)
            damaged[place - self.carried] ^= 1 << bit
            data = bytes(damaged)
        end: Callable[[], None] | None = None
        if self.ends_after is not None and self.carried + len(data) >= self.ends_after[0]:
            data, end = data[: max(0, self.ends_after[0] - self.carried)], self.ends_after[1]
        if data:
            self.pieces.append((anyio.current_time() + self.latency, data))
            self.size += len(data)
            self.carried += len(data)
        if end is not None:
            end()
        self.touch()

    def take(self, most: int) -> bytes:
        """Join the bytes that have arrived, at most `most`."""
        if self.largest_read is not None:
            most = min(most, self.largest_read)
        now, taken, room = anyio.current_time(), [], most
        while room and self.pieces and self.pieces[0][0] <= now:
            due, data = self.pieces.popleft()
            if len(data) > room:
                self.pieces.appendleft((due, data[room:]))
                data = data[:room]
            taken.append(data)
            room -= len(data)
        self.size -= most - room
        self.touch()
        return taken[0] if len(taken) == 1 else b"".join(taken)


class MemoryLink:
    """An in-memory connection. Its faults affect both ends at once, or one direction.

    The faults of a direction: `hold` (a black hole: bytes are accepted but never arrive), `latency`, `largest_read`
    (the most bytes per read: 1 splits everything), `end_after` n bytes, `flip_bit`. `cut` ends the whole link.
    """

    def __init__(self, *, latency: float = 0.0) -> None:
        self._flows: dict[Direction, _Flow] = {"up": _Flow(), "down": _Flow()}
        self._torn = False
        self.client: ByteStream = _End(self, out=self._flows["up"], into=self._flows["down"])
        self.server: ByteStream = _End(self, out=self._flows["down"], into=self._flows["up"])
        self.set_latency(latency)

    @property
    def torn(self) -> bool:
        """Whether the link was reset: then both ends raise `BrokenResourceError`."""
        return self._torn

    @property
    def closed(self) -> bool:
        """Whether no more bytes can be sent in either direction."""
        return self._torn or all(flow.finished_at is not None for flow in self._flows.values())

    def carried(self, direction: Direction) -> int:
        """Bytes sent so far in one direction, whether they arrived or not."""
        return self._flows[direction].carried

    def cut(self, ending: Ending = "rst") -> None:
        """End the link now: both ends read the bytes sent before, then end-of-file ("fin") or the reset ("rst").

        Bytes on hold are lost. After "rst" neither end can send.
        """
        self._torn = self._torn or ending == "rst"
        for flow in self._flows.values():
            if flow.held:
                flow.pieces.clear()
                flow.held = False
            flow.finish(ending)

    def hold(self, *directions: Direction) -> None:
        """Let nothing arrive any more (in both directions if none is named), without a sign of it."""
        for direction in directions or ("up", "down"):
            self._flows[direction].held = True

    def release(self) -> None:
        """Let bytes on hold arrive, as TCP does when the network works again."""
        for flow in self._flows.values():
            flow.held = False
            flow.touch()

    def set_latency(self, seconds: float, *directions: Direction) -> None:
        """Set the seconds between a send and its arrival, for later sends."""
        for direction in directions or ("up", "down"):
            self._flows[direction].latency = seconds

    def set_largest_read(self, size: int | None, *directions: Direction) -> None:
        """Set the most bytes that one read returns; None for no limit."""
        for direction in directions or ("up", "down"):
            self._flows[direction].largest_read = size

    def end_after(self, count: int, direction: Direction, ending: Ending = "rst") -> None:
        """End the link once `count` bytes, counted from its start, were sent in one direction."""
        flow = self._flows[direction]
        flow.ends_after = (count, lambda: self.cut(ending))
        if flow.carried >= count:
            self.cut(ending)

    def flip_bit(self, number: int, direction: Direction) -> None:
        """Flip one bit, counted from the link's start (bit 8n+k is bit k of byte n), when it passes."""
        self._flows[direction].flipped_bit = number


class _End(ByteStream):
    """One end of a `MemoryLink`."""

    def __init__(self, link: MemoryLink, *, out: _Flow, into: _Flow) -> None:
        self._link = link
        self._out = out
        self._into = into
        self._closed = False
        self._receiving = anyio.ResourceGuard("receiving from")
        self._sending = anyio.ResourceGuard("sending to")

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        await anyio.lowlevel.checkpoint()
        flow = self._into
        with self._receiving:
            while True:
                if self._closed:
                    raise anyio.ClosedResourceError
                due = flow.pieces[0][0] if flow.pieces else flow.finished_at
                if flow.held:
                    due = None
                elif due is not None and due <= anyio.current_time():
                    if flow.pieces:
                        return flow.take(max_bytes)
                    raise anyio.BrokenResourceError if flow.torn else anyio.EndOfStream
                await flow.wait_touched(due)

    async def send(self, item: bytes) -> None:
        # As on a socket: a send that is cancelled before it starts, or while it waits for room, sends nothing. A send
        # that has started and has room completes.
        await anyio.lowlevel.checkpoint_if_cancelled()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        flow = self._out
        with self._sending:
            while True:
                if self._closed:
                    raise anyio.ClosedResourceError
                if self._link.torn or flow.finished_at is not None or (flow.reader_gone and not flow.held):
                    raise anyio.BrokenResourceError
                if flow.size < _CAPACITY:
                    flow.put(bytes(item))
                    return
                await flow.wait_touched()

    async def send_eof(self) -> None:
        self._out.finish("fin")
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        self._into.reader_gone = True
        self._into.touch()
        self._out.finish("fin")
        await anyio.lowlevel.checkpoint()
