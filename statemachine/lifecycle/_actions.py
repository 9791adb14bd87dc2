"""The named actions of the cells. Each one changes the draft of the next snapshot and requests effects."""

from __future__ import annotations

from .._cells import action
from ._draft import Draft
from ._effects import (
    Deliver,
    Dial,
    Greet,
    Probe,
    Purpose,
    ReleaseBuffer,
    RenewToken,
    ReportGivingUp,
    SkipState,
    StopDelivery,
)
from ._events import (
    Background,
    Cancel,
    Cause,
    Connect,
    GapFound,
    JobEnded,
    Lost,
    PathLost,
    Reason,
    Refused,
    Reopen,
    SourceRefused,
    Timer,
    TokenRejected,
)
from ._guards import brought_news, next_revival, path_down, revivable
from ._policy import Delay, advised, exactly

# --- the budget --------------------------------------------------------------------------------------------------


@action()
def forgive(draft: Draft) -> None:
    """Reset what counts as "first" and the counts of three."""
    draft.set(free_restarts=0, rejections=0, fetch_rejections=0, refetches=0, violations=0)


@action()
def fresh_budget(draft: Draft) -> None:
    """Start a new outage budget and forget why the last one ended."""
    forgive.run(draft)
    draft.set(retries=0, outage_spent=0.0, outage_since=None, cause=None, reason=None, refused_token=None)


@action()
def fresh_start(draft: Draft) -> None:
    """Start again for the user: new budget, no silence; the server has not yet accepted a new token."""
    fresh_budget.run(draft)
    forget_silence.run(draft)
    _forget_refusals(draft)
    if isinstance(draft.event, Connect) and draft.event.new_token:
        draft.set(token_accepted=False)


@action()
def settle(draft: Draft) -> None:
    """End the outage, because the link is stable, and reset everything counted in it."""
    fresh_budget.run(draft)


@action()
def use_free_restart(draft: Draft) -> None:
    """Count a restart that does not use up the budget."""
    _note(draft)
    draft.set(free_restarts=draft.after.free_restarts + 1)


# --- attempts ----------------------------------------------------------------------------------------------------


@action()
def dial(draft: Draft) -> None:
    """Start an attempt, spaced from the earlier ones; at once with a fresh token or from the next source."""
    rejected = isinstance(draft.event, TokenRejected)
    now, policy = draft.facts.now, draft.policy
    dials = tuple(opened for opened in draft.after.dials if opened > now - policy.dial_window)
    not_before = now
    if dials and not isinstance(draft.event, TokenRejected | SourceRefused):
        not_before = max(not_before, dials[-1] + policy.dial_spacing)
    if len(dials) >= policy.dials_per_window:
        not_before = max(not_before, dials[-policy.dials_per_window] + policy.dial_window)
    if draft.after.retries:
        draft.start_clock()
    draft.set(
        generation=draft.after.generation + 1,
        dials=(*dials, not_before)[-policy.dials_per_window :],
        trial=not draft.facts.path_up,
        advised_until=None,
    )
    draft.emit(
        Dial(generation=draft.after.generation, not_before=not_before, fresh_token=rejected, source=draft.after.source)
    )


@action()
def count_rejection(draft: Draft) -> None:
    """Count the rejection of the token."""
    _note(draft)
    draft.set(rejections=draft.after.rejections + 1)


@action()
def use_next_source(draft: Draft) -> None:
    """Follow the job in the next way from now on, because this one cannot be used."""
    _note(draft)
    draft.set(source=draft.after.source + 1)


@action()
def use_first_source(draft: Draft) -> None:
    """Begin again with the preferred source, because each one was refused."""
    draft.set(source=0)


@action()
def revive(draft: Draft) -> None:
    """Start again after giving up, with a new budget, and note the time."""
    now, policy = draft.facts.now, draft.policy
    revivals = tuple(at for at in draft.after.revivals if at > now - policy.revival_window)
    draft.set(revivals=(*revivals, now))
    fresh_budget.run(draft)
    _forget_refusals(draft)


def _forget_refusals(draft: Draft) -> None:
    """Begin with the preferred source again, if none has worked yet: the refusals may come from another network."""
    if not draft.after.peer_known:
        draft.set(source=0)


@action(arms=(Timer.REVIVAL,))
def await_revival(draft: Draft) -> None:
    """If a revival can help, set a timer for the next one that is allowed."""
    if revivable(draft) and draft.after.ticket(Timer.REVIVAL) is None:
        draft.arm(Timer.REVIVAL, exactly(max(0.0, next_revival(draft) - draft.facts.now)))


