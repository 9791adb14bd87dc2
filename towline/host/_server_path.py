"""The path to one server: the way out; and where none leads out, a route to the server itself, as in a plant's network.

A route is to addresses, so the second needs the server's name looked up, which may fail until the network is there:
while there is no path, it is tried again at each hint and every few seconds.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final, Self

import anyio

from ..transport._path import ANYWHERE, Path, PathSource, system_path_source
from ..transport._path_polling import source_address
from ..transport._url import is_address

#: How long a name is looked up, in seconds.
_LOOKUP: Final = 5.0
#: How long after it is looked up again without a hint: a network's resolver may come later than its addresses.
_AGAIN: Final = 10.0


class ServerPathSource:
    """A path source over the system's own; `towards` makes one. `host` is a name or an IP literal."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._beneath: PathSource = system_path_source()
        self._is_found = False

    @classmethod
    async def towards(cls, host: str) -> Self:
        """Make one whose first `read` knows the server, if its name can be looked up within 5 s."""
        source = cls(host)
        try:
            if is_address(host) or not any(map(source_address, ANYWHERE)):
                await source._look_up()
        except BaseException:
            source.close()
            raise
        return source

    def read(self) -> Path:
        """See `PathSource.read`."""
        return self._beneath.read()

    async def wait_hint(self) -> None:
        """See `PathSource.wait_hint`."""
        is_lost = not self._is_found and not self._beneath.read().up
        with anyio.move_on_after(_AGAIN if is_lost else None):
            await self._beneath.wait_hint()
        if not self._is_found and not self._beneath.read().up:
            await self._look_up()

    def close(self) -> None:
        """See `PathSource.close`."""
        self._beneath.close()

    async def _look_up(self) -> None:
        with suppress(OSError, UnicodeError), anyio.move_on_after(_LOOKUP):
            found = await anyio.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
            addresses = dict.fromkeys(str(address[0]) for *_, address in found)
            lost, self._beneath = self._beneath, system_path_source((*addresses, *ANYWHERE))
            lost.close()
            self._is_found = True
