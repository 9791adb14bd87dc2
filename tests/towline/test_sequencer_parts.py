"""The parts of the sequencer, each alone: the order, the buffer, what was shown, the positions of facts."""

from __future__ import annotations

from typing import Any

import pytest

from towline import JobComplete, JobStarted, Output, Paused, Progress, Resynced
from towline._facts import Ended, InStep, Item, Mark, Numbered, Position, Snapshot, Wait
from towline.engine.sequence.held import Held, compacted, is_covered, join_state, without
from towline.engine.sequence.order import Order
from towline.engine.sequence.outlet import Outlet
from towline.engine.sequence.placing import State, placed_at, placed_last, positioned, state_of, without_number
from towline.engine.sequence.shown import OUTPUTS_REMEMBERED, Shown


def item(seq: int, *, first: int | None = None, count: int | None = None, epoch: str = "e") -> Held:
    update = Progress(fraction=None, processed_count=seq if count is None else count, seq=seq, epoch=epoch)
    first = seq if first is None else first
    return Held(update if first == seq else placed_range(update, first), Numbered(seq, epoch), first)


def placed_range(update: Progress, first: int) -> Progress:
    return Progress(
        fraction=None,
        processed_count=update.processed_count,
        seq=update.seq,
        epoch=update.epoch,
        first_seq=first,
        merged=(update.seq or 0) + 1 - first,
    )


# --- the order ----------------------------------------------------------------------------------------------------


def test_the_next_number_joins_a_smaller_one_is_old_and_a_larger_one_is_a_gap() -> None:
    order = Order(Numbered(3, "e"))
    assert [order.joins(item(seq), is_live=True) for seq in (2, 3, 4, 5)] == [False, False, True, False]
    assert [order.is_old(item(seq)) for seq in (2, 3, 4, 5)] == [True, True, False, False]
    assert order.gap_before(item(5)) == "expected event 4, got 5"
    assert order.gap_before(item(1, epoch="f")) == "the server's log restarted, at event 1"


def test_the_first_number_of_all_starts_the_log_of_a_live_link_only() -> None:
    assert Order(None).joins(item(9), is_live=True)
    assert not Order(None).joins(item(9), is_live=False)


def test_a_former_log_is_out_of_date_until_the_server_goes_back_to_it() -> None:
    order = Order(Numbered(3, "e"))
    order.enter_log("f")
    assert order.move_to(Numbered(1, "f")) is True
    assert order.is_out_of_date(item(4, epoch="e"))
    assert order.is_of_another_log(Numbered(4, "e"))
    order.enter_log("e")
    assert not order.is_out_of_date(item(4, epoch="e"))
    assert not order.is_of_another_log(Mark("4"))


def test_a_server_is_without_numbers_only_if_no_item_ever_had_one() -> None:
    order = Order(None)
    order.is_out_of_date(Held(None, None, 0))
    assert order.is_unnumbered
    order.is_out_of_date(item(1))
    assert not order.is_unnumbered


# --- the buffer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "before", "reported", "left", "reached"),
    [
        ([], 3, 7, [], 7),
        ([item(4), item(5)], 3, 4, [4, 5], 3),
        ([item(2), item(3), item(6), item(7)], 3, 6, [7], 6),
        ([item(7), item(8)], 3, 6, [7, 8], 6),
        ([Held(None, None, 0), item(7)], 3, 7, [0], 7),
    ],
)
def test_buffered_items_join_a_state(held: list[Held], before: int, reported: int, left: Any, reached: int) -> None:
    joined = join_state(held, before, reported)
    assert not isinstance(joined, str)
    assert ([one.last for one in joined[0]], joined[1]) == (left, reached)


def test_a_state_that_leaves_a_gap_or_is_behind_is_a_problem() -> None:
    assert join_state([item(9)], 3, 6) == "the state is at event 6, but the next event received is 9"
    assert join_state([], 3, 2) == "the state is at event 2, behind event 3, which was delivered already"


def test_a_merged_item_is_cut_at_the_state() -> None:
    cut = without(item(9, first=4), 6)
    assert isinstance(cut.update, Progress)
    assert (cut.first, cut.update.first_seq, cut.update.merged) == (7, 7, 3)
    assert without(item(9), 6) == item(9)


def test_what_a_count_covers() -> None:
    assert is_covered(item(1, count=3), 3)
    assert not is_covered(item(1, count=4), 3)
    assert not is_covered(item(1, count=4), None)
    assert not is_covered(Held(None, None, 0), 3)


def held(update: Any, at: Position | None, *, more: bool = False) -> Held:
    return Held(update, at, at.seq if isinstance(at, Numbered) else 0, more)


