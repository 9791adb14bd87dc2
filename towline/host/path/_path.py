"""The network path: whether this machine can reach the network, and by which route.

A `PathSource` reads the current path and says when it may have changed. A change means "probe the connection", never
"drop it": sockets often survive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

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

    async def wait_hint(self) -> None:
        """Wait until the path may have changed; false alarms are allowed. Loses no hint between two calls."""

    def close(self) -> None:
        """Release its resources."""
