"""`cover` says which branches of a table its situations take."""

from __future__ import annotations

from enum import Enum
from typing import Any

from towline.statemachine import Table, forbid, go, ignore
from towline.testing import cover


class Door(Enum):
    SHUT = "shut"
    OPEN = "open"


class Act(Enum):
    PUSH = "push"


class Visit:
    def __init__(self, state: Door, key: bool = False) -> None:
        self.state = state
        self.key = key

    def leave(self, source: Door, target: Door) -> None:
        pass


def has_key(visit: Visit) -> bool:
    """There is a key."""
    return visit.key


DOOR: Table[Door, Act, Visit, Any] = Table(
    name="door",
    states=Door,
    events=Act,
    initial=Door.SHUT,
    final=frozenset(),
    cells={
        Act.PUSH: {
            Door.SHUT: (go(Door.OPEN, when=has_key), forbid("it is locked")),
            Door.OPEN: ignore("it is open"),
        }
    },
    waits=dict.fromkeys(Door, "waits for somebody"),
)


def test_coverage_of_a_table_of_one_s_own() -> None:
    situations = [(Act.PUSH, Visit(Door.SHUT)), (Act.PUSH, Visit(Door.OPEN))]
    assert cover(DOOR, situations) == {("push", "shut", 1), ("push", "open", 0)}
    assert cover(DOOR, [(Act.PUSH, Visit(Door.SHUT, key=True))]) == {("push", "shut", 0)}
