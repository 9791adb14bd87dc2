"""Delivers updates to their consumers.

Each consumer has an inbox. While it has read all but 256 updates and `Limits.max_waiting` bytes of output, it gets each
update as it came. Beyond that, updates that wait are joined (`joining`). If too much waits even so, nothing of it is
dropped: the engine stops reading until every consumer has room again. So the slowest consumer sets the pace, and the
others are never more than the bound ahead of it. What is read at once, one batch of the source, always goes in.

While there is no consumer, one inbox waits for the next. So no update is lost before the first iteration or between two
iterations. It never stops the reading, because there may never be a consumer: a program can wait for the end alone. If
too much waits in it, its updates are dropped, and a `Resynced` says what the next consumer missed. The final update
always arrives. A task that waits for the end reads nothing, so the same then holds for the inboxes that it read last,
and for those that no task reads: none has yet, or the last one has ended and no other has followed it for 10 s.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from ..._exceptions import Exhausted
from ..._facts import Numbered, Position
from ..._tasks import caller, has_ended
from ..._updates import AnyUpdate, Outcome
from .inbox import Inbox

#: Seconds that an iterator whose reader has ended waits for the next: some programs read each update in a task of its
#: own, as `asyncio.wait_for` does on Python 3.11.
NEXT_READER_WAIT: Final = 10.0


class Subscription(AsyncIterator[AnyUpdate]):
    """The updates of one connection, for one consumer; iterate over a `Connection` to create it.

    Ends after the job's final update, and on `aclose()` and `cancel()`. Raises `Exhausted` when the engine gives up,
    unless created with `wait=True`. After any of these, iterating again just ends.
    """

    def __init__(self, delivery: Delivery, inbox: Inbox | None, *, wait: bool) -> None:
        self._delivery = delivery
        # None after the end, when the inbox may belong to another consumer.
        self._inbox = inbox
        self._wait = wait

    def __repr__(self) -> str:
        if self._inbox is None:
            return "<Subscription: over>"
        return f"<Subscription: {len(self._inbox.waiting)} updates wait>"

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> AnyUpdate:
        # Before anything else: a consumer that asks for more has finished its update, whatever was requested meanwhile.
        if self._inbox is not None:
            self._finish_in_hand(self._inbox)
        self._delivery.catch_up()
        inbox = self._inbox
        while inbox is None or not inbox.waiting:
            await self._wait_for_more(inbox)
            self._delivery.catch_up()
            inbox = self._inbox
        update = inbox.in_hand = inbox.waiting.pop(0)
        inbox.reader = caller()
        if inbox.size or inbox.is_full:
            self._delivery.taken(inbox, update)
        if update is self._delivery.outcome:
            self.end()
            self._delivery.end_taken()
        return update

    async def _wait_for_more(self, inbox: Inbox | None) -> None:
        if inbox is None:
            raise StopAsyncIteration
        given_up = self._delivery.given_up
        if given_up is not None and not self._wait:
            self.end()
            raise given_up()
        inbox.reader = caller()
        self._delivery.report_loss(inbox)
        if inbox.wake is None:
            inbox.wake = anyio.Event()
        await inbox.wake.wait()

    def _finish_in_hand(self, inbox: Inbox) -> None:
        """Mark the update in hand as done: the consumer asks for more."""
        update, inbox.in_hand = inbox.in_hand, None
        if update is not None:
            if update.mark is not None or (update.seq is not None and update.epoch is not None):
                inbox.done = update
            self._delivery.moved()

    def end(self) -> None:
        """End the iteration; waiting updates are left to the next consumer."""
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            self._delivery.leave(inbox)
            inbox.look()


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class Delivery:
    """All subscribers of one connection.

    `catch_up` performs pending requests, so that nothing is delivered after `cancel()`. `moved` is called when a
    consumer's position may have changed, `end_taken` when a consumer took the end. `overflowed` is called when a
    consumer takes an inbox that has lost updates. `soon` has the loop make a call, from any thread. `handled`: handlers
    consume the updates too, so they count as delivered even if no one iterates. `handlers_full`: too many updates wait
    for a slow handler. `max_waiting` bounds the output that waits for one consumer, in bytes.
    """

    catch_up: Callable[[], None]
    moved: Callable[[], None] = lambda: None
    end_taken: Callable[[], None]
    overflowed: Callable[[], None]
    soon: Callable[[Callable[[], None]], object]
    max_waiting: int
    handled: bool = False
    handlers_full: Callable[[], bool] = lambda: False
    outcome: Outcome | None = field(default=None, init=False)
    #: Iterations end: the connection was cancelled or closed.
    stopped: bool = field(default=False, init=False)
    #: Makes the error that iterations raise: the engine has given up, and the last status fetch has finished.
    given_up: Callable[[], Exhausted] | None = field(default=None, init=False)
    applied: Position | None = field(default=None, init=False)
    # Set when a consumer that was full may have room again; None while nothing waits for that.
    _room: anyio.Event | None = field(default=None, init=False)
    # Who waits for the end.
    _awaiting_end: list[object] = field(default_factory=list, init=False)
    # The inbox that waits for the next consumer, and those that have one.
    _unclaimed: Inbox | None = field(default=None, init=False)
    _claimed: dict[Inbox, weakref.ref[Subscription]] = field(default_factory=dict, init=False)
    # The inboxes of garbage-collected consumers; the callback may run at any moment and in any thread.
    _dropped: list[Inbox] = field(default_factory=list, init=False)

    # --- consumers -------------------------------------------------------------------------------------------------

    def begin(self, cursor: Position | None) -> None:
        """Start collecting updates for the first consumer."""
        self.applied = cursor
        self._unclaimed = Inbox(cursor, self.max_waiting)

    def subscribe(self, *, wait: bool) -> Subscription:
        """Subscribe to the waiting updates if there are any, otherwise to the updates from now on.

        After the job's end, the subscription yields the end.
        """
        self.catch_up()
        self._sweep()
        if self.stopped:
            return Subscription(self, None, wait=wait)
        inbox, self._unclaimed = self._unclaimed, None
        self.handled = False
        if inbox is None:
            inbox = Inbox(self.applied, self.max_waiting)
            if self.outcome is not None:
                inbox.put_end(self.outcome)
        inbox.reader = None
        subscription = Subscription(self, inbox, wait=wait)
        self._claimed[inbox] = weakref.ref(subscription, lambda _: self._forget(inbox))
        self.report_loss(inbox)
        return subscription

    def report_loss(self, inbox: Inbox) -> None:
        """Ask for a re-sync, once, if an inbox has dropped updates: its consumer wants to know what it missed."""
        if inbox.lost is not None and not inbox.lost.resync_requested:
            inbox.lost.resync_requested = True
            self.overflowed()

    @contextmanager
    def end_awaited(self) -> Iterator[None]:
        """While the block lasts the caller waits for the end, so its own iterators are not read."""
        reader = caller()
        self._awaiting_end.append(reader)
        self._drop_unread()
        try:
            yield
        finally:
            self._awaiting_end.remove(reader)

    def _drop_unread(self) -> None:
        """Drop what is too much for consumers that do not read now, if a task waits for the end."""
        if not self._awaiting_end:
            return
        for inbox in self._claimed:
            if inbox.is_full and self._is_unread(inbox):
                inbox.drop()
                self.look_for_room()

    def _is_unread(self, inbox: Inbox) -> bool:
        reader = inbox.reader
        if reader is None or reader in self._awaiting_end:
            return True
        if not has_ended(reader):
            return False
        if inbox.ended is None or inbox.ended[0] is not reader:
            inbox.ended = reader, anyio.current_time()
        return anyio.current_time() - inbox.ended[1] >= NEXT_READER_WAIT

    def leave(self, inbox: Inbox) -> None:
        """Remove a consumer. If it was the last, its remaining updates wait for the next, with the one in hand."""
        was_claimed = self._claimed.pop(inbox, None) is not None
        took_the_end = inbox.in_hand is not None and inbox.in_hand is self.outcome
        if was_claimed and not took_the_end and not self._claimed and self._unclaimed is None:
            self._unclaimed = inbox
        self.look_for_room()

    def _forget(self, inbox: Inbox) -> None:
        self._dropped.append(inbox)
        # The engine may be waiting for this very consumer.
        self.soon(self._sweep)

    def _sweep(self) -> None:
        while self._dropped:
            self.leave(self._dropped.pop(0))

    def stop(self) -> None:
        """End every iteration."""
        self.stopped = True
        for reference in list(self._claimed.values()):
            subscription = reference()
            if subscription is not None:
                subscription.end()

    def look(self) -> None:
        """Wake every consumer."""
        for inbox in list(self._claimed):
            inbox.look()

    # --- updates ---------------------------------------------------------------------------------------------------

    def publish(self, updates: list[AnyUpdate], applied: Position | None) -> None:
        """Deliver updates. `applied` is the position after them."""
        self._sweep()
        self.applied = applied
        if self._unclaimed is not None:
            self._unclaimed.put(updates)
            if self._unclaimed.is_full:
                self._unclaimed.drop()
        for inbox in self._claimed:
            inbox.put(updates)
        self._drop_unread()
        self.moved()

    def room(self) -> anyio.Event | None:
        """None if every consumer has room; else an event that is set when this may have changed.

        It is not set when the task of a consumer ends.
        """
        self._drop_unread()
        for inbox in self._claimed:
            if inbox.is_full:
                break
        else:
            if not self.handlers_full():
                return None
        if self._room is None:
            self._room = anyio.Event()
        return self._room

    def taken(self, inbox: Inbox, update: AnyUpdate) -> None:
        """Note that a consumer took an update, which may make room."""
        if inbox.took(update):
            self.look_for_room()

    def look_for_room(self) -> None:
        """Let the engine check whether there is room again."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def end(self, applied: Position | None) -> None:
        """Deliver `outcome`; nothing follows it."""
        self._sweep()
        self.applied = applied
        if self.outcome is not None:
            for inbox in (*self._claimed, *filter(None, [self._unclaimed])):
                inbox.put_end(self.outcome)
        self.moved()

    def position(self) -> Position | None:
        """The position that every consumer has reached."""
        self._sweep()
        applied = self.applied
        inboxes = list(self._claimed)
        if self._unclaimed is not None and not self.handled:
            inboxes.append(self._unclaimed)
        # Marks have no order, so the consumer with the most updates to come counts as the furthest behind.
        behind = [inbox for inbox in inboxes if inbox.position(applied) != applied]
        behind.sort(key=lambda inbox: len(inbox.waiting), reverse=True)
        positions = [inbox.position(applied) for inbox in behind]
        if not positions or applied is None:
            return applied
        if not isinstance(applied, Numbered):
            return positions[0]
        # A consumer still in an older log, or before any, is the furthest behind.
        return min(positions, key=lambda at: _number_in(at, applied.epoch))


def _number_in(at: Position | None, epoch: str) -> int:
    return at.seq if isinstance(at, Numbered) and at.epoch == epoch else -1
