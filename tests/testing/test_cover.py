"""`cover` says which branches of a table its situations take."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from towline._exceptions import TableError
from towline.statemachine import Table, forbid, go, ignore
from towline.testing import cover


class Door(Enum):
    SHUT = "shut"
    OPEN = "open"


class Act(Enum):
    PUSH = "push"


class Visit:
    def __init__(self, state: Door, key: bool = False, answers: Any = None) -> None:
        self.state = state
        self.key = key
        self.answers = iter(answers) if answers else None
        self.branch: Any = None

    def leave(self, source: Door, target: Door) -> None:
        pass


def has_key(visit: Visit) -> bool:
    """There is a key."""
    return visit.key if visit.answers is None else next(visit.answers)


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


def test_a_guard_that_answers_otherwise_each_time_is_found() -> None:
    with pytest.raises(TableError, match="2 branches apply at once"):
        cover(DOOR, [(Act.PUSH, Visit(Door.SHUT, answers=[True, False]))])
