"""Timers, staleness, spacing, budgets: the lifecycle over time, driven by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from dry_run import DryRun
from msgspec.structs import replace

from towline._exceptions import Cancelled, ForbiddenRequest
from towline.statemachine import (
    LIFECYCLE,
    Advice,
    AnyEvent,
    Arm,
    Background,
    Backoff,
    BackoffElapsed,
    Cancel,
    CancelAccepted,
    CancelFetch,
    Cause,
    Close,
    CloseSocket,
    Connect,
    Deliver,
    Dial,
    FetchState,
    Foreground,
    GapFound,
    JobEnded,
    JobPaused,
    JobSpoke,
    LinkStable,
    Lost,
    Opened,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Purpose,
    Refused,
    Reopen,
    Retry,
    Snapshot,
    SourceRefused,
    Stalled,
    State,
    StillSilent,
    Synced,
    Timer,
    TokenRejected,
    Verdict,
    Woke,
)

CAUSE = Cause(code="broken", text="the connection broke")
RESTART = Cause(code="close 1012", text="the server restarts", shared=True)
VIOLATION = Cause(code="violation", text="a reserved bit", violation=True)
CERTIFICATE = Cause(code="certificate", text="a portal", certificate=True)


def run_to(state: State, policy: Policy | None = None, **options: Any) -> DryRun:
    """A fresh machine, led to a state by the shortest way."""
    run = DryRun(policy, **options)
    ways: dict[State, list[AnyEvent]] = {
        State.IDLE: [],
        State.CONNECTING: [Connect()],
        State.SYNCING: [Connect(), Opened()],
        State.CONNECTED: [Connect(), Opened(), Synced()],
        State.RECONNECTING: [Connect(), Lost(cause=CAUSE)],
        State.BACKGROUNDED: [Connect(), Background()],
        State.EXHAUSTED: [Connect(), Refused(reason="protocol", cause=CAUSE)],
        State.CANCELLED: [Connect(), Cancel()],
    }
    for event in ways[state]:
        run.take(event)
    if state is State.BACKGROUNDED:
        run.world(foreground=False)
        run.advance(run.policy.grace)
    assert run.snapshot.state is state
    return run


def spend_the_budget(run: DryRun) -> None:
    """Fail every attempt until none is left."""
    for _ in range(1000):
        if run.snapshot.state is State.CONNECTING:
            run.take(Lost(cause=CAUSE))
        elif run.snapshot.state is State.RECONNECTING:
            run.advance(1.0)
        else:
            break
    assert run.snapshot.state is State.EXHAUSTED
    assert run.snapshot.reason == "budget"


def armed(run: DryRun) -> set[Timer]:
    return {timer for timer, _ in run.snapshot.armed}


def state(run: DryRun) -> State:
    return run.snapshot.state


# --- the budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_news", [True, False])
def test_links_that_end_in_order_after_news_are_one_outage_each(after_news: bool) -> None:
    run = run_to(State.CONNECTED)
    for _ in range(run.policy.backoff.attempts):
        run.take(Lost(cause=CAUSE, after_news=after_news))
        assert run.snapshot.retries == 1 or not after_news
        while run.snapshot.state is State.RECONNECTING:
            run.advance(1.0)
        run.take(Opened())
        run.take(Synced())
    run.take(Lost(cause=CAUSE, after_news=after_news))
    assert run.snapshot.state is (State.RECONNECTING if after_news else State.EXHAUSTED)


def test_news_end_an_outage_that_had_no_retries_left() -> None:
    run = run_to(State.CONNECTING)
    for _ in range(run.policy.backoff.attempts):
        run.take(Lost(cause=CAUSE))
        while run.snapshot.state is State.RECONNECTING:
            run.advance(1.0)
    run.take(Opened())
    run.take(Synced())
    run.take(Lost(cause=CAUSE, after_news=True))
    assert (run.snapshot.state, run.snapshot.retries) == (State.RECONNECTING, 1)


# --- where each timer runs ---------------------------------------------------------------------------------------


def test_timers_of_each_state() -> None:
    running = {at: armed(run_to(at)) for at in State}
    assert running == {
        State.IDLE: set(),
        State.CONNECTING: set(),
        State.SYNCING: set(),
        State.CONNECTED: {Timer.STABILITY, Timer.STALL},
        State.RECONNECTING: {Timer.BACKOFF, Timer.OUTAGE},
        State.BACKGROUNDED: set(),
        State.EXHAUSTED: set(),
        State.CANCELLED: set(),
    }


def every_timer_running() -> Iterator[tuple[DryRun, Timer]]:
    for at in (State.CONNECTING, State.SYNCING, State.CONNECTED, State.RECONNECTING):
        for timer in sorted({Timer.GRACE} | armed(run_to(at)), key=lambda timer: timer.value):
            run = run_to(at)
            if timer is Timer.GRACE:
                run.take(Background())
            yield run, timer
    run = run_to(State.CONNECTING)
    spend_the_budget(run)
    run.world(path_up=False, foreground=False)
    run.take(PathRestored())
    yield run, Timer.REVIVAL


@pytest.mark.parametrize(
    "exit_by",
    [Lost(cause=CAUSE), Cancel(), Close(), JobEnded(outcome="complete"), Refused(reason="gone", cause=CAUSE), Retry()],
    ids=lambda event: type(event).__name__,
)
def test_every_timer_is_disarmed_on_every_exit(exit_by: AnyEvent) -> None:
    for run, timer in every_timer_running():
        ticket = run.snapshot.ticket(timer)
        assert ticket is not None, timer
        run.take(exit_by)
        if state(run) not in LIFECYCLE.timers[timer].runs_in:
            assert run.snapshot.ticket(timer) is None
        else:
            assert run.snapshot.ticket(timer) is not None


def test_the_expiry_of_every_timer_is_handled_where_it_runs() -> None:
    for run, timer in every_timer_running():
        cell = LIFECYCLE.cell(LIFECYCLE.timers[timer].expiry, state(run))
        assert all(branch.kind.value in ("moved", "kept") for branch in cell), (timer, state(run))


def test_an_expiry_of_a_disarmed_or_rearmed_timer_is_stale() -> None:
    run = run_to(State.CONNECTED)
    old = run.snapshot.ticket(Timer.STALL)
    assert old is not None
    run.advance(120)
    assert run.snapshot.ticket(Timer.STALL) not in (None, old)
    assert run.take(Stalled(ticket=old)).verdict is Verdict.STALE
    stability = run_to(State.CONNECTED)
    ticket = stability.snapshot.ticket(Timer.STABILITY)
    assert ticket is not None
    stability.take(Lost(cause=CAUSE))
    before = stability.snapshot
    assert stability.take(LinkStable(ticket=ticket)) == (before, (), Verdict.STALE)


def test_an_expiry_is_taken_up_once() -> None:
    run = run_to(State.CONNECTED)
    ticket = run.snapshot.ticket(Timer.STABILITY)
    assert ticket is not None
    assert run.take(LinkStable(ticket=ticket)).verdict is Verdict.KEPT
    assert run.take(LinkStable(ticket=ticket)).verdict is Verdict.STALE


# --- stale results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [Opened(generation=1), Lost(cause=CAUSE, generation=1), Refused(reason="gone", cause=CAUSE, generation=1)],
    ids=lambda event: type(event).__name__,
)
def test_a_result_of_an_older_attempt_is_stale(event: AnyEvent) -> None:
    run = run_to(State.RECONNECTING)
    run.advance(60)
    assert state(run) is State.CONNECTING
    assert run.snapshot.generation == 2
    before = run.snapshot
    assert run.take(event) == (before, (), Verdict.STALE)


@pytest.mark.parametrize("request_", [Cancel(), Close()], ids=["cancel", "close"])
def test_cancel_and_close_make_everything_under_way_stale(request_: AnyEvent) -> None:
    run = run_to(State.CONNECTING)
    run.take(request_)
    assert run.take(Opened(generation=1)).verdict is Verdict.STALE


def test_background_makes_everything_under_way_stale() -> None:
    run = run_to(State.CONNECTING)
    run.world(foreground=False)
    run.take(Lost(cause=CAUSE, generation=1))
    assert state(run) is State.BACKGROUNDED
    assert run.take(Opened(generation=1)).verdict is Verdict.STALE


def test_the_end_is_never_stale() -> None:
    run = run_to(State.RECONNECTING)
    run.advance(60)
    assert run.take(JobEnded(outcome="failed", generation=1, fetch=1)).verdict is Verdict.MOVED
    assert run.snapshot.outcome == "failed"
    assert len(run.effects(Deliver)) == 1
    assert run.take(JobEnded(outcome="failed")).verdict is Verdict.IGNORED
    assert len(run.effects(Deliver)) == 1


def test_a_fetch_that_was_cancelled_is_stale_though_its_answer_was_queued() -> None:
    run = run_to(State.SYNCING)
    fetch = run.effects(FetchState)[-1]
    run.take(Synced(generation=fetch.generation))  # the server's log was replayed first
    late = Lost(cause=CAUSE, generation=fetch.generation, fetch=fetch.fetch)
    assert run.take(late).verdict is Verdict.STALE
    assert state(run) is State.CONNECTED


def test_a_refetch_makes_the_first_fetch_stale() -> None:
    run = run_to(State.SYNCING)
    first = run.effects(FetchState)[-1]
    run.take(GapFound(cause=CAUSE))
    assert run.take(Synced(generation=first.generation, fetch=first.fetch)).verdict is Verdict.STALE
    second = run.effects(FetchState)[-1]
    assert run.take(Synced(generation=second.generation, fetch=second.fetch)).verdict is Verdict.MOVED


# --- the budget --------------------------------------------------------------------------------------------------


def test_original_gives_up_after_five_retries_at_1_2_4_8_16_seconds() -> None:
    run = run_to(State.CONNECTING, Policy(backoff=Backoff.original(), dial_spacing=0.0))
    spend_the_budget_exactly(run)
    assert [dial.not_before for dial in run.effects(Dial)] == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0]


def test_original_after_a_stable_link_does_the_same() -> None:
    run = run_to(State.CONNECTED, Policy(backoff=Backoff.original(), dial_spacing=0.0))
    run.advance(100)
    assert run.snapshot.retries == 0
    run.take(Lost(cause=RESTART))
    spend_the_budget_exactly(run)
    assert [dial.not_before - 100 for dial in run.effects(Dial)[1:]] == [1.0, 3.0, 7.0, 15.0, 31.0]


def spend_the_budget_exactly(run: DryRun) -> None:
    while state(run) is not State.EXHAUSTED:
        if state(run) is State.CONNECTING:
            run.take(Lost(cause=CAUSE))
        else:
            run.expire()


def test_patient_gives_up_after_twenty_retries_or_ten_minutes() -> None:
    by_count = run_to(State.CONNECTING, Policy(backoff=Backoff(cap=1.0, shared_window=0.0)))
    spend_the_budget_exactly(by_count)
    assert len(by_count.effects(Dial)) == 21
    by_time = run_to(State.CONNECTING, random=lambda: 1.0)
    while state(by_time) is not State.EXHAUSTED:
        if state(by_time) is State.CONNECTING:
            by_time.advance(10)
            by_time.take(Lost(cause=CAUSE))
        else:
            by_time.advance(1)
    assert 600 <= by_time.now <= 612
    assert len(by_time.effects(Dial)) < 21


def test_the_outage_clock_runs_out_while_waiting() -> None:
    run = run_to(State.CONNECTING, Policy(backoff=Backoff(seconds=50)))
    run.take(Lost(cause=Cause(code="http 503", text="", advice=Advice(retry_after=300))))
    run.advance(49.9)
    assert state(run) is State.RECONNECTING
    run.advance(0.1)
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "budget")


def test_the_outage_clock_goes_on_while_connecting_and_until_the_link_is_stable() -> None:
    run = run_to(State.RECONNECTING)
    began = run.now
    run.advance(5)
    assert state(run) is State.CONNECTING
    run.advance(5)
    run.take(Opened())
    run.take(Synced())
    run.advance(29)
    assert run.snapshot.outage_seconds(run.now) == pytest.approx(run.now - began)
    run.advance(1)
    assert run.snapshot.outage_seconds(run.now) == 0


def test_the_outage_clock_stands_still_during_a_hold_and_in_the_background() -> None:
    run = run_to(State.RECONNECTING, random=lambda: 1.0)
    run.advance(0.5)
    run.world(path_up=False)
    run.take(PathLost())
    run.advance(40)
    assert run.snapshot.outage_seconds(run.now) == 0.5
    run.world(path_up=True)
    run.take(PathRestored())
    run.advance(0.5)
    assert run.snapshot.outage_seconds(run.now) == 1.0
    run.take(Background())
    run.world(foreground=False)
    run.advance(30)
    spent = run.snapshot.outage_seconds(run.now)
    assert state(run) is State.BACKGROUNDED
    run.advance(10_000)
    assert run.snapshot.outage_seconds(run.now) == spent
    retries = run.snapshot.retries
    run.world(foreground=True)
    run.take(Foreground())
    assert run.snapshot.retries == retries


def test_only_a_stable_link_resets_the_count() -> None:
    run = run_to(State.RECONNECTING)
    for _ in range(3):
        run.advance(60)
        run.take(Opened())
        run.take(Synced())
        run.advance(29.9)
        run.take(Lost(cause=CAUSE))
    assert run.snapshot.retries == 4
    run.advance(60)
    run.take(Opened())
    run.take(Synced())
    run.advance(30)
    assert run.snapshot.retries == 0
    assert run.snapshot.cause is None


# --- hold and trial ----------------------------------------------------------------------------------------------


def test_a_hold_ends_in_one_uncharged_trial_a_minute() -> None:
    run = DryRun()
    run.world(path_up=False)
    run.take(Connect())
    assert state(run) is State.RECONNECTING
    for n in range(1, 100):
        run.advance(60)
        assert state(run) is State.CONNECTING
        assert len(run.effects(Dial)) == n
        run.take(Lost(cause=CAUSE))
    assert state(run) is State.RECONNECTING
    assert run.snapshot.retries == 0


def test_reports_of_the_host_do_not_put_the_trial_off() -> None:
    run = run_to(State.RECONNECTING)
    run.world(path_up=False)
    run.take(PathLost())
    for event in (Woke(), Foreground(), PathLost(), PathRestored(), PathLost(), Woke()) * 2:
        run.advance(4.5)
        run.take(event)
    assert state(run) is State.RECONNECTING
    run.advance(60 - 12 * 4.5)
    assert state(run) is State.CONNECTING


def test_no_state_is_asked_for_during_a_hold() -> None:
    run = run_to(State.CONNECTED)
    asked = len(run.effects(FetchState))
    run.world(path_up=False)
    run.take(PathLost())
    run.take(Lost(cause=CAUSE))
    assert state(run) is State.RECONNECTING
    assert len(run.effects(FetchState)) == asked


def test_a_told_spread_holds_for_the_state_too() -> None:
    """A server that lets everybody go would be asked by everybody at once; the next failure is each one's own."""
    run = run_to(State.CONNECTED)
    asked = len(run.effects(FetchState))
    run.take(Lost(cause=replace(RESTART, advice=Advice(retry_in=1, spread=50))))
    assert state(run) is State.RECONNECTING
    assert len(run.effects(FetchState)) == asked
    run.advance(51)
    assert state(run) is State.CONNECTING
    run.take(Lost(cause=CAUSE))
    assert state(run) is State.RECONNECTING
    assert len(run.effects(FetchState)) == asked + 1


