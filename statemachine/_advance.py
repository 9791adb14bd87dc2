"""One step of any table as a pure function: a frozen snapshot and an event in, a snapshot and effects out.

`towline.runner.Runner` runs tables this way. The connection has a step of its own (`lifecycle/_step.py`), with facts of
the host and delays that its policy gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import msgspec

from .._exceptions import InvalidArgument
from ._cells import Action, Branch, Kind
from ._table import Table

S = TypeVar("S", bound=Enum)
V = TypeVar("V")

VERSION: Final = 1


@dataclass(frozen=True)
class TableSnapshot(Generic[S, V]):
    """What a lifecycle knows between two events: its state, your data, and the running timers with their tickets.

    `generation` counts the moves. Work that began in an older generation is stale.
    """

    state: S
    data: V
    generation: int = 0
    armed: tuple[tuple[Enum, int], ...] = ()
    tickets: int = 0


class Draft(Generic[S, V]):
    """The working copy of one step: guards read it, actions change it.

    `event` is None while a start or a resume enters the state. `value` is what came with the event.
    """

    def __init__(self, before: TableSnapshot[S, V], event: Any = None, value: Any = None) -> None:
        self.state = before.state
        self.data = before.data
        self.event = event
        self.value = value
        self.effects: list[Any] = []

    def set(self, **changes: Any) -> None:
        """Change fields of the data, a frozen dataclass."""
        self.data = cast("V", dataclasses.replace(cast("Any", self.data), **changes))

    def do(self, effect: object) -> None:
        """Request an effect, to be performed after the step."""
        self.effects.append(effect)

    def leave(self, source: S, target: S) -> None:
        """Nothing to release here: the timers and the work of a state end with it."""


class Advance(NamedTuple, Generic[S, V]):
    """The result of a step: the next snapshot, the effects in order, and the branch, which is None for an entry."""

    snapshot: TableSnapshot[S, V]
    effects: tuple[Any, ...]
    branch: Branch[S, Any, Any] | None


def advance(
    table: Table[S, Any, Any, Any], snapshot: TableSnapshot[S, V], event: Any, value: object = None
) -> Advance[S, V]:
    """Apply one event to a snapshot. Raises `ForbiddenRequest` for an event that the state forbids."""
    draft = Draft(snapshot, event, value)
    return _taken(table, snapshot, draft, table.fire(event, draft))


def suppose(
    table: Table[S, Any, Any, Any], snapshot: TableSnapshot[S, V], event: Any, branch: Branch[S, Any, Any]
) -> Advance[S, V]:
    """The step if `branch` applied, for any data: its actions only arm and disarm their timers."""
    draft = Draft(snapshot, event)
    draft.state = branch.target or snapshot.state
    return _taken(table, snapshot, draft, branch)


def _taken(
    table: Table[S, Any, Any, Any], snapshot: TableSnapshot[S, V], draft: Draft[S, V], branch: Branch[S, Any, Any]
) -> Advance[S, V]:
    armed = [(timer, ticket) for timer, ticket in snapshot.armed if table.timers[timer].expiry is not draft.event]
    moved = branch.kind is Kind.MOVED
    return Advance(_after(table, snapshot, draft, armed, table.performed(branch), moved), tuple(draft.effects), branch)


def enter(table: Table[S, Any, Any, Any], snapshot: TableSnapshot[S, V], *, perform: bool = True) -> Advance[S, V]:
    """Enter the snapshot's state, at the start or again after a restart: its timers start, its entry is performed.

    Without `perform` its actions only arm their timers, as in `suppose`.
    """
    draft = Draft(snapshot)
    actions = table.enters.get(snapshot.state, ())
    for action in actions if perform else ():
        action.run(draft)
    return Advance(_after(table, snapshot, draft, [], actions, True), tuple(draft.effects), None)


def _after(
    table: Table[S, Any, Any, Any],
    before: TableSnapshot[S, V],
    draft: Draft[S, V],
    armed: list[tuple[Enum, int]],
    actions: Iterable[Action[Any, Any]],
    moved: bool,
) -> TableSnapshot[S, V]:
    running = {timer: ticket for timer, ticket in armed if draft.state in table.timers[timer].runs_in}
    tickets = before.tickets
    for action in actions:
        for timer in action.disarms:
            running.pop(timer, None)
        for timer in action.arms:
            tickets += 1
            running[timer] = tickets
    return TableSnapshot(draft.state, draft.data, before.generation + moved, tuple(running.items()), tickets)


# --- saving ------------------------------------------------------------------------------------------------------


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot in a file. Timers are not saved: entering the state again starts them."""

    version: int = VERSION
    table: str
    state: str
    data: msgspec.Raw


def save(table: Table[S, Any, Any, Any], snapshot: TableSnapshot[S, V]) -> bytes:
    """The state and the data as JSON, for `restore`."""
    data = msgspec.Raw(msgspec.json.encode(snapshot.data))
    return msgspec.json.encode(_Saved(table=table.name, state=snapshot.state.value, data=data))


def restore(table: Table[S, Any, Any, Any], saved: bytes, kind: type[V]) -> TableSnapshot[S, V]:
    """Read a saved snapshot whose data is a `kind`.

    Raises `InvalidArgument` if it is damaged, of a newer version, of another table, or in a state that the table does
    not have.
    """
    try:
        found = msgspec.json.decode(saved, type=_Saved)
        if found.version != VERSION:
            raise InvalidArgument("saved", f"version {found.version} is unknown; use {VERSION}")
        data = msgspec.json.decode(found.data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument("saved", str(error)) from error
    if found.table != table.name:
        raise InvalidArgument("saved", f"it belongs to the table {found.table}, not to {table.name}")
    states = {state.value: state for state in table.states}
    if found.state not in states:
        raise InvalidArgument("saved", f"the table {table.name} has no state {found.state}")
    return TableSnapshot(states[found.state], data)
