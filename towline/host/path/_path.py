"""The network path: whether this machine can reach the network, and by which route.

A `PathSource` reads the current path and says when it may have changed. `PathMonitor` turns that into the few changes
worth acting on. It waits until no hint arrives for a while (removing one address makes nine kernel events), reads the
path, and reports it if it differs from the last report. A change means "probe the connection", never "drop it": sockets
often survive.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, Self

import anyio

#: `SETTLE`: how long no hint may arrive before the path is read. `_PATIENCE`: how long hints can postpone that. Both
#: are in seconds. Late hints are noise, and a change must be reported within a second.
SETTLE: Final = 0.5
_PATIENCE: Final = 0.8

#: Addresses that only the default route leads to: a root name server's. They are only looked up in routing tables;
#: nothing is sent to them. (Addresses reserved for documentation often have no route on purpose.)
ANYWHERE: Final = ("198.41.0.4", "2001:503:ba3e::2:30")


@dataclass(frozen=True, slots=True)
class Path:
    """Whether there is a route out, and which: `identity` is its interface and source address, None without a route."""

    up: bool
    identity: str | None = None


class PathSource(Protocol):
    """Reads the network path on one operating system."""

    def read(self) -> Path:
        """The current path. Returns at once."""
        ...

    async def wait_hint(self) -> None:
        """Wait until the path may have changed; false alarms are allowed. Loses no hint between two calls."""
        ...

    def close(self) -> None:
        """Release its resources."""
        ...


class PathMonitor:
    """Yields the network path: the current one, then each change. A context manager that closes the source.

    Without a `source` it uses the best one for this system. `settle` is in seconds.
    """

    def __init__(self, source: PathSource | None = None, *, settle: float = SETTLE) -> None:
        self._source = source or system_path_source()
        self._settle = settle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    async def changes(self, *, wait_awake: Callable[[], Awaitable[object]] | None = None) -> AsyncGenerator[Path, None]:
        """Yield the current path at once, then each path that differs from the one before. Never ends by itself.

        `wait_awake` is awaited after each hint. Until it returns, nothing is reported; then the path is read again.
        """
        last = self._source.read()
        yield last
        while True:
            await self._source.wait_hint()
            await self._wait_lull()
            if wait_awake is not None:
                await wait_awake()
            path = self._source.read()
            if path != last:
                last = path
                yield path

    async def _wait_lull(self) -> None:
        with anyio.move_on_after(max(_PATIENCE, self._settle)):
            while True:
                with anyio.move_on_after(self._settle) as lull:
                    await self._source.wait_hint()
                if lull.cancelled_caught:
                    return


def system_path_source(towards: Iterable[str] = ANYWHERE) -> PathSource:
    """The best source for this system: its own events if available, otherwise a check every few seconds.

    `towards` are IP literals; the first one with a route decides. macOS and Windows only know the default route.
    """
    from ._polling import PollingPathSource

    towards = tuple(towards)
    source: PathSource
    try:
        if sys.platform == "linux":
            from ._netlink import NetlinkPathSource

            source = NetlinkPathSource(towards)
        elif sys.platform == "darwin":
            from ._macos import NetworkFrameworkPathSource

            source = NetworkFrameworkPathSource()
        elif sys.platform == "win32":
            from ._windows import NetworkInformationPathSource

            source = NetworkInformationPathSource()
        else:
            source = PollingPathSource(towards)
    except (ImportError, OSError):  # the extra is not installed, or a sandbox blocks the events
        source = PollingPathSource(towards)
    return source
