"""`Sequencer` alone: facts come in, no wire, no socket, no clock. First the stories, then everything at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towline import JobCancelled, JobComplete, JobStarted, Output, Paused, Progress, Resynced
from towline._facts import Ended, Fact, InStep, Item, Mark, Numbered, Position, Replaying, Snapshot, Wait
from towline._updates import AnyUpdate
from towline.engine.sequence.sequencer import BUFFER_LIMIT, End, Gap, Phase, Sequencer, Synced

Facts = tuple[Fact, ...]


def place(seq: int | None, epoch: str = "e1") -> Numbered | None:
    return None if seq is None else Numbered(seq, epoch)


def progress(seq: int | None, count: int | None = None, epoch: str = "e1", *, alive_only: bool = False) -> Facts:
    if alive_only:
        return (Item(None, place(seq, epoch), is_sign=False),)
    where = {} if seq is None else {"seq": seq, "epoch": epoch, "first_seq": seq}
    return (Item(Progress(job="j1", fraction=0.5, status="s", processed_count=count, **where), place(seq, epoch)),)


def started(seq: int, epoch: str = "e1") -> Facts:
    return (Item(JobStarted(), place(seq, epoch)),)


def nothing(seq: int, epoch: str = "e1") -> Facts:
    """What cannot be read, or is of no known type: it only has its place."""
    return (Item(None, place(seq, epoch)),)


def ack(first: int | None = None, last: int | None = None, epoch: str = "e1") -> Facts:
    return (InStep(),) if first is None or last is None else (Replaying(first, last, epoch),)


def complete(seq: int | None, epoch: str = "e1") -> Facts:
    return (Ended(JobComplete(), place(seq, epoch)),)


def state(seq: int | None, count: int | None = None, epoch: str = "e1", status: str = "running") -> Facts:
    at = place(seq, epoch)
    if status == "complete":
        return (Ended(JobComplete(), at),)
    return (Snapshot(() if count is None else (Progress(fraction=None, processed_count=count),), at),)


class Follower:
    """A `Sequencer` and what it delivered."""

    def __init__(self, cursor: Position | None = None) -> None:
        self.sequencer = Sequencer("j1", cursor=cursor)
        self.updates: list[AnyUpdate] = []
        self.sequencer.opened()

    def take(self, *reads: Facts) -> list[Any]:
        found = [self.act(self.sequencer.follow(facts)) for facts in reads]
        return [finding for finding in found if finding is not None]

    def act(self, finding: Any) -> Any:
        self.updates += self.sequencer.take()
        if isinstance(finding, End):
            self.updates += [*finding.before, finding.outcome]
        return finding

    def join(self, answer: Facts) -> Any:
        assert self.act(self.sequencer.state(answer)) == Synced()
        return self.act(self.sequencer.release())

    def reopen(self) -> None:
        assert self.sequencer.opened() is None

    @property
    def seqs(self) -> list[int | None]:
        """The numbers of the updates, but not of those that a snapshot showed."""
        shown = [resynced.to_seq for resynced in self.resynced if resynced.kind == "snapshot" and resynced.missed]
        return [
            update.seq
            for update in self.updates
            if not isinstance(update, Resynced) and not (update.seq is not None and update.seq in shown)
        ]

    @property
    def resynced(self) -> list[Resynced]:
        return [update for update in self.updates if isinstance(update, Resynced)]


def joined(seq: int = 3) -> Follower:
    """A follower in step after event `seq`."""
    follower = Follower()
    follower.join(state(seq, seq))
    follower.updates.clear()
    return follower


# --- servers that keep a log --------------------------------------------------------------------------------------


def merged(first: int, last: int) -> Facts:
    """Progress that the server has merged, because this follower was behind."""
    update = Progress(fraction=0.5, seq=last, epoch="e1", first_seq=first, merged=last - first + 1)
    return (Item(update, place(last)),)


def test_progress_that_the_server_merged_is_no_gap() -> None:
    follower = joined(3)
    assert follower.take(merged(4, 9), progress(10)) == []
    assert [(update.first_seq, update.seq) for update in follower.updates] == [(4, 9), (10, 10)]
    assert follower.sequencer.duplicates == 0


@pytest.mark.parametrize("last", [4, 9])
def test_merged_progress_shows_nothing_that_was_delivered(last: int) -> None:
    follower = joined(1)
    assert follower.take(progress(2), progress(3), merged(2, last), progress(last + 1)) == []
    assert [(update.first_seq, update.seq) for update in follower.updates[2:]] == [(4, last), (last + 1, last + 1)]
    assert follower.updates[2].merged == last - 3
    assert follower.take(merged(2, last)) == []
    assert follower.sequencer.duplicates == 1


def test_a_gap_before_merged_progress_is_a_gap() -> None:
    follower = joined(3)
    [gap] = follower.take(merged(5, 9))
    assert isinstance(gap, Gap)
    follower.join(state(5, 5))
    assert [(update.first_seq, update.seq) for update in follower.updates if isinstance(update, Progress)][-1] == (6, 9)


def test_a_replay_is_handed_on_whole_and_only_then_it_is_synced() -> None:
    follower = Follower(Numbered(2, "e1"))
    assert follower.take(ack(3, 5)) == []
    assert follower.take(progress(3), progress(4)) == []
    assert follower.take(progress(5)) == [Synced()]
    assert follower.seqs == [3, 4, 5]
    assert (follower.resynced[0].kind, follower.resynced[0].missed) == ("replay", 0)


def test_an_empty_replay_is_synced_at_once() -> None:
    assert Follower().take(ack(1, 0)) == [Synced()]


def test_what_a_server_sent_before_it_was_asked_belongs_to_the_replay_that_goes_on_from_there() -> None:
    follower = Follower(Numbered(2, "e1"))
    assert follower.take(progress(1), progress(2), progress(3), progress(4), ack(5, 6)) == []
    assert follower.take(progress(5)) == []
    assert follower.take(progress(6)) == [Synced()]
    assert follower.seqs == [3, 4, 5, 6]
    told = follower.resynced[0]
    assert (told.kind, told.from_seq, told.to_seq, told.missed) == ("replay", 3, 6, 0)


def test_what_a_server_sent_before_it_was_asked_may_be_all_there_is() -> None:
    follower = Follower()
    assert follower.take(progress(1), progress(2), ack(3, 2)) == [Synced()]
    follower.act(follower.sequencer.release())
    assert follower.take(progress(3)) == []
    assert follower.seqs == [1, 2, 3]


def test_what_is_sent_again_after_it_was_sent_unasked_is_told_once() -> None:
    follower = Follower()
    assert follower.take(progress(1), progress(2), ack(1, 2), progress(1), progress(2)) == [Synced()]
    follower.act(follower.sequencer.release())
    assert follower.seqs == [1, 2]


def test_a_hole_in_what_a_server_sent_unasked_is_left_to_the_state() -> None:
    follower = Follower()
    assert follower.take(progress(1, 1), progress(3, 3), ack(4, 4), progress(4, 4)) == []
    assert isinstance(follower.join(state(3, 3)), Gap)
    follower.sequencer.resync()
    follower.join(state(3, 3))
    assert follower.seqs == [1, 4]


def test_a_replay_that_leaves_a_hole_is_left_to_the_state() -> None:
    follower = Follower(Numbered(2, "e1"))
    assert follower.take(ack(10, 11), progress(10), progress(11)) == []
    follower.join(state(11, 11))
    assert follower.seqs == []
    told = follower.resynced[0]
    assert (told.kind, told.from_seq, told.to_seq, told.missed) == ("snapshot", 3, 11, 9)


def test_frames_that_came_before_the_snapshot_are_not_told_twice() -> None:
    follower = Follower()
    follower.take(progress(3, 3), progress(4, 4), progress(5, 5))
    follower.join(state(4, 4))
    assert follower.seqs == [5]
    assert follower.resynced[0].missed == 4


def test_what_joins_needs_no_snapshot() -> None:
    follower = joined(3)
    follower.reopen()
    follower.take(progress(4, 4), progress(5, 5))
    follower.join(state(5, 5))
    assert follower.resynced[0].missed == 0
    assert follower.seqs == [4, 5]


def test_a_duplicate_is_counted_and_dropped() -> None:
    follower = joined(3)
    assert follower.take(progress(4), progress(4), progress(3), progress(5)) == []
    assert follower.seqs == [4, 5]
    assert follower.sequencer.duplicates == 2


def test_a_state_behind_what_was_shown_is_refused() -> None:
    follower = joined(7)
    follower.reopen()
    assert isinstance(follower.act(follower.sequencer.state(state(4, 4))), Gap)
    follower.take(progress(8, 8))
    follower.join(state(4, 4))
    assert follower.resynced[0].refused
    assert follower.seqs == [8]


def test_a_gap_is_found_once_and_what_follows_is_held() -> None:
    follower = joined(3)
    assert [type(finding) for finding in follower.take(progress(5), progress(6))] == [Gap]
    assert follower.seqs == []
    follower.sequencer.resync()
    follower.join(state(6, 6))
    assert follower.resynced[0].missed == 3
    assert follower.take(progress(7)) == []
    assert follower.seqs == [7]


def test_a_new_epoch_is_a_gap_and_takes_the_state_whole() -> None:
    follower = joined(9)
    assert isinstance(follower.take(progress(1, 1, epoch="e2"))[0], Gap)
    follower.sequencer.resync()
    follower.join(state(1, 1, epoch="e2"))
    assert follower.sequencer.applied == Numbered(1, "e2")
    assert follower.seqs == [1]  # held back, and joins the beginning of the new log
    assert follower.updates[-1] == follower.updates[1]


def test_a_state_or_frame_of_an_epoch_that_is_over_is_out_of_date() -> None:
    follower = joined(9)
    follower.take(progress(1, 1, epoch="e2"))
    follower.join(state(1, 1, epoch="e2"))
    follower.reopen()
    assert isinstance(follower.act(follower.sequencer.state(state(30, 30, epoch="e1"))), Gap)
    follower.join(state(1, 1, epoch="e2"))
    assert follower.take(progress(2, 2, epoch="e2"), progress(10, 10, epoch="e1")) == []
    assert follower.sequencer.applied == Numbered(2, "e2")


def test_an_ended_state_of_another_log_than_the_sockets_is_no_end() -> None:
    follower = joined(9)
    follower.reopen()
    follower.take(ack(20, 20, epoch="e2"))
    assert isinstance(follower.act(follower.sequencer.state(state(10, status="complete"))), Gap)


def test_heartbeats_and_what_cannot_be_read_keep_their_place() -> None:
    follower = joined(3)
    assert follower.take(progress(4, alive_only=True), nothing(5), nothing(6), progress(7, 7)) == []
    assert follower.seqs == [7]


def test_a_count_never_goes_back() -> None:
    follower = joined(3)
    follower.take(progress(4, 30), progress(5, 20), progress(6, 31))
    assert [update.processed_count for update in follower.updates if isinstance(update, Progress)] == [30, 30, 31]


# --- the end ------------------------------------------------------------------------------------------------------


def test_an_end_never_waits_and_tells_of_the_hole_before_it() -> None:
    follower = joined(3)
    follower.reopen()
    follower.take(progress(4, 4), progress(5, 5))
    assert isinstance(follower.take(complete(9))[0], End)
    assert [type(update) for update in follower.updates] == [Progress, Progress, Resynced, JobComplete]
    told = follower.resynced[0]
    assert (told.kind, told.from_seq, told.to_seq, told.missed) == ("end", 6, 8, 3)


def test_an_end_during_the_first_sync_is_told_after_what_joins_the_beginning() -> None:
    follower = Follower()
    follower.take(started(1), progress(2, 2), complete(3))
    assert [type(update) for update in follower.updates] == [JobStarted, Progress, JobComplete]


def test_an_end_known_from_the_state_waits_for_the_replay() -> None:
    follower = Follower(Numbered(2, "e1"))
    follower.take(ack(3, 5), progress(3))
    assert follower.act(follower.sequencer.state(state(5, status="complete"))) is None
    assert isinstance(follower.take(progress(4), complete(5))[-1], End)
    assert follower.seqs == [3, 4, 5]


def test_an_end_known_from_the_state_is_not_lost_with_the_replay() -> None:
    follower = Follower(Numbered(2, "e1"))
    follower.take(ack(3, 5), progress(3))
    follower.sequencer.state(state(5, status="complete"))
    end = follower.act(follower.sequencer.held_end())
    assert isinstance(end, End)
    assert follower.resynced[-1].missed == 1
    assert follower.sequencer.held_end() is None


# --- servers that keep none ---------------------------------------------------------------------------------------


def test_without_a_log_a_smaller_count_never_replaces_a_larger() -> None:
    follower = Follower()
    follower.join(state(None, 5))
    follower.take(progress(None, 8))
    follower.reopen()
    follower.take(progress(None, 4), progress(None, 9), progress(None))
    follower.join(state(None, 6))
    assert follower.resynced[-1].refused
    counts = [update.processed_count for update in follower.updates if isinstance(update, Progress)]
    assert counts == [5, 8, 9, None], "the first snapshot, and no smaller count"


def test_frames_without_a_place_are_not_dropped_for_a_state_that_has_one() -> None:
    follower = Follower()
    follower.take(progress(None, 7))
    follower.join(state(40, 5))
    assert [update.processed_count for update in follower.updates if isinstance(update, Progress)] == [5, 7]
    assert follower.resynced[0].missed is None


def test_one_place_that_cannot_be_read_does_not_discredit_the_states_places() -> None:
    follower = Follower()
    follower.join(state(0))
    follower.take(progress(1, 1), progress(None, 2))
    follower.reopen()
    assert follower.join(state(9, 9)) is None
    assert follower.sequencer.applied == Numbered(9, "e1")


def test_a_log_whose_states_have_no_place_is_taken_up_where_the_socket_goes_on() -> None:
    follower = Follower()
    follower.join(state(None, 5))
    follower.take(progress(6, 6))
    follower.reopen()
    follower.take(progress(20, 20))
    assert follower.join(state(None, 19)) is None, "not a gap for ever"
    assert [seq for seq in follower.seqs if seq is not None] == [6, 20]


def test_no_state_at_all_is_told() -> None:
    follower = Follower()
    follower.take(progress(8, 8))
    follower.act(follower.sequencer.unavailable())
    follower.act(follower.sequencer.release())
    assert [update.kind for update in follower.resynced] == ["unavailable"]
    assert follower.seqs == [8]


# --- links that need no state -----------------------------------------------------------------------------------


class Stream(Follower):
    """A follower of a stream that is in step when it is open; `reopen` asks for what follows the cursor."""

    def __init__(self, cursor: Position | None = None, in_step: Literal["open", "first_fact"] = "open") -> None:
        super().__init__(cursor)
        self.in_step: Literal["open", "first_fact"] = in_step
        self.open(cursor)

    def open(self, after: Position | None) -> Any:
        finding = self.act(self.sequencer.opened(self.in_step, after))
        return self.act(self.sequencer.release()) if finding is not None else None

    def reopen(self) -> None:
        self.open(self.sequencer.applied)

    def take(self, *reads: Facts) -> list[Any]:
        found = super().take(*reads)
        if Synced() in found:
            gap = self.act(self.sequencer.release())
            found = [finding for finding in (*found, gap) if finding not in (None, Synced())]
        return found

    @property
    def values(self) -> list[Any]:
        return [update.value for update in self.updates if isinstance(update, Output)]


def output(value: Any, at: Position | None = None) -> Facts:
    return (Item(Output(key="a", value=value), at),)


def test_an_open_link_is_in_step_at_once_and_stamps_what_the_protocol_left_out() -> None:
    stream = Stream()
    assert stream.take(output("a", Numbered(1)), output("b", Mark("m")), output("c")) == []
    first, second, third = stream.updates
    assert (first.job, first.seq, first.epoch, first.mark) == ("j1", 1, "", None)
    assert (second.job, second.seq, second.mark) == ("j1", None, "m")
    assert (third.job, third.seq, third.mark) == ("j1", None, None)
    assert stream.resynced == [], "nothing was interrupted"


@pytest.mark.parametrize("seq", [0, 1, 7])
def test_a_log_that_began_before_the_first_link_is_told_once(seq: int) -> None:
    stream = Stream()
    assert stream.take(output("a", Numbered(seq)), output("b", Numbered(seq + 1))) == []
    assert stream.values == ["a", "b"]
    expected = Resynced(job="j1", epoch="", kind="unavailable", to_seq=6, first=True)
    assert stream.resynced == ([expected] if seq == 7 else [])


def test_a_snapshot_covers_what_came_before_the_first_link() -> None:
    stream = Stream()
    stream.take((Snapshot((Progress(fraction=0.5),), Numbered(7)),), output("b", Numbered(8)))
    assert stream.resynced == []


def test_a_fact_of_the_connection_is_not_the_sequencers() -> None:
    stream = Stream(in_step="first_fact")
    assert stream.take((Wait(3),), (Wait(3), *output("a"))) == []
    assert stream.values == ["a"]


def test_the_first_fact_brings_a_link_in_step_and_is_delivered_after_that() -> None:
    sequencer = Sequencer("j1")
    assert sequencer.opened("first_fact") is None
    assert sequencer.follow(output("a", Numbered(0))) == Synced()
    assert sequencer.take() == []
    assert sequencer.release() is None
    assert [update.seq for update in sequencer.take()] == [0]


def test_in_step_alone_is_a_first_fact() -> None:
    sequencer = Sequencer("j1")
    sequencer.opened("first_fact")
    assert sequencer.follow((InStep(),)) == Synced()
    assert sequencer.release() is None
    assert sequencer.take() == []


def test_numbers_go_on_after_a_replay_from_the_cursor() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(0)), output("b", Numbered(1)))
    stream.reopen()
    assert stream.take(output("b", Numbered(1)), output("c", Numbered(2))) == []
    assert stream.values == ["a", "b", "c"]
    assert [(told.kind, told.missed) for told in stream.resynced] == [("replay", 0)]
    assert stream.sequencer.duplicates == 1


def test_a_gap_that_a_replay_shows_again_is_the_servers_own_numbering() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(6)))
    assert [type(finding) for finding in stream.take(output("b", Numbered(8)))] == [Gap]
    assert stream.values == ["a"]
    stream.reopen()
    assert stream.take(output("b", Numbered(8)), output("c", Numbered(9))) == []
    assert stream.values == ["a", "b", "c"]


def test_a_replay_that_closes_the_gap_delivers_what_was_missing() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(6)), output("c", Numbered(8)))
    stream.reopen()
    assert stream.take(output("b", Numbered(7)), output("c", Numbered(8))) == []
    assert stream.values == ["a", "b", "c"]


def test_another_gap_after_a_replay_is_a_gap_again_until_the_numbers_are_known_to_have_gaps() -> None:
    stream = Stream()
    stream.take(output(0, Numbered(0)))
    for number in (10, 20, 30):
        assert [type(finding) for finding in stream.take(output(number, Numbered(number)))] == [Gap]
        stream.reopen()
        assert stream.take(output(number, Numbered(number))) == []
    assert stream.take(output(40, Numbered(40)), output(50, Numbered(50))) == []
    assert stream.values == [0, 10, 20, 30, 40, 50]


def test_a_gap_is_no_gap_where_the_server_refused_the_cursor_and_that_is_told() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(1)))
    stream.open(None)
    assert stream.take(output("a", Numbered(1)), output("z", Numbered(20))) == []
    assert stream.values == ["a", "z"]
    assert [(told.kind, told.missed) for told in stream.resynced] == [("unavailable", None)]
    assert [type(finding) for finding in stream.take(output("!", Numbered(30)))] == [Gap]


def test_a_log_that_begins_anew_is_followed_from_its_start_after_a_replay_has_shown_it() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(6, "e1")))
    assert [type(finding) for finding in stream.take(output("b", Numbered(1, "e2")))] == [Gap]
    stream.reopen()
    assert stream.take(output("b", Numbered(1, "e2")), output("c", Numbered(2, "e2"))) == []
    assert stream.values == ["a", "b", "c"]
    assert stream.take(output("?", Numbered(7, "e1"))) == [], "the old log is out of date"
    assert stream.values == ["a", "b", "c"]


def test_a_gap_without_a_way_back_is_told_and_the_link_goes_on() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(1)), output("b", Numbered(3)))
    assert stream.act(stream.sequencer.unavailable()) == Synced()
    stream.act(stream.sequencer.release())
    assert stream.values == ["a", "b"]
    assert [(told.kind, told.missed) for told in stream.resynced] == [("unavailable", None)]


# --- marks --------------------------------------------------------------------------------------------------------


def test_a_mark_equal_to_a_delivered_one_is_a_duplicate_and_order_means_nothing() -> None:
    stream = Stream()
    stream.take(output("b", Mark("2")), output("a", Mark("1")), output("b", Mark("2")), output("a", Mark("1")))
    assert stream.values == ["b", "a"]
    assert stream.sequencer.applied == Mark("1")
    assert stream.sequencer.duplicates == 2


def test_the_last_256_marks_are_remembered() -> None:
    stream = Stream()
    stream.take(*(output(number, Mark(str(number))) for number in range(300)))
    stream.take(*(output(number, Mark(str(number))) for number in range(299, 43, -1)))
    assert stream.values == list(range(300))
    stream.take(output(43, Mark("43")))
    assert stream.values[-1] == 43


def test_an_empty_mark_clears_the_position_and_is_no_duplicate() -> None:
    stream = Stream()
    stream.take(output("a", Mark("1")), output("b", Mark("")), output("c", Mark("")))
    assert stream.values == ["a", "b", "c"]
    assert stream.sequencer.applied == Mark("")


def test_a_mark_from_the_store_is_known() -> None:
    stream = Stream(Mark("7"))
    stream.take(output("old", Mark("7")), output("new", Mark("8")))
    assert stream.values == ["new"]
    assert [(told.kind, told.missed) for told in stream.resynced] == [("replay", 0)]


def test_an_end_is_never_a_duplicate() -> None:
    stream = Stream(Mark("7"))
    [end] = stream.take((Ended(JobComplete(), Mark("7")),))
    assert isinstance(end, End)
    assert (end.outcome.job, end.outcome.mark) == ("j1", "7")


def test_without_a_position_nothing_is_compared_and_each_reconnect_is_told() -> None:
    stream = Stream()
    stream.take(output("a"), output("a"))
    stream.reopen()
    stream.take(output("a"))
    assert stream.values == ["a", "a", "a"]
    assert [(told.kind, told.missed) for told in stream.resynced] == [("unavailable", None)]


def test_without_a_position_a_smaller_count_is_shown_as_the_larger() -> None:
    stream = Stream()
    stream.take(progress(None, 5), progress(None, 3), progress(None, 6))
    assert [update.processed_count for update in stream.updates if isinstance(update, Progress)] == [5, 5, 6]


# --- several facts of one message ---------------------------------------------------------------------------------


def test_facts_of_one_message_share_a_position_and_the_last_update_has_it() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(1)))
    both = (*output("b"), *output("c", Numbered(2)))
    stream.take(both, both)
    assert stream.values == ["a", "b", "c"]
    assert stream.seqs == [1, None, 2]
    assert stream.sequencer.applied == Numbered(2)


def test_an_end_follows_the_update_of_its_own_message() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(1)))
    [end] = stream.take((*output("b", Numbered(2)), Ended(JobComplete(), Numbered(2))))
    assert [type(update) for update in stream.updates] == [Output, Output, JobComplete]
    assert end.outcome.seq == 2


def test_several_positions_in_one_message_are_followed_one_by_one() -> None:
    stream = Stream()
    read = (*output("a", Numbered(1)), *output("b", Numbered(2)), *output("c"))
    stream.take(read, read)
    assert stream.values == ["a", "b", "c"]
    assert stream.seqs == [1, None, 2]


# --- snapshots ----------------------------------------------------------------------------------------------------


def polled(*updates: AnyUpdate, at: Position | None = None) -> Facts:
    return (Snapshot(updates, at),)


def test_polls_deliver_news_only_and_a_resync_only_after_a_gap() -> None:
    poll = Stream(in_step="first_fact")
    working, done = Progress(fraction=None, status="working"), Progress(fraction=0.5, status="working")
    poll.take(polled(), polled(working), polled(working), polled(done), polled(done))
    assert [update.fraction for update in poll.updates if isinstance(update, Progress)] == [None, 0.5]
    assert poll.resynced == []
    poll.reopen()
    poll.take(polled(done), polled(done))
    assert len(poll.updates) == 3
    assert [(told.kind, told.missed) for told in poll.resynced] == [("snapshot", None)]


def test_a_snapshot_with_the_same_mark_shows_its_news_all_the_same() -> None:
    poll = Stream(in_step="first_fact")
    poll.take(*(polled(Progress(fraction=n / 4), at=Mark("/operations/1")) for n in (1, 2, 2, 3)))
    assert [update.fraction for update in poll.updates if isinstance(update, Progress)] == [0.25, 0.5, 0.75]
    assert poll.sequencer.applied == Mark("/operations/1")


def test_a_snapshot_never_shows_a_smaller_count() -> None:
    poll = Stream(in_step="first_fact")
    for count in (3, 2, 3, 4):
        poll.take(polled(Progress(fraction=None, processed_count=count)))
    assert [update.processed_count for update in poll.updates if isinstance(update, Progress)] == [3, 4]


def test_a_total_that_only_snapshots_have_is_news_once() -> None:
    stream = Stream()
    snapshot = polled(Progress(fraction=None, processed_count=1, total_count=6))
    stream.take(progress(None, 1), snapshot, progress(None, 1), snapshot)
    assert [update.total_count for update in stream.updates if isinstance(update, Progress)] == [None, 6, None]


def test_a_pause_is_told_once_and_its_end_too() -> None:
    poll = Stream(in_step="first_fact")
    working, paused = Progress(fraction=None, status="working"), Paused(kind="input", message="which one?")
    poll.take(polled(working), polled(working, paused), polled(working, paused), polled(working), polled(working))
    assert [type(update) for update in poll.updates] == [Progress, Paused, Progress]


def test_an_output_that_was_replaced_is_news_and_one_that_grew_live_is_not_known() -> None:
    poll = Stream(in_step="first_fact")

    def whole(value: Any) -> Facts:
        return polled(Output(key="a", value=value, op="replace"))

    poll.take(whole("x"), whole("x"), whole("xy"), output("z"), whole("xyz"), whole("xyz"))
    assert poll.values == ["x", "xy", "z", "xyz"]


def test_a_numbered_snapshot_on_the_stream_covers_what_is_before_it() -> None:
    stream = Stream()
    stream.take(output("a", Numbered(1)))
    stream.take(polled(Progress(fraction=0.5), at=Numbered(4)), output("old", Numbered(3)), output("b", Numbered(5)))
    assert stream.values == ["a", "b"]
    assert stream.seqs == [1, 4, 5]
    stream.take(polled(Progress(fraction=0.4), at=Numbered(4)))
    assert len(stream.updates) == 3


def test_the_snapshot_of_a_state_follows_the_report_of_the_gap() -> None:
    follower = joined(3)
    follower.reopen()
    follower.join((Snapshot((JobStarted(total_count=9), Progress(fraction=None, processed_count=7)), place(7)),))
    resynced, start, shown = follower.updates
    assert isinstance(resynced, Resynced)
    assert (resynced.from_seq, resynced.to_seq, resynced.missed) == (4, 7, 4)
    assert (start.seq, shown.seq, shown.job) == (None, 7, "j1")


def test_a_look_at_a_state_without_numbers_shows_news_and_no_resync() -> None:
    stream = Stream()
    stream.take(progress(None, 3))
    assert stream.act(stream.sequencer.look(state(None, 3))) is None
    assert stream.act(stream.sequencer.look(state(None, 4))) is None
    assert [update.processed_count for update in stream.updates if isinstance(update, Progress)] == [3, 4]
    assert stream.resynced == []


def test_a_state_with_its_last_updates_ends_after_them() -> None:
    stream = Stream()
    stream.take(output("a"))
    end = stream.act(stream.sequencer.look((*polled(Output(key="a", value="abc", op="replace")), *complete(None))))
    assert isinstance(end, End)
    assert stream.values == ["a", "abc"]


def test_a_state_that_says_nothing_of_the_job_has_no_meaning() -> None:
    follower = joined(3)
    assert follower.sequencer.look((Wait(1),)) is None
    follower.reopen()
    assert follower.sequencer.state(()) is None
    assert not follower.sequencer.is_ahead(())


# --- bounds -------------------------------------------------------------------------------------------------------


def test_progress_held_back_is_merged_not_dropped_even_with_heartbeats_between() -> None:
    follower = Follower(Numbered(1, "e1"))
    for seq in range(2, 4 * BUFFER_LIMIT):
        assert follower.take(progress(seq, seq, alive_only=bool(seq % 2))) == []
    assert len(follower.sequencer._held) <= BUFFER_LIMIT
    follower.join(state(2, 2))
    last = follower.updates[-1]
    assert isinstance(last, Progress)
    assert last.processed_count == 4 * BUFFER_LIMIT - 2


def test_a_merged_range_that_straddles_the_snapshot_is_cut() -> None:
    follower = Follower()
    for seq in range(3, BUFFER_LIMIT + 10):
        follower.take(progress(seq, seq))
    follower.join(state(5, 5))
    snapshot, merged, *_ = [update for update in follower.updates if isinstance(update, Progress)]
    assert (snapshot.first_seq, snapshot.seq, snapshot.processed_count) == (5, 5, 5)
    assert merged.first_seq == 6


def test_what_cannot_be_merged_and_does_not_fit_is_a_gap() -> None:
    follower = Follower()
    found = follower.take(*(started(seq) for seq in range(3, BUFFER_LIMIT + 5)))
    assert [type(finding) for finding in found] == [Gap]


# --- what the engine asks ---------------------------------------------------------------------------------------


def test_a_replay_may_come_until_the_server_has_answered() -> None:
    follower = Follower(Numbered(2, "e1"))
    assert follower.sequencer.awaiting_ack
    assert follower.take(ack()) == []
    assert not follower.sequencer.awaiting_ack
    assert not Stream().sequencer.awaiting_ack


def test_a_replay_that_stops_is_given_up_for_the_state() -> None:
    follower = Follower(Numbered(2, "e1"))
    follower.take(ack(3, 9), progress(3))
    assert follower.sequencer.replaying
    follower.sequencer.give_up_replay()
    follower.join(state(9, 9))
    assert follower.seqs == [3]
    assert follower.resynced[-1].missed == 6
    follower.sequencer.give_up_replay()
    assert follower.sequencer.phase is Phase.LIVE


def test_a_snapshot_on_the_link_is_as_good_as_a_fetched_state() -> None:
    follower = Follower()
    assert follower.take(polled(Progress(fraction=0.5), at=Numbered(4, "e1"))) == [Synced()]
    follower.act(follower.sequencer.release())
    assert follower.take(progress(5)) == []
    assert follower.seqs == [5]


def test_a_state_is_ahead_by_its_number_or_by_its_count() -> None:
    follower = joined(3)
    assert [follower.sequencer.is_ahead(state(seq)) for seq in (2, 3, 4)] == [False, False, True]
    stream = Stream()
    assert not stream.sequencer.is_ahead(state(None, 4))
    stream.take(progress(None, 3))
    assert [stream.sequencer.is_ahead(state(None, count)) for count in (3, 4, None)] == [False, True, False]


def test_a_look_at_a_numbered_state_shows_what_the_silent_link_has_missed() -> None:
    follower = joined(3)
    assert follower.act(follower.sequencer.look(state(3, 3))) is None
    assert follower.updates == []
    assert follower.act(follower.sequencer.look(state(5, 5))) is None
    assert [(told.from_seq, told.to_seq, told.missed) for told in follower.resynced] == [(4, 5, 2)]
    assert follower.take(progress(6)) == []
    assert isinstance(follower.sequencer.look(state(1, 1, epoch="e2")), Gap)
    assert isinstance(follower.act(follower.sequencer.look(complete(7))), End)


def test_a_look_without_numbers_where_states_decide_believes_the_count_alone() -> None:
    follower = Follower()
    follower.join(state(None, 3))
    follower.updates.clear()
    same = (Snapshot((Progress(fraction=None, processed_count=3, total_count=9),)),)
    assert follower.act(follower.sequencer.look(same)) is None
    assert follower.updates == [], "the total is no sign that the job moved"
    follower.act(follower.sequencer.look(state(None, 4)))
    assert [type(update) for update in follower.updates] == [Resynced, Progress]


def test_a_state_with_a_mark_moves_the_cursor() -> None:
    follower = Follower()
    follower.join(polled(Progress(fraction=0.5), at=Mark("m")))
    assert follower.sequencer.applied == Mark("m")


def test_there_is_nothing_to_give_up_or_to_skip_once_a_link_is_live() -> None:
    follower = joined(3)
    assert follower.sequencer.unavailable() is None
    assert follower.sequencer.state(state(9, 9)) is None
    assert follower.sequencer.held_end() is None
    assert follower.sequencer.phase is Phase.LIVE


def test_an_assumed_cancel_is_an_end() -> None:
    end = joined(3).sequencer.assume_cancelled()
    assert (end.outcome.job, end.before) == ("j1", ())
    assert isinstance(end.outcome, JobCancelled)
    assert end.outcome.assumed


# --- everything at random -----------------------------------------------------------------------------------------


@dataclass
class Server:
    """A job's log as a server keeps it: for each epoch the kinds of its events, in order."""

    epoch: int = 1
    log: dict[str, list[str]] = field(default_factory=lambda: {"e1": []})
    count: int = 0
    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    forgotten: int = 0

    @property
    def name(self) -> str:
        return f"e{self.epoch}"

    @property
    def last(self) -> int:
        return len(self.log[self.name])

    def emit(self, kind: str) -> Facts:
        self.log[self.name].append(kind)
        if kind == "progress":
            self.count += 1
        self.counts[self.name, self.last] = self.count
        return self.text(self.last)

    def text(self, seq: int) -> Facts:
        kind, epoch = self.log[self.name][seq - 1], self.name
        if kind == "progress":
            return progress(seq, self.counts[epoch, seq], epoch)
        if kind == "heartbeat":
            return progress(seq, epoch=epoch, alive_only=True)
        if kind == "malformed":
            return nothing(seq, epoch)
        if kind == "end":
            return complete(seq, epoch)
        return started(seq, epoch) if kind == "started" else nothing(seq, epoch)

    def begin_epoch(self) -> None:
        self.epoch += 1
        self.log[self.name] = []
        self.count = self.forgotten = 0

    def state(self) -> Facts:
        ended = bool(self.log[self.name]) and self.log[self.name][-1] == "end"
        return state(self.last, self.count, self.name, "complete" if ended else "running")

    def shows(self, epoch: str, seq: int) -> bool:
        return self.log[epoch][seq - 1] in ("progress", "started", "end")


