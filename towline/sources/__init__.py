"""The I/O of protocols: one attempt over a WebSocket, a stream of events or lines, or polling, and single calls.

A source does what a request says. It knows no protocol and no lifecycle: what comes is returned as it is, and how it
ended is a typed error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._exceptions import InvalidArgument
from .._facts import Request
from .access import Access
from .answers import ResponseEnded, UnusableAnswer, received_of
from .call import Called, call
from .event_stream import EventStreamSource
from .poll import PollSource
from .source import Source
from .websocket import WebSocketSource


async def open_source(asked: Request, access: Access, again: Callable[[], Awaitable[Request]]) -> Source:
    """Make one attempt. `again` returns the next request of a poll.

    Raises `HandshakeRefused` or `UnusableAnswer` for a refusal, `InvalidArgument` for a request that must not be made,
    and the errors of the network.
    """
    match asked.via:
        case "websocket":
            return await WebSocketSource.open(asked, access)
        case "poll":
            return await PollSource.open(asked, access, again)
        case "events" | "lines":
            return await EventStreamSource.open(asked, access)
    raise InvalidArgument("via", "a request to follow a job must name websocket, events, lines or poll")


__all__ = [
    "Access",
    "Called",
    "ResponseEnded",
    "Source",
    "UnusableAnswer",
    "call",
    "open_source",
    "received_of",
]
