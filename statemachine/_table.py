"""A state machine as data: a typed table in which every event has a cell in every state.

This module knows no lifecycle. It says what a table is, checks at construction that it holds together, and fires it
through one flat `transitions.Machine`, which is shared by every snapshot that ever steps through it:

- A cell is an ordered list of branches. A branch with a guard applies if no earlier one did; the last has no guard.
- A branch goes to a state, stays, ignores (with a written reason) or forbids (with a typed error).
- What happens besides is a list of named actions, which write onto a scratch object. If one raises, the scratch is
  thrown away and nothing has changed.

How `transitions` is used, and why: no model is attached (an attached model costs 12 KiB and generated methods), nested
and async machines are not used (they are slower, and the async one needs asyncio), and each branch carries its
predecessors' guards negated, so that the order in which `transitions` tries them does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from transitions import EventData, Machine

from .._exceptions import ForbiddenRequest, TableError

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
T = TypeVar("T", bound=Enum)

# transitions writes a line at DEBUG for every callback; a level that the application chose is left alone.
_LOGGER: Final = logging.getLogger("transitions")
if _LOGGER.level == logging.NOTSET:
    _LOGGER.setLevel(logging.WARNING)


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
    """Where a timer may run, and which event its expiry raises. Leaving those states disarms it."""

    runs_in: frozenset[S]
    expiry: E
    note: str = ""


@dataclass(frozen=True, eq=False)
class Table(Generic[S, E, D, T]):
    """A whole machine as data; making one that does not hold together raises `TableError` with every finding.

    `cells[event][state]` is a cell. `final` states have no exit. `waits` gives, for each state that waits for
    something without a timer of its own, the reason why that cannot be for ever by accident.
    """

    name: str
    states: type[S]
    events: type[E]
    initial: S
    final: frozenset[S]
    cells: Mapping[E, Mapping[S, Cell[S, D, T]]]
    timers: Mapping[T, TimerRule[S, E]] = field(default_factory=dict)
    waits: Mapping[S, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        findings = tuple(self._findings())
        if findings:
            raise TableError(findings)
        object.__setattr__(self, "_triggers", self._build())

    def cell(self, event: E, state: S) -> Cell[S, D, T]:
        """The cell of this event in this state."""
        return self.cells[event][state]

    def branches(self) -> Iterator[tuple[E, S, Branch[S, D, T]]]:
        """Every branch with its event and state, in table order."""
        for event, row in self.cells.items():
            for state, cell in row.items():
                for branch in cell:
                    yield event, state, branch

    def fire(self, event: E, scratch: D) -> None:
        """Take the cell of `event` in `scratch.state`: run its actions on the scratch and move it.

        A forbidden branch raises its error; whatever raises, the scratch is to be thrown away.
        """
        self._triggers[event.value].trigger(scratch)

    @property
    def machine(self) -> Machine:
        """The `transitions` machine made from this table, for whoever wants to look at it."""
        return self._machine

    # What __post_init__ made of the table; not fields, so that they are neither given nor shown.
    _triggers: Any = field(init=False, repr=False)
    _machine: Machine = field(init=False, repr=False)

    def _findings(self) -> Iterator[str]:
        for event in self.events:
            row = self.cells.get(event)
            if row is None:
                yield f"{event.value} has no row"
                continue
            for state in self.states:
                if not row.get(state):
                    yield f"{event.value} in {state.value} has no cell"
                else:
                    yield from self._cell_findings(event, state, row[state])

    def _cell_findings(self, event: E, state: S, cell: Cell[S, D, T]) -> Iterator[str]:
        where = f"{event.value} in {state.value}"
        *guarded, last = cell
        if last.when is not None:
            yield f"{where}: the last branch has a guard, so no branch may apply"
        if any(branch.when is None for branch in guarded):
            yield f"{where}: a branch after one without a guard can never apply"
        guards = [branch.when for branch in guarded]
        if len(set(guards)) != len(guards):
            yield f"{where}: the same guard stands twice, so two branches overlap"
        for branch in cell:
            if branch.when is not None and not one_line(branch.when.__doc__):
                yield f"{where}: the guard {branch.when.__name__} has no docstring"
            if branch.kind is Kind.MOVED:
                if not isinstance(branch.target, self.states):
                    yield f"{where}: {branch.target!r} is not a state"
                elif state in self.final:
                    yield f"{where}: {state.value} is final, and has an exit to {branch.target.value}"
            if branch.kind in (Kind.IGNORED, Kind.FORBIDDEN) and not branch.reason:
                yield f"{where}: {branch.kind.value} without a reason"

    def _build(self) -> Mapping[str, Any]:
        machine = Machine(
            model=None,
            states=self.states,
            initial=None,
            auto_transitions=False,
            send_event=True,
            queued=False,
        )
        for event, state, branch in self.branches():
            cell = self.cell(event, state)
            earlier = [other.when for other in cell[: cell.index(branch)] if other.when is not None]
            machine.add_transition(
                event.value,
                state,
                branch.target if branch.kind is Kind.MOVED else None,
                conditions=[] if branch.when is None else [_condition(branch.when)],
                unless=[_condition(guard) for guard in earlier],
                before=_performer(event, state, branch),
            )
        object.__setattr__(self, "_machine", machine)
        return machine.events


def _condition(guard: Guard[Any]) -> Callable[[EventData], bool]:
    # transitions compares a condition's answer with `== True`: anything else that is true would count as false.
    def condition(event_data: EventData) -> bool:
        return bool(guard(event_data.model))

    condition.__name__ = guard.__name__
    return condition


def _performer(event: Enum, state: Enum, branch: Branch[Any, Any, Any]) -> Callable[[EventData], None]:
    def perform(event_data: EventData) -> None:
        scratch: Any = event_data.model
        scratch.branch = branch
        if branch.kind is Kind.FORBIDDEN:
            raise (branch.error or ForbiddenRequest)(event.value, state.value, branch.reason)
        if branch.kind is Kind.MOVED:
            scratch.leave(state, branch.target)
        for action in branch.actions:
            action.run(scratch)

    return perform


def one_line(doc: str | None) -> str:
    """A docstring as one line of text."""
    return " ".join((doc or "").split())
