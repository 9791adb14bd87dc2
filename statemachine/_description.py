"""The description of a table: the only source of every picture, document and comparison.

It is plain data with one canonical JSON form, so you can compare two versions of a machine although you can import
only one of them. `hash` identifies the machine: the SHA-256 of that form without the hash itself and without the
hints for pictures.
"""

from __future__ import annotations

import hashlib
from typing import Any, Self

import msgspec
from msgspec import Struct

from .._exceptions import InvalidArgument
from ._cells import ANY_STATE, Branch, Kind, Picture, doc_of, name_of, one_line
from ._table import Table
from ._trace import Recorded


class StateWords(Struct, frozen=True, kw_only=True):
    """A state: its meaning, the resources it owns, the actions of entering it, and why it may wait without a timer."""

    name: str
    doc: str = ""
    final: bool = False
    owns: tuple[str, ...] = ()
    enters: tuple[str, ...] = ()
    waits: str = ""


class EventWords(Struct, frozen=True, kw_only=True):
    """An event; `timer` names the timer whose expiry raises it."""

    name: str
    doc: str = ""
    timer: str | None = None


class BranchWords(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One possible response of a cell: `kind` is moved, kept, ignored or forbidden."""

    kind: str
    target: str | None = None
    guard: str | None = None
    actions: tuple[str, ...] = ()
    reason: str = ""
    error: str | None = None


class CellWords(Struct, frozen=True, kw_only=True):
    """The response to an event in a state: branches in order; each applies only if no earlier one did."""

    event: str
    state: str
    branches: tuple[BranchWords, ...]


class ActionWords(Struct, frozen=True, kw_only=True):
    """An action and the timers it may arm or disarm."""

    name: str
    doc: str = ""
    arms: tuple[str, ...] = ()
    disarms: tuple[str, ...] = ()


class GuardWords(Struct, frozen=True, kw_only=True):
    """A guard."""

    name: str
    doc: str = ""


class TimerWords(Struct, frozen=True, kw_only=True):
    """A timer: `after` is its time in words."""

    name: str
    doc: str = ""
    after: str = ""
    expiry: str
    runs_in: tuple[str, ...]


class Description(Recorded, frozen=True, kw_only=True):
    """The description of a whole table."""

    name: str
    initial: str
    states: tuple[StateWords, ...]
    events: tuple[EventWords, ...]
    cells: tuple[CellWords, ...]
    guards: tuple[GuardWords, ...]
    actions: tuple[ActionWords, ...]
    timers: tuple[TimerWords, ...]
    picture: Picture | None = None
    hash: str = ""

    def to_json(self) -> bytes:
        """The canonical JSON: sorted keys, two spaces, one line feed at the end."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read a description; raise `InvalidArgument` if it is damaged, edited or of another version."""
        description = super().from_json(data)
        if description.hash != _hash(description):
            raise InvalidArgument("description", "the hash does not match: the file was edited or cut")
        return description

    def cell(self, event: str, state: str) -> CellWords | None:
        """The cell of this event in this state, or None if the table has no such event or state."""
        return next((cell for cell in self.cells if (cell.event, cell.state) == (event, state)), None)

    def edges(self) -> list[tuple[CellWords, BranchWords]]:
        """Every branch that leads to a state, in table order."""
        return [(cell, branch) for cell in self.cells for branch in cell.branches if branch.target is not None]

    def shown(self) -> Picture:
        """The hints for pictures, with a place for every state that they do not name.

        Without any hints: down a way from the initial state, by the first branches, and the other states next to it.
        """
        names = [state.name for state in self.states]
        picture = self.picture or self._guessed(names)
        rows = tuple(tuple(name if name in (ANY_STATE, *names) else "" for name in row) for row in picture.rows)
        placed = {name for row in rows for name in row}
        more, wide = [name for name in (*names, ANY_STATE) if name not in placed], max(map(len, rows))
        rows += tuple(tuple(more[at : at + wide]) for at in range(0, len(more), wide))
        groups = {title: tuple(filter(placed.__contains__, members)) for title, members in picture.groups.items()}
        return Picture(
            picture.way, rows, {title: members for title, members in groups.items() if members}, picture.layers
        )

    def _guessed(self, names: list[str]) -> Picture:
        way, rest = [self.initial], [name for name in names if name != self.initial]
        edges = [(cell.state, branch.target) for cell, branch in self.edges()]
        while onward := next((target for source, target in edges if source == way[-1] and target in rest), None):
            way.append(onward)
            rest.remove(onward)
        rest.append(ANY_STATE)
        return Picture(tuple(way), tuple((name, *rest[row :: len(way)]) for row, name in enumerate(way)))


def describe(table: Table[Any, Any, Any, Any]) -> Description:
    """Describe a table.

    The docstrings of guards and actions are part of the description and of its hash. A Python that drops docstrings
    (`python -OO`) describes the same table without them.
    """
    expiries = {rule.expiry: timer for timer, rule in table.timers.items()}
    guards = {name_of(branch.when): branch.when for _, _, branch in table.branches() if branch.when is not None}
    actions = {action.name: action for _, _, branch in table.branches() for action in table.performed(branch)}
    description = Description(
        name=table.name,
        initial=table.initial.value,
        states=tuple(
            StateWords(
                name=state.value,
                doc=doc_of(state),
                final=state in table.final,
                owns=tuple(table.owns.get(state, ())),
                enters=tuple(action.name for action in table.enters.get(state, ())),
                waits=table.waits.get(state, ""),
            )
            for state in table.states
        ),
        events=tuple(
            EventWords(name=event.value, doc=doc_of(event), timer=expiries[event].value if event in expiries else None)
            for event in table.events
        ),
        cells=tuple(
            CellWords(event=event.value, state=state.value, branches=tuple(map(_branch, table.cell(event, state))))
            for event in table.events
            for state in table.states
        ),
        guards=tuple(GuardWords(name=name, doc=one_line(guards[name].__doc__)) for name in sorted(guards)),
        actions=tuple(
            ActionWords(
                name=name,
                doc=actions[name].doc,
                arms=tuple(timer.value for timer in actions[name].arms),
                disarms=tuple(timer.value for timer in actions[name].disarms),
            )
            for name in sorted(actions)
        ),
        timers=tuple(
            TimerWords(
                name=timer.value,
                doc=doc_of(timer),
                after=rule.after,
                expiry=rule.expiry.value,
                runs_in=tuple(state.value for state in table.states if state in rule.runs_in),
            )
            for timer, rule in table.timers.items()
        ),
        picture=table.picture,
    )
    return msgspec.structs.replace(description, hash=_hash(description))


def _branch(branch: Branch[Any, Any, Any]) -> BranchWords:
    return BranchWords(
        kind=branch.kind.value,
        target=branch.target.value if branch.target is not None else None,
        guard=name_of(branch.when) if branch.when is not None else None,
        actions=tuple(action.name for action in branch.actions),
        reason=branch.reason,
        error=branch.error.__name__ if branch.kind is Kind.FORBIDDEN and branch.error is not None else None,
    )


def _hash(description: Description) -> str:
    plain = msgspec.structs.replace(description, hash="", picture=None)
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
