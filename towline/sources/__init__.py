"""The I/O of protocols: one attempt over a WebSocket, a stream of events or lines, or polling, and single calls.

A source does what a request says. It knows no protocol and no lifecycle: what comes is returned as it is, and how it
ended is a typed error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from .._exceptions import InvalidArgument
from .._facts import Received, Request, Text
from .access import Access
from .answers import ResponseEnded, UnusableAnswer, received_of
from .call import Called, call
from .event_stream import EventStreamSource
from .poll import PollSource
from .websocket import WebSocketSource


class Source(Protocol):
    """One open attempt. Let one task receive."""

    @property
    def last_received(self) -> float:
        """When bytes last arrived, on the loop's clock."""

    @property
    def retry(self) -> float | None:
        """The least wait before the next request that the server asked for, in seconds."""

    async def start(self, opening: Sequence[Text]) -> None:
        """Send the opening messages."""

    async def receive(self) -> Sequence[Received]:
        """Return what came next, perhaps nothing; raises how the attempt ended."""

    async def send(self, text: Text) -> None:
        """Send a message."""

    def advise(self, seconds: float) -> None:
        """Take the server's advice when to ask again."""

    def probe(self, within: float) -> None:
        """Check the link now: `receive` raises if nothing comes within so many seconds."""

    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close, and wait so many seconds for the server's answer; 0: do not wait."""


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