def test_a_restored_path_is_dialled_within_a_second() -> None:
    for draw in (0.0, 1.0):
        run = run_to(State.RECONNECTING, Policy(dial_spacing=0.0), random=lambda draw=draw: draw)  # type: ignore[misc]
        run.world(path_up=False)
        run.take(PathLost())
        run.advance(30)
        run.world(path_up=True)
        run.take(PathRestored())
        run.advance(1.0)
        assert state(run) is State.CONNECTING
        assert run.effects(Dial)[-1].not_before == pytest.approx(30 + 0.25 + 0.75 * draw)


@pytest.mark.parametrize("event", [Woke(), PathRestored(), PathChanged(), Foreground()], ids=lambda e: type(e).__name__)
def test_what_the_server_advised_outlasts_what_the_host_reports(event: AnyEvent) -> None:
    run = run_to(State.CONNECTING)
    run.take(Lost(cause=Cause(code="http 503", text="", shared=True, advice=Advice(retry_after=100))))
    run.advance(10)
    run.take(event)
    run.advance(89)
    assert state(run) is State.RECONNECTING
    run.advance(1 + 5)
    assert state(run) is State.CONNECTING


def test_a_hold_does_not_shorten_advice_and_a_user_does() -> None:
    run = run_to(State.CONNECTING)
    run.take(Lost(cause=Cause(code="http 503", text="", shared=True, advice=Advice(retry_after=300))))
    run.world(path_up=False)
    run.take(PathLost())
    run.advance(299)
    assert state(run) is State.RECONNECTING
    run.take(Retry())
    assert state(run) is State.CONNECTING
    run.take(Lost(cause=CAUSE))
    run.advance(60)
    assert state(run) is State.CONNECTING


