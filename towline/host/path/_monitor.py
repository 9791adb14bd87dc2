"""`PathMonitor` reports the changes of the network path, and `system_path_source` picks this system's source.

A source's hints come in bursts: removing one address makes nine kernel events. The monitor waits until no hint arrives
for a while, reads the path, and reports it if it differs from the last report.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Final, Self

import anyio

from ._path import ANYWHERE, Path, PathSource
from ._polling import PollingPathSource

#: `SETTLE`: how long no hint may arrive before the path is read. `_PATIENCE`: how long hints can postpone that. Both
#: are in seconds. Late hints are noise, and a change must be reported within a second.
SETTLE: Final = 0.5
_PATIENCE: Final = 0.8


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
