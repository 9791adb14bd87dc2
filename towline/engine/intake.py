"""Takes in the socket's messages: decodes them, puts them in order, and notes when the job last gave a sign.

The messages bypass the state machine. An event is raised only for what matters to the lifecycle.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio
from msgspec.structs import replace

from .._exceptions import MalformedMessage
from .._text import escape
from .._updates import AnyUpdate
from ..protocols.wire import Codec, Frame, JobProgressFrame, JobState, PingFrame, PongFrame, ReadyAckFrame
from ..statemachine import AnyEvent, JobSpoke, Snapshot
from .attempts import Link
from .recovery import Finding, Recovery

_LOG: Final = logging.getLogger("towline")


class Intake:
    """Processes the messages of the current link.

    `publish` delivers updates, `act` turns a finding into an event, `is_current` says whether a link is still used.
    """

    __slots__ = (
        "_act",
        "_batch_came",
        "_codec",
        "_counts",
        "_is_current",
        "_job",
        "_last_state",
        "_post",
        "_publish",
        "_recovery",
        "_snapshot",
        "last_sign",
    )

    def __init__(
        self,
        job: str,
        codec: Codec,
        recovery: Recovery,
        *,
        counts: Counter[str],
        snapshot: Callable[[], Snapshot],
        post: Callable[[AnyEvent], object],
        publish: Callable[[list[AnyUpdate]], object],
        act: Callable[[Finding, int], object],
        is_current: Callable[[Link], bool],
    ) -> None:
        self._job = job
        self._codec = codec
        self._recovery = recovery
        self._counts = counts
        self._snapshot = snapshot
        self._post = post
        self._publish = publish
        self._act = act
        self._is_current = is_current
        # Set at each batch, for a fetch that waits for the socket's messages.
        self._batch_came: anyio.Event | None = None
        #: When the job last gave a sign of life, on the loop's clock.
        self.last_sign: float | None = None
        # The last state since the last message: a different one is a sign of the job.
        self._last_state: JobState | None = None

    def take_in(self, link: Link, batch: list[str | bytes]) -> None:
        """Process and deliver the messages of one read. The hot path: no await, lock or task switch per message."""
        decode, take_in, job = self._codec.decode, self._recovery.frame, self._job
        self._counts["messages"] += len(batch)
        spoke = False
        for message in batch:
            try:
                frame = decode(message)
            except MalformedMessage as error:
                spoke = spoke or error.job_id in ("", job)
                finding = self._malformed(error)
            else:
                spoke = spoke or _is_sign(frame, job)
                finding = take_in(frame)
            if finding is not None:
                self._act(finding, link.generation)
                if not self._is_current(link):
                    break
        if spoke:
            self._last_state = None
            self._job_spoke(link.generation)
        self._publish(self._recovery.take())
        if self._batch_came is not None:
            self._batch_came.set()
            self._batch_came = None

    async def next_batch(self) -> None:
        """Wait for the socket's next messages."""
        if self._batch_came is None:
            self._batch_came = anyio.Event()
        await self._batch_came.wait()

    def note_state(self, state: JobState, generation: int, *, moved: bool = False) -> bool:
        """Note a fetched state; returns whether it differs from the last one, a sign of the job."""
        # A keep-alive changes these two fields, but it is not a sign.
        last, self._last_state = self._last_state, replace(state, seq=None, last_update=None)
        is_sign = moved or (last is not None and self._last_state != last)
        if is_sign:
            self._job_spoke(generation)
        return is_sign

    def _job_spoke(self, generation: int) -> None:
        self.last_sign = anyio.current_time()
        snapshot = self._snapshot()
        if snapshot.stalls or snapshot.silence:
            self._post(JobSpoke(generation=generation))

    def _malformed(self, error: MalformedMessage) -> Finding:
        self._counts["malformed_messages"] += 1
        # A server that sends one usually sends more, so only the first is logged as a warning.
        level = logging.WARNING if self._counts["malformed_messages"] == 1 else logging.DEBUG
        _LOG.log(level, "skipped: %s", escape(str(error)))
        return self._recovery.malformed(error)


def _is_sign(frame: Frame, job: str) -> bool:
    """Whether the frame is a sign of the job; keep-alives, pings and answers to `ready` are not."""
    if isinstance(frame, JobProgressFrame):
        return not frame.payload.keep_alive and frame.job_id in (job, "")
    return not isinstance(frame, PingFrame | PongFrame | ReadyAckFrame) and frame.job_id in (job, "")
