"""What can happen to a connection, for the explorer, and what must hold after every step.

The host, the server and the user act at any time and in any order. A timer expires within the bounds of its delay. Two
situations count as one if every guard answers the same in both; they may differ in how much time is left, so not every
order of expiries is visited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from towline._exceptions import ForbiddenRequest
from towline.statemachine import (
    EXPIRIES,
    LIFECYCLE,
    Advice,
    AnyEffect,
    AnyEvent,
    Backoff,
    By,
    Cause,
    Delay,
    Entry,
    Facts,
    History,
    Kind,
    Move,
    Pace,
    Policy,
    Snapshot,
    State,
    Step,
    Table,
    Timer,
    Trigger,
    Verdict,
    step,
)
from towline.statemachine._explore import StepInvariant
from towline.statemachine.lifecycle import _effects as do
from towline.statemachine.lifecycle import _events as on
from towline.statemachine.lifecycle._draft import OWNS, Draft, Resource
from towline.statemachine.lifecycle._guards import _TOKEN_UNKNOWN, next_revival

_BROKEN: Final = Cause(code="broken", text="the link broke")
_VIOLATION: Final = Cause(code="violation", text="bytes that the protocol forbids", violation=True)
_RESTART: Final = Cause(
    code="close 1012", text="the server restarts", shared=True, advice=Advice(retry_in=5.0, spread=10.0)
)
_BUSY: Final = Cause(code="http 503", text="the server is busy", shared=True, advice=Advice(retry_after=30.0))
_UNKNOWN: Final = Cause(code="http 401", text="the server does not know the token")
_FORBIDDEN: Final = Cause(code="http 403", text="the server refused")
_CERTIFICATE: Final = Cause(code="certificate", text="the certificate is not trusted", certificate=True)
#: The states that own an attempt or a socket.
_LINKED: Final = frozenset(state for state in State if OWNS[state] - {Resource.FETCH})
_OF_USER: Final = (on.Connect, on.Retry, on.Cancel, on.Close)
#: Each of these must do its work in every state.
_EVERYWHERE: Final = (on.Cancel, on.Close, on.JobEnded)
#: The ends of work that has a deadline.
_ENDS_OF_WORK: Final = (on.Opened, on.Synced, on.Lost)
#: Effects that give something back or stop it. `ResumeDelivery` also forgets that the engine had given up.
_GIVE_BACKS: Final = (
    *(do.AbandonDial, do.CancelFetch, do.CloseSocket, do.SaveCursor, do.Disarm, do.StopRenewal),
    *(do.ResumeDelivery, do.StopDelivery),
)


class Situation(NamedTuple):
    """A snapshot with its surroundings.

    `due`: the earliest and the latest expiry of each running timer. `links`: attempts and sockets that exist.
    `delivered`: how often the end was delivered.
    """

    snapshot: Snapshot
    facts: Facts
    due: dict[Timer, tuple[float, float]]
    links: int
    delivered: int
    policy: Policy


# Guards compare counts and times with these numbers only, so small ones bring up every case.
_SMALL: Final = Policy(
    backoff=Backoff(attempts=1, seconds=4.5),
    free_restarts=1,
    violations=2,
    refetch_waits=(0.5,),
    revivals_per_window=1,
    stall_after=(120.0, 240.0),
)
_USER: Final[tuple[AnyEvent, ...]] = (on.Connect(), on.Connect(new_token=True), on.Retry(), on.Cancel(), on.Close())
#: What a server or the network does in every world.
_USUAL: Final[tuple[AnyEvent, ...]] = (
    *(on.Opened(), on.Opened(by_state=False), on.Synced(), on.Lost(cause=_BROKEN), on.JobEnded(outcome="complete")),
)
_TOKENS: Final[tuple[AnyEvent, ...]] = (
    on.TokenRejected(cause=_UNKNOWN),
    on.TokenRejected(cause=_UNKNOWN, by_fetch=True),
    on.Refused(reason="auth", cause=_FORBIDDEN),
    on.CancelAccepted(),
)


def _worlds() -> Iterator[ConnectionWorld]:
    here = Facts(now=0.0)
    stream = (
        *(on.GapFound(cause=_BROKEN), on.GapFound(cause=_VIOLATION), on.Lost(cause=_VIOLATION)),
        *(on.Reopen(cause=_BROKEN), on.Lost(cause=_RESTART), on.Lost(cause=_BUSY)),
    )
    refusals = (
        on.Refused(reason="protocol", cause=_CERTIFICATE),
        on.Refused(reason="protocol", cause=_BROKEN, final=True),
        on.Refused(reason="gone", cause=_FORBIDDEN),
        on.Refused(reason="gone", cause=_FORBIDDEN, by_fetch=True),
        on.CancelAccepted(),
    )
    silence = (on.StillSilent(), on.JobPaused(), on.JobSpoke())
    fixed = replace(here, renewable=False, token_id="fixed", state_required=True)
    yield ConnectionWorld("streams that break", stream, here, _SMALL)
    yield ConnectionWorld(
        "sources", (on.SourceRefused(cause=_BROKEN),), replace(here, sources=2, state_call=False), _SMALL
    )
    yield ConnectionWorld("a token that can be renewed", _TOKENS, here, replace(_SMALL, free_restarts=0))
    yield ConnectionWorld("a fixed token", _TOKENS, fixed, _SMALL)
    yield ConnectionWorld("a token that expires", (on.TokenRenewed(),), replace(here, renew_in=60.0), _SMALL)
    yield ConnectionWorld("refusals", refusals, here, _SMALL)
    yield ConnectionWorld("silence", silence, here, replace(_SMALL, stall_limit=500.0))


class ConnectionWorld:
    """What can happen to a connection under a policy, with these events of the server besides the usual ones."""

    def __init__(
        self,
        name: str,
        events: tuple[AnyEvent, ...],
        facts: Facts,
        policy: Policy,
        step: Callable[[Snapshot, AnyEvent, Facts, Policy], Step] = step,
    ) -> None:
        self.table: Table[Any, Any, Any, Any] = LIFECYCLE
        self.name = name
        self.invariants: Sequence[StepInvariant[Situation]] = INVARIANTS
        self._facts = facts
        self._policy = policy
        self._step = step
        self._has_silence = any(isinstance(event, on.StillSilent) for event in events)
        # An event is left out where its cell always ignores it, unless an invariant asks for it everywhere.
        self._events = {state: [one for one in _USUAL + events + _USER if _matters(one, state)] for state in State}

    def state(self, situation: Situation) -> State:
        """The snapshot's state."""
        return situation.snapshot.state

    def start(self) -> Situation:
        """A connection that was not used yet."""
        return Situation(Snapshot(), self._facts, {}, 0, 0, self._policy)

    def key(self, situation: Situation) -> Hashable:
        """The situation without what no guard reads, with times and counts cut to what guards compare them with."""
        at, facts, due, links, delivered, policy = situation
        if at.state is State.CANCELLED or at.outcome is not None:
            return at.state, at.outcome is not None, links, delivered
        revivals = at.state is State.EXHAUSTED and next_revival(Draft(at, _USER[0], facts, policy)) > facts.now
        common: tuple[Hashable, ...] = (
            *(at.state, links, delivered, facts.path_up, facts.foreground, len(at.revivals), revivals),
            *(at.peer_known, at.cancel_accepted, at.source, at.renewing),
        )
        if self._has_silence:
            common += (min(at.stalls, 2), at.silence_redialled, at.paused)
        if at.state is State.IDLE:
            return common
        cause, unknown = at.cause, at.cause is not None and at.cause.code in _TOKEN_UNKNOWN
        why = (
            at.rejections > 0,
            at.rejections > 0 and unknown,
            cause is not None and cause.certificate,
            at.reason == "budget",
        )
        if at.state is State.EXHAUSTED:
            refused = at.reason in ("auth", "revoked") and at.refused_token == facts.token_id
            return *common, *why, refused, Timer.REVIVAL in due
        spent = at.outage_seconds(facts.now)
        latest = min((high for _, high in due.values()), default=math.inf)
        key: tuple[Hashable, ...] = (
            *(*common, *why, at.retries, at.outage_since is not None, spent >= policy.backoff.seconds),
            *(at.free_restarts, at.fetch_rejections > 0, at.refetches, min(at.violations, policy.violations)),
            at.trial and at.state in _LINKED,
            # The order in which the timers expire, and how many of them may be next.
            tuple(sorted(due, key=lambda timer: (*due[timer], timer.value))),
            sum(max(low, facts.now) <= max(latest, facts.now) for low, _ in due.values()),
        )
        if not self._has_silence:
            return key
        # Whether the next look is due, and whether it will be when the timer expires.
        silence = at.silent_seconds(facts)
        left = policy.next_look(at.stalls) - silence - 0.01
        return *key, left <= 0, Timer.STALL in due and due[Timer.STALL][0] - facts.now < left

    def moves(self, situation: Situation) -> Iterator[Move[Situation]]:
        """Everything that can happen next."""
        at, facts, due, links, *_ = situation
        # Work that the connection owns ends by its own deadline; the rest of what a server says may never come.
        works = bool(OWNS[at.state])
        for event in self._events[at.state]:
            by = By.OUTSIDE
            if works and not isinstance(event, _OF_USER):
                by = By.OWN if links and isinstance(event, _ENDS_OF_WORK) else By.PEER
            now = facts.now
            if isinstance(event, on.Opened) and at.dials:
                now = max(now, at.dials[-1])
            yield from self._move(situation, event, by, replace(facts, now=now) if now != facts.now else facts)
            if isinstance(event, on.JobSpoke):
                yield from self._move(situation, event, by, replace(facts, last_sign=facts.now))
        for event, changes in self._reports(facts):
            yield from self._move(situation, event, By.OUTSIDE, replace(facts, **changes) if changes else facts)
        if at.generation:
            yield from self._move(situation, on.Lost(cause=_BROKEN, generation=at.generation - 1), By.OUTSIDE, facts)
        latest = min((high for _, high in due.values()), default=math.inf)
        for timer, (low, _) in due.items():
            if max(low, facts.now) <= max(latest, facts.now):
                expiry = EXPIRIES[timer](ticket=at.ticket(timer) or 0)
                yield from self._move(situation, expiry, By.OWN, replace(facts, now=max(low, facts.now)))
        yield from self._passing(situation, latest)

    def _reports(self, facts: Facts) -> Iterator[tuple[AnyEvent, dict[str, Any]]]:
        """What the host can report."""
        yield on.Woke(), {}
        if facts.path_up:
            yield on.PathLost(), {"path_up": False}
            yield on.PathChanged(), {}
        else:
            yield on.PathRestored(), {"path_up": True}
        yield on.Background(), {"foreground": False}
        if not facts.foreground:
            yield on.Foreground(), {"foreground": True}

    def _passing(self, situation: Situation, latest: float) -> Iterator[Move[Situation]]:
        """Time that passes without an event: until a boundary that a guard compares with, or with a sign of the job."""
        at, facts, policy = situation.snapshot, situation.facts, situation.policy
        times = []
        if at.outage_since is not None:
            times.append(facts.now + policy.backoff.seconds - at.outage_seconds(facts.now))
        if at.state is State.EXHAUSTED:
            times.append(next_revival(Draft(at, _USER[0], facts, policy)))
        for time in times:
            if facts.now < time <= latest:
                yield Move(None, situation._replace(facts=replace(facts, now=time)), pace=Pace.FREE)
        if (
            self._has_silence
            and at.state is State.CONNECTED
            and not (at.stalls or at.paused)
            and facts.now < latest - 1
        ):
            sign = replace(facts, now=facts.now + 1, last_sign=facts.now + 1)
            yield Move(None, situation._replace(facts=sign), by=By.PEER, pace=Pace.FREE)

    def _move(self, situation: Situation, event: AnyEvent, by: By, facts: Facts) -> Iterator[Move[Situation]]:
        before = situation.snapshot
        effects: tuple[AnyEffect, ...]
        verdict: Verdict | None
        try:
            after, effects, verdict = self._step(before, event, facts, situation.policy)
        except ForbiddenRequest:
            after, effects, verdict = before, (), None
        if after is before and not effects and facts is situation.facts and not isinstance(event, _EVERYWHERE):
            return
        due = {timer: situation.due[timer] for timer, _ in after.armed if timer in situation.due}
        links, delivered, dials = situation.links, situation.delivered, False
        for effect in effects:
            match effect:
                case do.Arm(timer=timer, delay=delay):
                    low, high = _range(delay)
                    due[timer] = (facts.now + low, facts.now + high)
                case do.Dial():
                    links, dials = links + 1, True
                case do.AbandonDial() | do.CloseSocket():
                    links -= 1
                case do.Deliver():
                    delivered += 1
        pace = Pace.WORK if dials and not after.trial else Pace.FREE
        # A trial while the path is down, and a reconnect while the job is paused, are free; each has its own long wait.
        waits_out_pause = before.paused and isinstance(event, on.Lost) and after.state is State.RECONNECTING
        if event.trigger is Trigger.LINK_STABLE or after.trial or waits_out_pause:
            pace = Pace.PROGRESS
        entry = Entry(event=event, facts=facts, source=before.state, target=after.state, verdict=verdict)
        yield Move(entry, Situation(after, facts, due, links, delivered, situation.policy), effects, by, pace)

    def rests(self, situation: Situation) -> bool:
        """Whether the connection waits for the user or the host, has ended, or has a stable link."""
        state = situation.snapshot.state
        stable = state is State.CONNECTED and Timer.STABILITY not in situation.due and Timer.STALL in situation.due
        return stable or (state not in _LINKED and state is not State.RECONNECTING)

    def trace(self, path: Sequence[tuple[Situation, Move[Situation]]]) -> bytes:
        """A path as a `History`."""
        entries = tuple(move.what for _, move in path if move.what is not None)
        return History(policy=self._policy, entries=entries).to_json()


