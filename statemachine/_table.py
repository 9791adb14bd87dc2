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
from types import MappingProxyType
from typing import Any, Final, Generic

from transitions import EventData, Machine

from .._exceptions import ForbiddenRequest, TableError
from ._cells import Branch, Cell, D, E, Guard, Kind, S, T, TimerRule
from ._checks import machine_findings, shape_findings, timer_findings, walk_findings

# transitions writes a line at DEBUG for every callback; a level that the application chose is left alone.
_LOGGER: Final = logging.getLogger("transitions")
if _LOGGER.level == logging.NOTSET:
    _LOGGER.setLevel(logging.WARNING)


@dataclass(frozen=True, eq=False)
class Table(Generic[S, E, D, T]):
    """A whole machine as data; making one that does not hold together raises `TableError` with every finding.

    `cells[event][state]` is a cell. `final` states have no exit. `waits` gives, for each state that waits for
    something without a timer of its own, the reason why that cannot be for ever by accident. `owns` says, for the
    documents, what each state holds besides timers; leaving it gives that back (the scratch's `leave` does).
    """

    name: str
    states: type[S]
    events: type[E]
    initial: S
    final: frozenset[S]
    cells: Mapping[E, Mapping[S, Cell[S, D, T]]]
    timers: Mapping[T, TimerRule[S, E]] = field(default_factory=dict)
    waits: Mapping[S, str] = field(default_factory=dict)
    owns: Mapping[S, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        findings = tuple(shape_findings(self)) or (*walk_findings(self), *timer_findings(self))
        if findings:
            raise TableError(findings)
        frozen = {event: MappingProxyType(dict(row)) for event, row in self.cells.items()}
        object.__setattr__(self, "cells", MappingProxyType(frozen))
        machine = self._build()
        if wrong := tuple(machine_findings(self, machine)):
            raise TableError(wrong)
        object.__setattr__(self, "_machine", machine)

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
        self._machine.events[event.value].trigger(scratch)

    @property
    def machine(self) -> Machine:
        """The `transitions` machine made from this table, for whoever wants to look at it."""
        return self._machine

    def enabled(self, event: E, scratch: D) -> list[Branch[S, D, T]]:
        """Every branch that the machine would take, asking each: exactly one, or the guards do not exclude each other.

        For tests: `fire` takes the first that applies and asks no further.
        """
        question = EventData(None, None, self._machine, scratch, args=(), kwargs={})
        ways = self._machine.events[event.value].transitions[scratch.state.name]
        cell = self.cell(event, scratch.state)
        return [
            branch
            for branch, way in zip(cell, ways, strict=True)
            if all(condition.check(question) for condition in way.conditions)
        ]

    # What __post_init__ made of the table.
    _machine: Machine = field(init=False, repr=False)

    def _build(self) -> Machine:
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
        return machine


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
