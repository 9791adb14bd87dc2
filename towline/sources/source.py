"""What the engine does with an open attempt of any source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .._exceptions import InvalidArgument
from .._facts import Received, Text


class Source(ABC):
    """One open attempt. Let one task receive."""

    #: When bytes last arrived, on the loop's clock.
    last_received: float
    #: The least wait before the next request that the server asked for, in seconds.
    retry: float | None = None

    async def start(self, opening: Sequence[Text]) -> None:
        """Send the opening messages. Raises `InvalidArgument` for one that cannot be sent."""
        if opening:
            raise InvalidArgument("opening", "only a WebSocket has opening messages")

    @abstractmethod
    async def receive(self) -> Sequence[Received]:
        """Return what came next, perhaps nothing; raises how the attempt ended."""

    async def send(self, text: Text) -> None:
        """Send a message. Raises `InvalidArgument` if the source takes none."""
        raise InvalidArgument("send", "only a WebSocket takes messages")

    def advise(self, seconds: float) -> None:  # noqa: B027 - a poll does
        """Take the server's advice when to ask again: only polls need it."""

    @abstractmethod
    def probe(self, within: float) -> None:
        """Check the link now: `receive` raises if nothing comes within so many seconds."""

    @abstractmethod
    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close, and wait so many seconds for the server's answer; 0: do not wait."""
