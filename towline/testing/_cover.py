"""Which branches of a table a set of situations takes: for an application's own lifecycle and its tests."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from .._exceptions import ForbiddenRequest, TableError
from ..statemachine import Table


def cover(table: Table[Any, Any, Any, Any], situations: Iterable[tuple[Any, Any]]) -> set[tuple[str, str, int]]:
    """Fire each event on its scratch, and say which branches were taken: event, state, place of the branch.

    Raises `TableError` where guards do not exclude each other, and whatever an action raises; a forbidden request is a
    branch like any other. Give the set to `markdown(describe(table), covered=...)` to see what is missing.
    """
    covered = set()
    for event, scratch in situations:
        state = scratch.state
        enabled = table.enabled(event, scratch)
        if len(enabled) != 1:
            raise TableError((f"{event.value} in {state.value}: {len(enabled)} branches apply at once",))
        with suppress(ForbiddenRequest):
            table.fire(event, scratch)
        covered.add((event.value, state.value, table.cell(event, state).index(enabled[0])))
    return covered
