"""What a table is made of: branches, cells, named actions, timers, and members that say what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from .._exceptions import ForbiddenRequest

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
T = TypeVar("T", bound=Enum)


class Named(Enum):
    """An enum whose members say what they mean: `IDLE = "idle", "Nothing runs."`

    The text is the member's `doc`; pictures and documents show it. Any other enum serves a table too, without texts.
    """

    _value_: str
    doc: str

    def __new__(cls, value: str, doc: str = "") -> Named:
        """Keep the text beside the value."""
        member = object.__new__(cls)
        member._value_ = value
        member.doc = doc
        return member


def doc_of(member: Enum) -> str:
    """What a member says it means; nothing where it is of a plain enum."""
    return one_line(getattr(member, "doc", ""))


class Scratch(Protocol[S]):
    """What a step is worked out on: thrown away afterwards. The machine moves `state` and notes the `branch` taken."""

    state: S
    branch: Any

    def leave(self, source: S, target: S) -> None:
        """Called before a branch that goes to `target`, and not for one that stays."""


D = TypeVar("D", bound=Scratch[Any])

#: A named function with a docstring: its name is shown in every picture, its docstring in the footnotes.
Guard: TypeAlias = Callable[[D], bool]


@dataclass(frozen=True, eq=False)
class Action(Generic[D, T]):
    """A named piece of work on the scratch. `arms` and `disarms` are the timers it touches, for the checks."""

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
    """What a branch does about the event."""

    MOVED = "moved"
    KEPT = "kept"
    IGNORED = "ignored"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, eq=False)
class Branch(Generic[S, D, T]):
    """One way a cell may go. `reason` says why, for what is ignored or forbidden."""

    kind: Kind
    target: S | None = None
    when: Guard[D] | None = None
    actions: tuple[Action[D, T], ...] = ()
    reason: str = ""
    error: type[ForbiddenRequest] | None = None


Cell: TypeAlias = tuple[Branch[S, D, T], ...]


@dataclass(frozen=True)
class TimerRule(Generic[S, E]):
    """Where a timer may run, which event its expiry raises, and `after` what time, in words.

    Leaving the states it runs in disarms it.
    """

    runs_in: frozenset[S]
    expiry: E
    after: str = ""


def go(target: S, *actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Move to `target`."""
    return Branch(Kind.MOVED, target, when=when, actions=actions, reason=reason)


def stay(*actions: Action[D, T], when: Guard[D] | None = None, reason: str = "") -> Branch[S, D, T]:
    """Handle the event, keep the state."""
    return Branch(Kind.KEPT, when=when, actions=actions, reason=reason)


def ignore(reason: str) -> Cell[S, D, T]:
    """Nothing to do, and why; counted."""
    return (Branch(Kind.IGNORED, reason=reason),)


def forbid(
    reason: str, error: type[ForbiddenRequest] = ForbiddenRequest, *, when: Guard[D] | None = None
) -> Branch[S, D, T]:
    """Not lawful here: a typed error, and nothing changes."""
    return Branch(Kind.FORBIDDEN, when=when, reason=reason, error=error)


def one_line(doc: str | None) -> str:
    """A docstring as one line of text."""
    return " ".join((doc or "").split())


#: Whether this Python keeps docstrings. `python -OO` and many frozen programs drop them; `sys.flags` does not show the
#: latter, so a docstring of this module is looked at.
HAS_DOCSTRINGS: Final = one_line.__doc__ is not None
