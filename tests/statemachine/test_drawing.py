"""The arrows of the pictures say what the table says, and their colours what the legend says."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from towline._exceptions import InvalidArgument
from towline.statemachine import (
    ANY_STATE,
    LIFECYCLE,
    Description,
    Journey,
    Passage,
    Picture,
    describe,
    diff_svg,
    layers,
    overview,
    run_svg,
)
from towline.statemachine._description import BranchWords, CellWords, EventWords, StateWords
from towline.statemachine._drawing import Arrow, arrows, moves

LIFE = describe(LIFECYCLE)


def gate(*ways: str, picture: Picture | None = None, states: str = "shut open ajar welded") -> Description:
    """A machine with these ways, each as `event state target [guard]`; welded is final."""
    found: dict[tuple[str, str], list[BranchWords]] = {}
    for way in ways:
        event, state, target, *guard = way.split()
        branch = BranchWords(kind="moved", target=target, guard=guard[0] if guard else None)
        found.setdefault((event, state), []).append(branch)
    return Description(
        name="gate",
        initial=states.split()[0],
        states=tuple(StateWords(name=name, final=name == "welded") for name in states.split()),
        events=tuple(EventWords(name=event) for event in dict.fromkeys(event for event, _ in found)),
        cells=tuple(CellWords(event=e, state=s, branches=tuple(branches)) for (e, s), branches in found.items()),
        guards=(),
        actions=(),
        timers=(),
        picture=picture,
    )


def words(svg: str) -> dict[str, str]:
    """The words of all labels, with their classes."""
    return {span.text or "": span.get("class") or "" for span in ET.fromstring(svg).iterfind(".//{*}tspan")}


# --- merging -----------------------------------------------------------------------------------------------------


def members(arrow: Arrow) -> list[str]:
    """The states where an arrow starts."""
    shown = LIFE.shown()
    everywhere = [state.name for state in LIFE.states if not state.final]
    return list({ANY_STATE: everywhere, **shown.groups}.get(arrow.source, [arrow.source]))


def test_the_overview_has_at_most_26_arrows_and_one_between_two_places() -> None:
    found = arrows(LIFE, moves(LIFE))
    assert len(found) <= 26
    assert len({(arrow.source, arrow.target) for arrow in found}) == len(found)


@pytest.mark.parametrize("merged", [True, False])
def test_the_arrows_stand_for_every_move_and_no_other(merged: bool) -> None:
    real = set(moves(LIFE))
    shown = set()
    for arrow in arrows(LIFE, real, merged=merged):
        for event in arrow.events:
            ways = {(event, state, arrow.target) for state in members(arrow) if state != arrow.target}
            ways -= {way for way in ways if way[1:] in set(pairwise(LIFE.shown().way))} - real
            if event in arrow.partly:
                assert 0 < len(ways & real) < len(ways)
                ways &= real
            shown |= ways
        assert merged or not arrow.partly
    assert shown == real


def test_what_leads_somewhere_from_every_state_starts_at_any_state() -> None:
    table = gate("weld shut welded", "weld open welded", "weld ajar welded", "push shut open", "push open shut")
    assert Arrow(ANY_STATE, "welded", ("weld",)) in arrows(table, moves(table))


def test_a_group_has_the_arrows_of_its_states_and_says_which_start_in_some_of_them() -> None:
    hints = Picture(way=(), rows=(("shut", "open"), ("ajar", "welded")), groups={"moves": ("open", "ajar")})
    ways = ("slam open shut", "slam ajar shut", "push open shut", "tip ajar welded")
    table = gate(*ways, picture=hints, states="shut open ajar flat welded")
    assert arrows(table, moves(table)) == [
        Arrow("moves", "shut", ("slam", "push"), frozenset({"push"})),
        Arrow("ajar", "welded", ("tip",)),
    ]
    assert arrows(table, moves(table), merged=False)[:2] == [
        Arrow("moves", "shut", ("slam",)),
        Arrow("open", "shut", ("push",)),
    ]


def test_a_step_of_the_normal_way_has_its_own_arrow() -> None:
    hints = Picture(way=("shut", "welded"), rows=(("shut", "open", "ajar", "welded"),))
    table = gate("weld shut welded", "weld open welded", "weld ajar welded", picture=hints)
    assert Arrow("shut", "welded", ("weld",)) in arrows(table, moves(table))


# --- hints -------------------------------------------------------------------------------------------------------


def test_without_hints_the_first_column_is_a_way_from_the_initial_state() -> None:
    shown = gate("push shut open", "tip open ajar", "slam ajar shut").shown()
    assert shown.way == ("shut", "open", "ajar")
    assert [row[0] for row in shown.rows] == list(shown.way)
    assert sorted(name for row in shown.rows for name in row[1:]) == [ANY_STATE, "welded"]


def test_states_that_the_hints_do_not_name_have_a_place_too() -> None:
    hints = Picture(way=("shut",), rows=(("shut", "gone"),), groups={"f": ("gone",), "g": ("shut", "gone")})
    shown = gate("push shut open", picture=hints).shown()
    assert [name for row in shown.rows for name in row] == ["shut", "", "open", "ajar", "welded", ANY_STATE]
    assert shown.groups == {"g": ("shut",)}


# --- pictures ----------------------------------------------------------------------------------------------------


def test_the_overview_shows_every_state_and_every_event_that_moves() -> None:
    svg = overview(LIFE)
    names = [(text.text or "").removeprefix("● ") for text in ET.fromstring(svg).iterfind(".//{*}text")]
    assert {state.name for state in LIFE.states} <= set(names)
    assert "● idle" in svg
    assert set(words(svg)) == {event for event, _, _ in moves(LIFE)}
    assert ">in italics: only from some of the states<" in svg


def test_each_layer_has_its_events_and_says_which_never_move() -> None:
    hints = LIFE.picture
    assert hints is not None
    moving = {event for event, _, _ in moves(LIFE)}
    for (name, events), svg in zip(hints.layers.items(), layers(LIFE).values(), strict=True):
        assert set(words(svg)) == moving & {*events}
        for event in {*events} - moving:
            assert event in svg
        assert f">{name}<" in svg


def test_names_are_escaped() -> None:
    svg = overview(gate("<p>&go s<hut o&pen", states="s<hut o&pen"))
    assert {"<p>&go"} == set(words(svg))
    assert "o&amp;pen" in svg


def test_a_machine_without_a_move_can_be_drawn() -> None:
    assert words(overview(gate("stay shut shut"))) == {}


def test_a_comparison_has_three_kinds_of_changes_and_the_rest_in_grey() -> None:
    base = gate("push shut open", "slam open shut", "tip shut ajar", "weld ajar welded", states="shut open ajar welded")
    head = gate(
        "push shut open wet", "slam open shut", "slam shut away", "tip away shut", states="shut open away welded"
    )
    svg = diff_svg(base, head)
    assert words(svg) == {
        "~ push": "changed",
        "+ slam": "added",
        "+ tip": "added",
        "− tip": "removed",
        "− weld": "removed",
    }
    boxes = {text.text: text.get("class") for text in ET.fromstring(svg).iterfind(".//{*}text")}
    assert (boxes["away"], boxes["ajar"], boxes["open"]) == ("name added", "name removed", "name ")
    paths = [path.get("class") for path in ET.fromstring(svg).iterfind(".//{*}path")]
    assert paths.count("way quiet") == 1  # slam open shut
    assert paths.count("way removed") == 2


def test_an_arrow_with_a_part_removed_is_not_drawn_as_removed() -> None:
    base = gate("push shut open", "tip shut open")
    svg = diff_svg(base, gate("push shut open wet"))
    assert words(svg) == {"~ push": "changed", "− tip": "removed"}
    assert [path.get("class") for path in ET.fromstring(svg).iterfind(".//{*}path")] == ["way changed", "head changed"]


def passage(event: str, source: str, target: str, verdict: str = "moved") -> Passage:
    return Passage(at=0.0, event=event, source=source, target=target, verdict=verdict)


def test_a_run_shows_which_arrows_it_took_and_how_often() -> None:
    table = gate("push shut open", "slam open shut", "weld shut welded")
    taken = (passage("push", "shut", "open"), passage("slam", "open", "shut"), passage("push", "shut", "open"))
    quiet = (passage("weld", "open", "open", "ignored"), passage("push", "open", "open"))
    svg = run_svg(table, Journey(table="gate", states=(), passages=taken + quiet))
    assert words(svg) == {"push ×2": "moved", "slam": "moved"}
    paths = [path.get("class") for path in ET.fromstring(svg).iterfind(".//{*}path")]
    assert (paths.count("way moved"), paths.count("way quiet")) == (2, 1)


def test_a_run_of_another_machine_is_refused() -> None:
    table = replace(gate("push shut open"), name="gate")
    with pytest.raises(InvalidArgument, match="has no flat"):
        run_svg(table, Journey(table="x", states=(), passages=(passage("push", "shut", "flat"),)))
