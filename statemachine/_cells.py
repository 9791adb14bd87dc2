"""The data of a table: rows of cells, branches, named actions, timers, and enum members with a description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from .._exceptions import ForbiddenRequest

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
T = TypeVar("T", bound=Enum)


class Named(Enum):
    """An enum whose members have a description: `IDLE = "idle", "Nothing runs."`

    The description is the member's `doc`; pictures and documents show it. A table also accepts a plain enum.
    """

    _value_: str
    doc: str

    def __new__(cls, value: str, doc: str = "") -> Named:
        """Keep the description together with the value."""
        member = object.__new__(cls)
        member._value_ = value
        member.doc = doc
        return member


def doc_of(member: Enum) -> str:
    """The member's description; empty for a member of a plain enum."""
    return one_line(getattr(member, "doc", ""))


class Scratch(Protocol[S]):
    """The working copy of one step, discarded afterwards. The machine sets `state`."""

    state: S

    def leave(self, source: S, target: S) -> None:
        """Called before a branch that goes to `target`; a branch that stays does not call it."""


D = TypeVar("D", bound=Scratch[Any])

#: A named function with a docstring: pictures show its name, footnotes its docstring.
Guard: TypeAlias = Callable[[D], bool]


@dataclass(frozen=True, eq=False)
class Action(Generic[D, T]):
    """A named function that changes the scratch. `arms` and `disarms` list the timers it touches, for the checks."""

    run: Callable[[D], None]
    arms: tuple[T, ...] = ()
    disarms: tuple[T, ...] = ()

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.run.__name__

    @property
    def doc(self) -> str:
        """The function's docstring, on one line."""
        return one_line(self.run.__doc__)


class Kind(Enum):
    """How a branch responds to the event."""

    MOVED = "moved"
    KEPT = "kept"
    IGNORED = "ignored"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, eq=False)
class Branch(Generic[S, D, T]):
    """One possible response of a cell. `reason` says why the branch ignores or forbids the event."""

    kind: Kind
    target: S | None = None
    when: Guard[D] | None = None
    actions: tuple[Action[D, T], ...] = ()
    reason: str = ""
    error: type[ForbiddenRequest] | None = None


Cell: TypeAlias = tuple[Branch[S, D, T], ...]


@dataclass(frozen=True)
class TimerRule(Generic[S, E]):
    """The states a timer may run in, the event its expiry raises, and its time in words (`after`).

    The timer is disarmed when the machine leaves those states.
    """

    runs_in: frozenset[S]
    expiry: E
    after: str = ""


@dataclass(frozen=True, eq=False)
class Rows(Generic[S, E, D, T]):
    """The data of a table, complete or not: `Table` checks it."""

    name: str
    states: type[S]
    events: type[E]
    initial: S
    final: frozenset[S]
    cells: Mapping[E, Mapping[S, Cell[S, D, T]]]
    timers: Mapping[T, TimerRule[S, E]] = field(default_factory=dict)
    waits: Mapping[S, str] = field(default_factory=dict)
    owns: Mapping[S, tuple[str, ...]] = field(default_factory=dict)

    def cell(self, event: E, state: S) -> Cell[S, D, T]:
        """The cell of this event in this state."""
        return self.cells[event][state]

    def branches(self) -> Iterator[tuple[E, S, Branch[S, D, T]]]:
        """Every branch with its event and state, in table order."""
        for event, row in self.cells.items():
            for state, cell in row.items():
                for branch in cell:
                    yield event, state, branch


def go(target: S, *actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Move to `target`."""
    return Branch(Kind.MOVED, target, when=when, actions=actions, reason=reason)


def stay(*actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Handle the event, keep the state."""
    return Branch(Kind.KEPT, when=when, actions=actions, reason=reason)


def ignore(reason: str) -> Cell[S, D, T]:
    """Ignore the event for this reason, and count it."""
    return (Branch(Kind.IGNORED, reason=reason),)


def forbid(
    reason: str, error: type[ForbiddenRequest] = ForbiddenRequest, *, when: Guard[D] | None = None
) -> Branch[S, D, T]:
    """Forbid the event: raise a typed error and change nothing."""
    return Branch(Kind.FORBIDDEN, when=when, reason=reason, error=error)


def one_line(doc: str | None) -> str:
    """A docstring as one line of text."""
    return " ".join((doc or "").split())


#: Whether this Python keeps docstrings. `python -OO` and many frozen programs drop them. `sys.flags` does not show it
#: for frozen programs, so we look at a docstring of this module.
HAS_DOCSTRINGS: Final = one_line.__doc__ is not None
