"""The path to one server: the default route, or a route to the server itself, as on a factory network.

A route leads to an address, so without a default route the server's name must be resolved. That may fail until the
network is up. While there is no path, it is retried at each hint and every few seconds.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final, Self

import anyio

from ...transport._url import is_address
from ._monitor import system_path_source
from ._path import ANYWHERE, Path, PathSource
from ._polling import source_address

#: Seconds that a name lookup may take.
_LOOKUP: Final = 5.0
#: Seconds until the next lookup without a hint: a network's resolver may be ready later than its addresses.
_RETRY: Final = 10.0


class ServerPathSource:
    """A path source that uses the system's own; `towards` makes one. `host` is a name or an IP literal."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._source: PathSource = system_path_source()
        self._is_found = False

    @classmethod
    async def towards(cls, host: str) -> Self:
        """Make one whose first `read` includes the server, if its name can be resolved within 5 s."""
        source = cls(host)
        try:
            if is_address(host) or not any(map(source_address, ANYWHERE)):
                await source._look_up()
        except BaseException:
            source.close()
            raise
        return source

    def read(self) -> Path:
        return self._source.read()

    async def wait_hint(self) -> None:
        is_lost = not self._is_found and not self._source.read().up
        with anyio.move_on_after(_RETRY if is_lost else None):
            await self._source.wait_hint()
        if not self._is_found and not self._source.read().up:
            await self._look_up()

    def close(self) -> None:
        self._source.close()

    async def _look_up(self) -> None:
        with suppress(OSError, UnicodeError), anyio.move_on_after(_LOOKUP):
            found = await anyio.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
            addresses = dict.fromkeys(str(address[0]) for *_, address in found)
            old, self._source = self._source, system_path_source((*addresses, *ANYWHERE))
            old.close()
            self._is_found = True
