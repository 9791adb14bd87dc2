"""Gives a connection another clock and other random numbers."""

from __future__ import annotations

from collections.abc import Callable

from .._connection import Connection


def controlled(
    connection: Connection, *, random: Callable[[], float] | None = None, wall_time: Callable[[], float] | None = None
) -> Connection:
    """Replace a connection's sources of chance and time, before it is entered, and return it.

    `random` gives numbers from 0 to 1, for the jitter of delays. `wall_time` gives seconds since 1970, for the expiry
    of tokens. Timers run on the event loop's clock: see `virtual_time`.
    """
    if random is not None:
        connection._random = random
    if wall_time is not None:
        connection._wall_time = wall_time
    return connection
