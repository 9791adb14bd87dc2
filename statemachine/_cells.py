"""The data of a table: rows of cells, branches, named actions, timers, and enum members with a description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct

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
        return name_of(self.run)

    @property
    def doc(self) -> str:
        """The function's docstring, on one line."""
        return one_line(self.run.__doc__)

    def __reduce__(self) -> tuple[object, ...]:
        if isinstance(self.run, _Do):
            return Action, (self.run, self.arms, self.disarms)
        # By the name of its function, which the action itself hides in its module if `action` decorates it.
        return _find_action, (self.run.__module__, getattr(self.run, "__qualname__", ""), self.arms, self.disarms)


def _find_action(module: str, name: str, arms: tuple[Any, ...], disarms: tuple[Any, ...]) -> Action[Any, Any]:
    found = attrgetter(name)(import_module(module))
    return found if isinstance(found, Action) else Action(found, arms, disarms)


def action(
    *, arms: tuple[Any, ...] = (), disarms: tuple[Any, ...] = ()
) -> Callable[[Callable[[D], None]], Action[D, Any]]:
    """Make the decorated function an action that may arm or disarm these timers."""
    return lambda run: Action(run, arms=arms, disarms=disarms)


class _Do:
    """A request for an effect, as an action's function: it has the name and the description of the effect."""

    def __init__(self, effect: Enum) -> None:
        self._effect = effect
        self.__name__ = effect.value
        self.__doc__ = getattr(effect, "doc", "")

    def __call__(self, draft: Any) -> None:
        draft.do(self._effect)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Do) and other._effect is self._effect

    def __hash__(self) -> int:
        return hash(self._effect)


def do(effect: Enum, *, arms: tuple[Any, ...] = (), disarms: tuple[Any, ...] = ()) -> Action[Any, Any]:
    """Make an action that requests an effect, a member of a `Named`, and may arm or disarm timers.

    Its scratch has the method `do`, as `Draft` has.
    """
    return Action(_Do(effect), arms=arms, disarms=disarms)


def name_of(function: object) -> str:
    """The name of a guard or an action; empty for one without a name, such as a `partial`."""
    return getattr(function, "__name__", "")


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
    """The states a timer may run in, the event its expiry raises, and its time.

    The timer is disarmed when the machine leaves those states. `seconds` is its time, as a number or as a function of
    the snapshot; `towline.runner.Runner` needs it. `after` is the time in words, by default that number or the
    function's docstring.
    """

    runs_in: frozenset[S]
    expiry: E
    after: str = ""
    seconds: float | Callable[[Any], float] | None = None

    def __post_init__(self) -> None:
        if not self.after and self.seconds is not None:
            words = one_line(self.seconds.__doc__) if callable(self.seconds) else f"{self.seconds:g} s"
            object.__setattr__(self, "after", words.rstrip("."))


#: In the rows of a `Picture`, the place of the box from which the arrows that start in every state are drawn.
ANY_STATE: Final = "any state"


class Picture(Struct, frozen=True):
    """Hints for the pictures of a table, by the values of its states and events; none of them is a coordinate.

    `way` is the normal way. `rows` places the boxes from top to bottom and from left to right: `""` leaves a place
    free, and `ANY_STATE` stands for all states at once. `groups` puts a frame around neighbours. `layers` divides the
    events into pictures of their own.
    """

    way: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: dict[str, tuple[str, ...]] = {}
    layers: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True, eq=False)
class Rows(Generic[S, E, D, T]):
    """The data of a table, complete or not: `Table` checks it."""

    name: str
    states: type[S]
    events: type[E]
    initial: S
    final: frozenset[S]
    cells: Mapping[E, Mapping[S, Branch[S, D, T] | Cell[S, D, T]]]
    enters: Mapping[S, tuple[Action[D, T], ...]] = field(default_factory=dict)
    timers: Mapping[T, TimerRule[S, E]] = field(default_factory=dict)
    waits: Mapping[S, str] = field(default_factory=dict)
    owns: Mapping[S, tuple[str, ...]] = field(default_factory=dict)
    picture: Picture | None = None

    def cell(self, event: E, state: S) -> Cell[S, D, T]:
        """The cell of this event in this state."""
        cell = self.cells[event][state]
        return (cell,) if isinstance(cell, Branch) else cell

    def branches(self) -> Iterator[tuple[E, S, Branch[S, D, T]]]:
        """Every branch with its event and state, in table order."""
        for event, row in self.cells.items():
            for state in row:
                for branch in self.cell(event, state):
                    yield event, state, branch

    def performed(self, branch: Branch[S, D, T]) -> tuple[Action[D, T], ...]:
        """The actions of a branch, then those of entering its target."""
        return branch.actions if branch.target is None else (*branch.actions, *self.enters.get(branch.target, ()))


def go(target: S, *actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Move to `target`."""
    return Branch(Kind.MOVED, target, when=when, actions=actions, reason=reason)


def stay(*actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Handle the event, keep the state."""
    return Branch(Kind.KEPT, when=when, actions=actions, reason=reason)


def ignore(reason: str, *, when: Guard[D] | None = None) -> Branch[S, D, T]:
    """Ignore the event for this reason, and count it."""
    return Branch(Kind.IGNORED, when=when, reason=reason)


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
