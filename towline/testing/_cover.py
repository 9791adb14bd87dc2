"""Measures which branches of a state table a set of situations takes, for an application's own lifecycle."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeAlias

from .._exceptions import ForbiddenRequest
from ..statemachine import Branch, Table

#: A branch: event, state, position in the cell. `markdown(covered=...)` takes the same.
Place: TypeAlias = tuple[str, str, int]


def place_of(table: Table[Any, Any, Any, Any], event: Any, state: Any, branch: Branch[Any, Any, Any]) -> Place:
    """The place of a branch in its table."""
    return event.value, state.value, table.cell(event, state).index(branch)


def cover(table: Table[Any, Any, Any, Any], situations: Iterable[tuple[Any, Any]]) -> set[Place]:
    """Fire each event on its scratch and return the branches taken: event, state, position of the branch.

    Raises any error of a guard or an action. A forbidden request counts as a branch. Pass the set to
    `markdown(describe(table), covered=...)` to see what is missing.
    """
    covered = set()
    for event, scratch in situations:
        place = place_of(table, event, scratch.state, table.choose(event, scratch))
        with suppress(ForbiddenRequest):
            table.fire(event, scratch)
        covered.add(place)
    return covered
