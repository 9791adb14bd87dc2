"""One attempt over a WebSocket: dial, upgrade, the opening messages, then what the server sends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio

from .._exceptions import DeadlineExceeded, NetworkError, RemoteError
from .._facts import Message, Received, Request, Text
from ..transport import WebSocket, connect_websocket
from .access import Access
from .source import Source

#: Seconds within which the opening messages must be taken.
_OPENING: Final = 5.0


class WebSocketSource(Source):
    """An open WebSocket. Its server gives its advice when to reconnect in the reason of the close."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    @classmethod
    async def open(cls, asked: Request, access: Access) -> WebSocketSource:
        """Connect; raises as `transport.connect_websocket`."""
        return cls(
            await connect_websocket(
                access.url_of(asked),
                headers=asked.headers,
                subprotocols=asked.subprotocols,
                limits=access.limits,
                liveness=access.liveness,
                network=access.network,
                deadline=access.connect_deadline,
                wall_time=access.wall_time,
            )
        )

    @property
    def last_received(self) -> float:  # type: ignore[override] # read only
        """When bytes last arrived, on the loop's clock."""
        return self._websocket.last_received

    async def start(self, opening: Sequence[Text]) -> None:
        """Send the opening messages.

        Raises `DeadlineExceeded` if the server does not take them, and `InvalidArgument` for one that cannot be sent.
        """
        with anyio.move_on_after(_OPENING) as sending:
            # If writing fails, the server may have sent the reason: reading will find it.
            with suppress(RemoteError, NetworkError):
                for text in opening:
                    await self._websocket.send(text)
        if sending.cancelled_caught:
            raise DeadlineExceeded("the server to read the opening messages", _OPENING)

    async def receive(self) -> Sequence[Received]:
        """Return what came next; raises how the WebSocket ended."""
        return list(map(Message, await self._websocket.receive_batch()))

    async def send(self, text: Text) -> None:
        """Send a message; raises as `WebSocket.send`."""
        await self._websocket.send(text)

    def probe(self, within: float) -> None:
        """Ping now; without an answer within so many seconds, `receive` raises."""
        self._websocket.probe(within)

    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close with `code`, and wait so many seconds for the server's answer; 0: do not wait."""
        if wait:
            await self._websocket.aclose(code, timeout=wait)
        else:
            await self._websocket.abandon(code)
