"""Every event in every state, against a transcription of the lifecycle's table that was written by hand.

A cell reads: branches separated by `;`, each `[guard] target words`. The target is a state, `=` (handled, state kept),
`-` (ignored and counted) or `✗` with the error's name (forbidden, nothing changes). The words say what else must
happen, and each is checked by its effect. A branch means "and none of the earlier ones".
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from towline import _exceptions as errors
from towline.statemachine import (
    LIFECYCLE,
    AbandonDial,
    AnyEvent,
    Arm,
    Background,
    BackoffElapsed,
    BudgetSpent,
    Cancel,
    CancelAccepted,
    CancelFetch,
    Cause,
    Close,
    CloseSocket,
    Connect,
    Delay,
    Deliver,
    Dial,
    Disarm,
    Facts,
    FetchState,
    Foreground,
    GapFound,
    GraceElapsed,
    Greet,
    JobEnded,
    JobPaused,
    JobSpoke,
    Kind,
    LinkStable,
    Lost,
    Opened,
    PathChanged,
    PathLost,
    PathRestored,
    Policy,
    Probe,
    Purpose,
    Refused,
    ReleaseBuffer,
    RenewalDue,
    RenewToken,
    Reopen,
    ReportGivingUp,
    ResumeDelivery,
    Retry,
    RevivalDue,
    SaveCursor,
    SkipState,
    Snapshot,
    SourceRefused,
    Stalled,
    State,
    Step,
    StillSilent,
    StopDelivery,
    StopRenewal,
    Synced,
    Timer,
    TokenRejected,
    TokenRenewed,
    Trigger,
    Verdict,
    Woke,
    step,
)
from towline.statemachine.lifecycle._draft import Draft

STATES = ["idle", "connecting", "syncing", "connected", "reconnecting", "backgrounded", "exhausted", "cancelled"]

FAILED = (
    "[in background] backgrounded uncharged; [B] reconnecting charged backoff status; exhausted reason-budget status"
)
BROKEN = "[third violation] exhausted reason-protocol status; "
LOST = BROKEN + FAILED
LOST_IN_STEP = (
    BROKEN + "[in background] backgrounded uncharged; [paused] reconnecting uncharged pause-wait status; "
    "[B] reconnecting charged backoff status; exhausted reason-budget status"
)
REOPEN = "[fewer than 3 free restarts] connecting uncharged one-restart dial; " + FAILED
FIRST_SOURCE = (
    "[in background] backgrounded uncharged first-source; [B] reconnecting charged backoff status first-source; "
    "exhausted reason-budget status"
)
NEXT_SOURCE = "[another source] connecting uncharged next-source dial; "
NEXT_SOURCE_IN_STEP = NEXT_SOURCE + FIRST_SOURCE
NEXT_SOURCE += "[unknown peer] exhausted reason-protocol status; " + FIRST_SOURCE
ASSUMED = "[cancel confirmed] idle assumed; "
REFUSED = ASSUMED + "[for good] exhausted reason-given status; " + FAILED
REFUSED_SYNCING = ASSUMED + "[only the state call] = skip; [for good] exhausted reason-given status; " + FAILED
REFUSED_IN_STEP = REFUSED_SYNCING.replace("= skip", "= no-effects")
REJECTED = "[token unknown after the cancel] idle assumed; exhausted reason-auth status"
# As lost, for an event that is no violation and whose world has no path: the wait is a hold.
LOST_WITHOUT_PATH = (
    "[in background] backgrounded uncharged; [B] reconnecting charged hold; exhausted reason-budget status"
)
BEGIN_ANEW = "[auth and the same fixed token] ✗ ForbiddenRequest; connecting fresh-budget dial"
RESTART = "[fewer than 3 free restarts] connecting uncharged dial; ="
REVIVE = (
    "[revivable, in foreground, allowed now] connecting fresh-budget dial; "
    "[budget, not allowed now] = revival-armed; = nothing-armed"
)

# fmt: off
TABLE: dict[str, list[str]] = {
    "connect": [
        "[outcome] ✗ JobEnded; [in background] backgrounded; [path down] reconnecting hold; connecting dial",
        "= forgiven", "= forgiven", "= forgiven", "= forgiven", "= forgiven", BEGIN_ANEW, "✗ Cancelled"],
    "retry": [
        "✗ ForbiddenRequest", "= forgiven", "= forgiven", "= forgiven",
        "connecting dial forgiven", "connecting dial forgiven", BEGIN_ANEW, "✗ Cancelled"],
    "opened": ["-", "[by state] syncing greet fetch; syncing greet fetch-late", "-", "-", "-", "-", "-", "-"],
    "synced": ["-", "-", "connected release stability stall-120 renewal", "-", "-", "-", "-", "-"],
    "gap_found": [
        "-", "-", "[fewer than 3 refetches] = refetch-later; " + LOST, "syncing fetch same-socket", "-", "-", "-", "-"],
    "reopen": ["-", REOPEN, REOPEN, REOPEN, "-", "-", "-", "-"],
    "source_refused": ["-", NEXT_SOURCE, NEXT_SOURCE, NEXT_SOURCE_IN_STEP, "-", "-", "-", "-"],
    "lost": ["-", LOST, LOST, LOST_IN_STEP, "-", "-", "-", "-"],
    "token_rejected": [
        "-",
        "[first] connecting fresh-token no-wait; " + REJECTED,
        "[by the fetch, first] = fresh-token-fetch; [only the state call] = skip; "
        "[by the socket, first] connecting fresh-token no-wait; " + REJECTED,
        "[first] connecting fresh-token no-wait; " + REJECTED,
        "-", "-", "-", "-"],
    "refused": [
        "-", REFUSED, REFUSED_SYNCING, REFUSED_IN_STEP, ASSUMED + "exhausted reason-given status", "-",
        ASSUMED + "-", "-"],
    "job_ended": [
        "-", "idle outcome", "idle outcome", "idle outcome", "idle outcome", "idle outcome", "idle outcome", "-"],
    "stalled": [
        "-", "-", "-",
        "[paused] = status stall-60; [spoke meanwhile] = stall-119; [limit] exhausted reason-stalled status; "
        "= fetch-stall stall-240",
        "-", "-", "-", "-"],
    "still_silent": ["-", "-", "-", "[two looks] connecting uncharged dial; = no-effects", "-", "-", "-", "-"],
    "job_paused": [
        "-", "-", "= pause-noted", "= pause-noted stall-15", "= pause-noted", "-", "= pause-noted", "-"],
    "job_spoke": [
        "-", "-", "= silence-forgotten", "= silence-forgotten stall-120", "= silence-forgotten", "-",
        "= silence-forgotten", "-"],
    "cancel_accepted": [
        "= cancel-noted", "= cancel-noted", "= cancel-noted", "= cancel-noted", "= cancel-noted", "= cancel-noted",
        "= cancel-noted", "-"],
    "token_renewed": [
        "= renewed", "= renewed", "= renewed", "= renewed renewal", "= renewed", "= renewed", "= renewed", "-"],
    "path_lost": [
        "=", "[fewer than 3 free restarts] reconnecting uncharged hold; " + LOST_WITHOUT_PATH,
        "= probe", "= probe", "= hold", "=", "=", "-"],
    "path_restored": ["=", RESTART, "= probe", "= probe", "= one-second-window", "=", REVIVE, "-"],
    "path_changed": ["=", RESTART, "= probe", "= probe", "= one-second-window", "=", REVIVE, "-"],
    "woke": ["=", RESTART, "= probe", "= probe", "= within-250-ms", "=", REVIVE, "-"],
    "background": ["=", "= grace-on", "= grace-on", "= grace-on", "= grace-on", "=", "=", "-"],
    "foreground": [
        "=", "= grace-off", "= grace-off probe", "= grace-off probe", "= grace-off within-250-ms",
        "[path down] reconnecting hold; connecting dial", "[budget] connecting fresh-budget dial; =", "-"],
    "backoff_elapsed": ["-", "-", "-", "-", "[in background] backgrounded; connecting dial", "-", "-", "-"],
    "budget_spent": ["-", "-", "-", "-", "exhausted reason-budget status", "-", "-", "-"],
    "link_stable": ["-", "-", "-", "= fresh-budget forgiven", "-", "-", "-", "-"],
    "grace_elapsed": ["-", "backgrounded", "backgrounded", "backgrounded", "backgrounded", "-", "-", "-"],
    "revival_due": ["-", "-", "-", "-", "-", "-", "[in foreground, path up] connecting fresh-budget dial; =", "-"],
    "renewal_due": ["-", "-", "-", "= renews", "-", "-", "-", "-"],
    "cancel": [
        "[outcome] = same-answer; cancelled stops-all", "cancelled stops-all", "cancelled stops-all",
        "cancelled stops-all", "cancelled stops-all", "cancelled stops-all", "cancelled stops-all", "= same-answer"],
    "close": ["=", "idle stops", "idle stops", "idle stops", "idle stops", "idle stops", "idle stops", "-"],
}
# fmt: on

NOW = 10_000.0
CAUSE = Cause(code="close 1006", text="the server closed the WebSocket with code 1006")
UNKNOWN = Cause(code="http 401", text="the server refused the WebSocket with HTTP status 401")
VIOLATION = Cause(code="violation", text="the server broke the protocol", violation=True)
TICKET = 7

EVENTS: dict[str, AnyEvent] = {
    "connect": Connect(),
    "retry": Retry(),
    "opened": Opened(),
    "synced": Synced(),
    "gap_found": GapFound(cause=CAUSE),
    "reopen": Reopen(cause=CAUSE),
    "source_refused": SourceRefused(cause=CAUSE),
    "lost": Lost(cause=CAUSE),
    "token_rejected": TokenRejected(cause=CAUSE),
    "refused": Refused(reason="gone", cause=CAUSE),
    "job_ended": JobEnded(outcome="complete", update="the end"),
    "stalled": Stalled(ticket=TICKET),
    "still_silent": StillSilent(),
    "job_paused": JobPaused(),
    "job_spoke": JobSpoke(),
    "cancel_accepted": CancelAccepted(),
    "token_renewed": TokenRenewed(),
    "path_lost": PathLost(),
    "path_restored": PathRestored(),
    "path_changed": PathChanged(),
    "woke": Woke(),
    "background": Background(),
    "foreground": Foreground(),
    "backoff_elapsed": BackoffElapsed(ticket=TICKET),
    "budget_spent": BudgetSpent(ticket=TICKET),
    "link_stable": LinkStable(ticket=TICKET),
    "grace_elapsed": GraceElapsed(ticket=TICKET),
    "revival_due": RevivalDue(ticket=TICKET),
    "renewal_due": RenewalDue(ticket=TICKET),
    "cancel": Cancel(),
    "close": Close(),
}
EXPIRIES = {"stalled", "backoff_elapsed", "budget_spent", "link_stable", "grace_elapsed", "revival_due", "renewal_due"}


class Situation(NamedTuple):
    """Where a step begins: the snapshot, the event, the world, the numbers."""

    before: Snapshot
    event: AnyEvent
    facts: Facts
    policy: Policy = Policy()

    def snapshot(self, **changes: Any) -> Situation:
        return self._replace(before=replace(self.before, **changes))

    def world(self, **changes: Any) -> Situation:
        return self._replace(facts=replace(self.facts, **changes))

    def event_with(self, **changes: Any) -> Situation:
        return self._replace(event=replace(self.event, **changes))


Change = Callable[[Situation], Situation]


def given_up_by(reason: str) -> Change:
    return lambda s: s.snapshot(reason=reason, cause=CAUSE, revivals=())


# How to make each guard true, and every way to make it false. Each way is tried.
GUARDS: dict[str, tuple[list[Change], list[Change]]] = {
    "outcome": (
        [lambda s: s.snapshot(outcome="complete")],
        [lambda s: s],
    ),
    "in background": (
        [lambda s: s.world(foreground=False)],
        [lambda s: s.world(foreground=True)],
    ),
    "path down": (
        [lambda s: s.world(path_up=False)],
        [lambda s: s.world(path_up=True)],
    ),
    "auth and the same fixed token": (
        [lambda s: s.snapshot(reason="auth", refused_token="t1").world(token_id="t1")],
        [
            lambda s: s.snapshot(reason="auth", refused_token="t1").world(token_id="t2"),
            lambda s: s.snapshot(reason="auth", refused_token=None).world(token_id=None),
            lambda s: s.snapshot(reason="gone", refused_token=None).world(token_id="t1"),
        ],
    ),
    "third violation": (
        [lambda s: s.snapshot(violations=2).event_with(cause=VIOLATION)],
        [lambda s: s.snapshot(violations=1).event_with(cause=VIOLATION), lambda s: s.snapshot(violations=9)],
    ),
    "B": (
        [
            lambda s: s.snapshot(retries=19),
            lambda s: s.snapshot(outage_since=NOW - 599.9),
            lambda s: s.snapshot(retries=20, trial=True),
        ],
        [
            lambda s: s.snapshot(retries=20),
            lambda s: s.snapshot(outage_since=NOW - 600),
            lambda s: s.snapshot(outage_spent=400.0, outage_since=NOW - 200),
        ],
    ),
    "first": (
        [lambda s: s.snapshot(rejections=0).world(renewable=True)],
        [
            lambda s: s.snapshot(rejections=1).world(renewable=True),
            lambda s: s.snapshot(rejections=0).world(renewable=False),
        ],
    ),
    "token unknown after the cancel": (
        [
            lambda s: s.snapshot(cancel_accepted=True).event_with(cause=UNKNOWN),
            lambda s: s.snapshot(cancel_accepted=True).event_with(cause=replace(UNKNOWN, code="close 4401")),
        ],
        [
            lambda s: s.event_with(cause=UNKNOWN),
            lambda s: s.snapshot(cancel_accepted=True),
            lambda s: s.snapshot(cancel_accepted=True).event_with(cause=replace(UNKNOWN, code="http 403")),
        ],
    ),
    "cancel confirmed": (
        [
            lambda s: s.snapshot(cancel_accepted=True),
            lambda s: s.snapshot(cancel_accepted=True, rejections=1, cause=UNKNOWN).event_with(reason="auth"),
        ],
        [
            lambda s: s.snapshot(cancel_accepted=False),
            lambda s: s.snapshot(cancel_accepted=True).event_with(reason="protocol"),
            lambda s: s.snapshot(cancel_accepted=True, cause=UNKNOWN).event_with(reason="auth"),
            lambda s: s.snapshot(cancel_accepted=True, rejections=1).event_with(reason="auth"),
        ],
    ),
    "only the state call": (
        [lambda s: s.event_with(by_fetch=True).world(renewable=False)],
        [
            lambda s: s.event_with(by_fetch=False),
            lambda s: s.event_with(by_fetch=True).world(state_required=True, renewable=False),
        ],
    ),
    "for good": (
        [
            lambda s: s,
            lambda s: s.snapshot(peer_known=True).event_with(reason="protocol", final=True),
            lambda s: s.snapshot(peer_known=False).event_with(reason="protocol"),
        ],
        [lambda s: s.snapshot(peer_known=True).event_with(reason="protocol")],
    ),
    "by state": (
        [lambda s: s.event_with(by_state=True)],
        [lambda s: s.event_with(by_state=False)],
    ),
    "another source": (
        [lambda s: s.world(sources=2), lambda s: s.snapshot(source=1).world(sources=3)],
        [lambda s: s, lambda s: s.snapshot(source=1).world(sources=2)],
    ),
    "unknown peer": (
        [lambda s: s.snapshot(peer_known=False)],
        [lambda s: s.snapshot(peer_known=True)],
    ),
    "paused": (
        [lambda s: s.snapshot(paused=True)],
        [lambda s: s],
    ),
    "spoke meanwhile": (
        [lambda s: s.world(last_sign=NOW - 1)],
        [lambda s: s, lambda s: s.snapshot(silence=100.0, in_step_since=NOW - 20)],
    ),
    "limit": (
        [lambda s: s._replace(policy=Policy(stall_limit=120.0)), lambda s: s._replace(policy=Policy(stall_limit=5.0))],
        [lambda s: s, lambda s: s._replace(policy=Policy(stall_limit=3600.0))],
    ),
    "two looks": (
        [lambda s: s.snapshot(stalls=2), lambda s: s.snapshot(stalls=3)],
        [
            lambda s: s.snapshot(stalls=1),
            lambda s: s.snapshot(stalls=2, silence_redialled=True),
            lambda s: s.snapshot(stalls=2).world(foreground=False),
            lambda s: s.snapshot(stalls=2).world(path_up=False),
        ],
    ),
    "by the fetch, first": (
        [lambda s: s.event_with(by_fetch=True)],
        [lambda s: s.event_with(by_fetch=True).snapshot(fetch_rejections=1), lambda s: s.event_with(by_fetch=False)],
    ),
    "by the socket, first": (
        [lambda s: s.event_with(by_fetch=False).snapshot(rejections=0).world(renewable=True)],
        [lambda s: s.snapshot(rejections=1), lambda s: s.world(renewable=False)],
    ),
    "fewer than 3 refetches": (
        [lambda s: s.snapshot(refetches=0), lambda s: s.snapshot(refetches=2)],
        [lambda s: s.snapshot(refetches=3)],
    ),
    "fewer than 3 free restarts": (
        [lambda s: s.snapshot(free_restarts=2)],
        [lambda s: s.snapshot(free_restarts=3)],
    ),
    "budget": (
        [lambda s: s.snapshot(reason="budget")],
        [given_up_by(reason) for reason in ("auth", "revoked", "protocol", "gone", "stalled")],
    ),
    "revivable, in foreground, allowed now": (
        [
            lambda s: s.snapshot(reason="budget"),
            lambda s: s.snapshot(reason="budget", revivals=(NOW - 30,)),
            lambda s: s.snapshot(reason="budget", revivals=(NOW - 3600, *(NOW - 1000 + 100 * i for i in range(5)))),
        ],
        [
            lambda s: s.snapshot(reason="budget").world(foreground=False),
            lambda s: s.snapshot(reason="budget", revivals=(NOW - 29.9,)),
            lambda s: s.snapshot(reason="budget", revivals=tuple(NOW - 1000 + 100 * i for i in range(6))),
            lambda s: s.snapshot(reason="budget", advised_until=NOW + 1),
            lambda s: s.snapshot(reason="gone"),
        ],
    ),
    # Follows the one above, which was made false: what remains is whether it was the budget.
    "budget, not allowed now": (
        [lambda s: s.snapshot(reason="budget", revivals=(NOW - 29.9,))],
        [given_up_by(reason) for reason in ("auth", "protocol", "gone")],
    ),
    "in foreground, path up": (
        [lambda s: s.world(foreground=True, path_up=True)],
        [lambda s: s.world(foreground=False, path_up=True), lambda s: s.world(foreground=True, path_up=False)],
    ),
}
# Those two share their situation: the table has one branch, where this transcription tells what it does in two cases.
MERGED = {"budget, not allowed now"}

OWNS = {
    "idle": "",
    "connecting": "attempt",
    "syncing": "socket fetch",
    "connected": "socket fetch",
    "reconnecting": "fetch",
    "backgrounded": "",
    "exhausted": "fetch",
    "cancelled": "",
}
# A timer that each state would have running, so that its end is seen when the state is left.
RUNNING = {
    "connecting": [(Timer.GRACE, 1)],
    "syncing": [(Timer.GRACE, 1)],
    "connected": [(Timer.STABILITY, 1), (Timer.STALL, 2), (Timer.GRACE, 3), (Timer.RENEWAL, 4)],
    "reconnecting": [(Timer.BACKOFF, 1), (Timer.OUTAGE, 2), (Timer.GRACE, 3)],
    "exhausted": [],
}


def parse(cell: str) -> list[tuple[str | None, str, list[str]]]:
    """Split a cell into guard, target and words."""
    branches = []
    for text in cell.split(";"):
        guard = None
        if text.strip().startswith("["):
            guard, _, text = text.strip()[1:].partition("]")
        target, *words = text.split()
        branches.append((guard, target, words))
    return branches


def base(event: str, state: str) -> Situation:
    """An everyday situation: some of everything has been used, so that a reset is seen."""
    armed = list(RUNNING.get(state, []))
    if event in EXPIRIES:
        timer = type(EVENTS[event]).timer  # type: ignore[union-attr]
        armed = [pair for pair in armed if pair[0] is not timer] + [(timer, TICKET)]
    snapshot = Snapshot(
        state=State(state),
        generation=5,
        fetch=3,
        retries=4,
        free_restarts=1,
        refetches=1,
        violations=1,
        armed=tuple(armed),
        tickets=9,
        dials=(NOW - 60,),
        reason="budget" if state == "exhausted" else None,
        cause=CAUSE,
        renewing=event != "renewal_due",
    )
    if state == "connected":
        snapshot = replace(snapshot, in_step_since=NOW - 120)
    facts = Facts(now=NOW, path_up=event != "path_lost", foreground=event not in ("background", "grace_elapsed"))
    facts = replace(facts, renew_in=61.0)
    if event in ("job_spoke", "job_paused"):
        snapshot = replace(snapshot, stalls=2, silence=7.0, silence_redialled=True, paused=event == "job_spoke")
        facts = replace(facts, last_sign=NOW)
    return Situation(snapshot, EVENTS[event], facts)


class Case(NamedTuple):
    """One branch of one cell, in one situation."""

    name: str
    situation: Situation
    target: str
    words: list[str]


def cases() -> Iterator[Case]:
    for event, row in TABLE.items():
        for state, cell in zip(STATES, row, strict=True):
            branches = parse(cell)
            for place, (guard, target, words) in enumerate(branches):
                earlier = [other for other, _, _ in branches[:place] if other is not None]
                if guard in MERGED:
                    earlier.remove("revivable, in foreground, allowed now")
                ways = [GUARDS[other][1] for other in earlier] + ([GUARDS[guard][0]] if guard else [])
                for number, changes in enumerate(itertools.product(*ways)):
                    situation = base(event, state)
                    if event == "path_lost" and guard != "fewer than 3 free restarts" and len(branches) > 1:
                        situation = situation.world(path_up=False)
                    for change in changes:
                        situation = change(situation)
                    yield Case(f"{event}-{state}-{guard or 'else'}-{number}", situation, target, words)


CASES = list(cases())


def test_the_transcription_speaks_of_every_event_and_state() -> None:
    assert list(TABLE) == [trigger.value for trigger in Trigger] == list(EVENTS)
    assert [state.value for state in State] == STATES
    assert all(len(row) == len(STATES) for row in TABLE.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cell(case: Case) -> None:
    before, event, facts, policy = case.situation
    if case.target == "✗":
        with pytest.raises(getattr(errors, case.words[0])) as caught:
            step(before, event, facts, policy)
        assert type(caught.value).__name__ == case.words[0]
        assert caught.value.why
        assert (caught.value.request, caught.value.state) == (event.trigger.value, before.state.value)
        return

    taken = step(before, event, facts, policy)
    if case.target == "-":
        assert taken.verdict is Verdict.IGNORED
        assert taken.effects == ()
        expected = before
        if event.trigger.value in EXPIRIES:
            expected = replace(before, armed=tuple(pair for pair in before.armed if pair[1] != TICKET))
        assert taken.snapshot in (before, expected)
        *_, branch = LIFECYCLE.cell(event.trigger, before.state)
        assert branch.kind is Kind.IGNORED
        assert len(branch.reason.split()) > 3
        return

    moved = case.target != "="
    assert taken.verdict is (Verdict.MOVED if moved else Verdict.KEPT)
    target = case.target if moved else before.state.value
    assert taken.snapshot.state is State(target)
    for word in case.words:
        assert WORDS[word](case.situation, taken), word
    check_ownership(case.situation, taken, moved)


def check_ownership(situation: Situation, taken: Step, moved: bool) -> None:
    """What the old state owned was given back before anything new began; the new one owns what it must."""
    before, after = situation.before, taken.snapshot
    kinds = [type(effect) for effect in taken.effects]
    old, new = OWNS[before.state.value].split(), OWNS[after.state.value].split()
    if moved:
        assert (AbandonDial in kinds) is ("attempt" in old and after.state is not State.SYNCING)
        assert (CloseSocket in kinds) is ("socket" in old and "socket" not in new)
        assert (CancelFetch in kinds) is ("fetch" in old)
        assert (SaveCursor in kinds) is (CloseSocket in kinds or before.state is State.CONNECTED)
        assert kinds.count(Dial) == ("attempt" in new)
        begun = [kinds.index(kind) for kind in (Dial, FetchState, Greet, Arm, ReleaseBuffer, Deliver) if kind in kinds]
        ended = [kinds.index(kind) for kind in (AbandonDial, CloseSocket, CancelFetch, SaveCursor) if kind in kinds]
        assert not begun or not ended or max(ended) < min(begun)
        assert (ResumeDelivery in kinds) is (before.state in (State.IDLE, State.EXHAUSTED))
        assert (StopRenewal in kinds) is (before.renewing and after.state in (State.IDLE, State.CANCELLED))
        assert after.renewing is (before.renewing and StopRenewal not in kinds)
        assert (ReportGivingUp in kinds) is (after.state is State.EXHAUSTED)
        stale = taken.effects and CancelFetch in kinds
        assert not stale or after.fetch > before.fetch
    else:
        assert not {AbandonDial, CloseSocket, CancelFetch, Dial, SaveCursor} & set(kinds)
    for effect in taken.effects:
        if isinstance(effect, Dial):
            assert effect.generation == after.generation > before.generation
    if after.state in (State.IDLE, State.BACKGROUNDED, State.CANCELLED) and moved:
        assert after.generation > before.generation
    for timer, _ in after.armed:
        assert after.state in LIFECYCLE.timers[timer].runs_in
    for timer, ticket in before.armed:
        gone = after.ticket(timer) is None
        spent = situation.event.trigger.value in EXPIRIES and ticket == TICKET
        assert (Disarm(timer=timer) in taken.effects) is (gone and not spent)


def arms(taken: Step, timer: Timer, delay: Delay | None = None) -> bool:
    found = [effect.delay for effect in taken.effects if isinstance(effect, Arm) and effect.timer is timer]
    return len(found) == 1 and taken.snapshot.ticket(timer) is not None and delay in (None, found[0])


def fetches(taken: Step, purpose: Purpose, delay: float = 0.0, fresh_token: bool = False) -> bool:
    found = [effect for effect in taken.effects if isinstance(effect, FetchState)]
    wanted = FetchState(
        purpose=purpose,
        generation=taken.snapshot.generation,
        fetch=taken.snapshot.fetch,
        delay=delay,
        fresh_token=fresh_token,
    )
    return found == [wanted]


def has(taken: Step, effect: object) -> bool:
    return effect in taken.effects


def the_dial(taken: Step) -> Dial:
    (dial,) = (effect for effect in taken.effects if isinstance(effect, Dial))
    return dial


def reason_is(reason: str) -> Callable[[Situation, Step], bool]:
    return lambda situation, taken: taken.snapshot.reason == reason and taken.snapshot.cause is not None


def exactly(seconds: float) -> Delay:
    return Delay(seconds, seconds)


FORGIVEN = {"free_restarts": 0, "rejections": 0, "fetch_rejections": 0, "refetches": 0, "violations": 0}


WORDS: dict[str, Callable[[Situation, Step], bool]] = {
    "dial": lambda s, t: the_dial(t).not_before == NOW,
    "no-wait": lambda s, t: the_dial(t).not_before == NOW,
    "fresh-token": lambda s, t: the_dial(t).fresh_token and t.snapshot.rejections == 1,
    "fresh-token-fetch": lambda s, t: (
        fetches(t, Purpose.SYNC, fresh_token=True)
        and (t.snapshot.fetch_rejections, t.snapshot.rejections) == (1, s.before.rejections)
    ),
    "forgiven": lambda s, t: all(getattr(t.snapshot, name) == number for name, number in FORGIVEN.items()),
    "fresh-budget": lambda s, t: (
        (t.snapshot.retries, t.snapshot.outage_seconds(NOW), t.snapshot.reason) == (0, 0, None)
    ),
    "charged": lambda s, t: t.snapshot.retries == s.before.retries + (not s.before.trial),
    "uncharged": lambda s, t: t.snapshot.retries == s.before.retries,
    "hold": lambda s, t: arms(t, Timer.BACKOFF, exactly(60)) and t.snapshot.ticket(Timer.OUTAGE) is None,
    "pause-wait": lambda s, t: arms(t, Timer.BACKOFF, Delay(15, 60)) and t.snapshot.ticket(Timer.OUTAGE) is None,
    "one-restart": lambda s, t: t.snapshot.free_restarts == s.before.free_restarts + 1,
    "next-source": lambda s, t: the_dial(t).source == t.snapshot.source == s.before.source + 1,
    "first-source": lambda s, t: t.snapshot.source == 0,
    "backoff": lambda s, t: arms(t, Timer.BACKOFF, Delay(0.25, min(30, 2**s.before.retries))) and arms(t, Timer.OUTAGE),
    "one-second-window": lambda s, t: arms(t, Timer.BACKOFF, Delay(0.25, 1.0)) and t.snapshot.retries == 4,
    "within-250-ms": lambda s, t: arms(t, Timer.BACKOFF, Delay(0.0, 0.25)) and t.snapshot.retries == 4,
    "status": lambda s, t: fetches(t, Purpose.STATUS),
    "fetch": lambda s, t: fetches(t, Purpose.SYNC),
    "fetch-late": lambda s, t: fetches(t, Purpose.SYNC, delay=10),
    "fetch-stall": lambda s, t: fetches(t, Purpose.STALL),
    "refetch-later": lambda s, t: (
        fetches(t, Purpose.SYNC, delay=[0.5, 1, 2][s.before.refetches])
        and t.snapshot.refetches == s.before.refetches + 1
    ),
    "greet": lambda s, t: has(t, Greet()),
    "same-socket": lambda s, t: not any(isinstance(effect, CloseSocket) for effect in t.effects),
    "release": lambda s, t: has(t, ReleaseBuffer()),
    "stability": lambda s, t: arms(t, Timer.STABILITY, exactly(30)),
    "stall-120": lambda s, t: arms(t, Timer.STALL, exactly(120)),
    "stall-15": lambda s, t: arms(t, Timer.STALL, exactly(15)),
    "stall-60": lambda s, t: arms(t, Timer.STALL, exactly(60)),
    "stall-119": lambda s, t: arms(t, Timer.STALL, exactly(119)),
    "renewal": lambda s, t: arms(t, Timer.RENEWAL, exactly(61)),
    "renewed": lambda s, t: not t.snapshot.renewing,
    "renews": lambda s, t: t.snapshot.renewing and t.effects == (RenewToken(),),
    "stops": lambda s, t: has(t, StopDelivery()),
    "stops-all": lambda s, t: has(t, StopDelivery(final=True)),
    "skip": lambda s, t: t.effects == (SkipState(),),
    "no-effects": lambda s, t: t.effects == (),
    "silence-forgotten": lambda s, t: (
        (t.snapshot.stalls, t.snapshot.silence, t.snapshot.silence_redialled, t.snapshot.paused) == (0, 0, 0, 0)
    ),
    "pause-noted": lambda s, t: (
        (t.snapshot.stalls, t.snapshot.silence, t.snapshot.silence_redialled, t.snapshot.paused) == (0, 0, 0, 1)
    ),
    "cancel-noted": lambda s, t: t.snapshot == replace(s.before, cancel_accepted=True) and t.effects == (),
    "assumed": lambda s, t: t.snapshot.outcome == "canceled" and has(t, Deliver(outcome="canceled")),
    "reason-given": lambda s, t: t.snapshot.reason == getattr(s.event, "reason", None),
    "stall-240": lambda s, t: arms(t, Timer.STALL, exactly(240)),
    "probe": lambda s, t: has(t, Probe()),
    "grace-on": lambda s, t: arms(t, Timer.GRACE, exactly(30)),
    "grace-off": lambda s, t: has(t, Disarm(timer=Timer.GRACE)) and t.snapshot.ticket(Timer.GRACE) is None,
    "revival-armed": lambda s, t: arms(t, Timer.REVIVAL),
    "nothing-armed": lambda s, t: t.effects == (),
    "outcome": lambda s, t: t.snapshot.outcome == "complete" and has(t, Deliver(outcome="complete", update="the end")),
    "same-answer": lambda s, t: t.effects == () and t.snapshot == s.before,
    **{f"reason-{reason}": reason_is(reason) for reason in ("budget", "auth", "protocol", "stalled")},
}


@pytest.mark.parametrize("case", [case for case in CASES if "status" in case.words], ids=lambda case: case.name)
def test_without_a_state_call_the_same_happens_without_a_fetch(case: Case) -> None:
    before, event, facts, policy = case.situation
    taken, usual = step(before, event, replace(facts, state_call=False), policy), step(before, event, facts, policy)
    assert taken.snapshot.state is usual.snapshot.state
    assert not any(isinstance(effect, FetchState) for effect in taken.effects)
    assert list(taken.effects) == [effect for effect in usual.effects if not isinstance(effect, FetchState)]


def test_every_branch_of_the_table_is_driven() -> None:
    driven = set()
    for case in CASES:
        before, event, facts, policy = case.situation
        draft = Draft(before, event, facts, policy)
        chosen = LIFECYCLE.choose(event.trigger, draft)
        with contextlib.suppress(errors.ForbiddenRequest):
            assert LIFECYCLE.fire(event.trigger, draft) is chosen
        driven.add((event.trigger, before.state, id(chosen)))
    missed = [
        f"{event.value} in {state.value}: {branch.when.__name__ if branch.when else 'else'}"
        for event, state, branch in LIFECYCLE.branches()
        if (event, state, id(branch)) not in driven
    ]
    assert missed == []