# --- waiting for the next attempt --------------------------------------------------------------------------------


@action(arms=(Timer.BACKOFF, Timer.OUTAGE), disarms=(Timer.OUTAGE,))
def back_off(draft: Draft) -> None:
    """Count the failure, unless it was a trial; wait for the next attempt and meanwhile fetch the job's state.

    A link that ended in order after it had brought news ends the outage before, as a stable one does.

    If the server asked its clients to spread out, the state is not fetched: all clients would ask at once.
    """
    if brought_news(draft):
        fresh_budget.run(draft)
    cause = _note(draft)
    n = draft.after.retries
    if not draft.after.trial:
        draft.set(retries=n + 1)
    draft.set(trial=False)
    draft.start_clock()
    if path_down(draft):
        hold.run(draft)
        return
    policy = draft.policy
    delay = policy.backoff.delay(n, shared=cause.shared, advice=cause.advice, limit=policy.advice_limit)
    # When many clients are dropped together, those that draw a delay shorter than the spacing would all dial again at
    # the same moment, when the spacing ends. So such a delay starts after the spacing and keeps its random width.
    spaced = draft.after.dials[-1] + policy.dial_spacing - draft.facts.now if draft.after.dials else 0.0
    _wait(draft, delay.moved_behind(spaced, policy.dial_spacing))
    if cause.advice is None or cause.advice.spread is None:
        _fetch_status(draft)


@action(arms=(Timer.BACKOFF,), disarms=(Timer.OUTAGE,))
def wait_out_pause(draft: Draft) -> None:
    """Wait for the next attempt outside the budget, because a paused job has nothing to send."""
    _note(draft)
    draft.set(trial=False)
    draft.stop_clock()
    draft.disarm(Timer.OUTAGE)
    if path_down(draft):
        hold.run(draft)
    else:
        draft.arm(Timer.BACKOFF, Delay(*draft.policy.pause_looks))
    _fetch_status(draft)


def _fetch_status(draft: Draft) -> None:
    if draft.facts.state_call:
        draft.fetch(Purpose.STATUS)


@action()
def note_loss(draft: Draft) -> None:
    """Keep the cause; in the background a failure does not use up the budget."""
    _note(draft)
    draft.set(trial=False)


@action(arms=(Timer.BACKOFF,), disarms=(Timer.OUTAGE,))
def hold(draft: Draft) -> None:
    """Delay the next attempt while the path is down; the budget is not used and the outage clock stops."""
    now, until = draft.facts.now, draft.after.hold_until
    draft.stop_clock()
    draft.disarm(Timer.OUTAGE)
    if until is None:
        # Set once for each wait: a path that comes and goes must not postpone the trial without end.
        until = now + draft.policy.hold
        draft.set(hold_until=until)
    draft.arm(Timer.BACKOFF, exactly(max(now, until, draft.after.advised_until or now) - now))


@action(arms=(Timer.BACKOFF, Timer.OUTAGE), disarms=(Timer.OUTAGE,))
def wait_briefly(draft: Draft) -> None:
    """Make the next attempt within the first window, because the path is back, regardless of earlier retries."""
    if path_down(draft):
        hold.run(draft)
    else:
        _wait(
            draft, _advised(draft, min(draft.policy.prompt, draft.policy.restored_window), draft.policy.restored_window)
        )


@action(arms=(Timer.BACKOFF, Timer.OUTAGE), disarms=(Timer.OUTAGE,))
def wait_a_moment(draft: Draft) -> None:
    """Make the next attempt almost at once, because the host is back; delay it if the path is down."""
    if path_down(draft):
        hold.run(draft)
    else:
        _wait(draft, _advised(draft, 0.0, draft.policy.prompt))


def _advised(draft: Draft, low: float, high: float) -> Delay:
    """A short delay after a report by the host; the server's own advice still applies if it is longer."""
    left = max(0.0, (draft.after.advised_until or 0.0) - draft.facts.now)
    return advised(Delay(low, high), left)


def _wait(draft: Draft, delay: Delay) -> None:
    draft.start_clock()
    draft.arm(Timer.BACKOFF, delay)
    spent = draft.after.outage_seconds(draft.facts.now)
    draft.arm(Timer.OUTAGE, exactly(max(0.0, draft.policy.backoff.seconds - spent)))


