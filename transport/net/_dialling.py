"""Connects a socket to a host: a fresh name lookup each time, and happy eyeballs (RFC 8305, without history)."""

from __future__ import annotations

import errno
import os
import socket
from itertools import zip_longest
from os import PathLike
from typing import Any, Final, NamedTuple

import anyio

from ._asyncio_stream import AsyncioSocketStream, is_supported
from ._socket_stream import SocketStream

#: Seconds to wait for one address before the next is tried in parallel (RFC 8305 section 5).
ATTEMPT_DELAY: Final = 0.25

# Seconds between attempts on a Unix socket whose queue is full.
_QUEUE_WAIT: Final = 0.05

# connect() continues in the background: the errors of POSIX, and the one of Windows.
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EAGAIN)})


class Address(NamedTuple):
    """A socket address: a family, and the address in that family's form."""

    family: int
    place: Any


def literal(address: str, port: int, zone: str | None = None) -> Address:
    """The address of an IP literal. Raises `OSError` if this machine has no interface `zone`."""
    if zone is not None:
        try:
            number = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError as error:  # its text is not in `strerror`
            raise OSError(errno.ENXIO, f"this machine has no interface {zone}") from error
        return Address(socket.AF_INET6, (address, port, 0, number))
    return Address(socket.AF_INET6 if ":" in address else socket.AF_INET, (address, port))


async def dial_name(host: str, port: int) -> SocketStream:
    """Resolve a name and connect to the first of its addresses that answers.

    Raises `OSError` with the reason of every failed address, and `socket.gaierror` if the name does not resolve.
    """
    addresses = await _look_up(host, port)
    if len(addresses) == 1:
        return await dial_address(addresses[0])
    return await _race(addresses)


async def dial_address(address: Address) -> SocketStream:
    """Connect to one address, without a task group or timers. Raises `OSError`."""
    return _stream_of(await connect_socket(address))


async def connect_socket(address: Address) -> socket.socket:
    """Connect a non-blocking socket to one address. Raises `OSError`."""
    dialling = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        dialling.setblocking(False)
        problem = dialling.connect_ex(address.place)
        if problem in _UNDER_WAY and not _is_connected(dialling):
            await anyio.wait_writable(dialling)
            problem = dialling.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem and problem not in _UNDER_WAY:
            raise OSError(problem, os.strerror(problem))
        if dialling.getsockname() == dialling.getpeername():
            # If nothing listens on a local port, the system may give us that very port, and the socket connects to
            # itself (RFC 9293 section 3.5, simultaneous open).
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        # Without this, a small frame may wait for an acknowledgement.
        dialling.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        dialling.close()
        raise
    return dialling


def _is_connected(dialling: socket.socket) -> bool:
    # A local connection is established before connect() returns; noticing it saves a turn of the loop.
    try:
        dialling.getpeername()
    except OSError:
        return False
    return True


async def dial_unix(path: str | PathLike[str]) -> SocketStream:
    """Connect to a Unix socket. Raises `OSError`."""
    dialling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        dialling.setblocking(False)
        while True:
            try:
                dialling.connect(os.fspath(path))
            except BlockingIOError:
                # Its queue of connections is full, and no event says when it has room (connect(2), EAGAIN).
                await anyio.sleep(_QUEUE_WAIT)
            else:
                break
    except BaseException:
        dialling.close()
        raise
    return _stream_of(dialling)


def _stream_of(connected: socket.socket) -> SocketStream:
    return AsyncioSocketStream(connected) if is_supported() else SocketStream(connected)


async def _look_up(host: str, port: int) -> list[Address]:
    """All addresses of a name, in the resolver's order (RFC 6724) with alternating families (RFC 8305 section 4)."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(_address(family, *place) for family, _, _, _, place in found))
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    first = [address for address in addresses if address.family == addresses[0].family]
    other = [address for address in addresses if address.family != addresses[0].family]
    return [address for pair in zip_longest(first, other) for address in pair if address is not None]


def _address(family: int, host: str, port: int) -> Address:
    # anyio appends the zone of a link-local address; `socket` wants it as a separate number.
    host, _, zone = host.partition("%")
    return Address(family, (host, port, 0, int(zone)) if zone else (host, port))


async def _race(addresses: list[Address]) -> SocketStream:
    """Try the addresses in order, the next when one fails or is slow; the first to connect wins."""
    won: SocketStream | None = None
    failures: list[OSError] = []

    async def attempt(address: Address, failed: anyio.Event) -> None:
        nonlocal won
        try:
            stream = await dial_address(address)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if won is not None:
            await stream.aclose()  # two connected at the same moment
        else:
            won = stream
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, address, failed, name="towline dial")
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        if won is not None:
            await won.aclose()
        raise
    if won is None:
        words = "; ".join(dict.fromkeys(failure.strerror or type(failure).__name__ for failure in failures))
        raise OSError(failures[-1].errno, words) from ExceptionGroup("every address failed", failures)
    return won
