"""The tour takes every branch that an engine can reach, on both backends."""

from __future__ import annotations

import pytest
from tour import Tour, take_tour

from towline.statemachine import LIFECYCLE
from towline.testing import virtual_time_backends


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_every_cell_guard_and_timer_is_taken_by_a_real_connection(backend: str) -> None:
    tour = take_tour(backend=backend)
    assert tour.findings == []
    assert tour.missed == set()
    expiries = {rule.expiry.value for rule in LIFECYCLE.timers.values()}
    assert {event for event, _, _ in tour.unreachable} == expiries
    assert {event for event, _, _ in tour.covered} >= expiries
    assert len(tour.covered) + len(tour.unreachable) == sum(1 for _ in LIFECYCLE.branches())


def test_what_was_not_taken_is_shown() -> None:
    tour = Tour(covered={("connect", "idle", 3)})
    assert ("connect", "idle", 2) in tour.missed
    assert "✘" in tour.markdown()