def _matters(event: AnyEvent, state: State) -> bool:
    return isinstance(event, _EVERYWHERE) or LIFECYCLE.cell(event.trigger, state)[0].kind is not Kind.IGNORED


# --- what must hold after every step -----------------------------------------------------------------------------


def one_link(before: Situation, move: Move[Situation]) -> str | None:
    """There is one attempt or socket while the state owns one, and none otherwise: never two."""
    after = move.after
    if after.links == (after.snapshot.state in _LINKED):
        return None
    return f"{after.links} attempts and sockets in {after.snapshot.state.value}"


def one_end(before: Situation, move: Move[Situation]) -> str | None:
    """The end is delivered at most once, and not lost or changed once it is known."""
    was, now = before.snapshot, move.after.snapshot
    if move.after.delivered != (now.outcome is not None):
        return f"the end was delivered {move.after.delivered} times, the outcome is {now.outcome}"
    if was.outcome is not None and was.outcome != now.outcome:
        return f"the outcome {was.outcome} became {now.outcome}"
    if _event(move) is Trigger.JOB_ENDED and was.state not in (State.IDLE, State.CANCELLED) and now.outcome is None:
        return f"the end was lost in {was.state.value}"
    return None


def quiet_after_cancel(before: Situation, move: Move[Situation]) -> str | None:
    """Cancel only gives back and stops, delivery last; after it there are no effects at all."""
    if move.after.snapshot.state is not State.CANCELLED:
        return None
    allowed = _GIVE_BACKS if before.snapshot.state is not State.CANCELLED else ()
    if (wrong := next((one for one in move.effects if not isinstance(one, allowed)), None)) is not None:
        return f"{type(wrong).__name__} after cancel"
    return "delivery goes on after cancel" if allowed and move.effects[-1:] != (do.StopDelivery(final=True),) else None


