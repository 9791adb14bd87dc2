"""Two versions of a machine, and every kind of change between them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from towline.statemachine import Change, Description, diff, diff_markdown
from towline.statemachine._description import (
    ActionWords,
    BranchWords,
    CellWords,
    EventWords,
    GuardWords,
    StateWords,
    TimerWords,
)


def cell(event: str, state: str, *branches: BranchWords) -> CellWords:
    return CellWords(event=event, state=state, branches=branches)


def moved(target: str, guard: str | None = None, *actions: str) -> BranchWords:
    return BranchWords(kind="moved", target=target, guard=guard, actions=actions)


def kept(*actions: str) -> BranchWords:
    return BranchWords(kind="kept", actions=actions)


IGNORED = BranchWords(kind="ignored", reason="it is shut")
FORBIDDEN = BranchWords(kind="forbidden", reason="it is locked", error="ForbiddenRequest")

BASE = Description(
    name="gate",
    initial="shut",
    states=(StateWords(name="shut"), StateWords(name="open"), StateWords(name="welded", final=True)),
    events=(EventWords(name="push"), EventWords(name="slam", timer="spring")),
    cells=(
        cell("push", "shut", moved("open", "has_key", "swing"), FORBIDDEN),
        cell("push", "open", kept()),
        cell("push", "welded", FORBIDDEN),
        cell("slam", "shut", IGNORED),
        cell("slam", "open", moved("shut")),
        cell("slam", "welded", IGNORED),
    ),
    guards=(GuardWords(name="has_key", doc="There is a key."),),
    actions=(ActionWords(name="swing", doc="Let it swing.", arms=("spring",)),),
    timers=(TimerWords(name="spring", after="3 s", expiry="slam", runs_in=("open",)),),
    hash="b" * 64,
)


def with_cell(event: str, state: str, *branches: BranchWords) -> Description:
    cells = tuple(
        cell(event, state, *branches) if (old.event, old.state) == (event, state) else old for old in BASE.cells
    )
    return replace(BASE, cells=cells, hash="h" * 64)


def head(**changes: Any) -> Description:
    return replace(BASE, hash="h" * 64, **changes)


CHANGES: dict[str, tuple[Description, list[tuple[str, str, bool]]]] = {
    "retargeted": (with_cell("slam", "open", moved("welded")), [("retargeted", "slam in open", True)]),
    "a guard more": (
        with_cell("push", "open", moved("shut", "has_key"), kept()),
        [("guards changed", "push in open", False)],
    ),
    "another guard": (
        with_cell("push", "shut", moved("open", "is_tipsy", "swing"), FORBIDDEN),
        [("guards changed", "push in shut", False)],
    ),
    "actions": (with_cell("push", "open", kept("swing")), [("actions changed", "push in open", False)]),
    "reason": (
        with_cell("slam", "shut", replace(IGNORED, reason="so")),
        [("reason changed", "slam in shut", False)],
    ),
    "newly ignored": (with_cell("push", "open", IGNORED), [("newly ignored", "push in open", True)]),
    "newly forbidden": (with_cell("push", "open", FORBIDDEN), [("newly forbidden", "push in open", True)]),
    "ignored in place of forbidden": (
        with_cell("push", "welded", IGNORED),
        [("newly ignored", "push in welded", False)],
    ),
    "forbidden in place of ignored": (
        with_cell("slam", "shut", FORBIDDEN),
        [("newly forbidden", "slam in shut", False)],
    ),
    "newly accepted": (with_cell("slam", "shut", kept()), [("newly accepted", "slam in shut", False)]),
    "an exit of a final state": (
        with_cell("push", "welded", moved("open")),
        [("a final state gained an exit", "push in welded", True)],
    ),
    "another beginning": (head(initial="open"), [("initial state changed", "", True)]),
    "a state more": (
        head(
            states=(*BASE.states, StateWords(name="ajar")),
            cells=(*BASE.cells, cell("push", "ajar", kept()), cell("slam", "ajar", kept())),
        ),
        [("state added", "ajar", False), ("cell added", "push in ajar", False), ("cell added", "slam in ajar", False)],
    ),
    "an event less": (
        head(events=BASE.events[:1], cells=BASE.cells[:3]),
        [
            ("event removed", "slam", True),
            ("cell removed", "slam in shut", False),
            ("cell removed", "slam in open", True),
            ("cell removed", "slam in welded", False),
        ],
    ),
    "a state that is final no more": (
        head(states=(*BASE.states[:2], StateWords(name="welded"))),
        [("state: final changed", "welded", False)],
    ),
    "a timer's time": (
        head(timers=(replace(BASE.timers[0], after="5 s"),)),
        [("timer: after changed", "spring", False)],
    ),
    "where a timer runs": (
        head(timers=(replace(BASE.timers[0], runs_in=("open", "shut")),)),
        [("timer: runs_in changed", "spring", False)],
    ),
    "a timer less": (head(timers=()), [("timer removed", "spring", True)]),
    "an action of entering": (
        head(states=(BASE.states[0], replace(BASE.states[1], enters=("swing",)), BASE.states[2])),
        [("state: enters changed", "open", False)],
    ),
    "what an action arms": (
        head(actions=(replace(BASE.actions[0], arms=()),)),
        [("action: arms changed", "swing", False)],
    ),
    "what a guard says": (
        head(guards=(GuardWords(name="has_key", doc="So."),)),
        [("guard: doc changed", "has_key", False)],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_change(name: str) -> None:
    new, expected = CHANGES[name]
    found = diff(BASE, new)
    assert [(change.kind, change.where, change.breaking) for change in found] == expected
    text = diff_markdown(BASE, new, found)
    for change in found:
        assert change.kind in text
        assert change.where in text
    assert text.count("(breaking)") == sum(change.breaking for change in found)


def test_no_change() -> None:
    assert diff(BASE, BASE) == ()
    assert diff_markdown(BASE, BASE, ()).startswith("# The machine `gate`: 0 changes")


def test_before_and_after_are_told() -> None:
    (change,) = diff(BASE, with_cell("push", "open", FORBIDDEN))
    assert change == Change(
        kind="newly forbidden",
        where="push in open",
        before="=",
        after="✗ ForbiddenRequest (it is locked)",
        breaking=True,
    )
