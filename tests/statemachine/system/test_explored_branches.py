"""The worlds of the explorer together take every branch of the connection's table that does something."""

from __future__ import annotations

from typing import Any

import pytest
from connection_world import WORLDS

from towline.statemachine import LIFECYCLE, explore
from towline.statemachine.lifecycle import _step


@pytest.mark.timeout(300)
def test_every_branch_that_does_something_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[tuple[Any, Any, int]] = set()

    class Watched:
        def fire(self, event: Any, draft: Any) -> Any:
            state = draft.state
            branch = LIFECYCLE.fire(event, draft)
            taken.add((event, state, LIFECYCLE.cell(event, state).index(branch)))
            return branch

    monkeypatch.setattr(_step, "LIFECYCLE", Watched())
    for world in WORLDS:
        assert explore(world).violations == []
    wanted = {
        (event, state, LIFECYCLE.cell(event, state).index(branch))
        for event, state, branch in LIFECYCLE.branches()
        if branch.kind.value in ("moved", "kept")
    }
    assert {(event.value, state.value, place) for event, state, place in wanted - taken} == set()
