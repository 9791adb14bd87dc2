"""A watcher on a WebSocket: what the client may say there, and how the socket is closed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import msgspec
from msgspec import Struct
from starlette.types import Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ...protocols.wire.messages import PingFrame, Ready, encode
from .._settings import HubLimits
from .._statistics import Counters
from ..log._base import Event, EventLog, Job
from ..log._bells import Bell
from ..log._clients import REPLACED, Arrival
from ._watcher import PeerGone, Watcher

_CLOSE_WAIT: Final = 2.0
_READY_LOOKS: Final = 8


class _Head(Struct):
    type: Any = None


_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode_ready: Final = msgspec.json.Decoder(Ready).decode


class SocketWatcher(Watcher):
    """Serves one accepted upgrade."""

    def __init__(
        self,
        websocket: WebSocket,
        send: Send,
        job: Job,
        log: EventLog,
        limits: HubLimits,
        counters: Counters,
        now: Callable[[], int],
    ) -> None:
        super().__init__(job, log, limits, counters, now, limits.heartbeat)
        self._websocket = websocket
        self._asgi_send = send
        self._arrival: Arrival | None = None

    async def run(self, subprotocol: str | None) -> None:
        """Accept the socket and serve it to its end."""
        await self._websocket.accept(subprotocol=subprotocol)
        try:
            await self._serve()
        finally:
            if self._arrival is not None:
                self._log.clients.remove(self._arrival, self._let_go)
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        if self._ending is None or self._websocket.client_state is not WebSocketState.CONNECTED:
            return
        code, reason = self._ending
        self._counters.closes[code] += 1
        with anyio.move_on_after(_CLOSE_WAIT, shield=True):
            with suppress(RuntimeError, OSError, WebSocketDisconnect):  # the peer was faster
                await self._websocket.close(code, reason if isinstance(reason, str) else reason.reason())

    # --- what the client says ----------------------------------------------------------------------------------

    async def _listen(self, bell: Bell) -> None:
        others = 0  # than its first `ready`
        introduced = False
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._scope.cancel()
                return
            text = message.get("text")
            if text is None:
                self.close(1003, "text messages only")
                return
            if len(text) > self._limits.client_message:
                self.close(1009, f"more than {self._limits.client_message} characters")
                return
            try:
                if _decode_head(text).type == "ready":
                    self._ready = _decode_ready(text)
                    bell.ring()
                    if not introduced:
                        introduced = True
                        continue
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                self.close(1007, "not a message of this protocol")
                return
            others += 1
            if others > self._limits.client_messages:
                self.close(1008, "too many messages")
                return

    async def _begin(self, bell: Bell) -> None:
        # A client that stays silent is served all the same, from the first event on. The time is taken in pieces: under
        # a herd it is the loop that is late, and each piece lets it read what has come.
        for _ in range(_READY_LOOKS):
            with anyio.move_on_after(self._limits.ready_wait / _READY_LOOKS):
                while self._ready is None:
                    await bell.wait_ring()

    async def _acknowledge(self, ready: Ready) -> None:
        await self._introduce(ready)
        await super()._acknowledge(ready)

    async def _introduce(self, ready: Ready) -> None:
        """Take the place of the client's sockets before this one; who it is, it says once."""
        if self._arrival is not None or ready.client is None or ready.socket is None:
            return
        self._arrival = Arrival(job_id=self._job.id, client=ready.client, socket=ready.socket)
        self._log.clients.add(self._arrival, self._let_go)
        if await self._log.arrive(self._arrival) > ready.socket:
            self._let_go()

    def _let_go(self) -> None:
        self.close(REPLACED, "replaced by a later socket of the same client")

    # --- what it is sent ---------------------------------------------------------------------------------------

    async def _write(self, text: str, event: Event | None) -> None:
        try:
            await self._asgi_send({"type": "websocket.send", "text": text})
        except (RuntimeError, OSError) as error:  # the server has sent a close itself, or the peer is gone
            raise PeerGone from error

    async def _write_sign(self) -> None:
        await self._write(encode(PingFrame(timestamp=self._now())).decode(), None)
