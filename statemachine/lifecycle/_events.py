"""The states, events and causes of a connection, and the facts that go with an event, as frozen values.

Events are past facts (`Lost`) or requests (`Cancel`). An event says what happened; `Facts` describe the surroundings
when the event is handled. Both are msgspec structs, so a recorded history is JSON and can be replayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from .._cells import Named
from ._policy import Advice


class State(Named):
    """The lifecycle of a connection."""

    IDLE = "idle", "Nothing runs. After the job has ended, the outcome is here. `connect` starts."
    CONNECTING = "connecting", "One attempt is in progress, up to the server's answer, within one deadline."
    SYNCING = "syncing", "The link is open but not in step: what it brings is buffered while the state is fetched."
    CONNECTED = "connected", "The link is open, and delivery is up to date with the server."
    RECONNECTING = "reconnecting", "The engine waits for the next attempt."
    BACKGROUNDED = (
        "backgrounded",
        "The host is in the background: no socket, no attempts; the budget is kept until the host or the user acts.",
    )
    EXHAUSTED = (
        "exhausted",
        "The engine has given up; `reason` says why. The user's `connect` or `retry` starts again.",
    )
    CANCELLED = "cancelled", "Final: the user cancelled; make a new Connection to follow a job again."


class Trigger(Named):
    """The name of each event: the rows of the table."""

    CONNECT = "connect", "The user asks to follow the job."
    RETRY = "retry", "The user asks for an attempt now, even while the path is down or the host is in the background."
    OPENED = "opened", "The server accepted the attempt: the link is open."
    SYNCED = "synced", "Replay or snapshot is complete: the buffered frames continue the delivered ones."
    GAP_FOUND = "gap_found", "A gap: the received frames do not continue the delivered ones."
    REOPEN = "reopen", "The link must be opened again: after a gap that a replay can fill, or without a refused cursor."
    SOURCE_REFUSED = "source_refused", "This way to follow the job cannot be used."
    LOST = "lost", "The attempt, the sync or the link failed, and a retry may succeed."
    TOKEN_REJECTED = "token_rejected", "The server rejected the token, at the upgrade, on the socket or at a fetch."
    REFUSED = "refused", "The server's refusal or a missing token rules out any further attempt."
    JOB_ENDED = "job_ended", "The job has ended. This event is never stale."
    STALLED = "stalled", "The job has been silent until the next check is due."
    STILL_SILENT = "still_silent", "A check of the silence found no sign of the job."
    JOB_PAUSED = "job_paused", "The job waits for a person, so its silence means nothing."
    JOB_SPOKE = "job_spoke", "The job gave a sign after a noted silence or pause."
    CANCEL_ACCEPTED = "cancel_accepted", "The server agreed to stop the job, which has not ended yet."
    TOKEN_RENEWED = "token_renewed", "A renewal of the token has ended, with a fresh token or without."
    PATH_LOST = "path_lost", "The host has no network path now."
    PATH_RESTORED = "path_restored", "The host has a network path again."
    PATH_CHANGED = "path_changed", "The host has a different network path."
    WOKE = "woke", "The host was suspended and woke up."
    BACKGROUND = "background", "The host goes to the background."
    FOREGROUND = "foreground", "The host is back in the foreground."
    BACKOFF_ELAPSED = "backoff_elapsed", "The wait before the next attempt is over."
    BUDGET_SPENT = "budget_spent", "The outage has lasted as long as the policy allows."
    LINK_STABLE = "link_stable", "The link has stayed up, with frames coming in."
    GRACE_ELAPSED = "grace_elapsed", "The time that a link may stay open in the background is over."
    REVIVAL_DUE = "revival_due", "A revival that was too early before is now allowed."
    RENEWAL_DUE = "renewal_due", "The token expires soon."
    CANCEL = "cancel", "The user cancels the connection for good."
    CLOSE = "close", "The user stops watching; the job continues."


class Timer(Named):
    """The timers that the machine arms. The attempt's deadline, the heartbeat and its probe belong to the socket."""

    BACKOFF = "backoff", "The wait before the next attempt, also while the path is down."
    OUTAGE = "outage", "How long an outage may last; its clock stops while the path is down and in the background."
    STABILITY = "stability", "How long a link must stay up before its outage counts as over."
    STALL = "stall", "How long the job may be silent before the next check."
    GRACE = "grace", "How long a link may stay open in the background."
    REVIVAL = "revival", "When a revival that was too early becomes allowed."
    RENEWAL = "renewal", "When the token should be renewed, because it expires soon."


