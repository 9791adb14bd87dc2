"""A state machine as data: a typed table in which every event has a cell in every state.

This module knows no lifecycle. It defines a table, checks it at construction, and fires events through one flat
`transitions.Machine`, which all snapshots share:

- A cell is an ordered list of branches. A branch applies if its guard is true and no earlier branch applied; the last
  branch has no guard.
- A branch goes to a state, stays, ignores (with a written reason) or forbids (with a typed error).
- A branch also has a list of named actions, which change a scratch object. If one raises, the scratch is discarded and
  nothing has changed.

Three choices about `transitions`: no model is attached (an attached model costs 12 KiB and generated methods). Nested
and async machines are not used (they are slower, and the async one needs asyncio). Each branch carries the negated
guards of the earlier branches, so the order in which `transitions` tries them does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from transitions import EventData, Machine

from .._exceptions import ForbiddenRequest, TableError
from ._cells import Branch, D, E, Guard, Kind, Rows, S, T
from ._checks import machine_findings, shape_findings, timer_findings, walk_findings

# transitions logs a line at DEBUG for every callback; a level that the application has set stays unchanged.
_LOGGER: Final = logging.getLogger("transitions")
if _LOGGER.level == logging.NOTSET:
    _LOGGER.setLevel(logging.WARNING)


@dataclass(frozen=True, eq=False)
class Table(Rows[S, E, D, T]):
    """A whole machine as data; an incomplete or contradictory table raises `TableError` with every problem.

    `cells[event][state]` is a cell. `final` states have no exit. `waits` gives, for each state that waits without a
    timer, the reason why it cannot hang by accident. `owns` lists, for the documents, the resources of each state other
    than timers; the scratch's `leave` releases them.
    """

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

    def fire(self, event: E, scratch: D) -> None:
        """Fire `event` in `scratch.state`: run the cell's actions on the scratch and change its state.

        A forbidden branch raises its error. After any error, discard the scratch.
        """
        self._machine.events[event.value].trigger(scratch)

    @property
    def machine(self) -> Machine:
        """The `transitions` machine built from this table, for inspection."""
        return self._machine

    def enabled(self, event: E, scratch: D) -> list[Branch[S, D, T]]:
        """Every branch whose conditions hold; if there is more than one, the guards do not exclude each other.

        This is for tests: `fire` takes the first branch that applies and does not try the others.
        """
        question = EventData(None, None, self._machine, scratch, args=(), kwargs={})
        ways = self._machine.events[event.value].transitions[scratch.state.name]
        cell = self.cell(event, scratch.state)
        return [
            branch
            for branch, way in zip(cell, ways, strict=True)
            if all(condition.check(question) for condition in way.conditions)
        ]

    # Built from the table by __post_init__.
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
    # transitions compares a condition's result with `== True`, so any other true value would count as false.
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
