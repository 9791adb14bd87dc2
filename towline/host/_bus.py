"""A connection to a message bus (D-Bus specification, "Message Protocol").

jeepney implements the protocol, without I/O; the bytes are sent and received with anyio.
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

#: Seconds that a bus may take to authenticate us and to answer calls to itself; our user waits meanwhile.
PATIENCE: Final = 5.0
#: Seconds that a service on the bus may take to answer; D-Bus's own libraries use the same timeout.
ANSWER: Final = 25.0


class BusUnavailable(OSError):
    """The bus does not exist, rejected us, or closed the connection. The connection cannot be used any more."""


class CallRefused(BusUnavailable):
    """A call was answered with an error; the text is the error's name. The connection can still be used."""


class Bus:
    """A connection to a bus, for one task; `open_bus` opens it. Every method raises `BusUnavailable`."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._stream = stream
        self._parser = Parser()
        self._serials = count(1)
        self._signals: list[Message] = []

    async def call(self, message: Message) -> Any:
        """Make a call and return the body of its answer. It starts no service.

        Raises `CallRefused`, and `BusUnavailable` if no answer arrives within `ANSWER` seconds.
        """
        message.header.flags |= MessageFlag.no_auto_start
        with within(ANSWER):
            return await self._call(message)

    async def _call(self, message: Message) -> Any:
        serial = next(self._serials)
        try:
            await self._stream.send(message.serialise(serial))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise BusUnavailable("the connection to the bus was lost") from error
        while True:
            answer = await self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) != serial:
                self._store_signal(answer)
            elif answer.header.message_type is MessageType.error:
                raise CallRefused(str(answer.header.fields.get(HeaderFields.error_name)))
            else:
                return answer.body

    async def next_signal(self) -> Message:
        """Wait for a signal subscribed to with `AddMatch`, or return one that arrived during a call."""
        while not self._signals:
            self._store_signal(await self._receive())
        return self._signals.pop(0)

    def forget_signals(self) -> None:
        """Drop the signals that have arrived already."""
        self._signals.clear()

    def _store_signal(self, message: Message) -> None:
        # The bus sends NameAcquired without a subscription.
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
                raise BusUnavailable("the connection to the bus was lost") from error
            if not data:
                raise BusUnavailable("the connection to the bus was lost")
            self._parser.add_data(data, [FileDescriptor(one) for one in descriptors])
        return message

    async def _receive_fds(self, size: int) -> tuple[bytes, list[int]]:
        # Do not use the stream's own `receive_fds`. On asyncio, if it is cancelled as data arrives, its callback finds
        # a finished future, and the loop reports an error. `wait_readable` handles this.
        raw = self._stream.extra(SocketAttribute.raw_socket)
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(raw, size, 4)
            except BlockingIOError:
                await anyio.wait_readable(raw)
            else:
                return data, descriptors

    def close_descriptors(self) -> None:
        """Close the file descriptors of a message that was not received completely."""
        for one in self._parser.fds:
            one.close()


@asynccontextmanager
async def open_bus(address: str = "SYSTEM") -> AsyncIterator[Bus]:
    """Open a connection to a bus (a D-Bus address, or the system's). Raises `BusUnavailable`."""
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
    """Raise `BusUnavailable` if the block takes longer than `seconds`."""
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
            raise BusUnavailable("the bus rejected the login") from error
        raise
    return stream
