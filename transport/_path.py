"""The network path: whether there is a way out of this machine, and which one.

A `PathSource` knows the level: what the path is now, and when it may have changed. `PathMonitor` makes from it the few
observations worth acting on: it waits for a lull (one removed address makes nine kernel events), reads the level, and
tells it if it differs from what it told before. A change says "probe", never "drop": sockets often survive it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, Self

import anyio

#: How long no change may be hinted before the level is read, and for how long hints can put that off, in seconds. The
#: late ones are noise, and a change is to be told within a second.
SETTLE: Final = 0.5
_PATIENCE: Final = 0.8

#: Addresses that only the way out leads to: a root name server's. They are looked up in routing tables, and nothing is
#: sent to them. (Addresses reserved for documentation are often routed nowhere on purpose.)
ANYWHERE: Final = ("198.41.0.4", "2001:503:ba3e::2:30")


@dataclass(frozen=True, slots=True)
class Path:
    """The way out. `identity` tells one way from another (interface and source address); None when there is none."""

    up: bool
    identity: str | None = None


class PathSource(Protocol):
    """What knows the path on one system."""

    def read(self) -> Path:
        """The path as it is now. Returns at once."""
        ...

    async def wait_hint(self) -> None:
        """Wait until the path may have changed; waking for nothing is lawful. Loses no hint between two calls."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class PathMonitor:
    """Tells of the path: as it is at first, then at each change. A context manager, which closes the source.

    Without a `source` it takes the best of this system. `settle` is in seconds.
    """

    def __init__(self, source: PathSource | None = None, *, settle: float = SETTLE) -> None:
        self._source = source or system_path_source()
        self._settle = settle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    async def changes(self, *, wait_awake: Callable[[], Awaitable[object]] | None = None) -> AsyncGenerator[Path, None]:
        """Yield the present path at once, then each one that differs from the one before. Never ends by itself.

        `wait_awake` is awaited after each hint: while it does not return, nothing more is waited for or told, and then
        the path is told as it is by that time.
        """
        told = self._source.read()
        yield told
        while True:
            await self._source.wait_hint()
            await self._wait_lull()
            if wait_awake is not None:
                await wait_awake()
            path = self._source.read()
            if path != told:
                told = path
                yield path

    async def _wait_lull(self) -> None:
        with anyio.move_on_after(max(_PATIENCE, self._settle)):
            while True:
                with anyio.move_on_after(self._settle) as lull:
                    await self._source.wait_hint()
                if lull.cancelled_caught:
                    return


def system_path_source(towards: Iterable[str] = ANYWHERE) -> PathSource:
    """The best source there is here: the system's own events where they can be had, else a look every few seconds.

    `towards` are IP literals; the first that has a route decides. macOS and Windows know only of the way to anywhere.
    """
    from ._path_polling import PollingPathSource

    towards = tuple(towards)
    source: PathSource
    try:
        if sys.platform == "linux":
            from ._path_netlink import NetlinkPathSource

            source = NetlinkPathSource(towards)
        elif sys.platform == "darwin":
            from ._path_macos import NetworkFrameworkPathSource

            source = NetworkFrameworkPathSource()
        elif sys.platform == "win32":
            from ._path_windows import NetworkInformationPathSource

            source = NetworkInformationPathSource()
        else:
            source = PollingPathSource(towards)
    except (ImportError, OSError):  # the extra is not installed, or a sandbox has no such events
        source = PollingPathSource(towards)
    return source