# --- syncing and staying in step ---------------------------------------------------------------------------------


@action(arms=(Timer.GRACE,))
def greet(draft: Draft) -> None:
    """Begin after the cursor and fetch the state; in the background, restart the grace timer."""
    _begin(draft)
    draft.fetch(Purpose.SYNC)


@action(arms=(Timer.GRACE,))
def await_facts(draft: Draft) -> None:
    """Begin after the cursor; the link says when it is in step. If it says nothing, fetch the state.

    In the background, restart the grace timer.
    """
    _begin(draft)
    draft.fetch(Purpose.SYNC, delay=draft.policy.fetch_deadline)


def _begin(draft: Draft) -> None:
    draft.emit(Greet())
    if not draft.facts.foreground:
        draft.arm(Timer.GRACE, exactly(draft.policy.grace))


@action()
def resync(draft: Draft) -> None:
    """Buffer live frames and fetch the state, on the same socket."""
    _note(draft)
    draft.fetch(Purpose.SYNC)


@action()
def refetch(draft: Draft) -> None:
    """Fetch the state again, with a longer delay each time."""
    _note(draft)
    n = draft.after.refetches
    draft.set(refetches=n + 1)
    draft.fetch(Purpose.SYNC, delay=draft.policy.refetch_waits[n])


@action()
def refetch_with_fresh_token(draft: Draft) -> None:
    """Fetch the state again with a fresh token and count the rejection."""
    _note(draft)
    draft.set(fetch_rejections=draft.after.fetch_rejections + 1)
    draft.fetch(Purpose.SYNC, fresh_token=True)


@action()
def skip_state(draft: Draft) -> None:
    """Finish the sync without a state: the state call may fail while the socket works."""
    draft.emit(SkipState())


@action(arms=(Timer.STABILITY, Timer.STALL, Timer.RENEWAL))
def join(draft: Draft) -> None:
    """Deliver the buffered frames; start the timers of stability and of the token, and watch for silence."""
    draft.emit(ReleaseBuffer())
    draft.set(trial=False, peer_known=True, token_accepted=True, in_step_since=draft.facts.now)
    draft.arm(Timer.STABILITY, exactly(draft.policy.stable_after))
    await_next_look.run(draft)
    await_renewal.run(draft)


# --- the token ---------------------------------------------------------------------------------------------------


@action()
def renew_token(draft: Draft) -> None:
    """Renew the token, unless a renewal is in progress."""
    if not draft.after.renewing:
        draft.set(renewing=True)
        draft.emit(RenewToken())


@action()
def note_renewal(draft: Draft) -> None:
    """Note that the renewal has ended."""
    draft.set(renewing=False)


@action(arms=(Timer.RENEWAL,))
def await_renewal(draft: Draft) -> None:
    """Set the timer for the next renewal, if the token expires and can be renewed."""
    if draft.facts.renew_in is not None:
        draft.arm(Timer.RENEWAL, exactly(draft.facts.renew_in))


# --- silence of the job ------------------------------------------------------------------------------------------


@action(arms=(Timer.STALL,))
def await_next_look(draft: Draft) -> None:
    """Set the timer for the next check of the silence."""
    if draft.after.paused:
        draft.arm(Timer.STALL, exactly(draft.policy.pause_looks[0]))
        return
    left = draft.policy.next_look(draft.after.stalls) - draft.after.silent_seconds(draft.facts)
    draft.arm(Timer.STALL, exactly(max(0.0, left)))


@action(arms=(Timer.STALL,))
def look_into_silence(draft: Draft) -> None:
    """Fetch the state and set the timer for the next check."""
    draft.set(stalls=draft.after.stalls + 1)
    draft.fetch(Purpose.STALL)
    await_next_look.run(draft)


@action()
def note_redial(draft: Draft) -> None:
    """Allow no further attempt because of this silence: the server may have lost track of this socket."""
    draft.set(silence_redialled=True, cause=_silence(draft))


@action()
def forget_silence(draft: Draft) -> None:
    """Reset the silence and the pause, because the job gave a sign or the user starts again."""
    draft.set(stalls=0, silence=0.0, silence_redialled=False, paused=False)


@action()
def note_pause(draft: Draft) -> None:
    """Reset the silence: the job waits for a person."""
    draft.set(stalls=0, silence=0.0, silence_redialled=False, paused=True)


@action(arms=(Timer.STALL,))
def await_end_of_pause(draft: Draft) -> None:
    """Set the timer for the first look into the pause."""
    draft.arm(Timer.STALL, exactly(draft.policy.pause_looks[0]))