#: Why the engine gave up. `auth`: the server never accepted the token; `revoked`: it accepted this connection before.
#: `usage`: an argument or an environment variable is unusable.
Reason: TypeAlias = Literal["budget", "auth", "revoked", "protocol", "gone", "stalled", "usage"]


class Cause(Struct, frozen=True, kw_only=True):
    """Why a link or an attempt failed.

    `code` is short and stable (`close 1012`, `http 503`, `silence`, `dns`), `text` is for people and holds no secret.
    `shared` says that the failure affected every client at once. `violation` marks bytes that the protocol forbids.
    `certificate` marks a certificate that could not be verified; another network path may solve that.
    """

    code: str
    text: str
    shared: bool = False
    violation: bool = False
    certificate: bool = False
    advice: Advice | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """The surroundings when an event is handled, read again for each event.

    `now` is the loop's clock in seconds. `token_id` identifies a fixed token (None with a provider). `renewable` says
    whether a fresh token can replace a rejected one. `last_sign` is the time of the job's last sign: a message about
    it, or a state that differs from the one before. `renew_in`: the seconds until the token should be renewed, None if
    it does not expire or cannot be renewed. `state_required`: the user does not accept a server that keeps no state of
    the job. `state_call`: the state can be fetched without the link. `sources`: how many ways there are to follow the
    job.
    """

    now: float
    path_up: bool = True
    foreground: bool = True
    token_id: str | None = None
    renewable: bool = True
    last_sign: float | None = None
    renew_in: float | None = None
    state_required: bool = False
    state_call: bool = True
    sources: int = 1


def snake(name: str) -> str:
    """A class's name as the tag of its values: `JobEnded` is `job_ended`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(Struct, frozen=True, kw_only=True, tag_field="event", tag=snake):
    """Base of all events. An event of an older `generation` or `fetch` is stale; None is never stale.

    Its `trigger` has the class's own name.
    """

    trigger: ClassVar[Trigger]
    generation: int | None = None
    fetch: int | None = None


class Expiry(Event, frozen=True, kw_only=True):
    """A timer has expired. `ticket` is that of the `Arm` effect; after another arm or a disarm it is stale."""

    timer: ClassVar[Timer]
    ticket: int


class Connect(Event, frozen=True, kw_only=True):
    """The user asks to follow the job, perhaps with another token."""

    new_token: bool = False


class Retry(Event, frozen=True):
    """The user asks for an attempt now, even while the path is down or the host is in the background."""


class Opened(Event, frozen=True, kw_only=True):
    """The link is open. `by_state`: it is in step after the job's state was fetched; otherwise its own facts decide."""

    by_state: bool = True


class Synced(Event, frozen=True):
    """Replay or snapshot is complete: the buffered frames continue the delivered ones."""


class GapFound(Event, frozen=True, kw_only=True):
    """A gap: the received frames do not continue the delivered ones."""

    cause: Cause


class Reopen(Event, frozen=True, kw_only=True):
    """The link must be opened again: after a gap that a replay can fill, or without a refused cursor."""

    cause: Cause


class SourceRefused(Event, frozen=True, kw_only=True):
    """This way to follow the job cannot be used."""

    cause: Cause


