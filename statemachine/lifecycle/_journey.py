"""The journey of a connection: its history, with the causes and delays in words."""

from __future__ import annotations

from ..._exceptions import ForbiddenRequest
from .._cells import Kind
from .._trace import Journey, Passage
from ._effects import Arm, Dial
from ._events import Expiry, GapFound, JobEnded, Lost, Refused, State, Timer, TokenRejected
from ._history import History
from ._policy import Delay
from ._step import step


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
                verdict=entry.verdict.value if entry.verdict is not None else Kind.FORBIDDEN.value,
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