@action(arms=(Timer.STALL,))
def look_into_pause(draft: Draft) -> None:
    """Fetch the state, and look again later, because no message says when the pause ends."""
    _fetch_status(draft)
    draft.arm(Timer.STALL, exactly(draft.policy.pause_looks[1]))


def _silence(draft: Draft) -> Cause:
    seconds = draft.before.silent_seconds(draft.facts)
    return Cause(code="stalled", text=f"the job gave no sign for {seconds:.0f} s")


@action()
def probe(draft: Draft) -> None:
    """Ping now: after the host's report the link may be broken, but it is not closed yet."""
    draft.emit(Probe())


@action(arms=(Timer.GRACE,))
def begin_grace(draft: Draft) -> None:
    """Start the grace timer: the link may stay open for this long in the background."""
    asked = draft.event.grace if isinstance(draft.event, Background) else None
    draft.arm(Timer.GRACE, exactly(draft.policy.grace if asked is None else asked))


@action(disarms=(Timer.GRACE,))
def end_grace(draft: Draft) -> None:
    """Stop the grace timer, because the host is back in time."""
    draft.disarm(Timer.GRACE)


# --- endings -----------------------------------------------------------------------------------------------------


@action()
def deliver_end(draft: Draft) -> None:
    """Deliver the final update, once: only this action does so, and it leads to a state that accepts no further end."""
    event = draft.event
    if isinstance(event, JobEnded):
        draft.set(outcome=event.outcome, reason=None)
        draft.emit(Deliver(outcome=event.outcome, update=event.update))


@action()
def stop_delivery(draft: Draft) -> None:
    """End every iteration: no further update follows, unless the user connects again."""
    draft.emit(StopDelivery(final=isinstance(draft.event, Cancel)))


@action()
def note_accepted_cancel(draft: Draft) -> None:
    """Note that the server agreed to stop the job: a later refusal may mean that the job was stopped."""
    draft.set(cancel_accepted=True)


@action()
def assume_cancelled(draft: Draft) -> None:
    """Deliver `canceled`, marked as assumed: the server agreed to stop the job and now does not know it."""
    _note(draft)
    draft.set(outcome="canceled", reason=None)
    draft.emit(Deliver(outcome="canceled"))


@action()
def give_up_on_budget(draft: Draft) -> None:
    """Give up because the outage has used up its retries or its seconds."""
    _give_up(draft, "budget")


@action()
def give_up_on_auth(draft: Draft) -> None:
    """Give up because a second token was rejected, or there is no second one."""
    _give_up(draft, "auth")


@action()
def give_up_on_protocol(draft: Draft) -> None:
    """Give up because the peer keeps breaking the protocol."""
    _give_up(draft, "protocol")


@action()
def give_up_as_refused(draft: Draft) -> None:
    """Give up because of the server's refusal or a missing token."""
    _give_up(draft, draft.event.reason if isinstance(draft.event, Refused) else "protocol")


@action()
def give_up_as_stalled(draft: Draft) -> None:
    """Give up because the job was silent for as long as the policy allows."""
    draft.set(cause=_silence(draft))
    _give_up(draft, "stalled")


def _give_up(draft: Draft, reason: Reason) -> None:
    _note(draft)
    token = draft.facts.token_id if reason == "auth" else None
    if reason == "auth" and draft.before.token_accepted:
        reason = "revoked"
    draft.set(reason=reason, refused_token=token, trial=False)


@action()
def report_giving_up(draft: Draft) -> None:
    """Fetch the job's state once more, and report that the engine has given up."""
    _fetch_status(draft)
    draft.emit(ReportGivingUp())


def _note(draft: Draft) -> Cause:
    """Keep the event's cause and the server's advice, and count a violation of the protocol."""
    event = draft.event
    if isinstance(event, PathLost):
        cause = Cause(code="path", text="the host lost its network path")
    elif isinstance(event, Lost | GapFound | Reopen | SourceRefused | TokenRejected | Refused):
        cause = event.cause
    else:
        return draft.after.cause or Cause(code="unknown", text="no cause is known")
    until = None if cause.advice is None else draft.facts.now + cause.advice.least(draft.policy.advice_limit)
    broken = cause.violation and isinstance(event, Lost | GapFound)
    draft.set(cause=cause, violations=draft.after.violations + broken, advised_until=until)
    return cause
