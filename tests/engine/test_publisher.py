"""What is delivered, and which events findings mean: a real sequencer, a real delivery, real handlers, no engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest

from towline import JobCancelled, JobComplete, JobStarted, Progress, Resynced, State
from towline._facts import Fact, Item, Numbered
from towline._facts import Snapshot as StateSnapshot
from towline._tasks import Tasks
from towline._updates import AnyUpdate
from towline.engine.delivery.delivery import Delivery
from towline.engine.delivery.handlers import Handler, Handlers
from towline.engine.delivery.inbox import INBOX_LIMIT
from towline.engine.delivery.publisher import Publisher
from towline.engine.sequence.findings import End, Gap, Phase
from towline.engine.sequence.sequencer import Sequencer
from towline.statemachine import AnyEvent, Cause, Deliver, GapFound, JobEnded, Reopen, Snapshot, Synced

pytestmark = pytest.mark.anyio
COMPLETE = JobComplete(job="j1", seq=9, epoch="e", result=[])


def message(seq: int) -> tuple[Fact, ...]:
    return (Item(progress(seq), Numbered(seq, "e")),)


def state(seq: int) -> tuple[Fact, ...]:
    return (StateSnapshot((), Numbered(seq, "e")),)


def progress(seq: int) -> Progress:
    return Progress(job="j1", fraction=seq / 10, status="working", seq=seq, first_seq=seq, epoch="e")


class Published:
    """A publisher of generation 3, and what it leads to."""

    def __init__(self, tasks: Tasks, on_update: Handler[AnyUpdate] | None) -> None:
        self.snapshot = Snapshot(state=State.CONNECTED, generation=3)
        self.counts: Counter[str] = Counter()
        self.posted: list[AnyEvent] = []
        self.reopening_helps = False
        self.log: list[str] = []
        self.sequencer = Sequencer("j1")
        self.delivery = Delivery(
            catch_up=lambda: None,
            moved=lambda: None,
            end_taken=lambda: None,
            overflowed=lambda: self.publisher.overflowed(),
            soon=lambda call: call(),
            max_waiting=1 << 20,
            handled=on_update is not None,
        )
        self.delivery.begin(None)
        self.handlers = Handlers(tasks, max_waiting=1 << 20)
        self.publisher = Publisher(
            self.sequencer,
            self.delivery,
            self.handlers,
            on_update=on_update,
            counts=self.counts,
            snapshot=lambda: self.snapshot,
            post=self.posted.append,
            turn=self._turn,
            reopening_helps=lambda: self.reopening_helps,
        )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self.log.append("turn begins")
        yield
        self.log.append("turn ends")

    def sync(self) -> None:
        """Bring the sequencer in step with an empty log, without a trace in what a test looks at."""
        self.sequencer.opened()
        self.sequencer.state(state(0))
        self.sequencer.release()
        assert [type(update) for update in self.sequencer.take()] == [Resynced]
        assert self.sequencer.phase is Phase.LIVE

    def receive(self, *seqs: int) -> None:
        for seq in seqs:
            self.publisher.act(self.sequencer.follow(message(seq)), 3)

    @property
    def waiting(self) -> list[AnyUpdate]:
        """The updates that the next consumer finds, without taking them."""
        assert self.delivery._unclaimed is not None
        return list(self.delivery._unclaimed.waiting)


@asynccontextmanager
async def publishing(on_update: Callable[[AnyUpdate], object] | None = None) -> AsyncIterator[Published]:
    async with Tasks(finish=True) as tasks:
        yield Published(tasks, on_update)  # type: ignore[arg-type]


# --- updates ---------------------------------------------------------------------------------------------------------


async def test_updates_in_order_are_delivered_with_their_position() -> None:
    async with publishing() as at:
        at.sync()
        at.receive(1, 2)
        assert at.waiting == [progress(1), progress(2)]
        assert at.delivery.applied == Numbered(2, "e")
        assert at.counts == {"updates": 2}
        assert at.posted == []


async def test_a_frame_that_was_delivered_already_is_delivered_once() -> None:
    async with publishing() as at:
        at.sync()
        at.receive(1, 1)
        assert at.waiting == [progress(1)]
        assert at.posted == []


async def test_the_handler_gets_every_update_in_one_turn() -> None:
    async with publishing(lambda update: at.log.append(f"{type(update).__name__} {update.seq}")) as at:
        at.publisher.publish([JobStarted(job="j1"), progress(1), progress(2)])
        assert at.log == ["turn begins", "JobStarted None", "Progress 1", "Progress 2", "turn ends"]
        assert at.counts == {"updates": 3}


async def test_a_handler_that_raises_does_not_keep_updates_from_anyone(caplog: pytest.LogCaptureFixture) -> None:
    async with publishing(lambda update: 1 / 0) as at:
        at.publisher.publish([progress(1), progress(2)])
        assert at.handlers.errors == 2
        assert at.waiting == [progress(1), progress(2)]
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_that_cancels_gets_nothing_more() -> None:
    seen: list[int | None] = []

    def cancel(update: AnyUpdate) -> None:
        seen.append(update.seq)
        if update.seq == 2:
            at.snapshot = Snapshot(state=State.CANCELLED, generation=4)

    async with publishing(cancel) as at:
        at.publisher.publish([progress(1), progress(2), progress(3)])
        assert seen == [1, 2]
        assert at.log == ["turn begins", "turn ends"]
        at.publisher.publish([progress(4)])
        assert seen == [1, 2]


async def test_nothing_is_no_turn_and_no_update() -> None:
    async with publishing(lambda update: None) as at:
        at.publisher.publish([])
        assert at.log == []
        assert at.counts == {}


@pytest.mark.parametrize(
    "snapshot", [Snapshot(state=State.CANCELLED), Snapshot(outcome="complete"), Snapshot(outcome="failed")]
)
async def test_after_the_end_or_a_cancel_nothing_is_delivered(snapshot: Snapshot) -> None:
    seen: list[AnyUpdate] = []
    async with publishing(seen.append) as at:
        at.sync()
        at.snapshot = snapshot
        at.receive(1)
        at.publisher.publish([progress(2)])
        assert (at.waiting, seen, at.counts) == ([], [], {})


# --- findings --------------------------------------------------------------------------------------------------------


async def test_a_gap_is_an_event_after_the_updates_before_it() -> None:
    async with publishing() as at:
        at.sync()
        at.receive(1, 3)
        assert at.waiting == [progress(1)]
        cause = Cause(code="gap", text="expected event 2, got 3")
        assert at.posted == [GapFound(generation=3, cause=cause)]
        assert at.counts == {"updates": 1, "gaps": 1}


async def test_a_gap_that_a_new_link_can_fill_opens_one() -> None:
    async with publishing() as at:
        at.sync()
        at.reopening_helps = True
        at.receive(1, 3)
        assert at.waiting == [progress(1)]
        assert at.posted == [Reopen(generation=3, cause=Cause(code="gap", text="expected event 2, got 3"))]
        assert at.counts == {"updates": 1, "gaps": 1}


async def test_a_finding_keeps_the_generation_in_which_it_was_made() -> None:
    async with publishing() as at:
        at.publisher.act(Gap("a gap"), 2)
        at.sequencer.opened()
        at.publisher.act(at.sequencer.unavailable(), 2)
        assert at.posted == [
            GapFound(generation=2, cause=Cause(code="gap", text="a gap")),
            Synced(generation=2),
        ]


async def test_a_sync_is_an_event_and_its_updates_wait_for_the_release() -> None:
    async with publishing() as at:
        at.sequencer.opened()
        at.receive(5, 6)
        assert (at.waiting, at.posted) == ([], [])
        at.publisher.act(at.sequencer.state(state(4)), 3)
        assert at.posted == [Synced(generation=3)]
        assert at.waiting == []
        at.publisher.release_buffer()
        resynced, *updates = at.waiting
        assert isinstance(resynced, Resynced)
        assert (resynced.from_seq, resynced.to_seq, resynced.missed) == (1, 4, 4)
        assert updates == [progress(5), progress(6)]
        assert at.posted == [Synced(generation=3)]


async def test_a_gap_among_the_buffered_frames_is_found_at_the_release() -> None:
    async with publishing() as at:
        at.sequencer.opened()
        at.receive(5, 7)
        at.publisher.act(at.sequencer.state(state(4)), 3)
        at.snapshot = Snapshot(state=State.CONNECTED, generation=4)
        at.publisher.release_buffer()
        assert [update.seq for update in at.waiting] == [4, 5]
        assert at.posted == [
            Synced(generation=3),
            GapFound(generation=4, cause=Cause(code="gap", text="expected event 6, got 7")),
        ]


async def test_a_skipped_state_finishes_the_sync_and_says_that_there_is_none() -> None:
    async with publishing() as at:
        at.sequencer.opened()
        at.publisher.skip_state()
        assert at.posted == [Synced(generation=3)]
        at.publisher.release_buffer()
        (resynced,) = at.waiting
        assert isinstance(resynced, Resynced)
        assert resynced.kind == "unavailable"
        at.publisher.skip_state()
        assert at.posted == [Synced(generation=3)], "it is in step already"


async def test_an_end_is_an_event_with_what_to_deliver() -> None:
    async with publishing() as at:
        end = End((progress(8),), COMPLETE)
        at.publisher.act(end, 3)
        assert at.posted == [JobEnded(outcome="complete", update=end)]
        assert at.waiting == []
        assert at.delivery.outcome is None, "the lifecycle decides first"


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_the_end_is_delivered_after_what_belongs_before_it() -> None:
    seen: list[AnyUpdate] = []
    async with publishing(seen.append) as at:
        at.sync()
        at.receive(1)
        subscription = at.delivery.subscribe(wait=False)
        at.snapshot = Snapshot(outcome="complete", generation=4)
        missed = Resynced(job="j1", kind="end", epoch="e", from_seq=3, to_seq=8, missed=6)
        at.publisher.deliver(Deliver(outcome="complete", update=End((progress(2), missed), COMPLETE)))
        assert [update async for update in subscription] == [progress(1), progress(2), missed, COMPLETE]
        assert seen == [progress(1), progress(2), missed, COMPLETE]
        assert at.delivery.outcome is COMPLETE
        assert at.counts["updates"] == 4


async def test_the_end_is_an_update_for_the_handler_too() -> None:
    async with publishing(lambda update: at.log.append(type(update).__name__)) as at:
        at.publisher.deliver(Deliver(outcome="complete", update=End((), COMPLETE)))
        assert at.waiting == [COMPLETE]
        assert at.log == ["turn begins", "JobComplete", "turn ends"]


async def test_an_assumed_end_brings_the_buffered_frames_that_fit_first() -> None:
    async with publishing() as at:
        at.sync()
        at.receive(1)
        at.sequencer.opened()
        at.receive(2, 3, 5)
        at.publisher.deliver(Deliver(outcome="canceled"))
        assert at.waiting == [progress(1), progress(2), progress(3), JobCancelled(job="j1", assumed=True)]
        assert at.delivery.applied == Numbered(3, "e")


# --- no consumer -----------------------------------------------------------------------------------------------------


async def test_updates_that_were_dropped_while_nothing_read_them_are_a_gap_for_the_next_consumer() -> None:
    seen: list[AnyUpdate] = []
    async with publishing(seen.append) as at:
        at.publisher.publish([JobStarted(job="j1") for _ in range(INBOX_LIMIT + 1)])
        at.publisher.publish([progress(1)])
        assert (at.posted, len(seen), seen[-1]) == ([], INBOX_LIMIT + 2, progress(1))
        subscription = at.delivery.subscribe(wait=False)
        (event,) = at.posted
        assert isinstance(event, GapFound)
        assert event.generation == 3
        assert event.cause.text == "updates were dropped while nothing read them"
        assert at.counts == {"updates": INBOX_LIMIT + 2, "overflows": 1, "gaps": 1}
        with anyio.move_on_after(1) as waiting:
            await anext(subscription)
        assert waiting.cancelled_caught, "what was dropped is reported by the next Resynced"
