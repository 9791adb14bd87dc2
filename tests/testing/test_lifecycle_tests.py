"""`lifecycle_tests`: its cases pass for tables that are right, and find each fault of one that is wrong, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from towline import InvalidArgument
from towline.statemachine import (
    Draft,
    Journey,
    Kind,
    Named,
    Table,
    TableSnapshot,
    TimerRule,
    action,
    do,
    forbid,
    go,
    ignore,
    retrace,
    stay,
)
from towline.testing import FakeWorld, lifecycle_tests, virtual_time_backends


class Door(Named):
    SHUT = "shut"
    OPEN = "open"
    BROKEN = "broken"


class Act(Named):
    PUSH = "push"
    KICK = "kick"
    TIME_OUT = "time_out"


class Clock(Named):
    CLOSER = "closer"


class Do(Named):
    RING = "ring", "Ring the bell."
    CLOSE = "close", "Close the door."


@dataclass(frozen=True)
class Hinge:
    kicks: int = 0


Step = Draft[Door, Hinge]


def has_key(step: Step) -> bool:
    """The visitor has a key."""
    return step.value == "key"


def is_weak(step: Step) -> bool:
    """It was kicked twice."""
    return step.data.kicks >= 2


@action()
def count(step: Step) -> None:
    """Count the kicks, up to two."""
    step.set(kicks=min(step.data.kicks + 1, 2))


@action(arms=(Clock.CLOSER,))
def start_closer(step: Step) -> None:
    """It closes by itself."""


def door(seconds: Any = 60, **cells: Any) -> Table[Door, Act, Step, Clock]:
    nothing = ignore("nothing happens")
    given: dict[str, Any] = {
        "push_shut": (go(Door.OPEN, do(Do.RING), when=has_key), forbid("it is locked")),
        "kick_shut": (go(Door.BROKEN, when=is_weak), stay(count)),
        "time_out_open": go(Door.SHUT, do(Do.CLOSE)),
        **cells,
    }
    return Table(
        name="door",
        states=Door,
        events=Act,
        initial=Door.SHUT,
        final=frozenset({Door.BROKEN}),
        enters={Door.OPEN: (start_closer,)},
        cells={
            Act.PUSH: {Door.SHUT: given["push_shut"], Door.OPEN: nothing, Door.BROKEN: nothing},
            Act.KICK: {Door.SHUT: given["kick_shut"], Door.OPEN: stay(count), Door.BROKEN: nothing},
            Act.TIME_OUT: {Door.SHUT: nothing, Door.OPEN: given["time_out_open"], Door.BROKEN: nothing},
        },
        timers={Clock.CLOSER: TimerRule(frozenset({Door.OPEN}), Act.TIME_OUT, "a minute", seconds=seconds)},
        waits={Door.SHUT: "waits for somebody"},
    )


VALUES = {Act.PUSH: ("key", None)}
WORLD = FakeWorld(Hinge(), values=VALUES)
BACKENDS = virtual_time_backends()

test_door = lifecycle_tests(door(), WORLD)


def cases_of(test: Any) -> list[str]:
    names: list[str]
    (names,) = (mark.args[1] for mark in test.pytestmark if mark.args[0] == "case")
    return names


def failures(table: Table[Any, Any, Any, Any], world: Any = WORLD, backend: str = "asyncio") -> dict[str, str]:
    """The cases that fail, and why."""
    test, found = lifecycle_tests(table, world), {}
    for case in cases_of(test):
        try:
            test(case=case, backend=backend)
        except AssertionError as error:
            found[case] = str(error)
    return found


# --- what it collects ----------------------------------------------------------------------------------------------


def test_each_branch_is_a_case_by_name() -> None:
    assert cases_of(test_door) == [
        "shut-push-0",
        "shut-push-1",
        "open-push-0",
        "broken-push-0",
        "shut-kick-0",
        "shut-kick-1",
        "open-kick-0",
        "broken-kick-0",
        "shut-time_out-0",
        "open-time_out-0",
        "broken-time_out-0",
        "coverage",
        *(f"walk-{number}" for number in range(10)),
    ]
    (backends,) = (mark.args[1] for mark in test_door.pytestmark if mark.args[0] == "backend")  # type: ignore[attr-defined]
    assert backends == BACKENDS


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="data: pass the initial data"):
        FakeWorld()

    async def ring(data: Hinge) -> None: ...

    with pytest.raises(InvalidArgument, match="effects: use plain functions"):
        FakeWorld(Hinge(), effects={Do.RING: ring})
    with pytest.raises(InvalidArgument, match="table: give seconds to the timers closer"):
        lifecycle_tests(door(seconds=None), WORLD)


# --- what it finds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_that_is_right_has_no_failures(backend: str) -> None:
    assert failures(door(), backend=backend) == {}


def never(step: Step) -> bool:
    """Never."""
    return False


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dead_branch_is_found_by_name(backend: str) -> None:
    found = failures(door(time_out_open=(go(Door.BROKEN, when=never), go(Door.SHUT, do(Do.CLOSE)))), backend=backend)
    assert list(found) == ["open-time_out-0", "coverage"]
    assert re.fullmatch(
        r"time_out in open \[never\] was not reached: none of \d+ situations leads there", found["open-time_out-0"]
    )
    assert found["coverage"].splitlines() == [
        "no case reached",
        "the branch time_out in open [never]",
        "the guard never with True",
    ]


def test_branches_and_guards_that_lack_a_value_are_found_by_name() -> None:
    found = failures(door(), FakeWorld(Hinge()))
    assert found["coverage"].splitlines() == [
        "no case reached",
        "the branch push in shut [has_key]",
        "the branch push in open",
        "the branch kick in open",
        "the branch time_out in open",
        "the guard has_key with True",
        "the timer closer",
    ]


def test_several_initial_data_are_tried() -> None:
    table = door(kick_shut=(go(Door.BROKEN, when=is_weak), stay()))
    assert "shut-kick-0" not in failures(table), "three kicks at the open door"
    found = failures(table, FakeWorld(Hinge()))
    assert "shut-kick-0" in found
    assert "shut-kick-0" not in failures(table, FakeWorld(Hinge(), Hinge(2)))


def breaks(step: Step) -> bool:
    """Fails from the second kick on."""
    return bool(1 / (1 - step.data.kicks))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guard_that_raises_is_found_by_name_with_the_shortest_trace(backend: str) -> None:
    table = door(kick_shut=(stay(count, when=breaks), go(Door.BROKEN)))
    found = failures(table, backend=backend)
    problem = "kick in shut: breaks raised ZeroDivisionError('division by zero')"
    assert found["shut-kick-1"] == f"kick in shut [not breaks] was not reached: {problem}"
    walks = [text for case, text in found.items() if case.startswith("walk")]
    assert walks
    for text in walks:
        assert text.startswith(f"a random walk failed: {problem} (after kick, value None)\n")
        assert [one.event for one in trace_of(text).passages] == ["kick"]


def trace_of(text: str) -> Journey:
    return Journey.from_json(text.splitlines()[-1])


@action()
def ring_wrong(step: Step) -> None:
    """Ring a bell that the door does not have."""
    step.do("gong")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_effect_that_the_world_does_not_know_is_found_by_name(backend: str) -> None:
    world = FakeWorld(Hinge(), values=VALUES, effects=dict.fromkeys(Do, lambda data: None))
    assert failures(door(), world, backend) == {}
    found = failures(door(time_out_open=go(Door.SHUT, ring_wrong)), world, backend)
    assert "open-time_out-0" in found
    assert found["open-time_out-0"].startswith("time_out in open: effect gong")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_effect_is_found_by_the_world_that_it_acts_on(backend: str) -> None:
    """The door must be shut in the world when the table says so."""

    def world() -> FakeWorld:
        is_open = []

        def check(before: Any, event: Any, after: TableSnapshot[Door, Hinge], effects: Any) -> None:
            assert after.state is not Door.SHUT or not is_open, "the door of the world is open"

        ring: Callable[[Any], object] = lambda data: is_open.append(1)  # noqa: E731
        return FakeWorld(
            Hinge(), values=VALUES, effects={Do.RING: ring, Do.CLOSE: lambda data: is_open.clear()}, check=check
        )

    assert failures(door(), world, backend) == {}
    found = failures(door(time_out_open=go(Door.SHUT)), world, backend)
    assert found["open-time_out-0"].startswith("time_out in open: the door of the world is open\n")
    (walk, *_) = (text for case, text in found.items() if case.startswith("walk"))
    assert [one.event for one in trace_of(walk).passages] == ["push", "time_out"], "no move can be left out"


def test_a_function_of_an_effect_that_raises_or_returns_something_is_found() -> None:
    def broken(data: Hinge) -> None:
        raise OSError("no bell")

    effects: dict[Any, Any] = {Do.RING: broken, Do.CLOSE: lambda data: Act.PUSH}
    found = failures(door(), FakeWorld(Hinge(), values=VALUES, effects=effects))
    assert found["shut-push-0"].startswith("push in shut [has_key]: effect Do.RING raised OSError")
    effects[Do.RING] = lambda data: None
    found = failures(door(), FakeWorld(Hinge(), values=VALUES, effects=effects))
    assert "open-time_out-0" in found
    assert "shut-push-0" not in found


@pytest.mark.parametrize(
    ("seconds", "problem"),
    [
        (lambda snapshot: -1, "'the timer closer gave -1'"),
        (lambda snapshot: float("nan"), "'the timer closer gave nan'"),
        (lambda snapshot: 1 / 0, "<lambda> raised ZeroDivisionError"),
    ],
)
def test_a_timer_without_a_usable_time_is_found(seconds: Any, problem: str) -> None:
    found = failures(door(seconds=seconds))
    assert problem in found["shut-push-0"]
    assert "the timer closer" in found["coverage"]


def test_a_timer_that_expires_at_once_again_and_again_is_found() -> None:
    found = failures(door(seconds=0, time_out_open=(go(Door.SHUT, when=is_weak), stay(start_closer))))
    assert "the timer closer expires again and again at once" in found["open-time_out-1"]


def test_an_action_that_is_not_pure_is_found() -> None:
    calls = []

    @action()
    def remember(step: Step) -> None:
        """Count in the program instead of the data."""
        calls.append(1)
        step.set(kicks=len(calls))

    found = failures(door(kick_shut=(go(Door.BROKEN, when=is_weak), stay(remember))))
    assert "the snapshot of the runner" in found["shut-kick-1"]


# --- the trace -----------------------------------------------------------------------------------------------------


def test_the_trace_of_a_failure_replays_through_the_table() -> None:
    def check(before: Any, event: Any, after: Any, effects: Any) -> None:
        assert after.state is not Door.BROKEN

    found = failures(door(), FakeWorld(Hinge(), values=VALUES, check=check))
    walks = [text for case, text in found.items() if case.startswith("walk")]
    assert walks
    for text in walks:
        trace = trace_of(text)
        assert [(one.event, one.verdict) for one in trace.passages] == [("kick", "kept")] * 2 + [("kick", "moved")]
        assert retrace(door(), trace) is None
        changed = retrace(door(kick_shut=(go(Door.BROKEN, when=is_weak), ignore("so"))), trace)
        assert changed is not None
        assert (changed.place, changed.target, changed.verdict) == (0, "broken", Kind.MOVED.value)
    assert failures(door(), FakeWorld(Hinge(), values=VALUES, check=check)) == found, "the same each time"
