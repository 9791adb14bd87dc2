"""The rules that every table must follow. Each check yields one sentence for each problem that it finds.

- States, events and timers are enums whose values are different texts.
- Every event has a cell in every state; every target is a state; a branch that ignores or forbids gives a reason.
- The branches of a cell cover every case: all but the last have a guard, and the first whose guard holds applies.
- Guards and actions are plain functions with different names and, in a Python that keeps docstrings, with a docstring.
- Every state can be reached. If there are final states, each state can reach one. A final state has no exit.
- A state that waits gives the reason why it cannot hang by accident. Without a reason, every way into it arms a timer
  or leaves one running, and so does every event that it handles.
- Each timer has its own expiry and is armed at least once, only in states where it may run, and each of those
  states handles its expiry.
- The hints for pictures name each state once and, if they have layers, each event once; a frame has no stranger in it.
- The built machine equals the table: the same states, and the same transitions in the same order.

A cell that cannot be used is reported once; the other checks then assume that it could do anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from ._cells import ANY_STATE, HAS_DOCSTRINGS, Action, Branch, Kind, Picture, Rows, TimerRule, name_of, one_line

if TYPE_CHECKING:
    from transitions import Machine

AnyRows: TypeAlias = Rows[Any, Any, Any, Any]
_Cells: TypeAlias = Mapping[tuple[Enum, Enum], tuple[Branch[Any, Any, Any], ...]]


def findings(table: AnyRows) -> Iterator[str]:
    """Every problem of a table."""
    if unreadable := list(_unreadable_findings(table)):
        yield from unreadable
        return
    yield from _member_findings(table)
    cells: dict[tuple[Enum, Enum], tuple[Branch[Any, Any, Any], ...]] = {}
    yield from _row_findings(table, cells)
    for (event, state), cell in cells.items():
        yield from _cell_findings(table, f"{event.value} in {state.value}", state, cell)
    for (event, state), cell in list(cells.items()):
        if any(branch.kind is Kind.MOVED and not _is(branch.target, table.states) for branch in cell):
            del cells[event, state]
    yield from _function_findings(table, cells)
    yield from _walk_findings(table, cells)
    yield from _timer_findings(table, cells)
    if table.picture is not None:
        yield from _picture_findings(table, table.picture)


# --- shapes ------------------------------------------------------------------------------------------------------


def _is(member: object, kind: type[Enum]) -> bool:
    return isinstance(member, kind)


def _unreadable_findings(table: AnyRows) -> Iterator[str]:
    """Problems that leave nothing for the other checks to read."""
    for name in ("states", "events"):
        kind: object = getattr(table, name)
        if not (isinstance(kind, type) and issubclass(kind, Enum) and len(kind)):
            yield f"{name}: {kind!r} is not an enum with members"
    unreadable = [
        name for name in ("cells", "enters", "timers", "waits", "owns") if not isinstance(getattr(table, name), Mapping)
    ]
    yield from (f"{name} is not a mapping" for name in unreadable)
    if unreadable:
        return
    for timer, rule in table.timers.items():
        if not isinstance(timer, Enum) or not isinstance(rule, TimerRule):
            yield f"the timer {timer!r} is not a member of an enum with a TimerRule"
    for state, actions in table.enters.items():
        yield from _action_findings(f"entering {getattr(state, 'value', state)}", actions)


def _action_findings(where: str, actions: object) -> Iterator[str]:
    if not isinstance(actions, tuple):
        yield f"{where}: {actions!r} is not a tuple of actions"
        return
    for action in actions:
        if not isinstance(action, Action):
            yield f"{where}: {action!r} is not an Action"


def _member_findings(table: AnyRows) -> Iterator[str]:
    kinds = {table.states: "states", table.events: "events"} | {type(timer): "timers" for timer in table.timers}
    for kind, what in kinds.items():
        for name, member in kind.__members__.items():
            if name != member.name:
                yield f"{what}: {name} is another name of {member.name}; give it another value"
            elif not isinstance(member.value, str):
                yield f"{what}: the value of {name} is {member.value!r}, not a text"
    for state in (table.initial, *table.final, *table.waits, *table.owns, *table.enters):
        if not _is(state, table.states):
            yield f"{state!r} is named but is not a state"


def _row_findings(table: AnyRows, cells: dict[tuple[Enum, Enum], Any]) -> Iterator[str]:
    """Problems of rows and cells; puts the usable cells into `cells`."""
    for event in table.cells:
        if not _is(event, table.events):
            yield f"{event!r} has a row but is not an event"
    for event in table.events:
        row = table.cells.get(event)
        if not isinstance(row, Mapping):
            yield f"{event.value} has no row"
            continue
        for state in row:
            if not _is(state, table.states):
                yield f"{event.value}: {state!r} has a cell but is not a state"
        for state in table.states:
            cell = row.get(state)
            if not cell:
                yield f"{event.value} in {state.value} has no cell"
            elif not isinstance(cell, tuple) or not all(isinstance(branch, Branch) for branch in cell):
                yield f"{event.value} in {state.value}: {cell!r} is not a branch or a tuple of branches"
            else:
                where = f"{event.value} in {state.value}"
                wrong = [finding for branch in cell for finding in _action_findings(where, branch.actions)]
                yield from wrong
                if not wrong:
                    cells[event, state] = cell


def _cell_findings(table: AnyRows, where: str, state: Enum, cell: tuple[Branch[Any, Any, Any], ...]) -> Iterator[str]:
    *guarded, last = cell
    if last.when is not None:
        yield f"{where}: the last branch has a guard, so no branch may apply; add a branch without one"
    if any(branch.when is None for branch in guarded):
        yield f"{where}: a branch can never apply because it follows one without a guard"
    guards = [branch.when for branch in guarded if branch.when is not None]
    if len({id(guard) for guard in guards}) != len(guards):
        yield f"{where}: two branches have the same guard, so one can never apply"
    for branch in cell:
        if branch.kind is Kind.MOVED:
            if not _is(branch.target, table.states):
                yield f"{where}: {branch.target!r} is not a state"
            elif state in table.final:
                yield f"{where}: {state.value} is final but has an exit to {_target(branch).value}"
        elif branch.target is not None:
            yield f"{where}: {branch.kind.value}, but has a target"
        if branch.kind in (Kind.IGNORED, Kind.FORBIDDEN):
            if not branch.reason:
                yield f"{where}: {branch.kind.value} without a reason"
            if branch.actions:
                yield f"{where}: {branch.kind.value}, but has actions"


def _function_findings(table: AnyRows, cells: _Cells) -> Iterator[str]:
    """Problems of guards and actions, each reported where the function is used first."""
    used: dict[tuple[str, str], Any] = {}
    seen = set()
    for what, where, thing in _functions(table, cells):
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        function = thing.run if isinstance(thing, Action) else thing
        name = name_of(function)
        if not callable(function) or not name:
            yield f"{where}: the {what} {function!r} is not a function with a name"
            continue
        if inspect.iscoroutinefunction(function):
            yield f"{where}: the {what} {name} is a coroutine function; a step does not wait"
        if HAS_DOCSTRINGS and not one_line(function.__doc__):
            yield f"{where}: the {what} {name} has no docstring"
        meant = (function, thing.arms, thing.disarms) if isinstance(thing, Action) else function
        if used.setdefault((what, name), meant) != meant:
            yield f"{where}: another {what} is named {name}"


def _functions(table: AnyRows, cells: _Cells) -> Iterator[tuple[str, str, Any]]:
    for (event, state), cell in cells.items():
        where = f"{event.value} in {state.value}"
        for branch in cell:
            if branch.when is not None:
                yield "guard", where, branch.when
            for action in branch.actions:
                yield "action", where, action
    for state, actions in table.enters.items():
        for action in actions:
            yield "action", f"entering {getattr(state, 'value', state)}", action


# --- paths -------------------------------------------------------------------------------------------------------


def _walk_findings(table: AnyRows, cells: _Cells) -> Iterator[str]:
    exits = {state: set[Enum]() for state in table.states}
    everywhere = set(exits)
    for event in table.events:
        for state in table.states:
            cell = cells.get((event, state))
            if cell is None:
                exits[state] |= everywhere
            else:
                exits[state] |= {_target(branch) for branch in cell if branch.kind is Kind.MOVED}
    reached = _closure({table.initial} & everywhere, exits)
    for state in table.states:
        if state not in reached and reached:
            yield f"{state.value} cannot be reached from {table.initial.value}"
    if table.final and table.final <= everywhere:
        entries = {state: {source for source in exits if state in exits[source]} for state in exits}
        ending = _closure(set(table.final), entries)
        for state in table.states:
            if state not in ending:
                yield f"{state.value} is a trap: it is not final, and no final state can be reached from it"


def _closure(start: set[Enum], ways: Mapping[Enum, set[Enum]]) -> set[Enum]:
    seen, new = set(start), list(start)
    while new:
        for state in ways[new.pop()] - seen:
            seen.add(state)
            new.append(state)
    return seen


# --- timers ------------------------------------------------------------------------------------------------------


def _timer_findings(table: AnyRows, cells: _Cells) -> Iterator[str]:
    expiries = dict[Enum, Enum]()
    for timer, rule in table.timers.items():
        if not _is(rule.expiry, table.events):
            yield f"the timer {timer.value} raises {rule.expiry!r}, which is not an event"
        elif (other := expiries.setdefault(rule.expiry, timer)) is not timer:
            yield f"the timers {other.value} and {timer.value} share the expiry {rule.expiry.value}"
        for state in rule.runs_in:
            if not _is(state, table.states):
                yield f"the timer {timer.value} runs in {state!r}, which is not a state"
    armed = set()
    for where, lands_in, actions in _performances(table, cells):
        for action in actions:
            for timer in (*action.arms, *action.disarms):
                if timer not in table.timers:
                    yield f"{where}: {action.name} touches the timer {timer.value}, which has no rule"
            for timer in action.arms:
                armed.add(timer)
                if timer in table.timers and lands_in not in table.timers[timer].runs_in:
                    yield f"{where}: {action.name} arms {timer.value} in {lands_in.value}, where it may not run"
    complete = all((event, state) in cells for event in table.events for state in table.states)
    for timer, rule in table.timers.items():
        if timer not in armed and complete:
            yield f"no action arms the timer {timer.value}"
        for state in rule.runs_in:
            kinds = {branch.kind for branch in cells.get((rule.expiry, state), ())}
            if kinds & {Kind.IGNORED, Kind.FORBIDDEN}:
                yield f"the timer {timer.value} may expire in {state.value}, which does not handle {rule.expiry.value}"
    yield from _waiting_findings(table, cells, expiries)


def _performances(table: AnyRows, cells: _Cells) -> Iterator[tuple[str, Any, tuple[Action[Any, Any], ...]]]:
    for (event, source), cell in cells.items():
        for branch in cell:
            if branch.kind in (Kind.MOVED, Kind.KEPT):
                yield f"{event.value} in {source.value}", branch.target or source, branch.actions
    for state, actions in table.enters.items():
        yield f"entering {getattr(state, 'value', state)}", state, actions


def _waiting_findings(table: AnyRows, cells: _Cells, expiries: Mapping[Enum, Enum]) -> Iterator[str]:
    """States without a reason to wait in which no timer may be running."""
    waiting = [state for state in table.states if state not in table.final and not table.waits.get(state)]
    # The timers that run in a state after every event that leads to it, as far as the actions say: start with all of
    # them, and remove what some event does not leave running, until nothing changes.
    running = {
        state: {timer for timer, rule in table.timers.items() if state in rule.runs_in} for state in table.states
    }
    blame: dict[Enum, str] = {}
    if table.initial in waiting:
        armed = {timer for action in table.enters.get(table.initial, ()) for timer in action.arms}
        blame[table.initial] = "the machine starts there"
        running[table.initial] &= armed
    changed = True
    while changed:
        changed = False
        for (event, source), cell in cells.items():
            for branch in cell:
                if branch.kind in (Kind.IGNORED, Kind.FORBIDDEN):
                    continue
                target: Any = branch.target or source
                left = set(running[source]) - {expiries.get(event)}
                for action in table.performed(branch):
                    left = (left - set(action.disarms)) | set(action.arms)
                if running[target] - left:
                    running[target] &= left
                    changed = True
                    if not running[target]:
                        blame.setdefault(target, f"{event.value} in {source.value} leaves no timer running there")
    for state in waiting:
        if not running[state]:
            why = blame.get(state, "no timer runs there")
            yield f"{state.value} waits without a timer ({why}); arm one, or give the reason in `waits`"


# --- the machine -------------------------------------------------------------------------------------------------


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
            built = [(way.dest, way.branch, way.actions) for way in ways]
            meant = [
                (_target(branch).name if branch.kind is Kind.MOVED else None, branch, table.performed(branch))
                for branch in table.cell(event, state)
            ]
            if built != meant:
                yield f"{event.value} in {state.value}: the machine has other transitions than the table"


def _target(branch: Branch[Any, Any, Any]) -> Any:
    assert branch.target is not None, "the checks of the cell come first"
    return branch.target


# --- pictures ----------------------------------------------------------------------------------------------------


def _picture_findings(table: AnyRows, picture: Picture) -> Iterator[str]:
    states = sorted(str(state.value) for state in table.states)
    spots = {name: (row, column) for row, names in enumerate(picture.rows) for column, name in enumerate(names) if name}
    if sorted(name for names in picture.rows for name in names if name not in ("", ANY_STATE)) != states:
        yield "picture: the rows must name each state once"
    if picture.layers and sorted(name for names in picture.layers.values() for name in names) != sorted(
        str(event.value) for event in table.events
    ):
        yield "picture: the layers must name each event once"
    framed = [name for names in picture.groups.values() for name in names]
    if not {*framed, *picture.way} <= {*states} & {*spots} or len({*framed}) < len(framed):
        yield "picture: the way and the groups must name states, and no state may be in two groups"
        return
    for title, members in picture.groups.items():
        if not members:
            yield f"picture: the group {title} is empty"
            continue
        rows, columns = ({spots[name][axis] for name in members} for axis in (0, 1))
        for name, (row, column) in spots.items():
            inside = min(rows) <= row <= max(rows) and min(columns) <= column <= max(columns)
            if inside and name not in members:
                yield f"picture: {name} stands in the frame of {title}"
