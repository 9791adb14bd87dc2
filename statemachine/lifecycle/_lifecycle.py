"""The lifecycle of a connection: every state, every event, every cell.

This module defines how a connection responds to each event in each state. Pictures, documentation, tests and the
running engine are made from `LIFECYCLE`; no other code changes a state.

It does not know sockets, clocks, randomness or the job's data. Data frames never come here; an event is only something
that can change the lifecycle.

These rules are not in the table:

- An event of an older generation or fetch, or of a timer that was armed again since, is stale and never fired (`step`).
  Otherwise every cell would need a guard for it.
- When the machine leaves a state, it releases that state's resources (`_draft.OWNS`, `_draft.RUNS_IN`), so that no cell
  can forget it.
- Every state without an outcome accepts the job's end from any source; `deliver_end` leads to `idle`, which accepts no
  further end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from ..._exceptions import Cancelled, JobEnded
from .._cells import ANY_STATE, Branch, Cell, Picture, TimerRule, forbid, go, ignore, stay
from .._table import Table
from . import _actions as do
from . import _guards as when
from ._draft import OWNS, RUNS_IN, Draft
from ._events import State as S
from ._events import Timer
from ._events import Trigger as T

LifecycleBranch: TypeAlias = Branch[S, Draft, Timer]
LifecycleCell: TypeAlias = Cell[S, Draft, Timer]


NO_ATTEMPT: Final[LifecycleBranch] = ignore("no attempt is in progress; a late success belongs to an abandoned attempt")
NO_SYNC: Final[LifecycleBranch] = ignore("no sync is in progress")
NO_STREAM: Final[LifecycleBranch] = ignore("no stream is open, so it cannot have a gap")
NO_LINK: Final[LifecycleBranch] = ignore("there is no link to lose; its loss was already handled")
NO_TOKEN_USED: Final[LifecycleBranch] = ignore("no token is in use")
NOTHING_ASKED: Final[LifecycleBranch] = ignore("no request to the server is open")
ALREADY_OVER: Final[LifecycleBranch] = ignore("the job's end was already delivered, or no job is followed")
NOT_IN_STEP: Final[LifecycleBranch] = ignore("only connected measures the silence")
NO_BACKOFF: Final[LifecycleBranch] = ignore("no wait for an attempt is running")
NO_OUTAGE: Final[LifecycleBranch] = ignore("only reconnecting checks the outage clock")
NOT_CONNECTED: Final[LifecycleBranch] = ignore("only connected measures stability")
NO_GRACE: Final[LifecycleBranch] = ignore("no grace timer is running: there is nothing to close")
NOT_LOOKED_INTO: Final[LifecycleBranch] = ignore("only connected checks a silence")
NOTHING_HEARD: Final[LifecycleBranch] = ignore("no message of the job can arrive")
NO_REVIVAL: Final[LifecycleBranch] = ignore("only exhausted waits for a revival")
NO_RENEWAL: Final[LifecycleBranch] = ignore("only connected renews the token in advance; an attempt asks for it anyway")
FINAL: Final[LifecycleBranch] = ignore("cancelled is final: nothing is running")

# Cells that several states share.
_FAILED: Final[LifecycleCell] = (
    go(S.BACKGROUNDED, do.note_loss, when=when.in_background),
    go(S.RECONNECTING, do.back_off, when=when.budget_left),
    go(S.EXHAUSTED, do.give_up_on_budget),
)
_LOST: Final[LifecycleCell] = (go(S.EXHAUSTED, do.give_up_on_protocol, when=when.broken_too_often), *_FAILED)
_LOST_IN_STEP: Final[LifecycleCell] = (
    *_LOST[:2],
    go(S.RECONNECTING, do.wait_out_pause, when=when.job_is_paused),
    *_LOST[2:],
)
_REOPEN: Final[LifecycleCell] = (go(S.CONNECTING, do.use_free_restart, when=when.free_restart_left), *_FAILED)
_SOURCE_REFUSED_IN_STEP: Final[LifecycleCell] = (
    go(S.CONNECTING, do.use_next_source, when=when.another_source_left),
    # A proxy that answers for a known server: the ways to it may work again.
    go(S.BACKGROUNDED, do.use_first_source, do.note_loss, when=when.in_background),
    go(S.RECONNECTING, do.use_first_source, do.back_off, when=when.budget_left),
    go(S.EXHAUSTED, do.give_up_on_budget),
)
_SOURCE_REFUSED: Final[LifecycleCell] = (
    _SOURCE_REFUSED_IN_STEP[0],
    go(S.EXHAUSTED, do.give_up_on_protocol, when=when.peer_is_unknown),
    *_SOURCE_REFUSED_IN_STEP[1:],
)
_TOKEN_REJECTED: Final[LifecycleCell] = (
    go(S.CONNECTING, do.count_rejection, when=when.first_rejection),
    go(S.IDLE, do.assume_cancelled, when=when.cancel_is_confirmed),
    go(S.EXHAUSTED, do.give_up_on_auth),
)
_REFUSED: Final[LifecycleCell] = (
    go(S.IDLE, do.assume_cancelled, when=when.cancel_is_confirmed),
    go(S.EXHAUSTED, do.give_up_as_refused, when=when.refused_for_good),
    *_FAILED,
)
_REFUSED_IN_STEP: Final[LifecycleCell] = (
    _REFUSED[0],
    stay(when=when.only_the_state_call_failed, reason="a failed state call does not end a working socket"),
    *_REFUSED[1:],
)
_JOB_ENDED: Final[LifecycleBranch] = go(S.IDLE, do.deliver_end)
_PROBE: Final[LifecycleBranch] = stay(do.probe)
_KEEP: Final[LifecycleBranch] = stay()
_FORGET_SILENCE: Final[LifecycleBranch] = stay(do.forget_silence)
_NOTE_PAUSE: Final[LifecycleBranch] = stay(do.note_pause)
_NOTE_CANCEL: Final[LifecycleBranch] = stay(do.note_accepted_cancel)
_FORGIVE: Final[LifecycleBranch] = stay(do.forgive)
_NOTE_RENEWAL: Final[LifecycleBranch] = stay(do.note_renewal)
_CANCEL: Final[LifecycleBranch] = go(S.CANCELLED, do.stop_delivery)
_CLOSE: Final[LifecycleBranch] = go(S.IDLE, do.fresh_budget, do.stop_delivery)
_BEGIN_GRACE: Final[LifecycleBranch] = stay(do.begin_grace)
_GRACE_ELAPSED: Final[LifecycleBranch] = go(S.BACKGROUNDED)
_RESTART: Final[LifecycleCell] = (go(S.CONNECTING, do.use_free_restart, when=when.free_restart_left), stay())
_RETRY_SOON: Final[LifecycleBranch] = stay(do.wait_briefly)
_REVIVE: Final[LifecycleCell] = (go(S.CONNECTING, do.revive, when=when.revival_allowed), stay(do.await_revival))
_START_AGAIN: Final[LifecycleCell] = (
    forbid("the server refused this very token: call connect(token=...) with a new one", when=when.same_refused_token),
    go(S.CONNECTING, do.fresh_start),
)
_IS_CANCELLED: Final[LifecycleBranch] = forbid(
    "the connection was cancelled, which is final: make a new Connection", Cancelled
)

_PATH_IS_BACK: Final[Mapping[S, LifecycleBranch | LifecycleCell]] = {
    S.IDLE: _KEEP,
    S.CONNECTING: _RESTART,
    S.SYNCING: _PROBE,
    S.CONNECTED: _PROBE,
    S.RECONNECTING: _RETRY_SOON,
    S.BACKGROUNDED: _KEEP,
    S.EXHAUSTED: _REVIVE,
    S.CANCELLED: FINAL,
}

CELLS: Final[Mapping[T, Mapping[S, LifecycleBranch | LifecycleCell]]] = {
    T.CONNECT: {
        S.IDLE: (
            forbid("the job has ended: read `outcome`", JobEnded, when=when.job_has_ended),
            go(S.BACKGROUNDED, do.fresh_start, when=when.in_background),
            go(S.RECONNECTING, do.fresh_start, do.hold, when=when.path_down),
            go(S.CONNECTING, do.fresh_start),
        ),
        S.CONNECTING: _FORGIVE,
        S.SYNCING: _FORGIVE,
        S.CONNECTED: _FORGIVE,
        S.RECONNECTING: _FORGIVE,
        S.BACKGROUNDED: _FORGIVE,
        S.EXHAUSTED: _START_AGAIN,
        S.CANCELLED: _IS_CANCELLED,
    },
    T.RETRY: {
        S.IDLE: forbid("there is no attempt to retry: call connect() first"),
        S.CONNECTING: _FORGIVE,
        S.SYNCING: _FORGIVE,
        S.CONNECTED: _FORGIVE,
        S.RECONNECTING: go(S.CONNECTING, do.forgive),
        S.BACKGROUNDED: go(S.CONNECTING, do.forgive),
        S.EXHAUSTED: _START_AGAIN,
        S.CANCELLED: _IS_CANCELLED,
    },
    T.OPENED: {
        S.IDLE: NO_ATTEMPT,
        S.CONNECTING: (go(S.SYNCING, do.greet, when=when.state_decides), go(S.SYNCING, do.await_facts)),
        S.SYNCING: NO_ATTEMPT,
        S.CONNECTED: NO_ATTEMPT,
        S.RECONNECTING: NO_ATTEMPT,
        S.BACKGROUNDED: NO_ATTEMPT,
        S.EXHAUSTED: NO_ATTEMPT,
        S.CANCELLED: FINAL,
    },
    T.SYNCED: {
        S.IDLE: NO_SYNC,
        S.CONNECTING: NO_SYNC,
        S.SYNCING: go(S.CONNECTED),
        S.CONNECTED: NO_SYNC,
        S.RECONNECTING: NO_SYNC,
        S.BACKGROUNDED: NO_SYNC,
        S.EXHAUSTED: NO_SYNC,
        S.CANCELLED: FINAL,
    },
    T.GAP_FOUND: {
        S.IDLE: NO_STREAM,
        S.CONNECTING: NO_STREAM,
        S.SYNCING: (stay(do.refetch, when=when.refetch_left), *_LOST),
        S.CONNECTED: go(S.SYNCING, do.resync),
        S.RECONNECTING: NO_STREAM,
        S.BACKGROUNDED: NO_STREAM,
        S.EXHAUSTED: NO_STREAM,
        S.CANCELLED: FINAL,
    },
    T.REOPEN: {
        S.IDLE: NO_STREAM,
        S.CONNECTING: _REOPEN,
        S.SYNCING: _REOPEN,
        S.CONNECTED: _REOPEN,
        S.RECONNECTING: NO_STREAM,
        S.BACKGROUNDED: NO_STREAM,
        S.EXHAUSTED: NO_STREAM,
        S.CANCELLED: FINAL,
    },
    T.SOURCE_REFUSED: {
        S.IDLE: NO_ATTEMPT,
        S.CONNECTING: _SOURCE_REFUSED,
        S.SYNCING: _SOURCE_REFUSED,
        S.CONNECTED: _SOURCE_REFUSED_IN_STEP,
        S.RECONNECTING: NO_ATTEMPT,
        S.BACKGROUNDED: NO_ATTEMPT,
        S.EXHAUSTED: NO_ATTEMPT,
        S.CANCELLED: FINAL,
    },
    T.LOST: {
        S.IDLE: NO_LINK,
        S.CONNECTING: _LOST,
        S.SYNCING: _LOST,
        S.CONNECTED: _LOST_IN_STEP,
        S.RECONNECTING: NO_LINK,
        S.BACKGROUNDED: NO_LINK,
        S.EXHAUSTED: NO_LINK,
        S.CANCELLED: FINAL,
    },
    T.TOKEN_REJECTED: {
        S.IDLE: NO_TOKEN_USED,
        S.CONNECTING: _TOKEN_REJECTED,
        S.SYNCING: (
            stay(do.refetch_with_fresh_token, when=when.first_rejection_by_fetch),
            stay(do.skip_state, when=when.only_the_state_call_failed),
            *_TOKEN_REJECTED,
        ),
        S.CONNECTED: _TOKEN_REJECTED,
        S.RECONNECTING: NO_TOKEN_USED,
        S.BACKGROUNDED: NO_TOKEN_USED,
        S.EXHAUSTED: ignore("the engine has given up; the user's connect requests a token again"),
        S.CANCELLED: FINAL,
    },
    T.REFUSED: {
        S.IDLE: NOTHING_ASKED,
        S.CONNECTING: _REFUSED,
        S.SYNCING: (_REFUSED[0], stay(do.skip_state, when=when.only_the_state_call_failed), *_REFUSED[1:]),
        S.CONNECTED: _REFUSED_IN_STEP,
        S.RECONNECTING: (_REFUSED[0], go(S.EXHAUSTED, do.give_up_as_refused)),
        S.BACKGROUNDED: NOTHING_ASKED,
        S.EXHAUSTED: (_REFUSED[0], ignore("the engine has given up; the first reason stays")),
        S.CANCELLED: FINAL,
    },
    T.JOB_ENDED: {
        S.IDLE: ALREADY_OVER,
        S.CONNECTING: _JOB_ENDED,
        S.SYNCING: _JOB_ENDED,
        S.CONNECTED: _JOB_ENDED,
        S.RECONNECTING: _JOB_ENDED,
        S.BACKGROUNDED: _JOB_ENDED,
        S.EXHAUSTED: _JOB_ENDED,
        S.CANCELLED: FINAL,
    },
    T.STALLED: {
        S.IDLE: NOT_IN_STEP,
        S.CONNECTING: NOT_IN_STEP,
        S.SYNCING: NOT_IN_STEP,
        S.CONNECTED: (
            stay(do.look_into_pause, when=when.job_is_paused),
            stay(do.await_next_look, when=when.silence_is_short),
            go(S.EXHAUSTED, do.give_up_as_stalled, when=when.stall_limit_reached),
            stay(do.look_into_silence),
        ),
        S.RECONNECTING: NOT_IN_STEP,
        S.BACKGROUNDED: NOT_IN_STEP,
        S.EXHAUSTED: NOT_IN_STEP,
        S.CANCELLED: FINAL,
    },
    T.STILL_SILENT: {
        S.IDLE: NOT_LOOKED_INTO,
        S.CONNECTING: NOT_LOOKED_INTO,
        S.SYNCING: NOT_LOOKED_INTO,
        S.CONNECTED: (go(S.CONNECTING, do.note_redial, when=when.reconnect_may_help), stay()),
        S.RECONNECTING: NOT_LOOKED_INTO,
        S.BACKGROUNDED: NOT_LOOKED_INTO,
        S.EXHAUSTED: NOT_LOOKED_INTO,
        S.CANCELLED: FINAL,
    },
    T.JOB_PAUSED: {
        S.IDLE: NOTHING_HEARD,
        S.CONNECTING: NOTHING_HEARD,
        S.SYNCING: _NOTE_PAUSE,
        S.CONNECTED: stay(do.note_pause, do.await_end_of_pause),
        S.RECONNECTING: _NOTE_PAUSE,
        S.BACKGROUNDED: NOTHING_HEARD,
        S.EXHAUSTED: _NOTE_PAUSE,
        S.CANCELLED: FINAL,
    },
    T.JOB_SPOKE: {
        S.IDLE: NOTHING_HEARD,
        S.CONNECTING: NOTHING_HEARD,
        S.SYNCING: _FORGET_SILENCE,
        S.CONNECTED: stay(do.forget_silence, do.await_next_look),
        S.RECONNECTING: _FORGET_SILENCE,
        S.BACKGROUNDED: NOTHING_HEARD,
        S.EXHAUSTED: _FORGET_SILENCE,
        S.CANCELLED: FINAL,
    },
    T.CANCEL_ACCEPTED: {
        S.IDLE: _NOTE_CANCEL,
        S.CONNECTING: _NOTE_CANCEL,
        S.SYNCING: _NOTE_CANCEL,
        S.CONNECTED: _NOTE_CANCEL,
        S.RECONNECTING: _NOTE_CANCEL,
        S.BACKGROUNDED: _NOTE_CANCEL,
        S.EXHAUSTED: _NOTE_CANCEL,
        S.CANCELLED: FINAL,
    },
    T.TOKEN_RENEWED: {
        S.IDLE: _NOTE_RENEWAL,
        S.CONNECTING: _NOTE_RENEWAL,
        S.SYNCING: _NOTE_RENEWAL,
        S.CONNECTED: stay(do.note_renewal, do.await_renewal),
        S.RECONNECTING: _NOTE_RENEWAL,
        S.BACKGROUNDED: _NOTE_RENEWAL,
        S.EXHAUSTED: _NOTE_RENEWAL,
        S.CANCELLED: FINAL,
    },
    T.PATH_LOST: {
        S.IDLE: _KEEP,
        S.CONNECTING: (go(S.RECONNECTING, do.use_free_restart, do.hold, when=when.free_restart_left), *_FAILED),
        S.SYNCING: _PROBE,
        S.CONNECTED: _PROBE,
        S.RECONNECTING: stay(do.hold),
        S.BACKGROUNDED: _KEEP,
        S.EXHAUSTED: _KEEP,
        S.CANCELLED: FINAL,
    },
    T.PATH_RESTORED: _PATH_IS_BACK,
    T.PATH_CHANGED: _PATH_IS_BACK,
    T.WOKE: {**_PATH_IS_BACK, S.RECONNECTING: stay(do.wait_a_moment)},
    T.BACKGROUND: {
        S.IDLE: _KEEP,
        S.CONNECTING: _BEGIN_GRACE,
        S.SYNCING: _BEGIN_GRACE,
        S.CONNECTED: _BEGIN_GRACE,
        S.RECONNECTING: _BEGIN_GRACE,
        S.BACKGROUNDED: _KEEP,
        S.EXHAUSTED: _KEEP,
        S.CANCELLED: FINAL,
    },
    T.FOREGROUND: {
        S.IDLE: _KEEP,
        S.CONNECTING: stay(do.end_grace),
        S.SYNCING: stay(do.end_grace, do.probe),
        S.CONNECTED: stay(do.end_grace, do.probe),
        S.RECONNECTING: stay(do.end_grace, do.wait_a_moment),
        S.BACKGROUNDED: (go(S.RECONNECTING, do.hold, when=when.path_down), go(S.CONNECTING)),
        S.EXHAUSTED: (go(S.CONNECTING, do.fresh_budget, when=when.spent_budget), stay()),
        S.CANCELLED: FINAL,
    },
    T.BACKOFF_ELAPSED: {
        S.IDLE: NO_BACKOFF,
        S.CONNECTING: NO_BACKOFF,
        S.SYNCING: NO_BACKOFF,
        S.CONNECTED: NO_BACKOFF,
        S.RECONNECTING: (go(S.BACKGROUNDED, when=when.in_background), go(S.CONNECTING)),
        S.BACKGROUNDED: NO_BACKOFF,
        S.EXHAUSTED: NO_BACKOFF,
        S.CANCELLED: FINAL,
    },
    T.BUDGET_SPENT: {
        S.IDLE: NO_OUTAGE,
        S.CONNECTING: NO_OUTAGE,
        S.SYNCING: NO_OUTAGE,
        S.CONNECTED: NO_OUTAGE,
        S.RECONNECTING: go(S.EXHAUSTED, do.give_up_on_budget),
        S.BACKGROUNDED: NO_OUTAGE,
        S.EXHAUSTED: NO_OUTAGE,
        S.CANCELLED: FINAL,
    },
    T.LINK_STABLE: {
        S.IDLE: NOT_CONNECTED,
        S.CONNECTING: NOT_CONNECTED,
        S.SYNCING: NOT_CONNECTED,
        S.CONNECTED: stay(do.settle),
        S.RECONNECTING: NOT_CONNECTED,
        S.BACKGROUNDED: NOT_CONNECTED,
        S.EXHAUSTED: NOT_CONNECTED,
        S.CANCELLED: FINAL,
    },
    T.GRACE_ELAPSED: {
        S.IDLE: NO_GRACE,
        S.CONNECTING: _GRACE_ELAPSED,
        S.SYNCING: _GRACE_ELAPSED,
        S.CONNECTED: _GRACE_ELAPSED,
        S.RECONNECTING: _GRACE_ELAPSED,
        S.BACKGROUNDED: NO_GRACE,
        S.EXHAUSTED: NO_GRACE,
        S.CANCELLED: FINAL,
    },
    T.REVIVAL_DUE: {
        S.IDLE: NO_REVIVAL,
        S.CONNECTING: NO_REVIVAL,
        S.SYNCING: NO_REVIVAL,
        S.CONNECTED: NO_REVIVAL,
        S.RECONNECTING: NO_REVIVAL,
        S.BACKGROUNDED: NO_REVIVAL,
        S.EXHAUSTED: (go(S.CONNECTING, do.revive, when=when.foreground_and_path_up), stay()),
        S.CANCELLED: FINAL,
    },
    T.RENEWAL_DUE: {
        S.IDLE: NO_RENEWAL,
        S.CONNECTING: NO_RENEWAL,
        S.SYNCING: NO_RENEWAL,
        S.CONNECTED: stay(do.renew_token),
        S.RECONNECTING: NO_RENEWAL,
        S.BACKGROUNDED: NO_RENEWAL,
        S.EXHAUSTED: NO_RENEWAL,
        S.CANCELLED: FINAL,
    },
    T.CANCEL: {
        S.IDLE: (stay(when=when.job_has_ended, reason="the job ended first, so its outcome stays"), _CANCEL),
        S.CONNECTING: _CANCEL,
        S.SYNCING: _CANCEL,
        S.CONNECTED: _CANCEL,
        S.RECONNECTING: _CANCEL,
        S.BACKGROUNDED: _CANCEL,
        S.EXHAUSTED: _CANCEL,
        S.CANCELLED: stay(reason="the connection is already cancelled"),
    },
    T.CLOSE: {
        S.IDLE: _KEEP,
        S.CONNECTING: _CLOSE,
        S.SYNCING: _CLOSE,
        S.CONNECTED: _CLOSE,
        S.RECONNECTING: _CLOSE,
        S.BACKGROUNDED: _CLOSE,
        S.EXHAUSTED: _CLOSE,
        S.CANCELLED: FINAL,
    },
}

_EXPIRY: Final[Mapping[Timer, tuple[T, str]]] = {
    Timer.BACKOFF: (T.BACKOFF_ELAPSED, "the drawn delay, or 60 s while the path is down"),
    Timer.OUTAGE: (T.BUDGET_SPENT, "10 min of an outage"),
    Timer.STABILITY: (T.LINK_STABLE, "30 s"),
    Timer.STALL: (T.STALLED, "120 s, 240 s, then every 600 s of silence"),
    Timer.GRACE: (T.GRACE_ELAPSED, "30 s, 0 s on phones"),
    Timer.REVIVAL: (T.REVIVAL_DUE, "30 s, at most 6 an hour"),
    Timer.RENEWAL: (T.RENEWAL_DUE, "60 s before the token expires, at least 5 s"),
}

_PICTURE: Final = Picture(
    way=("idle", "connecting", "syncing", "connected"),
    rows=(
        (ANY_STATE, "idle"),
        ("cancelled", "connecting", "backgrounded"),
        ("", "syncing", "reconnecting"),
        ("", "connected", "exhausted"),
    ),
    groups={"attempt or link": ("connecting", "syncing", "connected")},
    layers={
        "normal way": ("connect", "opened", "synced", "link_stable", "renewal_due", "token_renewed"),
        "loss and retry": (
            *("gap_found", "reopen", "source_refused", "lost", "token_rejected", "refused"),
            *("stalled", "still_silent", "job_paused", "job_spoke", "backoff_elapsed", "budget_spent"),
        ),
        "host": (
            *("path_lost", "path_restored", "path_changed", "woke"),
            *("background", "foreground", "grace_elapsed", "revival_due"),
        ),
        "requests and ends": ("retry", "cancel_accepted", "job_ended", "cancel", "close"),
    },
)

LIFECYCLE: Final[Table[S, T, Draft, Timer]] = Table(
    name="connection",
    states=S,
    events=T,
    initial=S.IDLE,
    final=frozenset({S.CANCELLED}),
    cells=CELLS,
    timers={timer: TimerRule(RUNS_IN[timer], expiry, after) for timer, (expiry, after) in _EXPIRY.items()},
    enters={S.CONNECTING: (do.dial,), S.CONNECTED: (do.join,), S.EXHAUSTED: (do.report_giving_up,)},
    owns={state: tuple(sorted(resource.value for resource in OWNS[state])) for state in S},
    picture=_PICTURE,
    waits={
        S.IDLE: "waits for the user",
        S.CONNECTING: "the socket's own loop keeps the attempt's deadline; the attempt ends in opened or lost",
        S.SYNCING: "each fetch has a deadline and the socket has a heartbeat; each of them ends in an event",
        S.BACKGROUNDED: "waits until the host or the user acts",
        S.EXHAUSTED: "waits for the user, the host or, if a revival was too early, the revival timer",
    },
)
