"""The network path on Linux, from the kernel's routing events (rtnetlink(7)). It needs no privileges.

The path is the route that the kernel would use now: its interface, its source address, and whether that interface has a
carrier. Only the carrier shows an unplugged cable, because the address and the route stay.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final

import anyio

from ._path import ANYWHERE, Path

# linux/netlink.h, linux/rtnetlink.h, linux/if.h
_NLM_F_REQUEST: Final = 1
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PREFSRC: Final = 7
_IFLA_IFNAME: Final = 3
_RUNNING: Final = 0x1 | 0x10000  # IFF_UP and IFF_LOWER_UP: enabled, with a carrier
_RTN_UNICAST: Final = 1
_RTN_LOCAL: Final = 2
_RTMGRP: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000  # links; IPv4, IPv6 addresses, routes and rules

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type


class NetlinkPathSource:
    """Reads the path from the kernel. `towards` are IP literals; the first with a route decides. Raises `OSError`."""

    def __init__(self, towards: Iterable[str] = ANYWHERE) -> None:
        self._towards = tuple(map(ipaddress.ip_address, towards))
        self._sequence = 0
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._events.setblocking(False)
            self._events.bind((0, _RTMGRP))
            self._questions = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._questions.settimeout(1)  # the kernel answers during the call that asks; this is for a broken one
            self._questions.bind((0, 0))
        except BaseException:
            self._events.close()
            raise

    def read(self) -> Path:
        """See `PathSource.read`."""
        for address in self._towards:
            route = self._find_route(address)
            if route is None:
                continue
            index, source = route
            name, running = self._find_link(index)
            if running:
                return Path(up=True, identity=f"{name} {source}")
        return Path(up=False)

    async def wait_hint(self) -> None:
        """See `PathSource.wait_hint`."""
        await anyio.wait_readable(self._events)
        try:
            while self._events.recv(65_536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost: that is a hint too, because the path is read again
                raise

    def close(self) -> None:
        """Close both sockets."""
        self._events.close()
        self._questions.close()

    def _find_route(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> tuple[int, str] | None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        packed = address.packed
        body = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, packed)
        for kind, answer in self._ask(_RTM_GETROUTE, body):
            if kind != _RTM_NEWROUTE:
                return None
            found = dict(_attributes(answer, _ROUTE.size))
            route_type = _ROUTE.unpack_from(answer)[7]
            if route_type not in (_RTN_UNICAST, _RTN_LOCAL) or _RTA_OIF not in found:
                return None
            source = found.get(_RTA_PREFSRC)
            index = int.from_bytes(found[_RTA_OIF], sys.byteorder)
            return index, str(ipaddress.ip_address(source)) if source else ""
        return None

    def _find_link(self, index: int) -> tuple[str, bool]:
        for kind, answer in self._ask(_RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)):
            if kind == _RTM_NEWLINK:
                flags = _LINK.unpack_from(answer)[3]
                name = dict(_attributes(answer, _LINK.size)).get(_IFLA_IFNAME, b"?")
                return name.rstrip(b"\0").decode("ascii", "replace"), flags & _RUNNING == _RUNNING
        return "?", False

    def _ask(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        try:
            self._questions.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST, self._sequence, 0) + body)
            while True:
                answers = list(messages(self._questions.recv(65_536)))
                # Skip late answers to an earlier question.
                if any(sequence == self._sequence for _, sequence, _ in answers):
                    break
        except OSError:
            return
        for answer_kind, _, answer in answers:
            yield answer_kind, answer


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split the data of a netlink socket into (type, sequence, body)."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size or at + size > len(data):
            return
        yield kind, sequence, data[at + _HEADER.size : at + size]
        at += _aligned(size)


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + size]  # two bits of the type are flags
        at += _aligned(size)


def _attribute(kind: int, value: bytes) -> bytes:
    data = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return data.ljust(_aligned(len(data)), b"\0")


def _aligned(size: int) -> int:
    return (size + 3) & ~3
