"""logind tells before the machine sleeps, and waits a little for whoever holds a delay inhibitor (systemd's D-Bus
interface org.freedesktop.login1).

The D-Bus conversation is jeepney's, which does no I/O of its own here; the bytes go over anyio.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import anyio
from anyio.abc import SocketAttribute, UNIXSocketStream
from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, message_bus, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import Parser

_LOGIND = DBusAddress(
    "/org/freedesktop/login1", bus_name="org.freedesktop.login1", interface="org.freedesktop.login1.Manager"
)
_PREPARE_FOR_SLEEP = MatchRule(
    type="signal", interface="org.freedesktop.login1.Manager", member="PrepareForSleep", path="/org/freedesktop/login1"
)


class LogindUnavailable(Exception):
    """There is no system bus or no logind on it, or it will not talk to us. Nothing was begun."""


class Logind:
    """One conversation with logind; `connect_logind` opens it."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._stream = stream
        self._parser = Parser()
        self._serials = count(1)
        self._signals: list[Message] = []

    async def watch_sleep(
        self, before_sleep: Callable[[], Awaitable[object]], after_sleep: Callable[[], object]
    ) -> None:
        """Await `before_sleep()` before each sleep, while it is held back; call `after_sleep()` on waking.

        logind waits at most its `InhibitDelayMaxSec` (5 s unless changed). Raises `LogindUnavailable` when the
        conversation ends.
        """
        await self._call(message_bus.AddMatch(_PREPARE_FOR_SLEEP))
        lock = await self._inhibit()
        try:
            while True:
                (sleeping,) = (await self._next_signal()).body
                if sleeping:
                    try:
                        await before_sleep()
                    finally:
                        lock.close()  # from here on the machine may sleep
                else:
                    after_sleep()
                    lock.close()
                    lock = await self._inhibit()
        finally:
            lock.close()

    async def _inhibit(self) -> FileDescriptor:
        ask = new_method_call(
            _LOGIND, "Inhibit", "ssss", ("sleep", "Towline", "part from the server in good order", "delay")
        )
        lock = (await self._call(ask)).body[0]
        if not isinstance(lock, FileDescriptor):
            raise LogindUnavailable("logind gave no lock")
        return lock

    async def _next_signal(self) -> Message:
        while not self._signals:
            self._sort(await self._receive())
        return self._signals.pop(0)

    async def _call(self, message: Message) -> Message:
        serial = next(self._serials)
        try:
            await self._stream.send(message.serialise(serial))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise LogindUnavailable("the bus is gone") from error
        while True:
            answer = await self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) != serial:
                self._sort(answer)
            elif answer.header.message_type is MessageType.error:
                raise LogindUnavailable(str(answer.header.fields.get(HeaderFields.error_name)))
            else:
                return answer

    def _sort(self, message: Message) -> None:
        if message.header.fields.get(HeaderFields.member) == "PrepareForSleep":
            self._signals.append(message)

    async def _receive(self) -> Message:
        while (message := self._parser.get_next_message()) is None:
            try:
                data, descriptors = await self._receive_fds(self._parser.bytes_desired())
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                raise LogindUnavailable("the bus is gone") from error
            if not data:
                raise LogindUnavailable("the bus is gone")
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


@asynccontextmanager
async def connect_logind(address: str = "SYSTEM") -> AsyncIterator[Logind]:
    """Open a conversation on a bus (a D-Bus address, or the system's). Raises `LogindUnavailable`."""
    stream = await _open(address)
    async with stream:
        logind = Logind(stream)
        try:
            await logind._call(message_bus.Hello())
            await logind._call(message_bus.GetNameOwner(_LOGIND.bus_name))
            yield logind
        finally:
            for one in logind._parser.fds:
                one.close()  # a lock that came with a message of which the rest did not


async def _open(address: str) -> UNIXSocketStream:
    try:
        stream = await anyio.connect_unix(get_bus(address))
    except (OSError, RuntimeError, ValueError, StopIteration) as error:
        raise LogindUnavailable("there is no system bus") from error
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
            raise LogindUnavailable("the bus did not let us in") from error
        raise
    return stream
