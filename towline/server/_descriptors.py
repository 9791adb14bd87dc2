"""How many file descriptors the process may have, and how many of them sockets may take. Windows has no such limit."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from typing import Any, Final

logger: Final = logging.getLogger("towline.server")

_ENOUGH: Final = 2**20  # a higher limit only makes programs slow that walk through all descriptors
_RESERVED: Final = 64  # for the log, uploads and calls
_LOG_EVERY: Final = 60.0  # seconds


def raise_limit() -> None:
    """Raise the soft limit of this process to its hard limit."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_sockets() -> float:
    """How many sockets leave enough descriptors for everything else."""
    if sys.platform == "win32":
        return math.inf
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else max(1, soft - max(_RESERVED, soft // 8))


class QuietAccept:
    """An exception handler for an asyncio loop that logs at most once a minute that no connection can be accepted.

    asyncio makes as many tries each second as the listener's queue is long, and reports each of them. If the server
    stops meanwhile, it reports each of those that find the listener closed, too.
    """

    def __init__(self) -> None:
        self._next = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what the loop reports."""
        message = str(context.get("message"))
        if "_start_serving" in message and isinstance(context.get("exception"), ValueError):
            return
        if message != "socket.accept() out of system resource":
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_EVERY
            logger.error("no connection can be accepted now: %s; raise the limit (ulimit -n)", context.get("exception"))
