"""Measures which branches of a state table a set of situations takes, for an application's own lifecycle."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from .._exceptions import ForbiddenRequest
from ..statemachine import Table


def cover(table: Table[Any, Any, Any, Any], situations: Iterable[tuple[Any, Any]]) -> set[tuple[str, str, int]]:
    """Fire each event on its scratch and return the branches taken: event, state, position of the branch.

    Raises any error of a guard or an action. A forbidden request counts as a branch. Pass the set to
    `markdown(describe(table), covered=...)` to see what is missing.
    """
    covered = set()
    for event, scratch in situations:
        state = scratch.state
        place = table.cell(event, state).index(table.choose(event, scratch))
        with suppress(ForbiddenRequest):
            table.fire(event, scratch)
        covered.add((event.value, state.value, place))
    return covered
