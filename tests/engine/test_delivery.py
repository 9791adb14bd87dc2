"""Inboxes: bounded, in order, honest about what did not fit; and how far a consumer has come."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from towline import Exhausted, JobComplete, JobStarted, Progress, Resynced, Stalled
from towline._facts import Numbered
from towline._updates import AnyUpdate, merge
from towline.engine.delivery.delivery import NEXT_READER_WAIT, Delivery, Subscription
from towline.engine.delivery.inbox import INBOX_LIMIT

pytestmark = pytest.mark.anyio
END = JobComplete(job="j", seq=9999, epoch="e")


def progress(seq: int) -> Progress:
    return Progress(job="j", fraction=0.5, seq=seq, epoch="e", first_seq=seq, processed_count=seq)


def started(seq: int) -> JobStarted:
    return JobStarted(job="j", seq=seq, epoch="e")


def resynced(to: int, missed: int = 0) -> Resynced:
    return Resynced(job="j", kind="snapshot", epoch="e", seq=to, from_seq=to + 1 - missed, to_seq=to, missed=missed)


def at(update: AnyUpdate) -> Numbered | None:
    return None if update.seq is None else Numbered(update.seq, "e")


class Deliveries(Delivery):
    def __init__(
        self, *, handled: bool = False, max_waiting: int = 1 << 20, handlers_full: Callable[[], bool] = lambda: False
    ) -> None:
        self.overflows = 0
        super().__init__(
            catch_up=lambda: None,
            moved=lambda: None,
            end_taken=lambda: None,
            overflowed=self._count,
            soon=lambda call: call(),
            max_waiting=max_waiting,
            handled=handled,
            handlers_full=handlers_full,
        )
        self.begin(None)

    def _count(self) -> None:
        self.overflows += 1

    def give(self, *updates: AnyUpdate) -> bool:
        """Publish one by one; returns whether there is room for more."""
        for update in updates:
            self.publish([update], at(update) or self.applied)
        return self.room() is None

    def finish(self) -> None:
        self.outcome = END
        self.end(at(END))


async def drain(subscription: Subscription, count: int) -> list[AnyUpdate]:
    return [await anext(subscription) for _ in range(count)]


async def test_what_came_before_the_first_iteration_is_not_lost() -> None:
    delivery = Deliveries()
    delivery.give(progress(1), progress(2))
    assert await drain(delivery.subscribe(wait=False), 2) == [progress(1), progress(2)]


async def test_a_slow_consumer_gets_merged_ranges_that_join() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    for seq in range(1, 5001):
        assert delivery.give(progress(seq))
    delivery.finish()
    updates = [update async for update in subscription]
    assert len(updates) == INBOX_LIMIT + 1
    last = 0
    for update in updates[:-1]:
        assert isinstance(update, Progress)
        assert update.first_seq == last + 1
        last = update.seq or 0
    assert last == 5000
    assert updates[-1] is END


@pytest.mark.parametrize("together", [1, 40, 5000])
async def test_what_is_merged_tells_how_many_it_stands_for(together: int) -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    for first in range(1, 5001, together):
        batch: list[AnyUpdate] = [progress(seq) for seq in range(first, first + together)]
        delivery.publish(batch, at(batch[-1]))
        assert delivery.room() is None
    *alone, merged = await drain(subscription, INBOX_LIMIT)
    assert alone == [progress(seq) for seq in range(1, INBOX_LIMIT)]
    assert merged == replace(progress(5000), first_seq=INBOX_LIMIT, merged=5001 - INBOX_LIMIT)


async def test_progress_of_no_log_or_of_another_is_not_given_a_range() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    delivery.publish([progress(seq) for seq in range(1, INBOX_LIMIT)], at(progress(INBOX_LIMIT - 1)))
    unplaced = Progress(job="j", fraction=0.5)
    other = [replace(progress(seq), epoch="f") for seq in (1, 2)]
    delivery.publish([unplaced, unplaced, *other], Numbered(2, "f"))
    assert delivery.room() is None
    first, *middle, last = await drain(subscription, 3)
    assert first == replace(progress(INBOX_LIMIT - 1), first_seq=1, merged=INBOX_LIMIT - 1)
    assert middle == [replace(unplaced, merged=2)]
    assert last == replace(other[1], first_seq=1, merged=2)


async def test_heartbeats_between_do_not_keep_progress_from_merging() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    assert all(delivery.give(progress(seq)) for seq in range(1, 5001, 2))
    assert len(await drain(subscription, INBOX_LIMIT)) == INBOX_LIMIT


async def test_what_is_merged_keeps_the_last_share_that_was_known() -> None:
    counted = replace(progress(2), fraction=None, processed_count=7)
    assert merge(replace(progress(1), fraction=0.25), counted) == replace(counted, fraction=0.25, first_seq=1, merged=2)
    assert merge(replace(counted, seq=1, first_seq=1), counted) == replace(counted, first_seq=1, merged=2)


async def test_updates_that_cannot_be_joined_stop_the_reading_until_the_consumer_has_caught_up() -> None:
    delivery = Deliveries()
    subscription, other = delivery.subscribe(wait=False), delivery.subscribe(wait=False)
    sent: list[AnyUpdate] = [started(seq) for seq in range(1, INBOX_LIMIT + 11)]
    delivery.publish(sent, at(sent[-1]))
    assert await drain(subscription, len(sent)) == sent
    room = delivery.room()
    assert room is not None, "the other one has not caught up"
    assert await drain(other, 9) == sent[:9]
    assert not room.is_set()
    assert await drain(other, 1) == sent[9:10]
    assert room.is_set()
    assert delivery.room() is None


@pytest.mark.parametrize("how", ["leaves", "is lost", "stops"])
async def test_a_consumer_that_is_gone_stops_no_reading(how: str) -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    assert not delivery.give(*(started(seq) for seq in range(1, INBOX_LIMIT + 2)))
    room = delivery.room()
    assert room is not None
    if how == "leaves":
        subscription.end()
    elif how == "stops":
        delivery.stop()
    else:
        del subscription
        gc.collect()
    assert room.is_set()
    assert delivery.room() is None


async def test_a_slow_handler_stops_the_reading() -> None:
    full = True
    delivery = Deliveries(handlers_full=lambda: full)
    room = delivery.room()
    assert room is not None
    full = False
    delivery.look_for_room()
    assert room.is_set()
    assert delivery.room() is None


# --- no consumer -----------------------------------------------------------------------------------------------------


async def test_what_was_lost_while_nobody_read_is_told_by_the_next_resync() -> None:
    delivery = Deliveries()
    assert delivery.give(*(started(seq) for seq in range(1, INBOX_LIMIT + 3))), "nobody is waited for"
    delivery.give(resynced(INBOX_LIMIT + 2), progress(INBOX_LIMIT + 3))
    told, after = await drain(delivery.subscribe(wait=False), 2)
    assert isinstance(told, Resynced)
    assert (told.from_seq, told.missed) == (1, INBOX_LIMIT + 2)
    assert after == progress(INBOX_LIMIT + 3)


@pytest.mark.parametrize("missed", [0, None])
async def test_the_newest_progress_that_was_lost_follows_the_report(missed: int | None) -> None:
    delivery = Deliveries()
    delivery.give(*(started(seq) for seq in range(1, INBOX_LIMIT)), progress(INBOX_LIMIT), started(INBOX_LIMIT + 1))
    delivery.give(progress(INBOX_LIMIT + 2), started(INBOX_LIMIT + 3))
    report = replace(resynced(INBOX_LIMIT + 3), missed=missed)
    delivery.give(report, progress(INBOX_LIMIT + 4))
    subscription = delivery.subscribe(wait=False)
    said, newest, after = await drain(subscription, 3)
    assert said == replace(
        report, from_seq=1 if missed == 0 else report.from_seq, missed=None if missed is None else INBOX_LIMIT + 3
    )
    # Its place is in the range of the report: it must not move the consumer's position.
    assert newest == replace(progress(INBOX_LIMIT + 2), seq=None, epoch=None, first_seq=None)
    assert after == progress(INBOX_LIMIT + 4)
    assert delivery.position() == Numbered(INBOX_LIMIT + 3, "e")


async def test_progress_lost_in_a_former_log_does_not_follow_the_report_of_another() -> None:
    delivery = Deliveries()
    delivery.give(progress(1), *(started(seq) for seq in range(2, INBOX_LIMIT + 2)))
    delivery.publish([replace(resynced(3), epoch="f"), replace(progress(4), epoch="f")], Numbered(4, "f"))
    said, after = await drain(delivery.subscribe(wait=False), 2)
    assert isinstance(said, Resynced)
    assert after == replace(progress(4), epoch="f")


async def test_the_newest_progress_that_was_lost_comes_before_the_end() -> None:
    delivery = Deliveries()
    delivery.give(progress(1), *(started(seq) for seq in range(2, INBOX_LIMIT + 2)))
    delivery.finish()
    said, newest, end = [update async for update in delivery.subscribe(wait=False)]
    assert isinstance(said, Resynced)
    assert newest == replace(progress(1), seq=None, epoch=None, first_seq=None)
    assert end is END


async def test_the_end_arrives_in_an_inbox_that_overflowed_and_says_what_is_missing() -> None:
    delivery = Deliveries()
    for seq in range(1, INBOX_LIMIT + 3):
        delivery.give(started(seq))
    delivery.finish()
    told, end = [update async for update in delivery.subscribe(wait=False)]
    assert isinstance(told, Resynced)
    assert (told.kind, told.missed) == ("end", INBOX_LIMIT + 2)
    assert end is END


async def test_an_iterator_that_was_passed_on_loses_nothing() -> None:
    """Its reader is the task that took the last update, not the one that took the first and waits for the end."""
    delivery = Deliveries()
    passed_on = delivery.subscribe(wait=False)
    delivery.give(started(1), started(2))
    assert await anext(passed_on) == started(1)
    async with another_task() as read:
        assert await read(passed_on) == started(2)
        with delivery.end_awaited():
            delivery.give(*map(started, range(3, INBOX_LIMIT + 4)))
            assert delivery.room() is not None
    assert await anext(passed_on) == started(3)
    assert delivery.overflows == 0


async def test_who_waits_for_the_end_holds_up_no_one_by_what_only_it_reads() -> None:
    delivery = Deliveries()
    unread, mine, other = (delivery.subscribe(wait=False) for _ in range(3))
    delivery.give(started(1))
    assert await anext(mine) == started(1)
    async with another_task() as read:
        assert await read(other) == started(1)
        assert not delivery.give(*map(started, range(2, INBOX_LIMIT + 3)))
        with delivery.end_awaited():
            assert delivery.room() is not None, "the other task reads its own"
            assert await read(other) == started(2)
            assert delivery.room() is None
    assert delivery.overflows == 0
    for subscription in (unread, mine):
        with anyio.move_on_after(1):
            await anext(subscription)
    assert delivery.overflows == 2, "each asks for a re-sync when it is read again"
    delivery.give(resynced(INBOX_LIMIT + 3, missed=1), progress(INBOX_LIMIT + 4))
    for subscription, last in (unread, 0), (mine, 1):
        report = await anext(subscription)
        assert isinstance(report, Resynced)
        assert (report.from_seq, report.missed) == (last + 1, INBOX_LIMIT + 3 - last)
        assert await anext(subscription) == progress(INBOX_LIMIT + 4)


async def test_an_iterator_whose_reader_has_ended_holds_up_no_one_who_waits_for_the_end() -> None:
    delivery = Deliveries()
    early, late = (delivery.subscribe(wait=False) for _ in range(2))
    delivery.give(started(1))
    async with another_task() as read_late:
        async with another_task() as read_early:
            assert await read_early(early) == await read_late(late) == started(1)
        delivery.give(*map(started, range(2, INBOX_LIMIT + 3)))
        with delivery.end_awaited():
            assert len(early._inbox.waiting) == INBOX_LIMIT + 1, "it may have been a task for one read"  # type: ignore[union-attr]
            await anyio.sleep(NEXT_READER_WAIT)
            assert delivery.room() is not None, "the other reader still runs"
            assert (len(early._inbox.waiting), len(late._inbox.waiting)) == (0, INBOX_LIMIT + 1)  # type: ignore[union-attr]
    with delivery.end_awaited():
        await anyio.sleep(NEXT_READER_WAIT)
        assert delivery.room() is None
    assert late._inbox.waiting == []  # type: ignore[union-attr]


@asynccontextmanager
async def another_task() -> AsyncIterator[Callable[[Subscription], Awaitable[AnyUpdate]]]:
    """A function with which another task, which lives as long as the block, reads one update."""
    ask, asked = anyio.create_memory_object_stream[Subscription]()
    answer, answered = anyio.create_memory_object_stream[AnyUpdate]()

    async def run() -> None:
        async for subscription in asked:
            await answer.send(await anext(subscription))

    async def read(subscription: Subscription) -> AnyUpdate:
        await ask.send(subscription)
        return await answered.receive()

    with asked, answer, answered:
        async with anyio.create_task_group() as tasks, ask:
            tasks.start_soon(run)
            yield read


async def test_an_unclaimed_inbox_that_overflowed_says_so_when_it_is_claimed() -> None:
    delivery = Deliveries()
    for seq in range(1, INBOX_LIMIT + 3):
        assert delivery.give(started(seq))
    assert delivery.overflows == 0
    delivery.subscribe(wait=False)
    assert delivery.overflows == 1


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["progress", "progress", "started", "stalled", "resynced", "take"]), max_size=900),
    together=st.sampled_from([1, 2, 7, 300]),
)
def test_an_inbox_is_bounded_and_in_order_whatever_comes(kinds: list[str], together: int) -> None:
    """A source that brings so many updates together, and is read only while there is room."""
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    inbox = subscription._inbox
    assert inbox is not None
    seq, last = 0, 0
    taken: list[AnyUpdate] = []
    batch: list[AnyUpdate] = []

    def take() -> None:
        update = inbox.waiting.pop(0)
        delivery.taken(inbox, update)
        taken.append(update)

    for kind in kinds * 3:
        if kind == "take":
            if inbox.waiting:
                take()
            continue
        if kind in ("progress", "started"):
            seq += 1
        update = {
            "progress": progress(seq),
            "started": started(seq),
            "stalled": Stalled(job="j", seconds=120),
            "resynced": resynced(seq),
        }[kind]
        batch.append(update)
        if len(batch) == together:
            while delivery.room() is not None:
                take()
            delivery.publish(batch, Numbered(seq, "e"))
            batch = []
        assert len(inbox.waiting) <= INBOX_LIMIT + together
    delivery.publish(batch, Numbered(seq, "e"))
    for update in [*taken, *inbox.waiting]:
        if isinstance(update, Progress | JobStarted):
            assert (update.first_seq if isinstance(update, Progress) else update.seq) == last + 1
            last = update.seq or 0
        assert not isinstance(update, Resynced) or not update.missed
    assert last == seq


async def test_a_second_iterator_has_all_from_its_beginning_and_a_late_one_the_end_once() -> None:
    delivery = Deliveries()
    first = delivery.subscribe(wait=False)
    delivery.give(progress(1))
    second = delivery.subscribe(wait=False)
    delivery.give(progress(2))
    delivery.finish()
    assert [update.seq async for update in first] == [1, 2, 9999]
    assert [update.seq async for update in second] == [2, 9999]
    late = delivery.subscribe(wait=False)
    assert [update async for update in late] == [END]
    assert [update async for update in late] == []


async def test_what_an_iteration_left_is_there_for_the_next() -> None:
    delivery = Deliveries()
    delivery.give(progress(1), progress(2), progress(3))
    async for _ in delivery.subscribe(wait=False):
        break
    gc.collect()
    delivery.give(progress(4))
    assert await drain(delivery.subscribe(wait=False), 3) == [progress(2), progress(3), progress(4)]


async def test_one_of_two_that_is_left_leaks_nothing_and_holds_nothing_back() -> None:
    delivery = Deliveries()
    stays, leaves = delivery.subscribe(wait=False), delivery.subscribe(wait=False)
    delivery.give(progress(1), progress(2))
    await drain(stays, 2)
    inbox = weakref.ref(leaves._inbox)  # type: ignore[type-var]
    del leaves
    gc.collect()
    delivery.give(progress(3))
    assert inbox() is None
    await drain(stays, 1)
    assert delivery.position() == Numbered(2, "e"), "the third is in hand"


async def test_the_position_is_what_every_consumer_has_done() -> None:
    delivery = Deliveries()
    assert delivery.position() is None
    delivery.give(progress(1), progress(2))
    assert delivery.position() is None, "nobody has taken anything"
    subscription = delivery.subscribe(wait=False)
    await drain(subscription, 1)
    assert delivery.position() is None, "the first is in hand"
    await drain(subscription, 1)
    assert delivery.position() == Numbered(1, "e")
    with anyio.move_on_after(1):
        await anext(subscription)
    assert delivery.position() == Numbered(2, "e"), "it asked for more"
    delivery.applied = Numbered(5, "e")
    assert delivery.position() == Numbered(5, "e"), "what shows nothing is done with"


async def test_handlers_are_consumers_until_somebody_iterates() -> None:
    delivery = Deliveries(handled=True)
    delivery.give(progress(1))
    assert delivery.position() == Numbered(1, "e")


@pytest.mark.parametrize("wait", [False, True])
async def test_giving_up_is_raised_once_unless_told_to_wait(wait: bool) -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=wait)
    delivery.give(progress(1))
    delivery.given_up = lambda: Exhausted("budget", "why")
    delivery.look()
    await drain(subscription, 1)
    with anyio.move_on_after(1) as waiting:
        if wait:
            await anext(subscription)
        with pytest.raises(Exhausted):
            await anext(subscription)
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
    assert waiting.cancelled_caught is wait
    delivery.given_up = None
    delivery.give(progress(2))
    assert await drain(subscription if wait else delivery.subscribe(wait=False), 1) == [progress(2)]


async def test_stopping_ends_every_iteration_and_going_on_allows_new_ones() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    delivery.give(progress(1))
    delivery.stop()
    for one in (subscription, delivery.subscribe(wait=True)):
        with pytest.raises(StopAsyncIteration):
            await anext(one)
    delivery.stopped = False
    assert await drain(delivery.subscribe(wait=False), 1) == [progress(1)]


async def test_two_tasks_at_one_iteration_both_go_on() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    seen: list[AnyUpdate] = []

    async def take() -> None:
        seen.append(await anext(subscription))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        tasks.start_soon(take)
        await anyio.sleep(1)
        delivery.give(progress(1))
        await anyio.sleep(1)
        delivery.give(progress(2))
    assert seen == [progress(1), progress(2)]


async def test_a_consumer_that_asks_for_more_has_finished_its_update_though_a_request_ends_it() -> None:
    delivery = Deliveries()
    subscription = delivery.subscribe(wait=False)
    delivery.give(progress(1), progress(2))
    assert await anext(subscription) == progress(1)
    delivery.catch_up = delivery.stop  # as after a `cancel()` in a signal handler
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    assert delivery.position() == Numbered(1, "e")
