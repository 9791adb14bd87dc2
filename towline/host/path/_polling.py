"""The network path by polling: works on every system with the socket library alone."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import anyio

from ._path import ANYWHERE, Path


class PollingPathSource:
    """Checks which source address the system would use. Cannot see an unplugged cable that keeps its address.

    `towards` are IP literals; the first one with a route decides. `interval` is in seconds.
    """

    def __init__(self, towards: Iterable[str] = ANYWHERE, *, interval: float = 5.0) -> None:
        self._towards = tuple(towards)
        self._interval = interval

    def read(self) -> Path:
        """See `PathSource.read`."""
        for address in self._towards:
            source = source_address(address)
            if source is not None:
                return Path(up=True, identity=source)
        return Path(up=False)

    async def wait_hint(self) -> None:
        """See `PathSource.wait_hint`."""
        await anyio.sleep(self._interval)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def source_address(address: str) -> str | None:
    """The source address for a destination, None without a route. Connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            source = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if source in ("0.0.0.0", "::") else source