def one_step_to_the_end(before: Situation, move: Move[Situation]) -> str | None:
    """Cancel and close lead to their states in one step from everywhere."""
    trigger, was, now = _event(move), before.snapshot, move.after.snapshot.state
    if trigger is Trigger.CANCEL:
        wanted = State.CANCELLED if was.outcome is None else was.state
    elif trigger is Trigger.CLOSE:
        wanted = State.CANCELLED if was.state is State.CANCELLED else State.IDLE
    else:
        return None
    return None if now is wanted else f"{trigger.value} in {was.state.value} leads to {now.value}"


def stale_changes_nothing(before: Situation, move: Move[Situation]) -> str | None:
    """An event of an older generation changes nothing."""
    if move.what is None or move.what.event.generation is None or move.after.snapshot == before.snapshot:
        return None
    return f"a stale {move.what.event.trigger.value} was handled"


def delays_within_policy(before: Situation, move: Move[Situation]) -> str | None:
    """Every delay is within the policy, and attempts are spaced."""
    if move.what is None:
        return None
    event, facts, policy = move.what.event, move.what.facts, before.policy
    dials = [at for at in before.snapshot.dials if at <= facts.now]
    spaced = dials[-1] + policy.dial_spacing if dials else 0.0
    if isinstance(event, on.TokenRejected | on.SourceRefused):
        spaced = 0.0
    for effect in move.effects:
        least, most, low, high = 0.0, math.inf, 0.0, 0.0
        if isinstance(effect, do.Arm):
            low, high = _range(effect.delay)
            least, most = _bounds(before, move, effect.timer)
        elif isinstance(effect, do.Dial):
            low = high = effect.not_before - facts.now
            least, most = max(0.0, spaced - facts.now), max(policy.dial_spacing, policy.dial_window)
        elif isinstance(effect, do.FetchState):
            low = high = effect.delay
            waits_for_facts = isinstance(event, on.Opened) and not event.by_state
            most = policy.fetch_deadline if waits_for_facts else max(policy.refetch_waits)
        elif isinstance(effect, do.CloseSocket):
            low = high = effect.wait
            most = max(policy.close_wait, policy.cancel_wait)
        if not least - 1e-6 <= low <= high <= most + 1e-6:
            return f"{effect} waits {low:g} to {high:g} s, not {least:g} to {most:g} s"
    return None


