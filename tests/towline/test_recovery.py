"""`Recovery` alone: bytes have become frames, no socket, no clock. First the stories, then everything at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from towline import JobComplete, JobStarted, Progress, Resynced
from towline._exceptions import MalformedMessage
from towline._updates import AnyUpdate
from towline.engine.recovery import BUFFER_LIMIT, Cursor, End, Gap, Phase, Recovery, Synced
from towline.protocols.wire import Codec, JobState

CODEC = Codec()


def message(kind: str, seq: int | None, epoch: str | None = "e1", *, job: str = "j1", **payload: Any) -> bytes:
    document: dict[str, Any] = {"type": kind, "jobId": job, "pipeline": "p", "timestamp": 1, "payload": payload}
    if seq is not None:
        document |= {"seq": seq, "epoch": epoch}
    return msgspec.json.encode(document)


def progress(seq: int | None, count: int | None = None, epoch: str = "e1", **more: Any) -> bytes:
    counted = {} if count is None else {"processedCount": count}
    return message("job_progress", seq, epoch, progress=0.5, status="s", **counted, **more)


def ack(first: int | None = None, last: int | None = None, epoch: str = "e1") -> bytes:
    replay = {} if first is None else {"epoch": epoch, "from": first, "to": last}
    return msgspec.json.encode({"type": "ready_ack", "timestamp": 1, **replay})


def complete(seq: int | None, epoch: str = "e1") -> bytes:
    return message("job_complete", seq, epoch)


def state(seq: int | None, count: int | None = None, epoch: str = "e1", status: Any = "running") -> JobState:
    return JobState(status=status, seq=seq, epoch=None if seq is None else epoch, processed_count=count)


class Follower:
    """A `Recovery` and what was handed on."""

    def __init__(self, cursor: Cursor | None = None) -> None:
        self.recovery = Recovery("j1", codec=CODEC, cursor=cursor)
        self.updates: list[AnyUpdate] = []
        self.recovery.opened()

    def take(self, *messages: bytes) -> list[Any]:
        found = []
        for data in messages:
            try:
                finding = self.recovery.frame(CODEC.decode(data))
            except MalformedMessage as error:
                finding = self.recovery.malformed(error)
            found.append(self.act(finding))
        return [finding for finding in found if finding is not None]

    def act(self, finding: Any) -> Any:
        self.updates += self.recovery.take()
        if isinstance(finding, End):
            self.updates += [*finding.before, finding.outcome]
        return finding

    def join(self, answer: JobState) -> Any:
        assert self.act(self.recovery.state(answer)) == Synced()
        return self.act(self.recovery.release())

    def reopen(self) -> Cursor | None:
        return self.recovery.opened()

    @property
    def seqs(self) -> list[int | None]:
        return [update.seq for update in self.updates if not isinstance(update, Resynced)]

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


def test_a_replay_is_handed_on_whole_and_only_then_it_is_synced() -> None:
    follower = Follower(Cursor("e1", 2))
    assert follower.take(ack(3, 5)) == []
    assert follower.take(progress(3), progress(4)) == []
    assert follower.take(progress(5)) == [Synced()]
    assert follower.seqs == [3, 4, 5]
    assert (follower.resynced[0].kind, follower.resynced[0].missed) == ("replay", 0)


def test_an_empty_replay_is_synced_at_once() -> None:
    assert Follower().take(ack(1, 0)) == [Synced()]


def test_what_a_server_sent_before_it_was_asked_belongs_to_the_replay_that_goes_on_from_there() -> None:
    follower = Follower(Cursor("e1", 2))
    assert follower.take(progress(1), progress(2), progress(3), progress(4), ack(5, 6)) == []
    assert follower.take(progress(5)) == []
    assert follower.take(progress(6)) == [Synced()]
    assert follower.seqs == [3, 4, 5, 6]
    told = follower.resynced[0]
    assert (told.kind, told.from_seq, told.to_seq, told.missed) == ("replay", 3, 6, 0)


def test_what_a_server_sent_before_it_was_asked_may_be_all_there_is() -> None:
    follower = Follower()
    assert follower.take(progress(1), progress(2), ack(3, 2)) == [Synced()]
    follower.act(follower.recovery.release())
    assert follower.take(progress(3)) == []
    assert follower.seqs == [1, 2, 3]


def test_what_is_sent_again_after_it_was_sent_unasked_is_told_once() -> None:
    follower = Follower()
    assert follower.take(progress(1), progress(2), ack(1, 2), progress(1), progress(2)) == [Synced()]
    follower.act(follower.recovery.release())
    assert follower.seqs == [1, 2]


def test_a_hole_in_what_a_server_sent_unasked_is_left_to_the_state() -> None:
    follower = Follower()
    assert follower.take(progress(1, 1), progress(3, 3), ack(4, 4), progress(4, 4)) == []
    assert isinstance(follower.join(state(3, 3)), Gap)
    follower.recovery.resync()
    follower.join(state(3, 3))
    assert follower.seqs == [1, 4]


def test_a_replay_that_leaves_a_hole_is_left_to_the_state() -> None:
    follower = Follower(Cursor("e1", 2))
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
    assert follower.recovery.duplicates == 2


def test_a_state_behind_what_was_shown_is_refused() -> None:
    follower = joined(7)
    follower.reopen()
    assert isinstance(follower.act(follower.recovery.state(state(4, 4))), Gap)
    follower.take(progress(8, 8))
    follower.join(state(4, 4))
    assert follower.resynced[0].refused
    assert follower.seqs == [8]


def test_a_gap_is_found_once_and_what_follows_is_held() -> None:
    follower = joined(3)
    assert [type(finding) for finding in follower.take(progress(5), progress(6))] == [Gap]
    assert follower.seqs == []
    follower.recovery.resync()
    follower.join(state(6, 6))
    assert follower.resynced[0].missed == 3
    assert follower.take(progress(7)) == []
    assert follower.seqs == [7]


def test_a_new_epoch_is_a_gap_and_takes_the_state_whole() -> None:
    follower = joined(9)
    assert isinstance(follower.take(progress(1, 1, epoch="e2"))[0], Gap)
    follower.recovery.resync()
    follower.join(state(1, 1, epoch="e2"))
    assert follower.recovery.applied == Cursor("e2", 1)
    assert follower.seqs == [1]  # held back, and joins the beginning of the new log
    assert follower.updates[-1] == follower.updates[1]


def test_a_state_or_frame_of_an_epoch_that_is_over_is_out_of_date() -> None:
    follower = joined(9)
    follower.take(progress(1, 1, epoch="e2"))
    follower.join(state(1, 1, epoch="e2"))
    follower.reopen()
    assert isinstance(follower.act(follower.recovery.state(state(30, 30, epoch="e1"))), Gap)
    follower.join(state(1, 1, epoch="e2"))
    assert follower.take(progress(2, 2, epoch="e2"), progress(10, 10, epoch="e1")) == []
    assert follower.recovery.applied == Cursor("e2", 2)


def test_an_ended_state_of_another_log_than_the_sockets_is_no_end() -> None:
    follower = joined(9)
    follower.reopen()
    follower.take(ack(20, 20, epoch="e2"))
    assert isinstance(follower.act(follower.recovery.state(state(10, status="complete"))), Gap)


def test_heartbeats_and_what_cannot_be_read_keep_their_place() -> None:
    follower = joined(3)
    bad = message("job_progress", 6, progress="much")
    assert follower.take(progress(4, keepAlive=True), message("job_news", 5), bad, progress(7, 7)) == []
    assert follower.seqs == [7]
    assert follower.recovery.unknown == 1


def test_what_cannot_be_read_of_another_job_has_no_place_here() -> None:
    follower = joined(3)
    assert follower.take(message("job_progress", 4, job="j2", progress="much"), progress(4)) == []
    assert follower.seqs == [4]


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
    follower.take(message("job_started", 1), progress(2, 2), complete(3))
    assert [type(update) for update in follower.updates] == [JobStarted, Progress, JobComplete]


def test_an_end_known_from_the_state_waits_for_the_replay() -> None:
    follower = Follower(Cursor("e1", 2))
    follower.take(ack(3, 5), progress(3))
    assert follower.act(follower.recovery.state(state(5, status="complete"))) is None
    assert isinstance(follower.take(progress(4), complete(5))[-1], End)
    assert follower.seqs == [3, 4, 5]


def test_an_end_known_from_the_state_is_not_lost_with_the_replay() -> None:
    follower = Follower(Cursor("e1", 2))
    follower.take(ack(3, 5), progress(3))
    follower.recovery.state(state(5, status="complete"))
    end = follower.act(follower.recovery.held_end())
    assert isinstance(end, End)
    assert follower.resynced[-1].missed == 1
    assert follower.recovery.held_end() is None


# --- servers that keep none ---------------------------------------------------------------------------------------


def test_without_a_log_a_smaller_count_never_replaces_a_larger() -> None:
    follower = Follower()
    follower.join(state(None, 5))
    follower.take(progress(None, 8))
    follower.reopen()
    follower.take(progress(None, 4), progress(None, 9), progress(None))
    follower.join(state(None, 6))
    assert follower.resynced[-1].refused
    assert follower.resynced[-1].processed_count == 8
    counts = [update.processed_count for update in follower.updates if isinstance(update, Progress)]
    assert counts == [8, 9, None]


def test_frames_without_a_place_are_not_dropped_for_a_state_that_has_one() -> None:
    follower = Follower()
    follower.take(progress(None, 7))
    follower.join(state(40, 5))
    assert [update.processed_count for update in follower.updates if isinstance(update, Progress)] == [7]
    assert follower.resynced[0].missed is None


def test_one_place_that_cannot_be_read_does_not_discredit_the_states_places() -> None:
    follower = Follower()
    follower.join(state(0))
    follower.take(progress(1, 1), message("job_progress", "?", progress=0.5, status="s", processedCount=2))  # type: ignore[arg-type]
    follower.reopen()
    assert follower.join(state(9, 9)) is None
    assert follower.recovery.applied == Cursor("e1", 9)


def test_a_log_whose_states_have_no_place_is_taken_up_where_the_socket_goes_on() -> None:
    follower = Follower()
    follower.join(state(None, 5))
    follower.take(progress(6, 6))
    follower.reopen()
    follower.take(progress(20, 20))
    assert follower.join(state(None, 19)) is None, "not a gap for ever"
    assert follower.seqs == [6, 20]


def test_no_state_at_all_is_told() -> None:
    follower = Follower()
    follower.take(progress(8, 8))
    follower.act(follower.recovery.unavailable())
    follower.act(follower.recovery.release())
    assert [update.kind for update in follower.resynced] == ["unavailable"]
    assert follower.seqs == [8]


# --- bounds -------------------------------------------------------------------------------------------------------


def test_progress_held_back_is_merged_not_dropped_even_with_heartbeats_between() -> None:
    follower = Follower(Cursor("e1", 1))
    for seq in range(2, 4 * BUFFER_LIMIT):
        assert follower.take(progress(seq, seq, keepAlive=bool(seq % 2))) == []
    assert len(follower.recovery._held) <= BUFFER_LIMIT
    follower.join(state(2, 2))
    last = follower.updates[-1]
    assert isinstance(last, Progress)
    assert last.processed_count == 4 * BUFFER_LIMIT - 2


def test_a_merged_range_that_straddles_the_snapshot_is_cut() -> None:
    follower = Follower()
    for seq in range(3, BUFFER_LIMIT + 10):
        follower.take(progress(seq, seq))
    follower.join(state(5, 5))
    first = next(update for update in follower.updates if isinstance(update, Progress))
    assert first.first_seq == 6


def test_what_cannot_be_merged_and_does_not_fit_is_a_gap() -> None:
    follower = Follower()
    found = follower.take(*(message("job_started", seq) for seq in range(3, BUFFER_LIMIT + 5)))
    assert [type(finding) for finding in found] == [Gap]


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

    def emit(self, kind: str) -> bytes:
        self.log[self.name].append(kind)
        if kind == "progress":
            self.count += 1
        self.counts[self.name, self.last] = self.count
        return self.text(self.last)

    def text(self, seq: int) -> bytes:
        kind, epoch = self.log[self.name][seq - 1], self.name
        if kind == "progress":
            return progress(seq, self.counts[epoch, seq], epoch)
        if kind == "heartbeat":
            return progress(seq, epoch=epoch, keepAlive=True)
        if kind == "malformed":
            return message("job_progress", seq, epoch, progress="much", status="s")
        if kind == "end":
            return complete(seq, epoch)
        return message("job_started" if kind == "started" else "job_news", seq, epoch)

    def begin_epoch(self) -> None:
        self.epoch += 1
        self.log[self.name] = []
        self.count = self.forgotten = 0

    def state(self) -> JobState:
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

    def check(self, update: AnyUpdate) -> None:
        assert not self.ended, "nothing follows the end"
        if isinstance(update, Resynced):
            self.resynced(update)
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
        if told.processed_count is not None:
            assert told.processed_count >= self.shown
            self.shown = told.processed_count


class World:
    """Server, wire and follower. What the engine does with findings is done here in the plainest way."""

    def __init__(self, *, replays: bool, states: bool) -> None:
        self.server = Server()
        self.recovery = Recovery("j1", codec=CODEC)
        self.checker = Checker(self.server)
        self.wire: list[bytes] = []
        self.open = False
        self.wants_state = False
        self.replays = replays
        self.states = states
        self.old_states: list[JobState] = [self.server.state()]

    # --- the engine's part

    def act(self, finding: Any) -> None:
        for update in self.recovery.take():
            self.checker.check(update)
        if isinstance(finding, Gap):
            self.wants_state = True
            self.recovery.resync()
        elif isinstance(finding, Synced):
            self.wants_state = False
            self.act(self.recovery.release())
        elif isinstance(finding, End):
            for update in (*finding.before, finding.outcome):
                self.checker.check(update)

    def connect(self, unasked: int = 0) -> None:
        """Open a socket; the server has sent `unasked` events by itself before it hears `ready`."""
        self.wire.clear()
        cursor = self.recovery.opened()
        self.open = self.wants_state = True
        if self.replays:
            last, forgotten = self.server.last, self.server.forgotten
            begun = min(last, forgotten + unasked)
            self.wire += [self.server.text(seq) for seq in range(forgotten + 1, begun + 1)]
            seq = cursor.seq if cursor is not None and cursor.epoch == self.server.name else 0
            first = max(seq, begun) + 1
            self.wire.append(ack(first, last, self.server.name))
            self.wire += [self.server.text(seq) for seq in range(first, last + 1)]

    def deliver(self, place: int = 0) -> None:
        if self.wire and not self.checker.ended:
            data = self.wire.pop(min(place, len(self.wire) - 1))
            try:
                finding = self.recovery.frame(CODEC.decode(data))
            except MalformedMessage as error:
                finding = self.recovery.malformed(error)
            self.act(finding)

    def fetch(self, answer: JobState | None = None) -> None:
        if not self.open or not self.wants_state or self.checker.ended:
            return
        if not self.states:
            self.act(self.recovery.unavailable())
            return
        answer = answer or self.server.state()
        self.old_states.append(answer)
        finding = self.recovery.state(answer)
        if finding is None and answer.ended and not self.recovery.replaying:
            finding = self.recovery.held_end()  # no replay came
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
        if self.open and self.recovery.phase is Phase.LIVE and self.states and not self.checker.ended:
            self.act(self.recovery.look(self.server.state()))


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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    story=st.lists(st.tuples(st.sampled_from([*ACTIONS, *OFTEN]), st.integers(0, 9)), min_size=10, max_size=60),
    replays=st.booleans(),
    states=st.booleans(),
)
def test_whatever_happens_nothing_is_lost_untold_nor_told_twice(
    story: list[tuple[str, int]], replays: bool, states: bool
) -> None:
    world = World(replays=replays, states=states)
    for name, number in [("connect", 0), *story]:
        ACTIONS[name](world, number)
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


@settings(max_examples=100, deadline=None)
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
        elif follower.act(follower.recovery.state(state(None, count))) == Synced():
            follower.act(follower.recovery.release())
    shown = 0
    for update in follower.updates:
        if isinstance(update, Progress | Resynced) and update.processed_count is not None:
            assert update.processed_count >= shown
            shown = update.processed_count
    assert isinstance(follower.take(complete(None))[0], End)
