"""Whatever happens, in whatever order: what must hold after every step of the lifecycle alone."""

from __future__ import annotations

from dry_run import DryRun
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from towline._exceptions import ForbiddenRequest
from towline.statemachine import (
    LIFECYCLE,
    AbandonDial,
    Advice,
    AnyEvent,
    Arm,
    Background,
    Backoff,
    Cancel,
    CancelAccepted,
    CancelFetch,
    Cause,
    Close,
    CloseSocket,
    Connect,
    Deliver,
    Dial,
    Disarm,
    FetchState,
    Foreground,
    GapFound,
    Greet,
    JobEnded,
    JobPaused,
    JobSpoke,
    Lost,
    Opened,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Probe,
    Purpose,
    Reason,
    Refused,
    ReleaseBuffer,
    Reopen,
    Retry,
    SaveCursor,
    SkipState,
    Snapshot,
    SourceRefused,
    State,
    Step,
    StillSilent,
    Synced,
    Timer,
    TokenRejected,
    Trigger,
    Verdict,
    Woke,
    step,
)

ADVICES = st.none() | st.builds(
    Advice,
    retry_after=st.none() | st.floats(0, 2000),
    retry_in=st.none() | st.floats(0, 2000),
    spread=st.none() | st.floats(0, 2000),
)
CAUSES = st.builds(
    Cause,
    code=st.just("broken"),
    text=st.just("the connection broke"),
    shared=st.booleans(),
    violation=st.booleans(),
    certificate=st.booleans(),
    advice=ADVICES,
)
REASONS: st.SearchStrategy[Reason] = st.sampled_from(["budget", "auth", "revoked", "protocol", "gone", "stalled"])
FAILURES = st.sampled_from(["lost", "reopen", "source", "rejected", "refused"])
REQUESTS = st.sampled_from([Connect(), Retry(), Cancel(), Close()])
REPORTS = st.sampled_from([PathLost(), PathRestored(), PathChanged(), Woke(), Background(), Foreground()])
POLICIES = st.builds(
    Policy,
    backoff=st.sampled_from([Backoff.patient(), Backoff.original(), Backoff(attempts=0), Backoff(seconds=0.001)]),
    dial_spacing=st.sampled_from([0.0, 4.0]),
    dials_per_window=st.sampled_from([1, 60]),
    free_restarts=st.sampled_from([0, 3]),
    grace=st.sampled_from([0.0, 30.0]),
    violations=st.sampled_from([1, 3]),
    refetch_waits=st.sampled_from([(), (0.5, 1.0, 2.0)]),
    stall_limit=st.sampled_from([None, 5.0, 500.0, 3600.0]),
)


