"""A recorded run of the machine, as versioned JSON that can be replayed.

A history starts with the snapshot before its first entry, so it replays exactly although earlier entries were
dropped. It holds no token and no job data: of a job's end it keeps only the kind.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec
from msgspec import Struct

from ..._exceptions import ForbiddenRequest
from .._cells import Kind
from .._trace import Departure, Journey, Passage, Recorded
from ._effects import Arm, Dial
from ._events import AnyEvent, Expiry, Facts, GapFound, JobEnded, Lost, Refused, State, Timer, TokenRejected
from ._policy import Delay, Policy
from ._snapshot import Snapshot
from ._step import Verdict, step


class Entry(Struct, frozen=True, kw_only=True):
    """One handled event: its facts, the states before and after, and the verdict. `verdict` None: forbidden."""

    event: AnyEvent
    facts: Facts
    source: State
    target: State
    verdict: Verdict | None


class History(Recorded, frozen=True, kw_only=True):
    """Entries in order, with everything needed to replay them.

    `to_json()` gives it as JSON. `from_json(data)` reads that, and raises `InvalidArgument` if it is damaged or of
    another version.
    """

    policy: Policy = Policy()
    start: Snapshot = Snapshot()
    entries: tuple[Entry, ...] = ()


class Recorder:
    """Keeps the last `limit` entries and the snapshot before them."""

    def __init__(self, policy: Policy, limit: int = 256) -> None:
        self._policy = policy
        self._limit = limit
        self._start = Snapshot()
        self._entries: list[Entry] = []

    def record(self, before: Snapshot, entry: Entry) -> None:
        """Add an entry; beyond the limit, drop the oldest."""
        if isinstance(entry.event, JobEnded):
            entry = msgspec.structs.replace(entry, event=msgspec.structs.replace(entry.event, update=None))
        if not self._entries:
            self._start = before
        self._entries.append(entry)
        if len(self._entries) > self._limit:
            oldest = self._entries.pop(0)
            with suppress(ForbiddenRequest):
                self._start = step(self._start, oldest.event, oldest.facts, self._policy).snapshot

    def history(self) -> History:
        """The history of the entries kept now."""
        return History(policy=self._policy, start=self._start, entries=tuple(self._entries))


def replay(history: History) -> Departure | None:
    """Run the history through the present machine; None if every step matches."""
    snapshot = history.start
    for place, entry in enumerate(history.entries):
        verdict: Verdict | None
        source = snapshot.state
        try:
            snapshot, _, verdict = step(snapshot, entry.event, entry.facts, history.policy)
        except ForbiddenRequest:
            verdict = None
        if (source, snapshot.state, verdict) != (entry.source, entry.target, entry.verdict):
            return Departure(place, journey(history).passages[place], snapshot.state.value, _verdict(verdict))
    return None


def _verdict(verdict: Verdict | None) -> str:
    return Kind.FORBIDDEN.value if verdict is None else verdict.value


# --- as a journey -----------------------------------------------------------------------------------------------------


def journey(history: History) -> Journey:
    """Turn a connection's history into a journey, with causes and the delays that the machine requested."""
    snapshot, passages = history.start, []
    for entry in history.entries:
        notes = [_cause(entry.event)]
        try:
            taken = step(snapshot, entry.event, entry.facts, history.policy)
        except ForbiddenRequest as error:
            notes.append(error.why)
        else:
            snapshot = taken.snapshot
            notes += [_delay(effect, entry.facts.now) for effect in taken.effects]
        passages.append(
            Passage(
                at=entry.facts.now,
                event=entry.event.trigger.value,
                source=entry.source.value,
                target=entry.target.value,
                verdict=_verdict(entry.verdict),
                note=", ".join(filter(None, notes)),
            )
        )
    return Journey(table="connection", states=tuple(state.value for state in State), passages=tuple(passages))


def _cause(event: object) -> str:
    match event:
        case Lost() | GapFound() | TokenRejected() | Refused():
            return f"{event.cause.code}: {event.cause.text}"
        case JobEnded():
            return event.outcome
        case Expiry():
            return f"the {event.timer.value} timer"
    return ""


def _delay(effect: object, now: float) -> str:
    match effect:
        case Arm(timer=Timer.BACKOFF, delay=Delay(low=low, high=high, at_least=least, extra=extra)):
            low, high = max(low, least), max(high, least) + extra
            return f"next attempt in {low:g} s" if low == high else f"next attempt in {low:g} to {high:g} s"
        case Dial(not_before=at) if at > now:
            return f"dial in {at - now:g} s"
    return ""