# --- spacing -----------------------------------------------------------------------------------------------------


def flap(run: DryRun, seconds: float, *, opened: bool = True) -> list[float]:
    """A server that accepts and then closes at once; returns when dials opened."""
    while run.now < seconds and state(run) is not State.EXHAUSTED:
        if state(run) is State.CONNECTING:
            run.advance(max(0.0, run.effects(Dial)[-1].not_before - run.now))
            if opened:
                run.take(Opened())
                run.take(Synced())
            run.take(Lost(cause=RESTART))
        else:
            run.expire()
    return [dial.not_before for dial in run.effects(Dial)]


def busiest(dials: list[float], window: float) -> int:
    return max(sum(start <= at < start + window for at in dials) for start in dials)


@pytest.mark.parametrize("seed", range(20))
def test_a_flapping_server_is_dialled_at_most_ten_times_a_minute(seed: int) -> None:
    run = DryRun(random=random.Random(seed).random)
    run.take(Connect())
    assert busiest(flap(run, 600), 60) <= 10


def test_even_without_backoff_dials_are_four_seconds_apart_and_sixty_in_ten_minutes() -> None:
    eager = Backoff(base=0.0, floor=0.0, cap=0.001, shared_window=0.0, attempts=10**6, seconds=10**6)
    run = run_to(State.CONNECTING, Policy(backoff=eager))
    dials = flap(run, 3600)
    assert min(b - a for a, b in itertools.pairwise(dials)) >= 4
    assert busiest(dials, 600) == 60
    assert len(run.snapshot.dials) <= 60


