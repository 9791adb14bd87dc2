"""Handing updates to whoever iterates, without ever waiting for them.

Each subscriber has an inbox of bounded size. When it is full, progress is merged into the newest progress, which then
carries the range it stands for. An update that cannot be merged and does not fit is an overflow: what waits is given
up, the engine takes it for a gap, and the `Resynced` that comes of that tells this subscriber what it has missed. The
final update always arrives.

While nobody iterates, an inbox waits for the next who does: so nothing is lost before the first iteration, nor between
one that was left and the next.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
from msgspec.structs import replace

from ._exceptions import Exhausted
from ._recovery import Cursor
from ._updates import AnyUpdate, Outcome, Progress, Resynced, merge_runs

#: Updates that a slow subscriber may be behind before progress is merged.
INBOX_LIMIT: Final = 256


class Subscription(AsyncIterator[AnyUpdate]):
    """The updates of one connection, for one consumer; made by iterating over a `Connection`.

    Ends after the job's final update, and on `aclose()` and `cancel()`. Raises `Exhausted` when the engine gives up,
    unless it was told to wait. After any of these it only ever ends.
    """

    def __init__(self, delivery: Delivery, inbox: Inbox | None, *, wait: bool) -> None:
        self._delivery = delivery
        # None once it is over: the inbox may be another consumer's by then.
        self._inbox = inbox
        self._wait = wait

    def __repr__(self) -> str:
        if self._inbox is None:
            return "<Subscription: over>"
        return f"<Subscription: {len(self._inbox.waiting)} updates wait>"

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> AnyUpdate:
        self._delivery.catch_up()
        inbox = self._inbox
        while inbox is None or not inbox.waiting:
            await self._wait_for_more(inbox)
            inbox = self._inbox
        self._put_down(inbox)
        update = inbox.in_hand = inbox.waiting.popleft()
        if update is self._delivery.outcome:
            self.end()
            self._delivery.end_taken()
        return update

    async def _wait_for_more(self, inbox: Inbox | None) -> None:
        if inbox is None:
            raise StopAsyncIteration
        self._put_down(inbox)
        given_up = self._delivery.given_up
        if given_up is not None and not self._wait:
            self.end()
            raise given_up()
        if inbox.wake is None:
            inbox.wake = anyio.Event()
        await inbox.wake.wait()

    def _put_down(self, inbox: Inbox) -> None:
        """The consumer asks for more: what it had in hand is done."""
        update, inbox.in_hand = inbox.in_hand, None
        if update is not None:
            if update.seq is not None and update.epoch is not None:
                inbox.done = update
            self._delivery.moved()

    def end(self) -> None:
        """Give nothing any more; what waits is left to the next consumer."""
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            self._delivery.leave(inbox)
            inbox.look()


class _Lost:
    """What an inbox gave up since it overflowed, until a `Resynced` tells of it."""

    __slots__ = ("count", "epoch", "first", "last")

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.first: int | None = None
        self.last: int | None = None
        #: The largest count that nobody saw.
        self.count: int | None = None

    def add(self, update: AnyUpdate) -> None:
        first = update.seq
        if isinstance(update, Progress):
            first = update.first_seq
            self.count = update.processed_count if update.processed_count is not None else self.count
        elif isinstance(update, Resynced):
            first = update.from_seq
        last = update.to_seq if isinstance(update, Resynced) else update.seq
        if first is None or last is None or update.epoch is None:
            return
        if self.epoch != update.epoch:
            self.epoch, self.first = update.epoch, first
        self.last = last

    def told_by(self, resynced: Resynced) -> Resynced:
        """The same, telling of what was lost here too."""
        count = resynced.processed_count if resynced.processed_count is not None else self.count
        if self.first is None or self.last is None or resynced.missed is None:
            return replace(resynced, missed=None, processed_count=count)
        missed = self.last - self.first + 1 + resynced.missed
        first = self.first if self.epoch == resynced.epoch else resynced.from_seq
        return replace(resynced, from_seq=first, missed=missed, processed_count=count)

    def before_end(self, end: Outcome) -> Resynced:
        """What is told where the end leaves no time for a re-sync."""
        last = None if self.last is None else self.last
        missed = None if self.first is None or last is None else last - self.first + 1
        return Resynced(
            job=end.job,
            epoch=self.epoch,
            kind="end",
            from_seq=self.first,
            to_seq=last,
            missed=missed,
            processed_count=self.count,
        )


class Inbox:
    """What waits for one consumer, and how far it has come."""

    def __init__(self, done: Cursor | None) -> None:
        self.waiting: deque[AnyUpdate] = deque()
        #: What the consumer works on, and the last that had its place in the log and that it was done with.
        self.in_hand: AnyUpdate | None = None
        self.done: AnyUpdate | Cursor | None = done
        self.lost: _Lost | None = None
        self.wake: anyio.Event | None = None

    def position(self, applied: Cursor | None) -> Cursor | None:
        """How far this consumer has come: all that was handed on, or less while something waits or is in hand."""
        if not self.waiting and self.in_hand is None and self.lost is None:
            return applied
        done = self.done
        if done is None or isinstance(done, Cursor) or done.seq is None or done.epoch is None:
            return done if isinstance(done, Cursor) else None
        return Cursor(done.epoch, done.seq)

    def put(self, updates: list[AnyUpdate]) -> bool:
        """Take updates in; False where it overflowed."""
        room = 0 if self.lost is not None else INBOX_LIMIT - len(self.waiting)
        self.waiting.extend(updates[:room])
        fits = [self._put_one(update) for update in merge_runs(updates[room:])]
        self.look()
        return all(fits)

    def _put_one(self, update: AnyUpdate) -> bool:
        waiting = self.waiting
        if self.lost is not None:
            if not isinstance(update, Resynced):
                self.lost.add(update)
                return True
            update, self.lost = self.lost.told_by(update), None
        if len(waiting) < INBOX_LIMIT:
            waiting.append(update)
            return True
        newest = waiting.pop()
        waiting.extend(merge_runs((newest, update)))
        if len(waiting) <= INBOX_LIMIT:
            return True
        self.waiting = deque(merge_runs(waiting))
        if len(self.waiting) <= INBOX_LIMIT:
            return True
        self.lost = _Lost()
        for given_up in self.waiting:
            self.lost.add(given_up)
        self.waiting.clear()
        return False

    def put_end(self, end: Outcome) -> None:
        """Take the final update in: it always fits."""
        if self.lost is not None:
            self.waiting.append(self.lost.before_end(end))
            self.lost = None
        self.waiting.append(end)
        self.look()

    def look(self) -> None:
        """Let the consumer look again."""
        if self.wake is not None:
            self.wake.set()
            self.wake = None


class Delivery:
    """All subscribers of one connection.

    `catch_up` performs what was requested meanwhile: so nothing is delivered after `cancel()`. `moved` is called when a
    consumer may have come further, `end_taken` when one took the end, `overflowed` when one claims an inbox that has
    lost something. `handled`: handlers are consumers too, so updates are delivered though nobody ever iterates.
    """

    def __init__(
        self,
        *,
        catch_up: Callable[[], None],
        moved: Callable[[], None],
        end_taken: Callable[[], None],
        overflowed: Callable[[], None],
        handled: bool = False,
    ) -> None:
        self.catch_up = catch_up
        self.moved = moved
        self.end_taken = end_taken
        self.outcome: Outcome | None = None
        #: Iteration just ends: the connection was cancelled or closed.
        self.stopped = False
        #: Makes the error that iteration raises: the engine has given up, and the last status fetch has settled.
        self.given_up: Callable[[], Exhausted] | None = None
        self.applied: Cursor | None = None
        self._overflowed = overflowed
        self._handled = handled
        # The inbox that waits for the next consumer, and those that have one.
        self._unclaimed: Inbox | None = None
        self._claimed: dict[Inbox, weakref.ref[Subscription]] = {}
        # The inboxes whose consumers were dropped, which may happen at any moment and in any thread.
        self._dropped: deque[Inbox] = deque()

    # --- consumers -------------------------------------------------------------------------------------------------

    def begin(self, cursor: Cursor | None) -> None:
        """Take updates from now on for whoever iterates first."""
        self.applied = cursor
        self._unclaimed = Inbox(cursor)

    def subscribe(self, *, wait: bool) -> Subscription:
        """A subscription: to what waits for the next consumer, else from now on; after the end it has the end."""
        self.catch_up()
        self._sweep()
        if self.stopped:
            return Subscription(self, None, wait=wait)
        inbox, self._unclaimed = self._unclaimed, None
        self._handled = False
        if inbox is None:
            inbox = Inbox(self.applied)
            if self.outcome is not None:
                inbox.put_end(self.outcome)
        subscription = Subscription(self, inbox, wait=wait)
        self._claimed[inbox] = weakref.ref(subscription, lambda _: self._dropped.append(inbox))
        if inbox.lost is not None:
            self._overflowed()
        return subscription

    def leave(self, inbox: Inbox) -> None:
        """A consumer is gone. What the last one left, and what it had in hand, waits for the next."""
        was_claimed = self._claimed.pop(inbox, None) is not None
        took_the_end = inbox.in_hand is not None and inbox.in_hand is self.outcome
        if was_claimed and not took_the_end and not self._claimed and self._unclaimed is None:
            self._unclaimed = inbox

    def _sweep(self) -> None:
        while self._dropped:
            self.leave(self._dropped.popleft())

    def stop(self) -> None:
        """Following stops: every iteration ends."""
        self.stopped = True
        for reference in list(self._claimed.values()):
            subscription = reference()
            if subscription is not None:
                subscription.end()

    def look(self) -> None:
        """Let every consumer look again at how things stand."""
        for inbox in list(self._claimed):
            inbox.look()

    # --- updates ---------------------------------------------------------------------------------------------------

    def publish(self, updates: list[AnyUpdate], applied: Cursor | None) -> bool:
        """Hand updates on; False where they overflowed an inbox. `applied` is the watermark after them."""
        self._sweep()
        self.applied = applied
        if self._unclaimed is not None:
            # Whoever claims it is told then what it has lost.
            self._unclaimed.put(updates)
        fits = True
        for inbox in list(self._claimed):
            fits = inbox.put(updates) and fits
        self.moved()
        return fits

    def end(self, applied: Cursor | None) -> None:
        """Hand on `outcome`; nothing follows it."""
        self._sweep()
        self.applied = applied
        if self.outcome is not None:
            for inbox in (*self._claimed, *filter(None, [self._unclaimed])):
                inbox.put_end(self.outcome)
        self.moved()

    def position(self) -> Cursor | None:
        """How far every consumer has come."""
        self._sweep()
        applied = self.applied
        inboxes = list(self._claimed)
        if self._unclaimed is not None and not self._handled:
            inboxes.append(self._unclaimed)
        behind = [at for at in (inbox.position(applied) for inbox in inboxes) if at != applied]
        if not behind or applied is None:
            return applied
        # A consumer still in an older log, or before any, is the furthest behind.
        return min(behind, key=lambda at: -1 if at is None or at.epoch != applied.epoch else at.seq)
