"""The machine as one pure function: a snapshot and an event in, a snapshot and effects out."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from msgspec.structs import replace

from ._cells import Kind
from ._draft import Draft
from ._effects import AnyEffect
from ._events import AnyEvent, Expiry, Facts, JobEnded
from ._lifecycle import LIFECYCLE
from ._policy import Policy
from ._snapshot import Snapshot

_DEFAULT: Final = Policy()


class Verdict(Enum):
    """What became of an event."""

    MOVED = "moved"
    """It led to another state, or to the same one begun anew."""
    KEPT = "kept"
    """It was handled in the state."""
    IGNORED = "ignored"
    """It does not matter here, for the reason that its cell gives."""
    STALE = "stale"
    """It speaks of an attempt, a fetch or a timer that is no more."""


class Step(NamedTuple):
    """The answer of `step`."""

    snapshot: Snapshot
    effects: tuple[AnyEffect, ...]
    verdict: Verdict


def step(snapshot: Snapshot, event: AnyEvent, facts: Facts, policy: Policy = _DEFAULT) -> Step:
    """Take up one event.

    Raises `ForbiddenRequest` (or its kind) for a request that the state does not allow; nothing has changed then, nor
    whatever else is raised: the snapshot given is never touched.
    """
    if is_stale(snapshot, event):
        return Step(snapshot, (), Verdict.STALE)
    draft = Draft(snapshot, event, facts, policy)
    LIFECYCLE.fire(event.trigger, draft)
    verdict = _VERDICTS[draft.branch.kind if draft.branch is not None else Kind.IGNORED]
    after = draft.after if draft.state is snapshot.state else replace(draft.after, state=draft.state)
    return Step(after, tuple(draft.effects), verdict)


def is_stale(snapshot: Snapshot, event: AnyEvent) -> bool:
    """Whether the event speaks of an attempt, a fetch or a timer that is no more. An end is never stale."""
    if isinstance(event, JobEnded):
        return False
    if isinstance(event, Expiry):
        return snapshot.ticket(event.timer) != event.ticket
    if event.generation is not None and event.generation != snapshot.generation:
        return True
    return event.fetch is not None and event.fetch != snapshot.fetch


_VERDICTS: Final = {Kind.MOVED: Verdict.MOVED, Kind.KEPT: Verdict.KEPT, Kind.IGNORED: Verdict.IGNORED}
