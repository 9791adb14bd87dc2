"""A conversation with a message bus (D-Bus specification, "Message Protocol").

The protocol is jeepney's, which does no I/O of its own here; the bytes go over anyio.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Final

import anyio
from anyio.abc import SocketAttribute, UNIXSocketStream
from jeepney import HeaderFields, Message, MessageFlag, MessageType, message_bus
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import Parser

#: How long a bus may take to let us in and to answer for itself, in seconds; our user waits for it.
PATIENCE: Final = 5.0
#: How long a service on it may take to answer, in seconds: what D-Bus's own libraries wait.
ANSWER: Final = 25.0


class BusUnavailable(OSError):
    """There is no such bus, it will not talk to us, or it went away. The conversation is over."""


class CallRefused(BusUnavailable):
    """A call was answered with an error, of which this is the name. The conversation may go on."""


class Bus:
    """One conversation, for one task; `open_bus` begins it. Every method raises `BusUnavailable`."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._stream = stream
        self._parser = Parser()
        self._serials = count(1)
        self._signals: list[Message] = []

    async def call(self, message: Message) -> Any:
        """Make a call and return the body of its answer. No service is started by it. Raises `CallRefused`, and
        `BusUnavailable` too if there is no answer within `ANSWER` seconds.
        """
        message.header.flags |= MessageFlag.no_auto_start
        with within(ANSWER):
            return await self._call(message)

    async def _call(self, message: Message) -> Any:
        serial = next(self._serials)
        try:
            await self._stream.send(message.serialise(serial))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise BusUnavailable("the bus is gone") from error
        while True:
            answer = await self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) != serial:
                self._keep(answer)
            elif answer.header.message_type is MessageType.error:
                raise CallRefused(str(answer.header.fields.get(HeaderFields.error_name)))
            else:
                return answer.body

    async def next_signal(self) -> Message:
        """Wait for a signal that was asked for (`AddMatch`), or take one that came during a call."""
        while not self._signals:
            self._keep(await self._receive())
        return self._signals.pop(0)

    def forget_signals(self) -> None:
        """Drop the signals that have come already."""
        self._signals.clear()

    def _keep(self, message: Message) -> None:
        # The bus itself tells us the name that we were given; nobody asked for that.
        if (
            message.header.message_type is MessageType.signal
            and message.header.fields.get(HeaderFields.member) != "NameAcquired"
        ):
            self._signals.append(message)

    async def _receive(self) -> Message:
        while (message := self._parser.get_next_message()) is None:
            try:
                data, descriptors = await self._receive_fds(self._parser.bytes_desired())
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                raise BusUnavailable("the bus is gone") from error
            if not data:
                raise BusUnavailable("the bus is gone")
            self._parser.add_data(data, [FileDescriptor(one) for one in descriptors])
        return message

    async def _receive_fds(self, size: int) -> tuple[bytes, list[int]]:
        # Not the stream's own `receive_fds`: on asyncio, when it is cancelled as data comes in, its callback finds a
        # future that is done, and the loop reports that as an error. `wait_readable` is ready for it.
        raw = self._stream.extra(SocketAttribute.raw_socket)
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(raw, size, 4)
            except BlockingIOError:
                await anyio.wait_readable(raw)
            else:
                return data, descriptors

    def close_descriptors(self) -> None:
        """Close those that came with a message of which the rest did not."""
        for one in self._parser.fds:
            one.close()


@asynccontextmanager
async def open_bus(address: str = "SYSTEM") -> AsyncIterator[Bus]:
    """Begin a conversation on a bus (a D-Bus address, or the system's). Raises `BusUnavailable`."""
    with within(PATIENCE):
        stream = await _open(address)
    async with stream:
        bus = Bus(stream)
        try:
            with within(PATIENCE):
                await bus.call(message_bus.Hello())
            yield bus
        finally:
            bus.close_descriptors()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `BusUnavailable` if what the block waits for takes longer."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise BusUnavailable("the bus does not answer")


async def _open(address: str) -> UNIXSocketStream:
    try:
        stream = await anyio.connect_unix(get_bus(address))
    except (OSError, RuntimeError, ValueError, StopIteration) as error:
        raise BusUnavailable("there is no system bus") from error
    try:
        talk: Any = Authenticator(enable_fds=True)
        for data in talk:
            if data:
                await stream.send(data)
            else:
                talk.feed(await stream.receive())
        await stream.send(BEGIN)
    except BaseException as error:
        await anyio.aclose_forcefully(stream)
        if isinstance(error, Exception):
            raise BusUnavailable("the bus did not let us in") from error
        raise
    return stream
