"""What can happen to a connection, as frozen values: states, events, causes, and the facts of the moment.

Events are past facts (`Lost`) or requests (`Cancel`). They carry what happened; `Facts` carry how the world stood when
the event was taken up. Both are msgspec structs, so that a recorded history is JSON and can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from ._cells import Named
from ._policy import Advice


class State(Named):
    """The lifecycle of a connection."""

    IDLE = "idle", "Nothing runs; after a job ended it holds the outcome. `connect` starts."
    CONNECTING = "connecting", "One attempt is under way: DNS, TCP, TLS, upgrade, within one deadline."
    SYNCING = "syncing", "The socket is open, live frames are buffered, the job's state is being fetched."
    CONNECTED = "connected", "In step with the server."
    RECONNECTING = "reconnecting", "Waiting for the next attempt."
    BACKGROUNDED = (
        "backgrounded",
        "The host asked for quiet: no socket, no attempts, the budget kept, until the host or the user speaks.",
    )
    EXHAUSTED = (
        "exhausted",
        "No further attempt by itself; `reason` says why. A user's `connect` or `retry` begins anew.",
    )
    CANCELLED = "cancelled", "Final: the user ended it, and nothing is left."


class Trigger(Named):
    """The name of each event: the rows of the table."""

    CONNECT = "connect", "The user asks to follow the job."
    RETRY = "retry", "The user asks for an attempt now: it outranks a held path and the background."
    OPENED = "opened", "The upgrade succeeded: there is a socket."
    SYNCED = "synced", "Replay or snapshot is complete: the buffered frames join what was delivered."
    GAP_FOUND = "gap_found", "What arrived does not join what was delivered."
    LOST = "lost", "The attempt, the sync or the link failed in a way that another attempt may mend."
    TOKEN_REJECTED = "token_rejected", "The server did not take the token, at the upgrade, on the socket or at a fetch."
    REFUSED = "refused", "The server, or the want of a token, rules out any further attempt."
    JOB_ENDED = "job_ended", "The job has ended; never stale, whoever saw it."
    STALLED = "stalled", "The job has been silent until the next look is due."
    STILL_SILENT = "still_silent", "A look into the silence found no sign of the job."
    JOB_SPOKE = "job_spoke", "The job gave a sign after a silence that was noted."
    CANCEL_ACCEPTED = "cancel_accepted", "The server agreed to stop the job; its end is still to come."
    PATH_LOST = "path_lost", "The host has no network path now."
    PATH_RESTORED = "path_restored", "The host has a network path again."
    PATH_CHANGED = "path_changed", "The host has another network path than before."
    WOKE = "woke", "The host had been suspended."
    BACKGROUND = "background", "The host asks for quiet."
    FOREGROUND = "foreground", "The host is back."
    BACKOFF_ELAPSED = "backoff_elapsed", "The wait before the next attempt is over."
    BUDGET_SPENT = "budget_spent", "The outage has lasted as long as it may."
    LINK_STABLE = "link_stable", "The link has held, with frames coming in."
    GRACE_ELAPSED = "grace_elapsed", "The time that the background leaves to a link is over."
    REVIVAL_DUE = "revival_due", "A revival that came too early before is allowed now."
    CANCEL = "cancel", "The user ends it for good."
    CLOSE = "close", "The user stops watching; the job goes on."


class Timer(Named):
    """The timers the machine arms. The attempt's deadline, the heartbeat and its probe belong to the socket."""

    BACKOFF = "backoff", "The wait before the next attempt, or the hold of it while the path is down."
    OUTAGE = "outage", "How long an outage may last; holds and the background stop its clock."
    STABILITY = "stability", "How long a link must hold before its outage counts as over."
    STALL = "stall", "How long the job may be silent before the next look."
    GRACE = "grace", "How long the background leaves a link."
    REVIVAL = "revival", "When a revival that came too early is allowed."


#: Why it gave up. `auth`: the token was never accepted; `revoked`: this server accepted it before. `usage`: an argument
#: or an environment variable cannot be used.
Reason: TypeAlias = Literal["budget", "auth", "revoked", "protocol", "gone", "stalled", "usage"]


class Cause(Struct, frozen=True, kw_only=True):
    """Why a link or an attempt failed.

    `code` is short and stable (`close 1012`, `http 503`, `silence`, `dns`), `text` is for people and holds no secret.
    `shared` says that it hit every client at once. `violation` marks bytes that the protocol forbids. `certificate`
    marks a certificate that could not be verified, which a change of the network path may mend.
    """

    code: str
    text: str
    shared: bool = False
    violation: bool = False
    certificate: bool = False
    advice: Advice | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """How the world stands when an event is taken up: levels, asked for anew each time.

    `now` is the loop's clock in seconds. `token_id` tells one fixed token from another (None with a provider);
    `renewable` says whether a rejected token can be replaced by a fresh one. `last_sign` is when the job last gave a
    sign: a message about it, or a state that differs from the last. `state_required`: the user does not accept a server
    that keeps no state of the job.
    """

    now: float
    path_up: bool = True
    foreground: bool = True
    token_id: str | None = None
    renewable: bool = True
    last_sign: float | None = None
    state_required: bool = False


class Event(Struct, frozen=True, kw_only=True, tag_field="event"):
    """What all events share. An event of an older `generation` or `fetch` is stale; None is never stale."""

    trigger: ClassVar[Trigger]
    generation: int | None = None
    fetch: int | None = None


class Expiry(Event, frozen=True, kw_only=True):
    """A timer has run out. `ticket` is that of the `Arm` effect; after another arm or a disarm it is stale."""

    timer: ClassVar[Timer]
    ticket: int


class Connect(Event, frozen=True, kw_only=True, tag="connect"):
    """The user asks to follow the job, perhaps with another token."""

    trigger = Trigger.CONNECT
    new_token: bool = False


