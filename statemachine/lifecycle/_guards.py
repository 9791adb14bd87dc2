"""The conditions on which a cell branches. Each reads only the snapshot before the step, the event and its facts.

In a cell they are tried in order; each applies only if no earlier one did.
"""

from __future__ import annotations

from typing import Final

from ._draft import Draft
from ._events import GapFound, Lost, Opened, PathChanged, PathRestored, Refused, TokenRejected


def job_has_ended(draft: Draft) -> bool:
    """The job has ended: the outcome is known."""
    return draft.before.outcome is not None


def in_background(draft: Draft) -> bool:
    """The host is in the background."""
    return not draft.facts.foreground


def path_down(draft: Draft) -> bool:
    """The host reports that it has no network path."""
    return not draft.facts.path_up


def same_refused_token(draft: Draft) -> bool:
    """The given token is still the fixed token that the server refused."""
    before, facts = draft.before, draft.facts
    refused = before.reason in ("auth", "revoked")
    return refused and facts.token_id is not None and facts.token_id == before.refused_token


def budget_left(draft: Draft) -> bool:
    """The outage has retries and seconds left, the attempt was a trial outside the budget, or the link brought news."""
    before, backoff = draft.before, draft.policy.backoff
    if before.trial or brought_news(draft):
        return True
    return before.retries < backoff.attempts and before.outage_seconds(draft.facts.now) < backoff.seconds


def brought_news(draft: Draft) -> bool:
    """The server ended this link in order, after updates at new positions: it limits the time of a link."""
    return isinstance(draft.event, Lost) and draft.event.after_news


def broken_too_often(draft: Draft) -> bool:
    """This stream broke the protocol, and enough others did since the last stable link."""
    event = draft.event
    violation = isinstance(event, Lost | GapFound) and event.cause.violation
    return violation and draft.before.violations + 1 >= draft.policy.violations


def state_decides(draft: Draft) -> bool:
    """The new link is in step once the job's state was fetched."""
    return isinstance(draft.event, Opened) and draft.event.by_state


def another_source_left(draft: Draft) -> bool:
    """The protocol has another way to follow the job."""
    return draft.before.source + 1 < draft.facts.sources


def peer_is_unknown(draft: Draft) -> bool:
    """No link with this server was ever in step."""
    return not draft.before.peer_known


def job_is_paused(draft: Draft) -> bool:
    """The job waits for a person."""
    return draft.before.paused


def first_rejection(draft: Draft) -> bool:
    """This is the first rejection since the last stable link, and a fresh token is available."""
    return draft.facts.renewable and draft.before.rejections == 0


def first_rejection_by_fetch(draft: Draft) -> bool:
    """The state call rejected a token for the first time since the last stable link, and it can be renewed."""
    by_fetch = isinstance(draft.event, TokenRejected) and draft.event.by_fetch
    return by_fetch and draft.facts.renewable and draft.before.fetch_rejections == 0


def only_the_state_call_failed(draft: Draft) -> bool:
    """The state call failed, and the user accepts a server without it: the socket is not affected."""
    event = draft.event
    return isinstance(event, TokenRejected | Refused) and event.by_fetch and not draft.facts.state_required


# A server that does not know the token says so. It may refuse (403) or close (1008) for other reasons, too.
_TOKEN_UNKNOWN: Final = frozenset({"http 401", "close 4401"})


def cancel_is_confirmed(draft: Draft) -> bool:
    """The server agreed to stop the job, and now does not know the job or any token for it."""
    event, before = draft.event, draft.before
    if not before.cancel_accepted:
        return False
    if isinstance(event, TokenRejected):
        return event.cause.code in _TOKEN_UNKNOWN
    if not isinstance(event, Refused) or event.reason != "auth":
        return isinstance(event, Refused) and event.reason == "gone"
    # The server rejected the token, and no fresh one was to be had.
    return before.rejections > 0 and before.cause is not None and before.cause.code in _TOKEN_UNKNOWN


def refused_for_good(draft: Draft) -> bool:
    """A retry cannot help: the refusal is final, or no sync with this peer ever worked, so it may be the wrong one."""
    event = draft.event
    passing = isinstance(event, Refused) and event.reason == "protocol" and not event.final
    return not (passing and draft.before.peer_known)


# A timer may fire early by a rounding error; that counts as on time.
_ROUNDING: Final = 0.001


def silence_is_short(draft: Draft) -> bool:
    """The job gave a sign after the timer was armed: the next check is not due yet."""
    due = draft.policy.next_look(draft.before.stalls)
    return draft.before.silent_seconds(draft.facts) + _ROUNDING < due


def stall_limit_reached(draft: Draft) -> bool:
    """The silence has lasted as long as the policy allows."""
    limit = draft.policy.stall_limit
    return limit is not None and draft.before.silent_seconds(draft.facts) + _ROUNDING >= limit


def reconnect_may_help(draft: Draft) -> bool:
    """Two checks found no sign of the job, this silence has had no reconnect yet, and host and path allow one."""
    before = draft.before
    return before.stalls >= 2 and not before.silence_redialled and foreground_and_path_up(draft)


def refetch_left(draft: Draft) -> bool:
    """The policy allows another refetch before the next stable link."""
    return draft.before.refetches < len(draft.policy.refetch_waits)


def free_restart_left(draft: Draft) -> bool:
    """The policy allows another free restart before the next stable link."""
    return draft.before.free_restarts < draft.policy.free_restarts


def spent_budget(draft: Draft) -> bool:
    """The engine gave up because the budget ran out, not because of a refusal."""
    return draft.before.reason == "budget"


def revival_allowed(draft: Draft) -> bool:
    """A revival can help, the host is in the foreground, and enough time has passed since the last one."""
    return revivable(draft) and not in_background(draft) and next_revival(draft) <= draft.facts.now


def revivable(draft: Draft) -> bool:
    """A revival can help: the budget ran out, or a certificate was rejected and the network path has changed."""
    cause = draft.before.cause
    another_path = isinstance(draft.event, PathRestored | PathChanged)
    return spent_budget(draft) or (another_path and cause is not None and cause.certificate)


def next_revival(draft: Draft) -> float:
    """The earliest time of the next revival, on the loop's clock; it also respects the server's own advice."""
    revivals, policy = draft.before.revivals, draft.policy
    earliest = max(draft.facts.now, draft.before.advised_until or 0.0)
    if revivals:
        earliest = max(earliest, revivals[-1] + policy.revival_spacing)
    if len(revivals) >= policy.revivals_per_window:
        earliest = max(earliest, revivals[-policy.revivals_per_window] + policy.revival_window)
    return earliest


def foreground_and_path_up(draft: Draft) -> bool:
    """The host is in the foreground and has a network path."""
    return draft.facts.foreground and draft.facts.path_up