def _bounds(before: Situation, move: Move[Situation], timer: Timer) -> tuple[float, float]:
    """The least and the longest time of a timer, by the policy."""
    policy, facts, after = before.policy, move.what.facts, move.after.snapshot
    if timer is Timer.BACKOFF:
        backoff = policy.backoff
        longest = max(backoff.cap, policy.hold, policy.pause_looks[1]) + policy.dial_spacing
        if after.advised_until is not None and after.advised_until > facts.now:
            longest = 2 * policy.advice_limit
        failed = move.what.target is State.RECONNECTING and move.what.source is not State.RECONNECTING
        return (backoff.floor if failed else 0.0), longest
    if timer is Timer.RENEWAL:
        return facts.renew_in or 0.0, facts.renew_in or 0.0
    return {
        Timer.OUTAGE: (0.0, policy.backoff.seconds),
        Timer.STABILITY: (policy.stable_after, policy.stable_after),
        Timer.STALL: (0.0, max(*policy.stall_after, *policy.pause_looks)),
        Timer.GRACE: (policy.grace, policy.grace),
        Timer.REVIVAL: (0.0, max(policy.revival_spacing, policy.revival_window, policy.advice_limit)),
    }[timer]


def _range(delay: Delay) -> tuple[float, float]:
    """The least and the longest time that a delay can be."""
    return max(delay.low, delay.at_least), max(delay.high, delay.at_least) + delay.extra


def _event(move: Move[Situation]) -> Trigger | None:
    return None if move.what is None else move.what.event.trigger


INVARIANTS: Final = (
    one_link,
    one_end,
    quiet_after_cancel,
    one_step_to_the_end,
    stale_changes_nothing,
    delays_within_policy,
)

#: The worlds of a connection: what happens to all, with one subject each, because together they are too many.
WORLDS: Final = tuple(_worlds())
