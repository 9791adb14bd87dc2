"""The rules that every table must follow. Each check yields one sentence for each problem that it finds.

- Every event has a cell in every state; every target is a state; a branch that ignores or forbids gives a reason.
- The branches of a cell cover every case: all but the last have a guard, and the first whose guard holds applies.
- Every state can be reached. If there are final states, each state can reach one. A final state has no exit.
- A state that waits has a timer, or gives the reason why it cannot hang by accident.
- Each timer is armed at least once, only in states where it may run, and each of those states handles its expiry.
- Every guard and action has a docstring, in a Python that keeps docstrings.
- The built machine equals the table: the same states, and the same transitions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from ._cells import HAS_DOCSTRINGS, Branch, Kind, Rows, one_line

if TYPE_CHECKING:
    from transitions import Machine

AnyRows: TypeAlias = Rows[Any, Any, Any, Any]


def shape_findings(table: AnyRows) -> Iterator[str]:
    """Problems of single cells; the other checks need a table without these problems."""
    for event in table.cells:
        if not isinstance(event, table.events):
            yield f"{event!r} has a row but is not an event"
    for event in table.events:
        row = table.cells.get(event)
        if row is None:
            yield f"{event.value} has no row"
            continue
        for state in row:
            if not isinstance(state, table.states):
                yield f"{event.value}: {state!r} has a cell but is not a state"
        for state in table.states:
            if not row.get(state):
                yield f"{event.value} in {state.value} has no cell"
            else:
                yield from _cell_findings(table, event, state)
    for state in (table.initial, *table.final, *table.waits, *table.owns):
        if not isinstance(state, table.states):
            yield f"{state!r} is named but is not a state"
    for timer, rule in table.timers.items():
        if not isinstance(rule.expiry, table.events):
            yield f"the timer {timer.value} raises {rule.expiry!r}, which is not an event"
        for state in rule.runs_in:
            if not isinstance(state, table.states):
                yield f"the timer {timer.value} runs in {state!r}, which is not a state"


def _cell_findings(table: AnyRows, event: Enum, state: Enum) -> Iterator[str]:
    cell = table.cells[event][state]
    where = f"{event.value} in {state.value}"
    *guarded, last = cell
    if last.when is not None:
        yield f"{where}: the last branch has a guard, so no branch may apply; add a branch without one"
    if any(branch.when is None for branch in guarded):
        yield f"{where}: a branch can never apply because it follows one without a guard"
    guards = [branch.when for branch in guarded if branch.when is not None]
    if len(set(guards)) != len(guards):
        yield f"{where}: two branches have the same guard, so they overlap"
    for branch in cell:
        yield from _branch_findings(table, where, state, branch)


def _branch_findings(table: AnyRows, where: str, state: Enum, branch: Branch[Any, Any, Any]) -> Iterator[str]:
    if HAS_DOCSTRINGS:
        if branch.when is not None and not one_line(branch.when.__doc__):
            yield f"{where}: the guard {branch.when.__name__} has no docstring"
        for action in branch.actions:
            if not action.doc:
                yield f"{where}: the action {action.name} has no docstring"
    if branch.kind is Kind.MOVED:
        if not isinstance(branch.target, table.states):
            yield f"{where}: {branch.target!r} is not a state"
        elif state in table.final:
            yield f"{where}: {state.value} is final but has an exit to {branch.target.value}"
    elif branch.target is not None:
        yield f"{where}: {branch.kind.value}, but has a target"
    if branch.kind in (Kind.IGNORED, Kind.FORBIDDEN):
        if not branch.reason:
            yield f"{where}: {branch.kind.value} without a reason"
        if branch.actions:
            yield f"{where}: {branch.kind.value}, but has actions"


def walk_findings(table: AnyRows) -> Iterator[str]:
    """Problems of the paths through the table."""
    exits = {state: set[Enum]() for state in table.states}
    for _, source, branch in table.branches():
        if branch.kind is Kind.MOVED:
            exits[source].add(_target(branch))
    reached = _closure({table.initial}, exits)
    for state in table.states:
        if state not in reached:
            yield f"{state.value} cannot be reached from {table.initial.value}"
    if table.final:
        entries = {state: {source for source in exits if state in exits[source]} for state in exits}
        ending = _closure(set(table.final), entries)
        for state in table.states:
            if state not in ending:
                yield f"{state.value} is a trap: it is not final, and no final state can be reached from it"
    for state in table.states:
        timed = any(state in rule.runs_in for rule in table.timers.values())
        if state not in table.final and not timed and not table.waits.get(state):
            yield f"{state.value} waits without a timer; add one, or give the reason in `waits`"


def _closure(start: set[Enum], ways: Mapping[Enum, set[Enum]]) -> set[Enum]:
    seen, new = set(start), list(start)
    while new:
        for state in ways[new.pop()] - seen:
            seen.add(state)
            new.append(state)
    return seen


def timer_findings(table: AnyRows) -> Iterator[str]:
    """Problems of the timers."""
    armed = set()
    for event, source, branch in table.branches():
        where = f"{event.value} in {source.value}"
        lands_in = _target(branch) if branch.kind is Kind.MOVED else source
        for action in branch.actions:
            for timer in (*action.arms, *action.disarms):
                if timer not in table.timers:
                    yield f"{where}: {action.name} touches the timer {timer.value}, which has no rule"
            for timer in action.arms:
                armed.add(timer)
                if timer in table.timers and lands_in not in table.timers[timer].runs_in:
                    yield f"{where}: {action.name} arms {timer.value} in {lands_in.value}, where it may not run"
    for timer, rule in table.timers.items():
        if timer not in armed:
            yield f"no action arms the timer {timer.value}"
        for state in rule.runs_in:
            kinds = {branch.kind for branch in table.cells[rule.expiry][state]}
            if kinds & {Kind.IGNORED, Kind.FORBIDDEN}:
                yield f"the timer {timer.value} may expire in {state.value}, which does not handle {rule.expiry.value}"


def machine_findings(table: AnyRows, machine: Machine) -> Iterator[str]:
    """Differences between the built machine and the table."""
    if {state.name for state in table.states} != set(machine.states):
        yield "the machine has other states than the table"
    if {event.value for event in table.events} != set(machine.events):
        yield "the machine has other events than the table"
        return
    for event in table.events:
        for state in table.states:
            ways: list[Any] = machine.events[event.value].transitions.get(state.name, [])
            built = [(way.dest, way.branch) for way in ways]
            cell = table.cells[event][state]
            if built != [(_target(branch).name if branch.kind is Kind.MOVED else None, branch) for branch in cell]:
                yield f"{event.value} in {state.value}: the machine has other transitions than the table"


def _target(branch: Branch[Any, Any, Any]) -> Any:
    assert branch.target is not None, "shape_findings checks it"
    return branch.target