class Lost(Event, frozen=True, kw_only=True):
    """The attempt, the sync or the link failed, and a retry may succeed.

    `after_news`: the server ended the link in order, after it had brought the follower to a later position.
    """

    cause: Cause
    after_news: bool = False


class TokenRejected(Event, frozen=True, kw_only=True):
    """The server rejected the token, at the upgrade or on the socket, or (`by_fetch`) at the state call."""

    cause: Cause
    by_fetch: bool = False


class Refused(Event, frozen=True, kw_only=True):
    """The server's refusal or a missing token rules out any further attempt.

    `by_fetch`: the state call was refused. `final`: the refusal is permanent; a retry cannot help.
    """

    reason: Reason
    cause: Cause
    by_fetch: bool = False
    final: bool = False


class JobEnded(Event, frozen=True, kw_only=True):
    """The job has ended. This event is never stale. `update` is the final update to deliver."""

    outcome: Literal["complete", "failed", "canceled"]
    update: Any = None


class Stalled(Expiry, frozen=True):
    """The next check of a silence is due, unless the job gave a sign after the timer was armed."""

    timer = Timer.STALL


class StillSilent(Event, frozen=True):
    """A check of the silence found no sign of the job, whether or not the state call worked."""


class JobPaused(Event, frozen=True):
    """The job waits for a person (input, a login), so its silence means nothing."""


class JobSpoke(Event, frozen=True):
    """The job gave a sign after a noted silence or pause: a message about it, or a state that differs from the last."""


class CancelAccepted(Event, frozen=True):
    """The server agreed to stop the job, which has not ended yet."""


class TokenRenewed(Event, frozen=True):
    """A renewal of the token has ended, with a fresh token or without."""


class PathLost(Event, frozen=True):
    """The host has no network path now."""


class PathRestored(Event, frozen=True):
    """The host has a network path again."""


class PathChanged(Event, frozen=True):
    """The host has a different network path."""


class Woke(Event, frozen=True):
    """The host was suspended and woke up."""


class Background(Event, frozen=True):
    """The host goes to the background. `grace`: how many seconds the link may stay open; None: the policy's value."""

    grace: float | None = None


class Foreground(Event, frozen=True):
    """The host is back in the foreground."""


class BackoffElapsed(Expiry, frozen=True):
    """The wait before the next attempt is over."""

    timer = Timer.BACKOFF


class BudgetSpent(Expiry, frozen=True):
    """The outage has lasted as long as the policy allows."""

    timer = Timer.OUTAGE


class LinkStable(Expiry, frozen=True):
    """The link has stayed up, with frames coming in."""

    timer = Timer.STABILITY


class GraceElapsed(Expiry, frozen=True):
    """The time that a link may stay open in the background is over."""

    timer = Timer.GRACE


class RevivalDue(Expiry, frozen=True):
    """A revival that was too early before is now allowed."""

    timer = Timer.REVIVAL


class RenewalDue(Expiry, frozen=True):
    """The token expires soon."""

    timer = Timer.RENEWAL


class Cancel(Event, frozen=True):
    """The user cancels the connection for good."""


class Close(Event, frozen=True):
    """The user stops watching; the job continues."""


AnyExpiry: TypeAlias = BackoffElapsed | BudgetSpent | LinkStable | Stalled | GraceElapsed | RevivalDue | RenewalDue

#: The event that each timer's expiry raises.
EXPIRIES: Final[Mapping[Timer, type[AnyExpiry]]] = {event.timer: event for event in get_args(AnyExpiry)}

AnyEvent: TypeAlias = (
    Connect
    | Retry
    | Opened
    | Synced
    | GapFound
    | Reopen
    | SourceRefused
    | Lost
    | TokenRejected
    | Refused
    | JobEnded
    | Stalled
    | StillSilent
    | JobPaused
    | JobSpoke
    | CancelAccepted
    | TokenRenewed
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
    | RenewalDue
    | Cancel
    | Close
)

for _event in get_args(AnyEvent):
    _event.trigger = Trigger(snake(_event.__name__))