def test_success_does_not_arm_the_spacing_anew() -> None:
    run = run_to(State.CONNECTED)
    run.advance(2)
    run.take(Lost(cause=CAUSE))
    run.take(Retry())
    assert run.effects(Dial)[-1].not_before == 4.0


def test_a_dial_that_never_opened_is_not_counted() -> None:
    run = run_to(State.CONNECTING)
    run.advance(1)
    run.take(PathChanged())
    assert run.snapshot.dials == (0.0, 4.0)
    run.take(PathChanged())
    assert run.snapshot.dials == (0.0, 4.0)


def test_a_first_rejection_is_answered_at_once() -> None:
    run = run_to(State.CONNECTING)
    run.advance(0.5)
    run.take(TokenRejected(cause=CAUSE))
    assert run.effects(Dial)[-1] == Dial(generation=2, not_before=0.5, fresh_token=True)
    run.take(TokenRejected(cause=CAUSE))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "auth")


def test_a_state_call_without_a_socket_says_nothing_about_the_token() -> None:
    run = run_to(State.RECONNECTING)
    run.take(TokenRejected(cause=CAUSE, by_fetch=True))
    run.advance(60)
    assert not run.effects(Dial)[-1].fresh_token


# --- restarts and violations -------------------------------------------------------------------------------------