class Checker:
    """Holds what was handed on against the server's own log: no repeat, no gap untold, no count back, one end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.epoch: str | None = None
        self.at = 0
        self.shown = 0
        self.ended = False
        self.untold = False
        #: The position of the snapshot whose own update may come now.
        self.snapshot: int | None = None

    def check(self, update: AnyUpdate) -> None:
        assert not self.ended, "nothing follows the end"
        snapshot, self.snapshot = self.snapshot, None
        if isinstance(update, Resynced):
            self.resynced(update)
        elif snapshot is not None and isinstance(update, Progress) and update.seq == snapshot:
            assert update.processed_count is not None
            assert update.processed_count >= self.shown, "a count went back"
            self.shown = update.processed_count
        else:
            assert update.seq is not None
            assert update.epoch is not None
            if update.epoch != self.epoch:
                assert self.epoch is None or self.untold or isinstance(update, JobComplete), "a new log must be told"
                self.epoch, self.at, self.shown = update.epoch, 0, 0
            first = update.first_seq if isinstance(update, Progress) else update.seq
            assert first is not None
            self.skip_to(first)
            self.at = update.seq
            if isinstance(update, Progress) and update.processed_count is not None:
                assert update.processed_count >= self.shown, "a count went back"
                self.shown = update.processed_count
            self.ended = isinstance(update, JobComplete)
        if not isinstance(update, Resynced):
            self.untold = False

    def skip_to(self, first: int) -> None:
        assert first > self.at, "an event was told twice"
        assert self.epoch is not None
        between = [seq for seq in range(self.at + 1, first) if self.server.shows(self.epoch, seq)]
        assert not between or self.untold, f"a gap untold: {between}"

    def resynced(self, told: Resynced) -> None:
        if told.kind == "unavailable":
            self.untold = True
            return
        assert told.epoch is not None
        if told.epoch != self.epoch:
            self.epoch, self.at, self.shown = told.epoch, 0, 0
        if told.missed:
            assert told.from_seq is not None
            assert told.to_seq is not None
            assert told.missed == told.to_seq - told.from_seq + 1 > 0
            self.skip_to(told.from_seq)
            self.at = told.to_seq
        self.snapshot = told.to_seq if told.kind == "snapshot" and told.missed else None


class World:
    """Server, wire and follower. What the engine does with findings is done here in the plainest way."""

    def __init__(self, *, replays: bool, states: bool, short: bool = True) -> None:
        self.server = Server()
        #: Whether `follow` may take its short way.
        self.short = short
        self.updates: list[AnyUpdate] = []
        self.sequencer = Sequencer("j1")
        self.checker = Checker(self.server)
        self.wire: list[Facts] = []
        self.open = False
        self.wants_state = False
        self.replays = replays
        self.states = states
        self.old_states: list[Facts] = [self.server.state()]

    # --- the engine's part

    def act(self, finding: Any) -> None:
        for update in self.sequencer.take():
            self.updates.append(update)
            self.checker.check(update)
        if isinstance(finding, Gap):
            self.wants_state = True
            self.sequencer.resync()
        elif isinstance(finding, Synced):
            self.wants_state = False
            self.act(self.sequencer.release())
        elif isinstance(finding, End):
            for update in (*finding.before, finding.outcome):
                self.checker.check(update)

    def connect(self, unasked: int = 0) -> None:
        """Open a socket; the server has sent `unasked` events by itself before it hears `ready`."""
        self.wire.clear()
        cursor = self.sequencer.applied
        self.sequencer.opened()
        self.open = self.wants_state = True
        if self.replays:
            last, forgotten = self.server.last, self.server.forgotten
            begun = min(last, forgotten + unasked)
            self.wire += [self.server.text(seq) for seq in range(forgotten + 1, begun + 1)]
            seq = cursor.seq if isinstance(cursor, Numbered) and cursor.epoch == self.server.name else 0
            first = max(seq, begun) + 1
            self.wire.append(ack(first, last, self.server.name))
            self.wire += [self.server.text(seq) for seq in range(first, last + 1)]

    def deliver(self, place: int = 0) -> None:
        if self.wire and not self.checker.ended:
            facts = self.wire.pop(min(place, len(self.wire) - 1))
            self.act(self.sequencer.follow(facts if self.short else list(facts)))

    def fetch(self, answer: Facts | None = None) -> None:
        if not self.open or not self.wants_state or self.checker.ended:
            return
        if not self.states:
            self.act(self.sequencer.unavailable())
            return
        answer = answer or self.server.state()
        self.old_states.append(answer)
        finding = self.sequencer.state(answer)
        if finding is None and isinstance(answer[0], Ended) and not self.sequencer.replaying:
            finding = self.sequencer.held_end()  # no replay came
        self.act(finding)

    # --- the rest of the world

    def emit(self, kind: str) -> None:
        if "end" not in self.server.log[self.server.name]:
            text = self.server.emit(kind)
            if self.open:
                self.wire.append(text)

    def begin_epoch(self) -> None:
        if self.server.last and "end" not in self.server.log[self.server.name]:
            self.server.begin_epoch()

    def drop(self) -> None:
        self.open = False
        self.wire.clear()

    def stall(self) -> None:
        if self.open and self.sequencer.phase is Phase.LIVE and self.states and not self.checker.ended:
            self.act(self.sequencer.look(self.server.state()))


ACTIONS: dict[str, Callable[[World, int], None]] = {
    "progress": lambda world, n: [world.emit("progress") for _ in range(n % 5 + 1)] and None,
    "started": lambda world, n: world.emit("started"),
    "heartbeat": lambda world, n: world.emit("heartbeat"),
    "unknown": lambda world, n: world.emit("unknown"),
    "malformed": lambda world, n: world.emit("malformed"),
    "end": lambda world, n: world.emit("end") if n == 0 and (world.replays or world.states) else None,
    "drop": lambda world, n: world.drop(),
    "connect": lambda world, n: world.connect(),
    "connect, and say so late": lambda world, n: world.connect(unasked=n),
    "deliver": lambda world, n: [world.deliver() for _ in range(n % 8 + 1)] and None,
    "reorder": lambda world, n: world.deliver(n),
    "duplicate": lambda world, n: world.wire.insert(n, world.wire[n]) if n < len(world.wire) else None,
    "lose": lambda world, n: world.wire.pop(n) and None if n < len(world.wire) else None,
    "fetch": lambda world, n: world.fetch(),
    "fetch something old": lambda world, n: world.fetch(world.old_states[n % len(world.old_states)]),
    "forget": lambda world, n: setattr(world.server, "forgotten", max(0, world.server.last - 1)),
    "new epoch": lambda world, n: world.begin_epoch(),
    "stall": lambda world, n: world.stall(),
}


OFTEN = ["progress", "deliver", "deliver", "deliver", "fetch", "fetch", "connect", "fetch something old"]


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    story=st.lists(st.tuples(st.sampled_from([*ACTIONS, *OFTEN]), st.integers(0, 9)), min_size=10, max_size=60),
    replays=st.booleans(),
    states=st.booleans(),
)
def test_whatever_happens_nothing_is_lost_untold_nor_told_twice(
    story: list[tuple[str, int]], replays: bool, states: bool
) -> None:
    world, slow = (World(replays=replays, states=states, short=short) for short in (True, False))
    for one in (world, slow):
        for name, number in [("connect", 0), *story]:
            ACTIONS[name](one, number)
    assert world.updates == slow.updates, "the short way of `follow` gives the same"
    assert world.sequencer.applied == slow.sequencer.applied
    # Fair weather at last: it comes into step again, and to the end.
    world.emit("progress")
    world.drop()
    world.connect()
    for _ in range(100):
        world.deliver()
        world.fetch()
    world.emit("progress")
    world.emit("end")
    for _ in range(5):
        world.deliver()
    assert world.checker.ended
    assert world.checker.at == world.server.last


@settings(max_examples=100)
@given(
    story=st.lists(
        st.one_of(
            st.tuples(st.just("progress"), st.one_of(st.none(), st.integers(0, 30))),
            st.tuples(st.just("state"), st.integers(0, 30)),
            st.tuples(st.just("drop"), st.none()),
        ),
        max_size=40,
    )
)
def test_without_a_log_no_count_ever_goes_back_and_the_end_comes(story: list[tuple[str, int | None]]) -> None:
    follower = Follower()
    for kind, count in story:
        if kind == "progress":
            follower.take(progress(None, count))
        elif kind == "drop":
            follower.reopen()
        elif follower.act(follower.sequencer.state(state(None, count))) == Synced():
            follower.act(follower.sequencer.release())
    shown = 0
    for update in follower.updates:
        if isinstance(update, Progress) and update.processed_count is not None:
            assert update.processed_count >= shown
            shown = update.processed_count
    assert isinstance(follower.take(complete(None))[0], End)


@settings(max_examples=150)
@given(
    story=st.lists(st.sampled_from(["emit", "emit", "read", "read", "drop", "repeat"]), max_size=60),
    marked=st.booleans(),
    in_step=st.sampled_from(["open", "first_fact"]),
    gaps=st.sets(st.integers(0, 40), max_size=5),
)
def test_a_stream_that_replays_from_the_cursor_is_followed_exactly(
    story: list[str], marked: bool, in_step: Literal["open", "first_fact"], gaps: set[int]
) -> None:
    """Whatever is dropped or repeated, and whichever numbers the server leaves out."""
    log: list[int] = []
    numbers = (number for number in range(1000) if number not in gaps)

    def at(number: int) -> Position:
        return Mark(str(number)) if marked else Numbered(number)

    stream, sent = Stream(in_step=in_step), 0
    for step in [*story, "emit", *["read"] * 100]:
        if step == "emit":
            log.append(next(numbers))
        elif step == "drop":
            stream.reopen()
            sent = len(stream.values)
        elif step == "repeat" and sent:
            stream.take(output(log[sent - 1], at(log[sent - 1])))
        elif step == "read" and sent < len(log):
            found = stream.take(output(log[sent], at(log[sent])))
            sent += 1
            if found:
                assert [type(finding) for finding in found] == [Gap]
                stream.reopen()
                sent = len(stream.values)
    assert stream.values == log
    assert all(told.missed == 0 or told.first for told in stream.resynced)


def test_an_end_that_was_fetched_while_away_says_that_updates_may_be_missing() -> None:
    for at in (None, Mark("m")):
        sequencer = Sequencer("j1")
        assert isinstance(sequencer.opened("open"), Synced)
        assert sequencer.release() is None
        sequencer.follow((Item(Progress(fraction=0.1)),))
        end = sequencer.look((Ended(JobComplete(), at),))
        assert isinstance(end, End)
        assert [(type(update), update.kind, update.missed) for update in end.before[1:]] == [(Resynced, "end", None)]


def test_an_end_on_the_link_or_before_the_first_update_has_nothing_to_report() -> None:
    sequencer = Sequencer("j1")
    sequencer.opened("open")
    sequencer.release()
    early = sequencer.look((Ended(JobComplete()),))
    assert isinstance(early, End)
    assert early.before == ()
    sequencer = Sequencer("j1")
    sequencer.opened("open")
    sequencer.release()
    sequencer.follow((Item(Progress(fraction=0.1)),))
    on_link = sequencer.follow((Ended(JobComplete()),))
    assert isinstance(on_link, End)
    assert [type(update) for update in on_link.before] == [Progress]
