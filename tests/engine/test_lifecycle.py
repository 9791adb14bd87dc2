"""The connection's lifecycle alone: its steps before there is an engine, and the facts that an engine reads."""

from __future__ import annotations

import pytest

from towline import Cancelled, ForbiddenRequest, State
from towline.engine.lifecycle import Levels, Lifecycle
from towline.statemachine import (
    Cancel,
    Cause,
    Connect,
    Dial,
    Facts,
    Lost,
    PathLost,
    Policy,
    Retry,
    StopDelivery,
    Verdict,
    step,
)


def with_facts(policy: Policy | None = None) -> Lifecycle:
    made = Lifecycle(policy or Policy())
    made.facts = lambda levels: Facts(now=7.0, path_up=levels.path_up, foreground=levels.foreground, token_id="t")
    return made


def test_a_request_works_before_there_is_an_engine() -> None:
    made = Lifecycle(Policy())
    assert made.snapshot.state is State.IDLE
    stepped = made.steps.add(Cancel())
    assert made.snapshot is stepped.after
    assert stepped.after.state is State.CANCELLED
    assert stepped.effects[-1] == StopDelivery(final=True)
    assert stepped.entry is not None
    assert stepped.entry.facts == Facts(now=0.0, renewable=False)
    with pytest.raises(Cancelled, match="make a new Connection"):
        made.steps.add(Connect())


def test_a_step_is_what_the_table_says_with_the_engines_facts() -> None:
    made = with_facts()
    before = made.snapshot
    stepped = made.steps.add(Connect())
    facts = Facts(now=7.0, token_id="t")
    assert (stepped.after, stepped.effects, Verdict.MOVED) == tuple(step(before, Connect(), facts, Policy()))
    assert any(isinstance(effect, Dial) for effect in stepped.effects)
    assert stepped.entry is not None
    assert (stepped.entry.event, stepped.entry.facts) == (Connect(), facts)
    assert (stepped.entry.source, stepped.entry.target) == (State.IDLE, State.CONNECTING)
    assert stepped.entry.verdict is Verdict.MOVED


def test_the_policy_is_the_connections_own() -> None:
    lost = Lost(generation=1, cause=Cause(code="dns", text="not resolved"))
    effects = set()
    for policy in (Policy(), Policy.original()):
        made = with_facts(policy)
        before = made.steps.add(Connect()).after
        stepped = made.steps.add(lost)
        assert stepped.effects == step(before, lost, Facts(now=7.0, token_id="t"), policy).effects
        effects.add(stepped.effects)
    assert len(effects) == 2, "each waits in its own way"


def test_a_forbidden_request_is_recorded_and_changes_nothing() -> None:
    made = with_facts()
    before = made.snapshot
    with pytest.raises(ForbiddenRequest):
        made.steps.add(Retry())
    last = made.steps.last
    assert last.after is before
    assert last.effects == ()
    assert last.entry is not None
    assert (last.entry.event, last.entry.verdict) == (Retry(), None)
    assert (last.entry.source, last.entry.target) == (State.IDLE, State.IDLE)


def test_the_hosts_levels_are_facts_from_their_own_step_on() -> None:
    made = with_facts()
    stepped = made.steps.change(lambda levels: (levels._replace(path_up=False), PathLost()))
    assert stepped.levels == Levels(path_up=False)
    assert stepped.entry is not None
    assert not stepped.entry.facts.path_up
    later = made.steps.add(Connect())
    assert later.levels == Levels(path_up=False)
    assert later.entry is not None
    assert not later.entry.facts.path_up


def test_the_levels_count_before_there_is_an_engine_too() -> None:
    made = Lifecycle(Policy())
    made.steps.change(lambda levels: (levels._replace(foreground=False), None))
    made.steps.add(Cancel())
    entry = made.steps.last.entry
    assert entry is not None
    assert not entry.facts.foreground
    assert entry.facts.path_up