def test_three_free_restarts_an_outage() -> None:
    run = run_to(State.CONNECTING)
    for n in range(2, 5):
        run.advance(5)
        run.take(PathChanged())
        assert run.snapshot.generation == n
    run.take(PathChanged())
    assert run.snapshot.generation == 4
    run.world(path_up=False)
    run.take(PathLost())
    assert (state(run), run.snapshot.retries) == (State.RECONNECTING, 1)
    assert run.snapshot.cause == Cause(code="path", text="the host lost its network path")


@pytest.mark.parametrize("request_", [Connect(), Retry()], ids=["connect", "retry"])
def test_a_user_forgives(request_: AnyEvent) -> None:
    run = run_to(State.CONNECTING)
    for _ in range(3):
        run.take(PathChanged())
    run.take(request_)
    assert run.snapshot.free_restarts == 0


def test_the_third_broken_stream_without_a_stable_link_ends_it() -> None:
    run = run_to(State.CONNECTED)
    run.take(Lost(cause=VIOLATION))
    run.advance(60)
    run.world(foreground=False)
    run.take(Lost(cause=VIOLATION))
    assert (state(run), run.snapshot.violations) == (State.BACKGROUNDED, 2)
    run.world(foreground=True)
    run.take(Foreground())
    run.take(Opened())
    run.take(Lost(cause=VIOLATION))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "protocol")


def test_a_stable_link_forgives_violations() -> None:
    run = run_to(State.CONNECTED)
    for _ in range(5):
        run.take(Lost(cause=VIOLATION))
        assert state(run) is State.RECONNECTING
        run.advance(60)
        run.take(Opened())
        run.take(Synced())
        run.advance(30)


# --- revival -----------------------------------------------------------------------------------------------------


def exhausted() -> DryRun:
    run = run_to(State.CONNECTING)
    spend_the_budget(run)
    run.world(now=100_000.0)
    return run


def test_revivals_are_thirty_seconds_apart() -> None:
    run = exhausted()
    run.take(PathRestored())
    assert (state(run), run.snapshot.retries) == (State.CONNECTING, 0)
    run.take(Refused(reason="budget", cause=CAUSE))
    run.advance(10)
    run.take(Woke())
    assert state(run) is State.EXHAUSTED
    run.advance(19.9)
    assert state(run) is State.EXHAUSTED
    run.advance(0.2)
    assert state(run) is State.CONNECTING


def test_six_revivals_an_hour_and_retry_is_free() -> None:
    run = exhausted()
    start = run.now
    revived = []
    while run.now < start + 3 * 3600:
        run.take(PathChanged())
        if state(run) is State.CONNECTING:
            revived.append(run.now)
            run.take(Refused(reason="budget", cause=CAUSE))
        run.advance(30)
    assert busiest(revived, 3600) == 6
    assert len(revived) == 18
    run.take(Retry())
    assert state(run) is State.CONNECTING


def test_a_revival_waits_for_the_foreground() -> None:
    run = exhausted()
    run.world(foreground=False)
    run.take(PathRestored())
    run.advance(1000)
    assert state(run) is State.EXHAUSTED
    run.world(foreground=True)
    run.take(Foreground())
    assert state(run) is State.CONNECTING


def test_another_path_revives_after_a_bad_certificate_and_a_wake_does_not() -> None:
    run = run_to(State.CONNECTING)
    run.take(Refused(reason="protocol", cause=CERTIFICATE))
    run.take(Woke())
    assert state(run) is State.EXHAUSTED
    run.take(PathChanged())
    assert state(run) is State.CONNECTING
    run.take(Refused(reason="protocol", cause=CERTIFICATE))
    run.advance(1)
    run.take(PathRestored())
    assert state(run) is State.EXHAUSTED
    run.advance(29)
    assert state(run) is State.CONNECTING


def test_nothing_revives_after_a_refusal() -> None:
    for reason in ("auth", "protocol", "gone"):
        run = run_to(State.CONNECTING)
        run.take(Refused(reason=reason, cause=CAUSE))  # type: ignore[arg-type]
        for event in (PathLost(), PathRestored(), PathChanged(), Woke(), Background(), Foreground()):
            run.take(event)
            run.advance(5000)
        assert state(run) is State.EXHAUSTED


def test_the_same_refused_token_is_not_tried_again() -> None:
    run = DryRun()
    run.world(token_id="t1", renewable=False)
    run.take(Connect())
    run.take(TokenRejected(cause=CAUSE))
    assert run.snapshot.reason == "auth"
    before = run.snapshot
    for request in (Connect(), Retry()):
        with pytest.raises(ForbiddenRequest, match="refused this very token"):
            run.take(request)
    assert run.snapshot is before
    run.world(token_id="t2")
    run.take(Connect())
    assert state(run) is State.CONNECTING


# --- stall, grace, sync ------------------------------------------------------------------------------------------


def test_silence_is_looked_into_after_120_then_240_then_every_600_seconds() -> None:
    run = run_to(State.CONNECTED)
    run.advance(120 + 240 + 600 + 600)
    arms = [effect.delay.low for effect in run.effects(Arm) if effect.timer is Timer.STALL]
    assert arms == [120, 240, 600, 600, 600]


