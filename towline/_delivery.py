"""Handing updates to whoever iterates, without ever waiting for them.

Each subscriber has a bounded queue. When it is full, progress is merged into the newest progress, which then carries
the range it stands for; an update that cannot be merged and does not fit is an overflow, which the engine takes for a
gap. The final update always fits.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import anyio

from ._exceptions import Exhausted
from ._recovery import Cursor
from ._updates import AnyUpdate, Outcome, Progress, Resynced, merge

#: Updates that a slow subscriber may be behind before progress is merged.
QUEUE_LIMIT: Final = 256


class Subscription(AsyncIterator[AnyUpdate]):
    """The updates of one connection, for one consumer; made by iterating over a `Connection`.

    Ends after the job's final update, and on `cancel()` and `aclose()`. Raises `Exhausted` when the engine gives up,
    unless it was told to wait; after that, or after its end, it only ever ends.
    """

    def __init__(self, delivery: Delivery, *, wait: bool, done: Cursor | None) -> None:
        self._delivery = delivery
        self._wait = wait
        self._queue: deque[AnyUpdate] = deque()
        self._wake: anyio.Event | None = None
        self._over = False
        self._in_hand: AnyUpdate | None = None
        # How far the consumer has come: it asked for more after this.
        self._done = done

    def __repr__(self) -> str:
        return f"<Subscription with {len(self._queue)} updates waiting>"

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> AnyUpdate:
        self._put_down()
        while not self._queue:
            self._raise_if_over()
            self._wake = anyio.Event()
            await self._wake.wait()
        update = self._queue.popleft()
        self._in_hand = update
        if not self._queue and self._delivery.outcome is update:
            self._over = True
            self._delivery.end_taken()
        return update

    def _raise_if_over(self) -> None:
        delivery = self._delivery
        if self._over or delivery.stopped:
            raise StopAsyncIteration
        if delivery.given_up is not None and not self._wait:
            self._over = True
            raise delivery.given_up()

    def _put_down(self) -> None:
        """The consumer asks for more: what it had in hand is done."""
        update, self._in_hand = self._in_hand, None
        if update is not None and update.seq is not None and update.epoch is not None:
            self._done = Cursor(update.epoch, update.seq)
            self._delivery.moved()

    def position(self, applied: Cursor | None) -> Cursor | None:
        """How far this consumer has come: all that was handed on, or less while something waits or is in hand."""
        return self._done if self._queue or self._in_hand is not None else applied

    def put(self, updates: Iterable[AnyUpdate]) -> bool:
        """Queue updates; False where one did not fit."""
        queue, fits = self._queue, True
        for update in updates:
            if len(queue) < QUEUE_LIMIT or isinstance(update, Resynced) or update is self._delivery.outcome:
                queue.append(update)
            else:
                fits = self._squeeze(update) and fits
        self.wake()
        return fits

    def _squeeze(self, update: AnyUpdate) -> bool:
        newest = self._queue[-1]
        merged = merge(newest, update) if isinstance(newest, Progress) and isinstance(update, Progress) else None
        if merged is not None:
            self._queue[-1] = merged
            return True
        self._compact()
        if len(self._queue) >= QUEUE_LIMIT:
            return False
        self._queue.append(update)
        return True

    def _compact(self) -> None:
        older = list(self._queue)
        self._queue.clear()
        for update in older:
            newest = self._queue[-1] if self._queue else None
            merged = merge(newest, update) if isinstance(newest, Progress) and isinstance(update, Progress) else None
            if merged is None:
                self._queue.append(update)
            else:
                self._queue[-1] = merged

    def wake(self) -> None:
        """Let the consumer look again."""
        if self._wake is not None:
            self._wake.set()
            self._wake = None


class Delivery:
    """All subscribers of one connection.

    A first subscription exists from the start, so that nothing is lost before the first iteration; it is given to
    whoever iterates first. A subscription that nobody holds any more takes no part.
    """

    def __init__(self, *, moved: Callable[[], None], end_taken: Callable[[], None]) -> None:
        #: Called when a consumer has come further, and when one took the end.
        self.moved = moved
        self.end_taken = end_taken
        self.outcome: Outcome | None = None
        #: Iteration just ends: the connection was cancelled or closed.
        self.stopped = False
        #: Makes the error that iteration raises: the engine has given up, and the last status fetch has settled.
        self.given_up: Callable[[], Exhausted] | None = None
        self.applied: Cursor | None = None
        self._first: Subscription | None = None
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def begin(self, cursor: Cursor | None) -> None:
        """Take updates from now on for whoever iterates first."""
        self.applied = cursor
        self._first = Subscription(self, wait=False, done=cursor)

    def subscribe(self, *, wait: bool) -> Subscription:
        """A subscription from now on; the first one has all since the beginning. After the end it has the end."""
        first, self._first = self._first, None
        if first is not None:
            first._wait = wait
            subscription = first
        else:
            subscription = Subscription(self, wait=wait, done=self.applied)
            if self.outcome is not None:
                subscription.put([self.outcome])
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, updates: list[AnyUpdate], applied: Cursor | None) -> bool:
        """Hand updates on; False where they overflowed a queue. `applied` is the watermark after them."""
        self.applied = applied
        fits = True
        if self._first is not None:
            # Nobody has claimed it yet: it may lose what does not fit.
            self._first.put(updates)
        for subscription in self._subscriptions:
            fits = subscription.put(updates) and fits
        self.moved()
        return fits

    def end(self, outcome: Outcome, applied: Cursor | None) -> None:
        """Hand on the final update; nothing follows it."""
        self.outcome = outcome
        self.publish([outcome], applied)

    def wake_all(self) -> None:
        """Let every consumer look again at how things stand."""
        for subscription in self._subscriptions:
            subscription.wake()

    def position(self) -> Cursor | None:
        """How far every consumer has come; without one, how far updates were handed on."""
        applied = self.applied
        positions = [subscription.position(applied) for subscription in self._subscriptions]
        behind = [position for position in positions if position != applied]
        if not behind or applied is None:
            return applied
        # A consumer still in an older log, or before any, is the furthest behind.
        return min(behind, key=lambda at: -1 if at is None or at.epoch != applied.epoch else at.seq)
