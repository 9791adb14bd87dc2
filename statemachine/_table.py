"""A state machine as data: a typed table in which every event has a cell in every state.

This module knows no lifecycle. It defines a table, checks it at construction, and fires events through one flat
`transitions.Machine`, which all snapshots share:

- A cell is an ordered list of branches. The first branch whose guard is true applies; the last one has no guard.
- A branch goes to a state, stays, ignores (with a written reason) or forbids (with a typed error).
- A branch also has a list of named actions, which change a scratch object, and so has the entry of a state: they follow
  the actions of each branch that leads there. If one raises, the scratch is discarded and nothing has changed.

Three choices about `transitions`: no model is attached (an attached model costs 12 KiB and generated methods). Nested
and async machines are not used (they are slower, and the async one needs asyncio). `fire` tries the transitions in the
order in which they were added, as `Event.trigger` does, but without its queue, its callbacks and its log: they cost 14
of 16 µs, and one step would log seven lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType
from typing import Any

from transitions import EventData, Machine, Transition

from .._exceptions import ForbiddenRequest, TableError
from ._cells import Action, Branch, D, E, Kind, Rows, S, T
from ._checks import findings, machine_findings


class BranchTransition(Transition):
    """A branch as a transition of the machine."""

    branch: Branch[Any, Any, Any]
    #: Those of the branch, then those of entering its target.
    actions: tuple[Action[Any, Any], ...]

    def execute(self, event_data: EventData) -> bool:
        """Ask the guard; if it holds, perform the branch on the scratch, which is the event's model."""
        scratch: Any = event_data.model
        branch = self.branch
        if branch.when is not None and not branch.when(scratch):
            return False
        if branch.kind is Kind.FORBIDDEN:
            raise (branch.error or ForbiddenRequest)(event_data.event.name, scratch.state.value, branch.reason)
        if branch.kind is Kind.MOVED:
            scratch.leave(scratch.state, branch.target)
        for action in self.actions:
            action.run(scratch)
        if branch.kind is Kind.MOVED:
            scratch.state = branch.target
        return True


class BranchMachine(Machine):
    """A machine whose transitions are branches."""

    transition_cls = BranchTransition


@dataclass(frozen=True, eq=False)
class Table(Rows[S, E, D, T]):
    """A whole machine as data; an incomplete or contradictory table raises `TableError` with every problem.

    `cells[event][state]` is a cell, or its only branch. `enters` gives the actions of entering a state, by any branch
    that goes there. `final` states have no exit. `waits` gives, for each state that may wait without a timer, why it
    cannot hang by accident. `owns` lists, for the documents, the resources of each state other than timers; the
    scratch's `leave` releases them.
    """

    def __post_init__(self) -> None:
        if isinstance(self.cells, Mapping):
            cells = {event: self._frozen(row) for event, row in self.cells.items()}
            object.__setattr__(self, "cells", MappingProxyType(cells))
        if wrong := tuple(findings(self)):
            raise TableError(wrong)
        machine = self._build()
        if wrong := tuple(machine_findings(self, machine)):
            raise TableError(wrong)
        object.__setattr__(self, "_machine", machine)

    @staticmethod
    def _frozen(row: Any) -> Any:
        if not isinstance(row, Mapping):
            return row
        return MappingProxyType({state: (cell,) if isinstance(cell, Branch) else cell for state, cell in row.items()})

    def __reduce__(self) -> tuple[object, ...]:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        given["cells"] = {event: dict(row) for event, row in self.cells.items()}
        return partial(type(self), **given), ()

    def __copy__(self) -> Table[S, E, D, T]:
        return self

    def __deepcopy__(self, memo: object) -> Table[S, E, D, T]:
        return self

    def fire(self, event: E, scratch: D) -> Branch[S, D, T]:
        """Fire `event` in `scratch.state`: perform the first branch whose guard holds, and return it.

        Each guard is asked at most once. A forbidden branch raises its error. After any error, discard the scratch.
        """
        trigger = self._machine.events[event.value]
        event_data = EventData(None, trigger, self._machine, scratch, (), {})
        way: Any
        for way in trigger.transitions[scratch.state.name]:
            if way.execute(event_data):
                branch: Branch[S, D, T] = way.branch
                return branch
        raise TableError((f"{event.value} in {scratch.state.value}: no branch applies",))

    def choose(self, event: E, scratch: D) -> Branch[S, D, T]:
        """Return the branch that `fire` would take, and perform nothing."""
        cell = self.cell(event, scratch.state)
        return next(branch for branch in cell if branch.when is None or branch.when(scratch))

    @property
    def machine(self) -> Machine:
        """The `transitions` machine built from this table, for inspection."""
        return self._machine

    # Built from the table by __post_init__.
    _machine: Machine = field(init=False, repr=False)

    def _build(self) -> Machine:
        machine = BranchMachine(
            model=None, states=self.states, initial=None, auto_transitions=False, send_event=True, queued=False
        )
        for event, state, branch in self.branches():
            target = branch.target if branch.kind is Kind.MOVED else None
            machine.add_transition(event.value, state, target)
            way: Any = machine.events[event.value].transitions[state.name][-1]
            way.branch, way.actions = branch, self.performed(branch)
        return machine