def test_a_sign_of_the_job_begins_a_new_silence() -> None:
    run = run_to(State.CONNECTED)
    run.advance(130)
    assert run.snapshot.stalls == 1
    run.world(last_sign=run.now)
    run.take(JobSpoke())
    assert run.snapshot.stalls == 0
    run.advance(119.9)
    assert run.snapshot.stalls == 0
    run.advance(0.1)
    assert run.snapshot.stalls == 1


def test_a_message_before_the_first_look_moves_it() -> None:
    run = run_to(State.CONNECTED)
    run.advance(100)
    run.world(last_sign=run.now)
    run.advance(119.9)
    assert run.effects(FetchState)[-1].purpose is Purpose.SYNC
    run.advance(0.1)
    assert run.effects(FetchState)[-1].purpose is Purpose.STALL


def silent(run: DryRun) -> None:
    run.take(StillSilent(generation=run.snapshot.generation, fetch=run.snapshot.fetch))


def test_after_two_looks_without_a_sign_it_reconnects_once_and_charges_nothing() -> None:
    run = run_to(State.CONNECTED)
    run.advance(120)
    silent(run)
    assert state(run) is State.CONNECTED
    run.advance(240)
    silent(run)
    assert state(run) is State.CONNECTING
    assert (run.snapshot.retries, run.snapshot.cause) == (
        0,
        Cause(code="stalled", text="the job gave no sign for 360 s"),
    )
    run.take(Opened(generation=run.snapshot.generation))
    run.take(Synced(generation=run.snapshot.generation))
    dials = len(run.effects(Dial))
    # The reconnect began no new silence: the third look comes when the third wait is over, and reconnects no more.
    run.advance(600)
    assert run.snapshot.stalls == 3
    for _ in range(10):
        silent(run)
        run.advance(600)
    assert (state(run), run.snapshot.stalls, len(run.effects(Dial))) == (State.CONNECTED, 13, dials)


def test_a_silence_is_counted_over_links_that_flap() -> None:
    run = run_to(State.CONNECTED)
    for _ in range(2):
        run.advance(50)
        run.take(Lost(cause=CAUSE))
        # Time without a link is no silence: nothing could be heard.
        run.advance(15)
        run.take(Opened())
        run.take(Synced())
    run.advance(19.9)
    assert run.snapshot.stalls == 0
    run.advance(0.1)
    assert run.snapshot.stalls == 1


def test_a_silence_that_reaches_the_limit_gives_up_after_one_last_look_at_the_state() -> None:
    run = run_to(State.CONNECTED, Policy(stall_limit=3600.0))
    for seconds in (120, 240, 600, 600, 600, 600):
        run.advance(seconds)
        silent(run)
        if state(run) is State.CONNECTING:
            run.take(Opened())
            run.take(Synced())
    assert (state(run), run.snapshot.stalls) == (State.CONNECTED, 6)
    run.advance(3600 - 2760)
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "stalled")
    assert run.effects(FetchState)[-1].purpose is Purpose.STATUS
    run.take(Connect())
    assert (run.snapshot.stalls, run.snapshot.silence) == (0, 0.0)


def test_a_silence_may_last_for_ever_without_a_limit() -> None:
    run = run_to(State.CONNECTED)
    run.advance(30 * 24 * 3600)
    assert state(run) is State.CONNECTED


# --- a paused job, other sources, reopened links -----------------------------------------------------------------


def pause(run: DryRun) -> None:
    run.world(last_sign=run.now)
    run.take(JobPaused(generation=run.snapshot.generation))


def test_a_pause_is_looked_into_after_15_and_then_every_60_seconds_and_is_no_silence() -> None:
    run = run_to(State.CONNECTED, Policy(stall_limit=3600.0))
    run.advance(130)
    pause(run)
    assert (run.snapshot.stalls, run.snapshot.paused) == (0, True)
    begun = len(run.effects(FetchState))
    run.advance(15 + 10 * 60)
    assert [effect.purpose for effect in run.effects(FetchState)[begun:]] == [Purpose.STATUS] * 11
    run.advance(7 * 24 * 3600)
    assert (state(run), run.snapshot.stalls) == (State.CONNECTED, 0)


def test_another_sign_of_the_job_ends_the_pause_and_begins_a_new_silence() -> None:
    run = run_to(State.CONNECTED)
    pause(run)
    run.advance(3600)
    run.world(last_sign=run.now)
    run.take(JobSpoke(generation=run.snapshot.generation))
    assert not run.snapshot.paused
    run.advance(119.9)
    assert run.snapshot.stalls == 0
    run.advance(0.1)
    assert run.snapshot.stalls == 1