class World(RuleBasedStateMachine):
    """The machine, and an engine and a network that do whatever they like. `held` is what the engine would hold."""

    @initialize(policy=POLICIES)
    def begin(self, policy: Policy) -> None:
        self.run = DryRun(policy)
        self.attempts: set[int] = set()
        self.sockets = 0
        self.fetches: set[int] = set()
        self.delivered = 0
        self.forgotten: list[AnyEvent] = []

    @property
    def snapshot(self) -> Snapshot:
        return self.run.snapshot

    def take(self, event: AnyEvent) -> None:
        before, facts = self.snapshot, self.run.facts
        try:
            taken = self.run.take(event)
        except ForbiddenRequest:
            assert event.trigger in (Trigger.CONNECT, Trigger.RETRY)
            assert self.snapshot is before
            return
        self.forgotten.append(event)
        self.check(event, before, taken)
        # The same question has the same answer: no clock, no randomness, no memory but the snapshot.
        assert step(before, event, facts, self.run.policy) == taken

    def check(self, event: AnyEvent | None, before: Snapshot, taken: Step) -> None:
        after = taken.snapshot
        if taken.verdict in (Verdict.IGNORED, Verdict.STALE):
            assert taken.effects == ()
            assert after.state is before.state
        for effect in taken.effects:
            match effect:
                case Dial():
                    assert not self.attempts
                    assert self.sockets == 0
                    assert effect.not_before >= self.run.now
                    self.attempts.add(effect.generation)
                case AbandonDial():
                    assert self.attempts
                    self.attempts.clear()
                case Greet():
                    # `opened` turned the attempt into a socket.
                    assert self.attempts
                    self.attempts.clear()
                    self.sockets += 1
                    assert self.sockets == 1
                case CloseSocket():
                    assert self.sockets == 1
                    assert effect.code == (1000 if isinstance(event, JobEnded) else 1001)
                    self.sockets = 0
                case FetchState():
                    assert effect.fetch == max((*self.fetches, effect.fetch))
                    self.fetches = {effect.fetch}
                    pause = before.paused and before.state is after.state is State.CONNECTED
                    without_link = after.state in (State.RECONNECTING, State.EXHAUSTED)
                    assert (effect.purpose is Purpose.STATUS) is (without_link or pause)
                    assert self.run.facts.state_call or effect.purpose is not Purpose.STATUS
                case CancelFetch():
                    self.fetches.clear()
                case Deliver():
                    self.delivered += 1
                    assert after.state is State.IDLE
                case SkipState():
                    assert (before.state, after.state) == (State.SYNCING, State.SYNCING)
                case ReleaseBuffer():
                    assert (before.state, after.state) == (State.SYNCING, State.CONNECTED)
                case Probe():
                    assert self.sockets == 1
                case Arm():
                    assert after.state in LIFECYCLE.timers[effect.timer].runs_in
                    assert 0 <= effect.delay.low <= effect.delay.high
                case Disarm() | SaveCursor():
                    pass
        assert after.source >= before.source
        assert after.generation >= before.generation
        assert after.fetch >= before.fetch
        assert after.tickets >= before.tickets

    @rule(request=REQUESTS)
    def user(self, request: AnyEvent) -> None:
        self.take(request)

    @rule(report=REPORTS)
    def host(self, report: AnyEvent) -> None:
        match report:
            case PathLost():
                self.run.world(path_up=False)
            case PathRestored() | PathChanged():
                self.run.world(path_up=True)
            case Background():
                self.run.world(foreground=False)
            case Foreground():
                self.run.world(foreground=True)
        self.take(report)

    @rule(renewable=st.booleans(), token_id=st.sampled_from([None, "a", "b"]))
    def token(self, renewable: bool, token_id: str | None) -> None:
        self.run.world(renewable=renewable, token_id=token_id)

    @rule(state_call=st.booleans(), sources=st.sampled_from([1, 2, 3]))
    def protocol(self, state_call: bool, sources: int) -> None:
        self.run.world(state_call=state_call, sources=max(sources, self.snapshot.source + 1))

    @precondition(lambda self: self.attempts)
    @rule(by_state=st.booleans())
    def server_accepts(self, by_state: bool) -> None:
        self.take(Opened(generation=max(self.attempts), by_state=by_state))
        assert len(self.fetches) == 1

    @precondition(lambda self: self.attempts or self.sockets)
    @rule(cause=CAUSES, reason=REASONS, what=FAILURES, fetched=st.booleans())
    def network_fails(self, cause: Cause, reason: Reason, what: str, fetched: bool) -> None:
        before = self.snapshot
        at = before.generation
        if what == "lost":
            self.take(Lost(cause=cause, generation=at))
            spared = self.run.facts.foreground and before.paused and before.state is not State.CONNECTING
            if spared and self.snapshot.state is State.RECONNECTING:
                assert self.snapshot.retries == before.retries
                assert self.snapshot.outage_since is None
        elif what == "reopen":
            self.take(Reopen(cause=cause, generation=at))
            assert self.snapshot.source == before.source
        elif what == "source":
            self.take(SourceRefused(cause=cause, generation=at))
            left = self.run.facts.sources - 1 - before.source
            if left:
                assert self.snapshot.state is State.CONNECTING
                assert (self.snapshot.source, self.snapshot.retries) == (before.source + 1, before.retries)
            elif not before.peer_known:
                assert (self.snapshot.state, self.snapshot.reason) == (State.EXHAUSTED, "protocol")
            elif self.snapshot.state is not State.EXHAUSTED:
                assert self.snapshot.state in (State.RECONNECTING, State.BACKGROUNDED)
                assert self.snapshot.source == 0
        elif what == "rejected":
            self.take(TokenRejected(cause=cause, generation=at, by_fetch=fetched))
        else:
            self.take(Refused(reason=reason, cause=cause, generation=at, by_fetch=fetched))

    @precondition(lambda self: self.snapshot.state is State.CONNECTED)
    @rule(silent=st.booleans())
    def a_silence_is_looked_into(self, silent: bool) -> None:
        before = self.snapshot
        if silent:
            self.take(StillSilent(generation=before.generation))
            assert self.snapshot.retries == before.retries
            assert not (before.silence_redialled and self.snapshot.state is not State.CONNECTED)
        else:
            self.run.world(last_sign=self.run.now)
            self.take(JobSpoke(generation=before.generation))
            assert self.snapshot.silent_seconds(self.run.facts) == 0

    @precondition(lambda self: self.snapshot.state in (State.SYNCING, State.CONNECTED, State.RECONNECTING))
    @rule()
    def job_pauses(self) -> None:
        self.take(JobPaused(generation=self.snapshot.generation))
        assert self.snapshot.paused
        assert self.snapshot.stalls == 0

    @rule()
    def cancel_is_accepted(self) -> None:
        self.take(CancelAccepted())

    @precondition(lambda self: self.sockets)
    @rule(cause=CAUSES)
    def stream_goes_on(self, cause: Cause) -> None:
        self.take(GapFound(cause=cause, generation=self.snapshot.generation))

    @precondition(lambda self: self.fetches)
    @rule()
    def state_is_fetched(self) -> None:
        self.take(Synced(generation=self.snapshot.generation, fetch=max(self.fetches)))

    @rule(outcome=st.sampled_from(["complete", "failed", "canceled"]))
    def job_ends(self, outcome: str) -> None:
        over = self.snapshot.outcome
        self.take(JobEnded(outcome=outcome))  # type: ignore[arg-type]
        assert self.snapshot.outcome == over or over is None

    @rule(seconds=st.sampled_from([0.0, 0.3, 4.0, 31.0, 700.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.run.now + seconds
        while (due := self.run.next_expiry()) is not None and due <= until:
            before = self.snapshot
            taken = self.run.expire()
            self.check(None, before, taken)
            assert taken.verdict in (Verdict.MOVED, Verdict.KEPT)
        self.run.world(now=until)

    @precondition(lambda self: self.forgotten)
    @rule(data=st.data())
    def something_late_arrives(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.forgotten))
        if not isinstance(event, Connect | Retry | Cancel | Close):
            self.take(event)

    @invariant()
    def what_is_owned_fits_the_state(self) -> None:
        at = self.snapshot.state
        assert len(self.attempts) == (at is State.CONNECTING)
        assert self.sockets == (at in (State.SYNCING, State.CONNECTED))
        if at in (State.IDLE, State.CONNECTING, State.BACKGROUNDED, State.CANCELLED):
            assert not self.fetches

    @invariant()
    def every_timer_runs_where_it_may(self) -> None:
        timers = [timer for timer, _ in self.snapshot.armed]
        assert len(timers) == len(set(timers))
        for timer in timers:
            assert self.snapshot.state in LIFECYCLE.timers[timer].runs_in
        if self.snapshot.state is State.RECONNECTING:
            assert Timer.BACKOFF in timers

    @invariant()
    def the_end_is_told_once(self) -> None:
        assert self.delivered == (self.snapshot.outcome is not None)
        assert self.delivered <= 1

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        policy = self.run.policy
        assert len(self.snapshot.dials) <= policy.dials_per_window
        assert len(self.snapshot.revivals) <= policy.revivals_per_window + 1
        # Whoever cancels what had given up may still read why.
        assert self.snapshot.reason is None or self.snapshot.state in (State.EXHAUSTED, State.CANCELLED)
        assert self.snapshot.reason is not None or self.snapshot.state is not State.EXHAUSTED


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=60)


EVENTS = st.one_of(
    REQUESTS,
    REPORTS,
    st.builds(Opened, by_state=st.booleans()),
    st.builds(Synced),
    st.builds(Lost, cause=CAUSES),
    st.builds(GapFound, cause=CAUSES),
    st.builds(TokenRejected, cause=CAUSES, by_fetch=st.booleans()),
    st.builds(Refused, reason=REASONS, cause=CAUSES, by_fetch=st.booleans(), final=st.booleans()),
    st.builds(Reopen, cause=CAUSES),
    st.builds(SourceRefused, cause=CAUSES),
    st.builds(StillSilent),
    st.builds(JobPaused),
    st.builds(JobSpoke),
    st.builds(CancelAccepted),
    st.builds(JobEnded, outcome=st.sampled_from(["complete", "failed", "canceled"])),
)


@given(POLICIES, st.lists(st.tuples(EVENTS, st.booleans(), st.booleans(), st.sampled_from([0.0, 0.5, 35.0]))))
def test_only_a_forbidden_request_raises_and_nothing_given_is_touched(
    policy: Policy, story: list[tuple[AnyEvent, bool, bool, float]]
) -> None:
    run = DryRun(policy)
    for event, path_up, foreground, seconds in story:
        run.world(path_up=path_up, foreground=foreground)
        before = run.snapshot
        kept = replace(before)
        try:
            run.take(event)
        except ForbiddenRequest:
            assert event.trigger in (Trigger.CONNECT, Trigger.RETRY)
            assert run.snapshot is before
        assert before == kept
        run.advance(seconds)