@pytest.mark.parametrize(
    ("older", "newer", "count"),
    [
        (item(1), item(2), 1),
        (item(1), item(3), 2),
        (item(1), item(2, epoch="f"), 2),
        (held(None, Numbered(1)), held(JobStarted(), Numbered(2)), 1),
        (held(JobStarted(), Numbered(1)), held(JobStarted(), Numbered(2)), 2),
        (held(JobStarted(), None), held(None, None), 1),
        (held(Progress(fraction=0.1), None), held(Progress(fraction=0.2), None), 1),
        (held(Progress(fraction=0.1), Mark("1")), held(Progress(fraction=0.2), Mark("2")), 2),
        (held(None, None), held(None, Mark("2")), 2),
        (held(Snapshot(), None), held(None, None), 2),
        (held(None, Numbered(1), more=True), held(None, Numbered(1)), 2),
        (
            held(Progress(fraction=0.1, epoch="a"), Numbered(1)),
            held(Progress(fraction=0.2, epoch="b"), Numbered(2)),
            2,
        ),
    ],
)
def test_only_items_that_lose_nothing_are_merged(older: Held, newer: Held, count: int) -> None:
    merged = compacted([older, newer])
    assert len(merged) == count
    assert (merged[0].first, merged[-1].last) == (older.first, newer.last)


# --- what was shown -----------------------------------------------------------------------------------------------


def test_outputs_are_remembered_by_key_and_bounded() -> None:
    shown = Shown()
    for number in range(OUTPUTS_REMEMBERED + 1):
        shown.note(Output(key=str(number), value="x", op="replace"))
    again = [Output(key=key, value="x", op="replace") for key in ("0", "1", "256")]
    assert [update.key for update in shown.news_of(again) if isinstance(update, Output)] == ["0"]


def test_a_value_that_has_no_json_is_always_news() -> None:
    shown, update = Shown(), Output(key="a", value=object(), op="replace")
    shown.note(update)
    assert shown.news_of([update]) == [update]


def test_a_start_is_news_once_wherever_it_stands() -> None:
    shown = Shown()
    shown.note(JobStarted(job="j", seq=1, epoch="e", total_count=3))
    assert shown.news_of([JobStarted(total_count=3)]) == []
    assert len(shown.news_of([JobStarted(total_count=4)])) == 1


def test_a_pause_ends_with_the_next_progress() -> None:
    shown, paused = Shown(), Paused(kind="input")
    shown.note(paused)
    assert shown.paused == ("input", "")
    assert shown.news_of([paused]) == []
    shown.progress = Progress(fraction=0.5)
    assert shown.paused is None


def test_updates_leave_with_the_job_and_no_count_gets_smaller() -> None:
    outlet = Outlet("j1", has_shown=False)
    outlet.hold(Resynced(kind="snapshot"), [Progress(fraction=None, processed_count=5)])
    assert not outlet.has_shown
    outlet.release()
    outlet.release()
    outlet.emit(Progress(job="other", fraction=None, processed_count=3))
    resynced, first, second = outlet.take()
    assert (resynced.job, first.job, second.job) == ("j1", "j1", "other")
    assert isinstance(second, Progress)
    assert second.processed_count == 5
    assert (outlet.has_shown, outlet.take()) == (True, [])


# --- positions ----------------------------------------------------------------------------------------------------


def test_a_fact_without_a_position_has_that_of_its_neighbours() -> None:
    one, two = Numbered(1), Numbered(2)
    facts = (Item("a"), Wait(1), Item("b", one), Item("c"), Ended("d", two), InStep())
    assert [(at, more) for _, at, more in positioned(facts)] == [
        (one, True),
        (one, False),
        (two, True),
        (two, True),
        (two, False),
    ]
    assert positioned((Item("a"), InStep())) == [(Item("a"), None, False), (InStep(), None, False)]
    assert positioned(fact for fact in [Wait(1)]) == []


def test_the_facts_of_a_state_call_are_one_state() -> None:
    progress = Progress(fraction=None, processed_count=4)
    assert state_of(()) is state_of((Wait(1),)) is None
    assert state_of((Snapshot((progress,), Mark("m")),)) == State(Snapshot((progress,), Mark("m")), None)
    both = state_of((Item(progress), Item(None, Numbered(3)), Ended(JobComplete())))
    assert both is not None
    assert (both.snapshot.updates, both.at, both.shown_count) == ((progress,), None, 4)


def test_a_position_is_given_only_where_the_protocol_gave_none() -> None:
    assert placed_at(Progress(fraction=None), Numbered(3, "e")) == Progress(
        fraction=None, seq=3, epoch="e", first_seq=3
    )
    assert placed_at(JobStarted(), Numbered(3, "e")) == JobStarted(seq=3, epoch="e")
    assert placed_at(JobStarted(seq=1, epoch="x"), Numbered(3, "e")).seq == 1
    assert placed_at(JobStarted(), Mark("m")) == JobStarted(mark="m")
    assert placed_at(JobStarted(), None) == JobStarted()
    assert placed_last(Snapshot((JobStarted(), JobStarted()), Mark("m"))) == [JobStarted(), JobStarted(mark="m")]
    assert placed_last(Snapshot()) == []


def test_a_number_is_taken_away_with_all_that_belongs_to_it() -> None:
    assert without_number(Progress(fraction=None, seq=3, epoch="e", first_seq=2)) == Progress(fraction=None)
    assert without_number(JobStarted(seq=3, epoch="e")) == JobStarted()
    assert without_number(JobStarted(mark="m")) == JobStarted(mark="m")
