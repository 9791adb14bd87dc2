"""One socket of one job: it reads the job's log from its cursor on, and sends what it reads.

There is no queue to overflow and no difference between replay and live events: each socket is a reader of the log with
a place of its own, woken when there is more. A slow one falls behind and nothing waits for it; one that takes nothing
for too long is let go, and finds everything in the log when it comes back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ..._exceptions import HubStorageError
from ...protocols.wire.messages import VERSION, PingFrame, Ready, ReadyAckFrame, encode
from .._settings import Limits
from .._statistics import Counters
from ..log._base import Bell, EventLog, Job
from ..log._clients import REPLACED, Arrival

logger: Final = logging.getLogger("towline.server")

NO_LONGER_KEPT: Final = "the job is no longer kept"

_BATCH: Final = 64
_CLOSE_WAIT: Final = 2.0
_READY_LOOKS: Final = 8
_DOWN_FOR: Final = 2.0  # seconds a client is asked to wait for a log that does not answer


class _Head(Struct):
    type: Any = None


_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode_ready: Final = msgspec.json.Decoder(Ready).decode


class Watcher:
    """Serves one accepted upgrade. `close` may be called by the hub at any time."""

    def __init__(
        self, websocket: WebSocket, job: Job, log: EventLog, limits: Limits, counters: Counters, now: Callable[[], int]
    ) -> None:
        self._websocket = websocket
        self._job = job
        self._log = log
        self._limits = limits
        self._counters = counters
        self._now = now
        self._scope = anyio.CancelScope()
        self._close: tuple[int, str] | None = None
        self._ready: Ready | None = None
        self._acknowledged = False
        self._arrival: Arrival | None = None
        self._sent = 0

    def close(self, code: int, reason: str = "") -> None:
        """End the socket with this close code and reason; the first call counts."""
        if self._close is None:
            self._close = (code, reason)
        self._scope.cancel()

    async def run(self, subprotocol: str | None) -> None:
        """Accept the socket and serve it to its end."""
        await self._websocket.accept(subprotocol=subprotocol)
        with self._scope, self._log.subscribe(self._job.id) as bell:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._receive, bell)
                    await self._send(bell)
            except* WebSocketDisconnect:
                pass
            except* HubStorageError as failures:
                self._counters.log_failures += 1
                logger.warning("job %s: a socket is sent away: %s", self._job.id, failures.exceptions[0])
                self.close(1013, restart_reason(_DOWN_FOR, _DOWN_FOR))
            finally:
                if self._arrival is not None:
                    self._log.clients.remove(self._arrival, self._let_go)
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        if self._close is None or self._websocket.client_state is not WebSocketState.CONNECTED:
            return
        code, reason = self._close
        self._counters.closes[code] += 1
        with anyio.move_on_after(_CLOSE_WAIT, shield=True):
            with suppress(RuntimeError, OSError, WebSocketDisconnect):  # the peer was faster
                await self._websocket.close(code, reason)

    # --- what the client says ----------------------------------------------------------------------------------

    async def _receive(self, bell: Bell) -> None:
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

    # --- what the log says -------------------------------------------------------------------------------------

    async def _send(self, bell: Bell) -> None:
        # A client that stays silent is served all the same, from the first event on. The time is taken in pieces: under
        # a herd it is the loop that is late, and each piece lets it read what has come.
        for _ in range(_READY_LOOKS):
            with anyio.move_on_after(self._limits.ready_wait / _READY_LOOKS):
                while self._ready is None:
                    await bell.wait_ring()
        while True:
            await self._acknowledge()
            events = await self._log.read(self._job.id, self._sent, _BATCH)
            for event in events:
                await self._send_text(event.text)
                self._sent = event.seq
                if event.terminal:
                    self.close(1000, "the job has ended")
                    return
                if self._ready is not None:
                    break
            if not events and self._ready is None:
                with anyio.move_on_after(self._limits.heartbeat) as silence:
                    await bell.wait_ring()
                if silence.cancelled_caught:
                    # Not every server pings by itself: only what is sent finds out that a peer is gone.
                    await self._send_text(encode(PingFrame(timestamp=self._now())).decode())

    async def _acknowledge(self) -> None:
        """Answer `ready`: a client that sends it, the first time or again, is served from the cursor in it.

        Who was served before it spoke has all of that, and is served on from there.
        """
        ready, self._ready = self._ready, None
        if ready is None:
            return
        await self._introduce(ready)
        job = await self._log.job(self._job.id)
        if not isinstance(job, Job):
            self.close(1001, NO_LONGER_KEPT)
            return
        # A cursor beyond the log belongs to another log, even if its epoch is the same.
        known = ready.epoch == job.epoch and ready.seq is not None and ready.seq <= job.seq
        cursor = ready.seq if known and ready.seq is not None else 0
        self._sent = cursor if self._acknowledged else max(cursor, self._sent)
        self._acknowledged = True
        acknowledgement = ReadyAckFrame(
            job_id=job.id,
            pipeline=job.pipeline,
            timestamp=self._now(),
            version=VERSION,
            epoch=job.epoch,
            from_=self._sent + 1,
            to=job.seq,
        )
        await self._send_text(encode(acknowledgement).decode())
        if self._sent == job.seq and not job.running:
            self.close(1000, "the job has ended")

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

    async def _send_text(self, text: str) -> None:
        with anyio.move_on_after(self._limits.send_wait) as waiting:
            try:
                await self._websocket.send_text(text)
            except RuntimeError as error:  # the server has sent a close itself, for an unanswered ping
                raise WebSocketDisconnect(1006) from error
            self._counters.frames_sent += 1
        if waiting.cancelled_caught:
            logger.info("job %s: a socket took nothing for %g s", self._job.id, self._limits.send_wait)
            self.close(1013, "too slow; what was missed is kept")
            await anyio.sleep_forever()


def restart_reason(retry_in: float, spread: float) -> str:
    """The reason of a close 1012 or 1013: when to reconnect, each client at its own random moment; both in seconds."""
    return json.dumps({"retry_in": round(retry_in, 1), "spread": round(spread, 1)})
