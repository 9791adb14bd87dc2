"""What a table must be: each check is broken by a small machine that breaks just it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from collections.abc import Callable
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from transitions import Machine

from towline._exceptions import Cancelled, ForbiddenRequest, TableError
from towline.statemachine import (
    LIFECYCLE,
    Action,
    Branch,
    Kind,
    Named,
    Picture,
    Table,
    TimerRule,
    action,
    describe,
    do,
    forbid,
    go,
    ignore,
    stay,
)
from towline.statemachine._checks import machine_findings


class Gate(Named):
    SHUT = "shut", "Nobody passes."
    OPEN = "open", "Anybody passes."
    WELDED = "welded", "Final."


class Ask(Named):
    PUSH = "push", "Somebody pushes."
    SLAM = "slam", "The spring pulls it shut."
    WELD = "weld", "Somebody brings a torch."


class Spring(Named):
    PULL = "pull"
    CREAK = "creak"


class Visit:
    """The scratch of a gate."""

    def __init__(self, state: Gate, *, key: object = False, tipsy: bool = False) -> None:
        self.state = state
        self.key = key
        self.tipsy = tipsy
        self.log: list[str] = []

    def leave(self, source: Gate, target: Gate) -> None:
        self.log.append(f"leave {source.value} for {target.value}")


def has_key(visit: Visit) -> bool:
    """There is a key."""
    return visit.key  # type: ignore[return-value]


def is_tipsy(visit: Visit) -> bool:
    """The visitor is tipsy."""
    return visit.tipsy


def undocumented(visit: Visit) -> bool:
    return True


async def waits_for_key(visit: Visit) -> bool:
    """There will be a key."""
    return True


def swing(visit: Visit) -> None:
    """Let it swing."""
    visit.log.append("swing")


def stumble(visit: Visit) -> None:
    """Fall over."""
    visit.log.append("stumble")
    raise ZeroDivisionError


def unexplained(visit: Visit) -> None:
    visit.log.append("?")


@action(arms=(Spring.PULL,))
def swing_shut(visit: Visit) -> None:
    """Let it swing shut."""
    visit.log.append("swing shut")


SWING: Action[Visit, Spring] = Action(swing, arms=(Spring.PULL,))
Rows = dict[Any, dict[Any, Any]]


def rows() -> Rows:
    return {
        Ask.PUSH: {
            Gate.SHUT: (
                stay(when=is_tipsy),
                go(Gate.OPEN, SWING, when=has_key),
                forbid("it is locked"),
            ),
            Gate.OPEN: (stay(),),
            Gate.WELDED: (forbid("it is welded", Cancelled),),
        },
        Ask.SLAM: {
            Gate.SHUT: ignore("it is shut"),
            Gate.OPEN: (go(Gate.SHUT),),
            Gate.WELDED: ignore("it is welded"),
        },
        Ask.WELD: {
            Gate.SHUT: (go(Gate.WELDED),),
            Gate.OPEN: (stay(Action(stumble)),),
            Gate.WELDED: ignore("it is welded"),
        },
    }


ROWS = [*rows().items()]


def gate(change: Callable[[Rows], object] = lambda rows: None, **options: Any) -> Table[Gate, Ask, Visit, Spring]:
    """The gate, or one with a flaw."""
    cells = rows()
    change(cells)
    given: dict[str, Any] = {
        "name": "gate",
        "states": Gate,
        "events": Ask,
        "initial": Gate.SHUT,
        "final": frozenset({Gate.WELDED}),
        "cells": cells,
        "timers": {Spring.PULL: TimerRule(frozenset({Gate.OPEN}), Ask.SLAM)},
        "waits": {Gate.SHUT: "waits for a visitor"},
    }
    return Table(**{**given, **options})


def findings(change: Callable[[Rows], object] = lambda rows: None, **options: Any) -> tuple[str, ...]:
    with pytest.raises(TableError) as caught:
        gate(change, **options)
    assert all(finding in str(caught.value) for finding in caught.value.findings)
    return caught.value.findings


def put(event: Ask, state: Gate, *cell: Branch[Any, Any, Any]) -> Callable[[Rows], object]:
    def change(rows: Rows) -> None:
        rows[event][state] = cell

    return change


class Other(Enum):
    THING = "thing"


UNREACHED = (
    put(Ask.WELD, Gate.SHUT, stay()),
    ("welded cannot be reached from shut", "shut is a trap", "open is a trap"),
)

FLAWS: dict[str, tuple[Callable[[Rows], object], tuple[str, ...]]] = {
    "a missing row": (lambda rows: rows.pop(Ask.SLAM), ("slam has no row",)),
    "a missing cell": (lambda rows: rows[Ask.SLAM].pop(Gate.OPEN), ("slam in open has no cell",)),
    "an empty cell": (put(Ask.SLAM, Gate.OPEN), ("slam in open has no cell",)),
    "a row of no event": (lambda rows: rows.update({Other.THING: {}}), ("is not an event",)),
    "a cell of no state": (lambda rows: rows[Ask.PUSH].update({Other.THING: (stay(),)}), ("is not a state",)),
    "an unknown target": (put(Ask.SLAM, Gate.OPEN, go(Other.THING)), ("slam in open: <Other.THING", )),
    "no target": (put(Ask.SLAM, Gate.OPEN, Branch(Kind.MOVED)), ("None is not a state",)),
    "a target of what stays": (
        put(Ask.PUSH, Gate.OPEN, Branch(Kind.KEPT, Gate.SHUT)),
        ("push in open: kept, but has a target",),
    ),
    "an exit of a final state": (
        put(Ask.SLAM, Gate.WELDED, go(Gate.OPEN)),
        ("slam in welded: welded is final but has an exit to open", "open waits without a timer (slam in welded"),
    ),
    "a guard on the last": (put(Ask.PUSH, Gate.OPEN, stay(when=has_key)), ("the last branch has a guard",)),
    "a branch never taken": (put(Ask.PUSH, Gate.OPEN, stay(), stay()), ("can never apply",)),
    "overlapping guards": (
        put(Ask.PUSH, Gate.OPEN, stay(when=has_key), go(Gate.SHUT, when=has_key), stay()),
        ("two branches have the same guard",),
    ),
    "a guard without a docstring": (
        put(Ask.PUSH, Gate.OPEN, stay(when=undocumented), stay()),
        ("the guard undocumented has no docstring",),
    ),
    "an action without a docstring": (
        put(Ask.PUSH, Gate.OPEN, stay(Action(unexplained))),
        ("the action unexplained has no docstring",),
    ),
    "ignored without a reason": (put(Ask.SLAM, Gate.SHUT, ignore("")), ("ignored without a reason",)),
    "forbidden without a reason": (put(Ask.PUSH, Gate.WELDED, forbid("")), ("forbidden without a reason",)),
    "ignored with actions": (
        put(Ask.SLAM, Gate.SHUT, Branch(Kind.IGNORED, reason="so", actions=(SWING,))),
        ("ignored, but has actions",),
    ),
    "an unreachable final state": UNREACHED,
    "a trap": (
        lambda rows: (put(Ask.SLAM, Gate.OPEN, stay())(rows), put(Ask.WELD, Gate.OPEN, stay())(rows)),
        ("open is a trap", "open waits without a timer (slam in open leaves no timer running there)"),
    ),
    "a timer armed where it may not run": (
        put(Ask.SLAM, Gate.OPEN, go(Gate.SHUT, SWING)),
        ("slam in open: swing arms pull in shut, where it may not run",),
    ),
    "a timer armed nowhere": (
        put(Ask.PUSH, Gate.SHUT, go(Gate.OPEN)),
        ("no action arms the timer pull", "open waits without a timer (push in shut leaves no timer running there)"),
    ),
    "a target that is text": (put(Ask.SLAM, Gate.OPEN, go("shut")), ("slam in open: 'shut' is not a state",)),  # type: ignore[type-var]
    "a cell that is none": (
        lambda rows: rows[Ask.SLAM].update({Gate.OPEN: [go(Gate.SHUT)]}),
        ("slam in open: [Branch", ),
    ),
    "an action that is none": (
        put(Ask.SLAM, Gate.OPEN, go(Gate.SHUT, swing)),  # type: ignore[arg-type]
        ("slam in open: <function swing",),
    ),
    "a coroutine function as a guard": (
        put(Ask.PUSH, Gate.OPEN, stay(when=waits_for_key), stay()),  # type: ignore[arg-type]
        ("push in open: the guard waits_for_key is a coroutine function",),
    ),
    "a coroutine function as an action": (
        put(Ask.PUSH, Gate.OPEN, stay(Action(waits_for_key))),  # type: ignore[arg-type]
        ("push in open: the action waits_for_key is a coroutine function",),
    ),
    "a guard without a name": (
        put(Ask.PUSH, Gate.OPEN, stay(when=partial(has_key)), stay()),
        ("push in open: the guard functools.partial",),
    ),
    "guards that share a name": (
        put(Ask.PUSH, Gate.OPEN, stay(when=lambda visit: True), stay(when=lambda visit: False), stay()),
        ("the guard <lambda> has no docstring",) * 2 + ("another guard is named <lambda>",),
    ),
    "actions that share a name": (
        put(Ask.PUSH, Gate.OPEN, stay(Action(swing))),
        ("push in open: another action is named swing",),
    ),
    "an expiry that is not handled": (
        lambda rows: (put(Ask.SLAM, Gate.OPEN, ignore("no"))(rows), put(Ask.PUSH, Gate.OPEN, go(Gate.SHUT))(rows)),
        ("the timer pull may expire in open, which does not handle slam",),
    ),
}  # fmt: skip

OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a state that waits for ever": (
        {"waits": {}},
        ("shut waits without a timer (the machine starts there); arm one, or give the reason",),
    ),
    "a timer without a rule": (
        {"timers": {}, "waits": dict.fromkeys(Gate, "so")},
        ("push in shut: swing touches the timer pull, which has no rule",),
    ),
    "a final state of another kind": (
        {"final": frozenset({Other.THING})},
        ("is named but is not a state", "welded waits without a timer (no timer runs there)"),
    ),
    "states that are no enum": (
        {"states": ("shut", "open"), "events": Enum},
        ("states: ('shut', 'open') is not an enum with members", "events: <enum 'Enum'> is not an enum"),
    ),
    "what is no mapping": (
        {"cells": [], "timers": None, "enters": ()},
        ("cells is not a mapping", "enters is not a mapping", "timers is not a mapping"),
    ),
    "a timer that is none": (
        {"timers": {"pull": TimerRule(frozenset({Gate.OPEN}), Ask.SLAM), Spring.PULL: Ask.SLAM}},
        ("the timer 'pull' is not a member of an enum", "the timer <Spring.PULL: 'pull'> is not a member"),
    ),
    "timers that share an expiry": (
        {"timers": {timer: TimerRule(frozenset({Gate.OPEN}), Ask.SLAM) for timer in Spring}},
        ("the timers pull and creak share the expiry slam", "no action arms the timer creak"),
    ),
    "entering with what is no action": (
        {"enters": {Gate.OPEN: SWING, Gate.SHUT: (swing,)}},
        ("entering open: Action", "entering shut: <function swing"),
    ),
    "entering no state": ({"enters": {Other.THING: ()}}, ("<Other.THING: 'thing'> is named but is not a state",)),
    "entering with a timer that may not run": (
        {"enters": {Gate.SHUT: (SWING,)}},
        ("entering shut: swing arms pull in shut, where it may not run",),
    ),
    "a timer that raises no event": (
        {"timers": {Spring.PULL: TimerRule(frozenset({Gate.OPEN}), Other.THING)}},
        ("raises <Other.THING: 'thing'>, which is not an event",),
    ),
    "a timer that runs in no state": (
        {"timers": {Spring.PULL: TimerRule(frozenset({Other.THING}), Ask.SLAM)}, "waits": dict.fromkeys(Gate, "so")},
        (
            "runs in <Other.THING: 'thing'>, which is not a state",
            "push in shut: swing arms pull in open, where it may not run",
        ),
    ),
}


def test_the_gate_itself_is_sound() -> None:
    assert gate().name == "gate"


def test_a_table_cannot_be_changed_once_it_was_checked() -> None:
    given = rows()
    table = gate(lambda cells: given.update(cells))
    with pytest.raises(TypeError):
        table.cells[Ask.PUSH] = {}  # type: ignore[index]
    with pytest.raises(TypeError):
        table.cells[Ask.PUSH][Gate.OPEN] = ()  # type: ignore[index]
    with pytest.raises(AttributeError):
        table.name = "door"  # type: ignore[misc]
    given[Ask.PUSH].clear()
    assert table.cell(Ask.PUSH, Gate.OPEN)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_of_a_cell_is_found_and_nothing_else(flaw: str) -> None:
    change, expected = FLAWS[flaw]
    found = findings(change)
    assert len(found) == len(expected), found
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True)), found


@pytest.mark.parametrize("flaw", OPTIONS)
def test_a_flaw_of_the_rest_is_found(flaw: str) -> None:
    options, expected = OPTIONS[flaw]
    found = findings(**options)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True)), found


def test_all_findings_are_told_at_once() -> None:
    assert len(findings(lambda rows: rows.clear())) == 3
    found = findings(put(Ask.SLAM, Gate.OPEN), waits={}, initial=Other.THING, final=frozenset())
    assert [sentence.split(" ")[0] for sentence in found] == ["<Other.THING:", "slam", "shut", "welded"]


class Odd(Enum):
    ONE = "one"
    UNO = "one"  # noqa: PIE796 (the flaw)
    TWO = 2


def test_members_that_pictures_could_not_tell_apart_are_found() -> None:
    cells = {Ask.PUSH: {Odd.ONE: go(Odd.TWO), Odd.TWO: go(Odd.ONE)}}
    found = findings(states=Odd, initial=Odd.ONE, final=frozenset(), cells=cells, timers={}, waits={})
    assert found[:2] == (
        "states: UNO is another name of ONE; give it another value",
        "states: the value of TWO is 2, not a text",
    )


IN_A_ROW = (("shut", "open", "welded"),)


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (Picture(way=(), rows=(("shut", "open"),)), "the rows must name each state once"),
        (Picture(way=(), rows=(("shut", "open", "welded", "open"),)), "the rows must name each state once"),
        (Picture(("shut",), IN_A_ROW, layers={"all": ("push", "push")}), "the layers must name each event once"),
        (Picture(("flat",), IN_A_ROW), "the way and the groups must name states, and no state may be in two groups"),
        (
            Picture((), IN_A_ROW, {"a": ("shut",), "b": ("shut",)}),
            "the way and the groups must name states, and no state may be in two groups",
        ),
        (Picture((), IN_A_ROW, {"a": ("shut", "welded")}), "open stands in the frame of a"),
        (Picture((), IN_A_ROW, {"a": ()}), "the group a is empty"),
    ],
)
def test_hints_for_pictures_that_do_not_fit_are_found(picture: Picture, problem: str) -> None:
    assert findings(picture=picture) == (f"picture: {problem}",)
    layers = {"all": tuple(event.value for event in Ask)}
    assert gate(picture=Picture(("shut", "open"), IN_A_ROW, {"a": ("shut", "open")}, layers))


def test_a_way_into_a_waiting_state_that_leaves_no_timer_running_is_found() -> None:
    assert findings(put(Ask.PUSH, Gate.SHUT, go(Gate.OPEN, SWING, when=has_key), go(Gate.OPEN))) == (
        "open waits without a timer (push in shut leaves no timer running there); arm one, or give the reason in "
        "`waits`",
    )
    # An expiry ends its own timer, and may leave another one running or arm it again.
    assert findings(put(Ask.SLAM, Gate.OPEN, stay(when=has_key), go(Gate.SHUT))) == (
        "open waits without a timer (slam in open leaves no timer running there); arm one, or give the reason in "
        "`waits`",
    )
    assert gate(put(Ask.SLAM, Gate.OPEN, stay(SWING, when=has_key), go(Gate.SHUT)))
    # The entry of the state counts for every way into it.
    assert gate(put(Ask.PUSH, Gate.SHUT, go(Gate.OPEN)), enters={Gate.OPEN: (SWING,)})


def test_a_table_without_final_states_has_no_traps() -> None:
    endless = put(Ask.WELD, Gate.SHUT, go(Gate.WELDED))
    reasons = dict.fromkeys(Gate, "waits for a visitor")
    assert gate(endless, final=frozenset(), waits=reasons).final == frozenset()


def test_a_machine_that_is_not_the_table_is_found() -> None:
    table = gate()
    assert list(machine_findings(table, table.machine)) == []
    empty = Machine(model=None, initial=None, auto_transitions=False)
    assert len(list(machine_findings(table, empty))) == 2
    for tamper in (
        lambda way: setattr(way, "dest", "WELDED"),
        lambda way: setattr(way, "branch", stay()),
    ):
        table = gate()
        tamper(table.machine.events["push"].transitions["SHUT"][1])
        (found,) = machine_findings(table, table.machine)
        assert found == "push in shut: the machine has other transitions than the table"
    table = gate()
    table.machine.events["push"].transitions["SHUT"].reverse()
    assert len(list(machine_findings(table, table.machine))) == 1


def test_the_lifecycle_s_machine_is_its_table_and_has_nothing_more() -> None:
    machine = LIFECYCLE.machine
    assert list(machine_findings(LIFECYCLE, machine)) == []
    assert machine.models == []
    assert not any(name.startswith("to_") for name in machine.events)


def test_a_bare_branch_is_a_cell() -> None:
    cells = {
        event: {state: cell[0] if isinstance(cell, tuple) and len(cell) == 1 else cell for state, cell in row.items()}
        for event, row in ROWS
    }
    table = gate(lambda rows: rows.update(cells))
    assert table.cell(Ask.SLAM, Gate.SHUT) == (cells[Ask.SLAM][Gate.SHUT],)
    assert describe(table) == describe(gate())


def test_ignoring_may_have_a_guard() -> None:
    table = gate(put(Ask.PUSH, Gate.OPEN, ignore("nobody is there", when=is_tipsy), stay()))
    assert table.fire(Ask.PUSH, Visit(Gate.OPEN, tipsy=True)).kind is Kind.IGNORED


def test_a_table_can_be_copied_and_pickled() -> None:
    for table in (gate(enters={Gate.OPEN: (SWING,)}), LIFECYCLE):
        assert copy.copy(table) is copy.deepcopy(table) is table
        assert describe(pickle.loads(pickle.dumps(table))) == describe(table)
    assert pickle.loads(pickle.dumps(swing_shut)) is swing_shut
    kick = pickle.loads(pickle.dumps(do(Ask.PUSH, arms=(Spring.PULL,))))
    assert (kick.name, kick.doc, kick.arms) == ("push", "Somebody pushes.", (Spring.PULL,))
    assert gate(put(Ask.PUSH, Gate.OPEN, stay(do(Ask.PUSH), do(Ask.PUSH))))
    assert findings(put(Ask.PUSH, Gate.OPEN, stay(do(Ask.PUSH), do(Ask.PUSH, arms=(Spring.PULL,))))) == (
        "push in open: another action is named push",
    )
    assert describe(dataclasses.replace(gate(), name="door")).name == "door"


# --- firing ------------------------------------------------------------------------------------------------------


def test_firing_moves_the_scratch_leaves_first_and_returns_the_branch() -> None:
    visit = Visit(Gate.SHUT, key=True)
    table = gate()
    assert table.fire(Ask.PUSH, visit) is table.cell(Ask.PUSH, Gate.SHUT)[1]
    assert visit.state is Gate.OPEN
    assert visit.log == ["leave shut for open", "swing"]


def test_a_true_answer_of_any_kind_is_true() -> None:
    visit = Visit(Gate.SHUT, key=5)
    gate().fire(Ask.PUSH, visit)
    assert visit.state is Gate.OPEN


def test_entering_a_state_follows_the_branch_s_own_actions() -> None:
    cells = put(Ask.WELD, Gate.OPEN, go(Gate.OPEN))
    table = gate(cells, enters={Gate.OPEN: (swing_shut,)})
    visit = Visit(Gate.SHUT, key=True)
    table.fire(Ask.PUSH, visit)
    assert visit.log == ["leave shut for open", "swing", "swing shut"]
    table.fire(Ask.PUSH, visit)  # stays, which is no entry
    table.fire(Ask.WELD, visit)  # leaves and enters again
    assert visit.log[3:] == ["leave open for open", "swing shut"]


def test_staying_does_not_leave() -> None:
    visit = Visit(Gate.OPEN)
    gate().fire(Ask.PUSH, visit)
    assert (visit.state, visit.log) == (Gate.OPEN, [])


def test_a_forbidden_request_raises_its_own_error() -> None:
    with pytest.raises(ForbiddenRequest, match="push is not possible while shut: it is locked") as caught:
        gate().fire(Ask.PUSH, Visit(Gate.SHUT))
    assert type(caught.value) is ForbiddenRequest
    with pytest.raises(Cancelled):
        gate().fire(Ask.PUSH, Visit(Gate.WELDED))


def test_whatever_raises_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        gate().fire(Ask.WELD, Visit(Gate.OPEN))


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("tipsy", [False, True])
def test_the_first_branch_applies_though_several_guards_are_true(key: bool, tipsy: bool) -> None:
    table, visit = gate(), Visit(Gate.SHUT, key=key, tipsy=tipsy)
    branch = table.choose(Ask.PUSH, visit)
    if branch.kind is not Kind.FORBIDDEN:
        assert table.fire(Ask.PUSH, visit) is branch
    assert (branch.when, branch.kind) == {
        (False, False): (None, Kind.FORBIDDEN),
        (True, False): (has_key, Kind.MOVED),
        (False, True): (is_tipsy, Kind.KEPT),
        (True, True): (is_tipsy, Kind.KEPT),
    }[key, tipsy]


def test_transitions_are_tried_in_the_order_in_which_they_were_added() -> None:
    # `fire` relies on this order of the library: a branch has no negated guards of the earlier ones.
    machine = Machine(model=None, states=["shut", "open"], initial=None, auto_transitions=False)
    asked = []
    for place in range(20):
        machine.add_transition("push", "shut", "open", conditions=lambda place=place: asked.append(place))
    visit = SimpleNamespace(state="shut")
    assert machine.events["push"].trigger(visit) is False
    assert (asked, visit.state) == (list(range(20)), "shut")
    table = gate()
    for event, state, branch in table.branches():
        cell: list[Any] = table.machine.events[event.value].transitions[state.name]
        assert cell[table.cell(event, state).index(branch)].branch is branch


def test_each_guard_is_asked_at_most_once_and_none_after_the_first_that_holds() -> None:
    asked: list[str] = []

    def question(name: str, answer: bool) -> Callable[[Visit], bool]:
        def guard(visit: Visit) -> bool:
            """Answers."""
            asked.append(name)
            return answer

        guard.__name__ = name
        return guard

    first, second, third = question("first", False), question("second", True), question("third", True)
    table = gate(put(Ask.PUSH, Gate.OPEN, *(stay(when=guard) for guard in (first, second, third)), stay()))
    assert table.fire(Ask.PUSH, Visit(Gate.OPEN)).when is second
    assert asked == ["first", "second"]


def test_no_branch_that_applies_is_an_error() -> None:
    table = gate()
    del table.machine.events["push"].transitions["SHUT"][-1]
    with pytest.raises(TableError, match="push in shut: no branch applies"):
        table.fire(Ask.PUSH, Visit(Gate.SHUT))


def test_the_library_s_own_trigger_does_the_same() -> None:
    visit = Visit(Gate.SHUT, key=True)
    assert gate().machine.events["push"].trigger(visit)
    assert (visit.state, visit.log) == (Gate.OPEN, ["leave shut for open", "swing"])


def test_steps_log_nothing_and_the_library_s_logger_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert logging.getLogger("transitions").level == logging.NOTSET
    with caplog.at_level(logging.DEBUG):
        gate().fire(Ask.PUSH, Visit(Gate.SHUT, key=True))
    assert caplog.records == []


def test_members_say_what_they_mean() -> None:
    assert Gate("shut") is Gate.SHUT
    assert Gate.SHUT.value == "shut"
    assert Gate.SHUT.doc == "Nobody passes."
    assert Spring.PULL.doc == ""
