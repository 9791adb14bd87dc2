"""The machine as one pure function: a snapshot and an event in, a snapshot and effects out."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from msgspec import Struct

from .._cells import Kind
from ._draft import Draft
from ._effects import AnyEffect
from ._events import AnyEvent, Cause, Expiry, Facts, JobEnded, State
from ._lifecycle import LIFECYCLE
from ._policy import Policy
from ._snapshot import Snapshot

_DEFAULT: Final = Policy()


class Verdict(Enum):
    """The result of an event."""

    MOVED = "moved"
    """The event led to another state, or entered the same state again."""
    KEPT = "kept"
    """The event was handled and the state stayed."""
    IGNORED = "ignored"
    """The event was ignored; its cell gives the reason."""
    STALE = "stale"
    """The event belongs to an attempt, a fetch or a timer that no longer exists."""


class StateChange(Struct, frozen=True, kw_only=True, tag_field="type", tag="state"):
    """A change of the connection's state. `cause` is the failure behind it, if any; `at` is on the loop's clock."""

    previous: State
    state: State
    cause: Cause | None
    at: float


class Step(NamedTuple):
    """The result of `step`."""

    snapshot: Snapshot
    effects: tuple[AnyEffect, ...]
    verdict: Verdict


def step(snapshot: Snapshot, event: AnyEvent, facts: Facts, policy: Policy = _DEFAULT) -> Step:
    """Apply one event to a snapshot.

    Raises `ForbiddenRequest` (or a subclass) for a request that the state does not allow. The given snapshot never
    changes, also if another error is raised.
    """
    if is_stale(snapshot, event):
        return Step(snapshot, (), Verdict.STALE)
    draft = Draft(snapshot, event, facts, policy)
    verdict = _VERDICTS[LIFECYCLE.fire(event.trigger, draft).kind]
    if draft.state is not snapshot.state:
        draft.set(state=draft.state)
    return Step(draft.after, tuple(draft.effects), verdict)


def is_stale(snapshot: Snapshot, event: AnyEvent) -> bool:
    """Whether the event belongs to an attempt, a fetch or a timer that no longer exists. An end is never stale."""
    if isinstance(event, JobEnded):
        return False
    if isinstance(event, Expiry):
        return snapshot.ticket(event.timer) != event.ticket
    if event.generation is not None and event.generation != snapshot.generation:
        return True
    return event.fetch is not None and event.fetch != snapshot.fetch


_VERDICTS: Final = {Kind.MOVED: Verdict.MOVED, Kind.KEPT: Verdict.KEPT, Kind.IGNORED: Verdict.IGNORED}