class Retry(Event, frozen=True, tag="retry"):
    """The user asks for an attempt now: it outranks a held path and the background."""

    trigger = Trigger.RETRY


class Opened(Event, frozen=True, tag="opened"):
    """The upgrade succeeded: there is a socket."""

    trigger = Trigger.OPENED


class Synced(Event, frozen=True, tag="synced"):
    """Replay or snapshot is complete: the buffered frames join what was delivered."""

    trigger = Trigger.SYNCED


class GapFound(Event, frozen=True, kw_only=True, tag="gap_found"):
    """What arrived does not join what was delivered."""

    trigger = Trigger.GAP_FOUND
    cause: Cause


class Lost(Event, frozen=True, kw_only=True, tag="lost"):
    """The attempt, the sync or the link failed in a way that another attempt may mend."""

    trigger = Trigger.LOST
    cause: Cause


class TokenRejected(Event, frozen=True, kw_only=True, tag="token_rejected"):
    """The server did not take the token, at the upgrade or on the socket, or (`by_fetch`) at the state call."""

    trigger = Trigger.TOKEN_REJECTED
    cause: Cause
    by_fetch: bool = False


class Refused(Event, frozen=True, kw_only=True, tag="refused"):
    """The server, or the want of a token, rules out any further attempt.

    `by_fetch`: the state call said so. `final`: the server's or our own last word, not a fault that may pass.
    """

    trigger = Trigger.REFUSED
    reason: Reason
    cause: Cause
    by_fetch: bool = False
    final: bool = False


class JobEnded(Event, frozen=True, kw_only=True, tag="job_ended"):
    """The job has ended. Never stale: whoever saw the end, it is the end. `update` is what to deliver."""

    trigger = Trigger.JOB_ENDED
    outcome: Literal["complete", "failed", "canceled"]
    update: Any = None


class Stalled(Expiry, frozen=True, tag="stalled"):
    """The job has been silent until the next look is due; or it has spoken since the timer was armed."""

    trigger = Trigger.STALLED
    timer = Timer.STALL


class StillSilent(Event, frozen=True, tag="still_silent"):
    """A look into the silence found no sign of the job, whether the state call worked or not."""

    trigger = Trigger.STILL_SILENT


class JobSpoke(Event, frozen=True, tag="job_spoke"):
    """The job gave a sign after a silence that was noted: a message about it, or a state that differs from the last."""

    trigger = Trigger.JOB_SPOKE


class CancelAccepted(Event, frozen=True, tag="cancel_accepted"):
    """The server agreed to stop the job; its end is still to come."""

    trigger = Trigger.CANCEL_ACCEPTED


class PathLost(Event, frozen=True, tag="path_lost"):
    """The host has no network path now."""

    trigger = Trigger.PATH_LOST


class PathRestored(Event, frozen=True, tag="path_restored"):
    """The host has a network path again."""

    trigger = Trigger.PATH_RESTORED


class PathChanged(Event, frozen=True, tag="path_changed"):
    """The host has another network path than before."""

    trigger = Trigger.PATH_CHANGED


class Woke(Event, frozen=True, tag="woke"):
    """The host had been suspended."""

    trigger = Trigger.WOKE


class Background(Event, frozen=True, tag="background"):
    """The host asks for quiet. `grace` is what it leaves the link, in seconds; None is what the policy leaves it."""

    trigger = Trigger.BACKGROUND
    grace: float | None = None


class Foreground(Event, frozen=True, tag="foreground"):
    """The host is back."""

    trigger = Trigger.FOREGROUND


class BackoffElapsed(Expiry, frozen=True, tag="backoff_elapsed"):
    """The wait before the next attempt is over."""

    trigger = Trigger.BACKOFF_ELAPSED
    timer = Timer.BACKOFF


class BudgetSpent(Expiry, frozen=True, tag="budget_spent"):
    """The outage has lasted as long as it may."""

    trigger = Trigger.BUDGET_SPENT
    timer = Timer.OUTAGE


class LinkStable(Expiry, frozen=True, tag="link_stable"):
    """The link has held, with frames coming in."""

    trigger = Trigger.LINK_STABLE
    timer = Timer.STABILITY


class GraceElapsed(Expiry, frozen=True, tag="grace_elapsed"):
    """The time that the background leaves to a link is over."""

    trigger = Trigger.GRACE_ELAPSED
    timer = Timer.GRACE


class RevivalDue(Expiry, frozen=True, tag="revival_due"):
    """A revival that came too early before is allowed now."""

    trigger = Trigger.REVIVAL_DUE
    timer = Timer.REVIVAL


class Cancel(Event, frozen=True, tag="cancel"):
    """The user ends it for good."""

    trigger = Trigger.CANCEL


class Close(Event, frozen=True, tag="close"):
    """The user stops watching; the job goes on."""

    trigger = Trigger.CLOSE


AnyExpiry: TypeAlias = BackoffElapsed | BudgetSpent | LinkStable | Stalled | GraceElapsed | RevivalDue

#: Which event each timer's expiry is.
EXPIRIES: Final[Mapping[Timer, type[AnyExpiry]]] = {event.timer: event for event in get_args(AnyExpiry)}

AnyEvent: TypeAlias = (
    Connect
    | Retry
    | Opened
    | Synced
    | GapFound
    | Lost
    | TokenRejected
    | Refused
    | JobEnded
    | Stalled
    | StillSilent
    | JobSpoke
    | CancelAccepted
    | PathLost
    | PathRestored
    | PathChanged
    | Woke
    | Background
    | Foreground
    | BackoffElapsed
    | BudgetSpent
    | LinkStable
    | GraceElapsed
    | RevivalDue
    | Cancel
    | Close
)
