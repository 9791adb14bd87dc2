"""The row of steps: each request has its place and a true answer, whoever comes in between."""

from __future__ import annotations

import gc

import pytest

from towline import ForbiddenRequest, State
from towline.engine.lifecycle import ConnectionStep, Levels, Lifecycle
from towline.runner import Stepped
from towline.statemachine import AnyEvent, Cancel, Close, Connect, Facts, PathLost, Policy, Retry, Snapshot


def lifecycle() -> Lifecycle:
    made = Lifecycle(Policy())
    made.facts = lambda levels: Facts(now=1.0, path_up=levels.path_up, foreground=levels.foreground)
    return made


def test_a_step_has_changed_the_state_when_it_returns() -> None:
    row = lifecycle().steps
    assert row.add(Connect()).after.state is State.CONNECTING
    assert row.snapshot.state is State.CONNECTING
    with pytest.raises(ForbiddenRequest):
        lifecycle().steps.add(Retry())


def test_a_request_in_the_middle_of_a_step_comes_first_and_the_step_is_computed_again() -> None:
    made = lifecycle()
    row = made.steps
    interrupted = []

    def facts(levels: Levels) -> Facts:
        if not interrupted:
            interrupted.append(True)
            assert row.add(Cancel()).after.state is State.CANCELLED
        return Facts(now=1.0)

    made.facts = facts
    first = row.take_first()
    stepped = row.add(Close())
    assert stepped.after.state is State.CANCELLED
    events: list[AnyEvent] = []
    step: ConnectionStep | None = first
    while (step := step.following) is not None:
        assert step.entry is not None
        events.append(step.entry.event)
    assert [type(event) for event in events] == [Cancel, Close]


def test_a_stored_snapshot_comes_before_every_event_or_not_at_all() -> None:
    ended = Snapshot(outcome="complete")
    row = lifecycle().steps
    assert row.begin_with(ended)
    assert row.snapshot is ended
    assert not row.begin_with(Snapshot(outcome="failed")), "it has begun already"
    late = lifecycle().steps
    late.add(Cancel())
    assert not late.begin_with(ended)
    assert late.snapshot.state is State.CANCELLED


def test_a_report_of_the_host_does_not_keep_a_stored_snapshot_away() -> None:
    """Only its levels count before the lifecycle begins, and they stay."""
    ended = Snapshot(outcome="complete")
    row = lifecycle().steps
    row.change(lambda levels: (levels._replace(foreground=False), None))
    row.change(lambda levels: (levels._replace(path_up=False), PathLost()))
    assert row.begin_with(ended)
    assert row.snapshot is ended
    assert row.last.levels == Levels(path_up=False, foreground=False)


def test_steps_that_were_performed_are_not_kept() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(each, Stepped) for each in gc.get_objects())

    before = kept()
    row = lifecycle().steps
    taken = row.take_first()
    for _ in range(100):
        row.add(Connect())
        assert taken.following is not None
        taken = taken.following
    assert kept() - before < 10