def test_links_that_end_during_a_pause_are_not_charged_for_however_long() -> None:
    run = run_to(State.CONNECTED)
    pause(run)
    for _ in range(200):
        run.advance(20)
        run.take(Lost(cause=CAUSE, generation=run.snapshot.generation))
        assert (state(run), armed(run)) == (State.RECONNECTING, {Timer.BACKOFF})
        before = run.now
        run.expire()
        assert 15 <= run.now - before <= 60
        run.take(Opened(by_state=False))
        run.take(Synced())
    assert (state(run), run.snapshot.retries, run.snapshot.outage_seconds(run.now)) == (State.CONNECTED, 0, 0)


def test_attempts_that_fail_during_a_pause_are_charged() -> None:
    run = run_to(State.CONNECTED)
    pause(run)
    run.take(Lost(cause=CAUSE))
    run.expire()
    spend_the_budget(run)
    assert run.snapshot.retries == run.policy.backoff.attempts


def test_a_pause_without_a_path_is_a_hold() -> None:
    run = run_to(State.CONNECTED)
    pause(run)
    run.world(path_up=False)
    run.take(Lost(cause=CAUSE))
    before = run.now
    run.expire()
    assert (run.now - before, state(run)) == (60, State.CONNECTING)


def test_a_source_that_is_refused_gives_way_to_the_next_and_never_comes_back() -> None:
    run = DryRun()
    run.world(sources=3)
    run.take(Connect())
    for source in (1, 2):
        run.take(SourceRefused(cause=CAUSE, generation=run.snapshot.generation))
        assert (state(run), run.snapshot.source, run.snapshot.retries) == (State.CONNECTING, source, 0)
        assert run.effects(Dial)[-1].not_before == run.now, "it waits for nothing"
    run.take(Opened(by_state=False))
    run.take(Synced())
    run.take(Lost(cause=CAUSE))
    run.advance(60)
    run.take(Close())
    run.take(Connect())
    assert run.effects(Dial)[-1].source == 2


def test_connect_begins_with_the_first_source_if_none_has_worked_yet() -> None:
    run = DryRun()
    run.world(sources=2)
    run.take(Connect())
    for _ in range(2):
        run.take(SourceRefused(cause=CAUSE, generation=run.snapshot.generation))
    run.take(Connect())
    assert (state(run), run.effects(Dial)[-1].source) == (State.CONNECTING, 0)


def test_where_no_source_is_left_a_known_server_is_tried_again_from_the_first() -> None:
    run = DryRun()
    run.world(sources=2)
    run.take(Connect())
    for _ in range(2):
        run.take(SourceRefused(cause=CAUSE, generation=run.snapshot.generation))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "protocol"), "an unknown one is not"
    run = run_to(State.CONNECTED)
    run.world(sources=2)
    for _ in range(2):
        run.take(SourceRefused(cause=CAUSE, generation=run.snapshot.generation))
    assert (state(run), run.snapshot.source, run.snapshot.retries) == (State.RECONNECTING, 0, 1)


def test_three_links_an_outage_are_reopened_without_charge() -> None:
    run = run_to(State.CONNECTED)
    for _ in range(3):
        run.take(Reopen(cause=CAUSE, generation=run.snapshot.generation))
        assert (state(run), run.snapshot.retries) == (State.CONNECTING, 0)
        run.take(Opened(by_state=False))
        run.take(Synced())
    run.take(Reopen(cause=CAUSE, generation=run.snapshot.generation))
    assert (state(run), run.snapshot.retries) == (State.RECONNECTING, 1)


def test_a_link_that_is_in_step_by_its_facts_asks_for_the_state_if_none_come() -> None:
    run = run_to(State.CONNECTING)
    run.take(Opened(by_state=False))
    (fetch,) = run.effects(FetchState)
    assert (state(run), fetch.purpose, fetch.delay) == (State.SYNCING, Purpose.SYNC, run.policy.fetch_deadline)
    run.take(Synced())
    assert (state(run), len(run.effects(CancelFetch))) == (State.CONNECTED, 1)


def test_no_state_is_fetched_where_there_is_no_state_call() -> None:
    run = run_to(State.CONNECTING)
    run.world(state_call=False)
    run.take(Opened(by_state=False))
    run.take(Synced())
    pause(run)
    run.advance(200)
    run.take(Lost(cause=CAUSE))
    run.expire()
    spend_the_budget(run)
    # Only what waits for a link's first fact, and was cancelled when that came.
    assert [effect.purpose for effect in run.effects(FetchState)] == [Purpose.SYNC]


# --- what is known of the other side -----------------------------------------------------------------------------


def test_a_refusal_is_final_at_first_contact_and_a_lost_attempt_later() -> None:
    certificate = Refused(reason="protocol", cause=Cause(code="certificate", text="expired", certificate=True))
    stranger = run_to(State.CONNECTING)
    stranger.take(certificate)
    assert (state(stranger), stranger.snapshot.reason) == (State.EXHAUSTED, "protocol")
    known = run_to(State.CONNECTED)
    known.take(Lost(cause=CAUSE))
    known.advance(60)
    known.take(certificate)
    assert (state(known), known.snapshot.retries) == (State.RECONNECTING, 2)
    final = run_to(State.CONNECTED)
    final.take(Refused(reason="protocol", cause=CAUSE, final=True))
    assert (state(final), final.snapshot.reason) == (State.EXHAUSTED, "protocol")


