"""Takes in what the source received: reads it, puts it in order, and notes when the job last gave a sign.

The data bypasses the state machine. An event is raised only for what matters to the lifecycle.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import anyio

from .._exceptions import MalformedMessage
from .._facts import Answer, Fact, Item, Means, Numbered, Received, Send, ServerEvent, Wait, has_sign
from .._text import escape
from .._updates import AnyUpdate, Paused
from ..sources import UnusableAnswer
from ..statemachine import AnyEvent, JobPaused, JobSpoke, Snapshot
from .attempts import Link
from .reader import Reader
from .sequence.findings import Finding, Phase
from .sequence.placing import content_of, pause_in
from .sequence.sequencer import Sequencer

#: After so many messages from which nothing was read, a warning is logged if nothing was ever read.
_UNREAD_TOLD: Final = 3
#: Seconds after which reading that waits for a consumer looks whether its task has ended.
_LOOK_AGAIN: Final = 5.0


@dataclass(slots=True, eq=False, repr=False)
class Intake:
    """Processes what the current link receives.

    `publish` delivers updates, `act` turns a finding into an event, `is_current` says whether a link is still used.
    `no_room` returns None while all consumers have room, else an event to wait for.
    """

    job: str
    reader: Reader
    sequencer: Sequencer
    _: KW_ONLY
    counts: Counter[str]
    snapshot: Callable[[], Snapshot]
    post: Callable[[AnyEvent], object]
    publish: Callable[[list[AnyUpdate]], object]
    act: Callable[[Finding, int], object]
    is_current: Callable[[Link], bool]
    no_room: Callable[[], anyio.Event | None]
    # Set at each batch, for a fetch that waits for the link's messages.
    _batch_came: anyio.Event | None = field(default=None, init=False)
    _last_sign: float | None = field(default=None, init=False)
    # Whether the last batch was a sign of the job.
    _spoke: bool = field(default=False, init=False)
    #: Whether reading waits for a slow consumer.
    is_paused: bool = field(default=False, init=False)
    # What the last state said, since the last message: a different one is a sign of the job.
    _last_state: object = field(default=None, init=False)

    def take_in(self, link: Link, batch: Sequence[Received]) -> None:
        """Process and deliver what one read brought. The hot path: no await, lock or task switch per message.

        Raises `UnusableAnswer` for an answer to a poll that the protocol cannot read, or reads nothing from.
        """
        reader, want, take_next = self.reader, link.want, self.sequencer.take_next
        read = reader.protocol.read
        self.counts["messages"] += len(batch)
        spoke = False
        pause: bool | None = None
        for received in batch:
            try:
                found = read(want, received)
                if type(found) is tuple and len(found) == 1 and take_next(fact := found[0]):
                    # Nearly every message: it keeps the contract, and there is nothing to note.
                    spoke = spoke or fact.is_sign
                    pause = False
                    continue
                facts = reader.checked(found)
            except MalformedMessage as error:
                self._note_malformed(error)
                if isinstance(received, Answer):
                    # A failed poll: skipped, a page that always answers would be asked without end.
                    raise self._unusable(link, received, error.problem) from error
                if error.job_id not in ("", self.job):
                    continue
                spoke = True
                if error.seq is None or error.epoch is None:
                    continue
                # It has nothing to show, but it takes its place in the log.
                facts = (Item(None, Numbered(error.seq, error.epoch)),)
            except BaseException as error:
                reader.raise_failure(error)
            if len(facts) == 1 and type(fact := facts[0]) is Item:
                spoke = spoke or fact.is_sign
                if fact.update is not None:
                    pause = isinstance(fact.update, Paused)
            else:
                spoke = self._note(link, received, facts) or spoke
                pause = pause_in(facts, pause)
            finding = self.sequencer.follow(facts)
            if finding is not None:
                self.act(finding, link.generation)
                if not self.is_current(link):
                    break
        self._spoke = spoke
        if spoke:
            if link.want.via != "poll":  # the answer to a poll is itself the last state
                self._last_state = None
            self._job_spoke(link.generation, None if link.source is None else link.source.last_received)
        if pause:
            self.post(JobPaused(generation=link.generation))
        self.publish(self.sequencer.take())
        if self._batch_came is not None:
            self._batch_came.set()
            self._batch_came = None

    def _note(self, link: Link, received: Received, facts: tuple[Fact, ...]) -> bool:
        """Note the facts about the link; returns whether the facts are a sign of the job."""
        for fact in facts:
            if isinstance(fact, Means):
                link.meant = link.meant or fact.what
            elif isinstance(fact, Send):
                link.to_send.append(fact.data)
            elif isinstance(fact, Wait) and link.source is not None:
                link.source.advise(fact.seconds)
        if isinstance(received, Answer):
            if not facts:
                raise self._unusable(link, received, "the job's state was expected")
            return self.note_state(facts, link.generation, moved=False)
        if not facts:
            self._note_unread(received)
        return has_sign(facts)

    def _unusable(self, link: Link, answer: Answer, problem: str) -> UnusableAnswer:
        return UnusableAnswer(answer, problem, retry_after=None if link.source is None else link.source.retry)

    def _note_unread(self, received: Received) -> None:
        self.counts["unread_messages"] += 1
        if self.counts["unread_messages"] == _UNREAD_TOLD and not self.sequencer.outlet.has_shown:
            # Some servers begin with a message or two that are not for us. What it holds may be a secret.
            kind = f"an event of the type {received.type!r}" if isinstance(received, ServerEvent) else "a message"
            text = "the protocol %r read nothing from the first %d messages; the last is %s: does it fit this server?"
            self.reader.log.warning(text, self.reader.protocol.name, _UNREAD_TOLD, escape(kind))

    @property
    def last_sign(self) -> float | None:
        """When the job last gave a sign of life, on the loop's clock: now, while its messages are not read."""
        return anyio.current_time() if self.is_paused and self._spoke else self._last_sign

    def room(self) -> Awaitable[None] | None:
        """None if all consumers have room, else what to await before reading goes on.

        Meanwhile the source is not read, so the network slows the server down. During a sync reading goes on: nothing
        is delivered, and the sync must not wait for a consumer.
        """
        if self.no_room() is None or self.sequencer.phase not in (Phase.LIVE, Phase.REPLAYING):
            return None
        return self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self.is_paused = True
        try:
            while (room := self.no_room()) is not None:
                with anyio.move_on_after(_LOOK_AGAIN):
                    await room.wait()
        finally:
            self._last_sign = self.last_sign
            self.is_paused = False

    async def next_batch(self) -> None:
        """Wait for the link's next messages."""
        if self._batch_came is None:
            self._batch_came = anyio.Event()
        await self._batch_came.wait()

    def note_state(self, facts: Sequence[Fact], generation: int, *, moved: bool = False) -> bool:
        """Note a fetched state; returns whether it differs from the last one, a sign of the job."""
        last, self._last_state = self._last_state, content_of(facts)
        is_sign = moved or (last is not None and self._last_state != last)
        if is_sign:
            self._job_spoke(generation)
        if pause_in(facts):
            self.post(JobPaused(generation=generation))
        return is_sign

    def _job_spoke(self, generation: int, at: float | None = None) -> None:
        self._last_sign = anyio.current_time() if at is None else at
        snapshot = self.snapshot()
        if snapshot.stalls or snapshot.silence or snapshot.paused:
            self.post(JobSpoke(generation=generation))

    def _note_malformed(self, error: MalformedMessage) -> None:
        self.counts["malformed_messages"] += 1
        # A server that sends one usually sends more, so only the first is logged as a warning.
        level = logging.WARNING if self.counts["malformed_messages"] == 1 else logging.DEBUG
        self.reader.log.log(level, "skipped: %s", escape(str(error)))