def test_a_token_that_this_server_accepted_is_revoked_and_a_new_one_may_be_wrong() -> None:
    run = run_to(State.CONNECTED)
    run.world(renewable=False, token_id="t1")
    run.take(TokenRejected(cause=CAUSE))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "revoked")
    with pytest.raises(ForbiddenRequest, match="refused this very token"):
        run.take(Connect())
    run.world(token_id="t2")
    run.take(Connect(new_token=True))
    run.take(TokenRejected(cause=CAUSE))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, "auth")


@pytest.mark.parametrize(("heard", "reason"), [(True, "revoked"), (False, "auth")])
def test_a_server_that_was_heard_before_it_was_in_step_took_the_token(heard: bool, reason: str) -> None:
    """A slow state call keeps it syncing, while the job's messages arrive."""
    run = run_to(State.SYNCING)
    if heard:
        run.world(last_sign=run.now)
    run.advance(1)
    run.take(Lost(cause=CAUSE))
    run.advance(60)
    run.world(renewable=False)
    run.take(TokenRejected(cause=CAUSE))
    assert (state(run), run.snapshot.reason) == (State.EXHAUSTED, reason)


def test_an_accepted_cancel_is_remembered_until_the_server_does_not_know_the_job() -> None:
    run = run_to(State.CONNECTED)
    run.take(CancelAccepted())
    run.take(Lost(cause=Cause(code="close 1001", text="going away")))
    assert state(run) is State.RECONNECTING
    run.advance(60)
    run.take(TokenRejected(cause=Cause(code="http 401", text="unknown token")))
    assert (state(run), run.effects(Dial)[-1].fresh_token) == (State.CONNECTING, True)
    run.take(Refused(reason="auth", cause=CAUSE))
    assert (state(run), run.snapshot.outcome) == (State.IDLE, "canceled")
    assert run.effects(Deliver) == [Deliver(outcome="canceled")]


def test_grace_runs_from_connecting_to_reconnecting_and_a_link_that_opens_begins_it_anew() -> None:
    run = run_to(State.CONNECTING)
    run.take(Background())
    run.world(foreground=False)
    run.advance(20)
    run.take(Opened())
    run.advance(29.9)
    assert state(run) is State.SYNCING
    run.take(Synced())
    run.advance(0.1)
    assert state(run) is State.BACKGROUNDED
    assert run.effects(CloseSocket) == [CloseSocket(code=1001, wait=0.0)]


def test_no_grace_on_phones() -> None:
    run = run_to(State.CONNECTED, Policy(grace=0.0))
    run.take(Background())
    run.advance(0)
    assert state(run) is State.BACKGROUNDED


def test_three_refetches_then_as_lost() -> None:
    run = run_to(State.SYNCING)
    for _ in range(3):
        run.take(GapFound(cause=CAUSE))
    assert [fetch.delay for fetch in run.effects(FetchState)] == [0.0, 0.5, 1.0, 2.0]
    run.take(GapFound(cause=CAUSE))
    assert (state(run), run.snapshot.retries) == (State.RECONNECTING, 1)
    run.advance(60)
    run.take(Opened())
    run.take(GapFound(cause=CAUSE))
    assert state(run) is State.RECONNECTING


# --- farewells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "code", "wait"),
    [
        (Lost(cause=CAUSE), 1001, 0.0),
        (Refused(reason="gone", cause=CAUSE), 1001, 0.0),
        (TokenRejected(cause=CAUSE), 1001, 0.0),
        (Close(), 1001, 2.0),
        (Cancel(), 1001, 0.5),
        (JobEnded(outcome="complete"), 1000, 2.0),
    ],
    ids=str,
)
def test_only_a_known_end_is_answered_with_1000(event: AnyEvent, code: int, wait: float) -> None:
    run = run_to(State.CONNECTED)
    run.take(event)
    assert run.effects(CloseSocket) == [CloseSocket(code=code, wait=wait)]


def test_cancel_is_final_and_gives_the_same_answer() -> None:
    for at in State:
        run = run_to(at)
        run.take(Cancel())
        assert state(run) is State.CANCELLED
        assert run.take(Cancel()).verdict is Verdict.KEPT
        for request in (Connect(), Retry()):
            with pytest.raises(Cancelled):
                run.take(request)
        assert run.take(JobEnded(outcome="complete")).verdict is Verdict.IGNORED
        assert armed(run) == set()


def test_a_closed_connection_begins_anew() -> None:
    run = run_to(State.RECONNECTING)
    run.take(Close())
    assert run.snapshot == replace(
        Snapshot(), generation=2, fetch=run.snapshot.fetch, tickets=run.snapshot.tickets, dials=(0.0,)
    )
    run.advance(10)
    run.take(Connect())
    assert state(run) is State.CONNECTING


def test_backoff_that_elapses_in_the_background_leads_there() -> None:
    run = run_to(State.RECONNECTING)
    run.world(foreground=False)
    run.take(BackoffElapsed(ticket=run.snapshot.ticket(Timer.BACKOFF) or 0))
    assert state(run) is State.BACKGROUNDED
