"""A journey as text and as a picture, and its replay through any table."""

from __future__ import annotations

import contextlib
import re
import xml.etree.ElementTree as ET
from enum import Enum
from itertools import pairwise
from typing import Any

import pytest
from dry_run import DryRun
from msgspec.structs import replace

from towline._exceptions import ForbiddenRequest, InvalidArgument
from towline.statemachine import (
    Advice,
    AnyEvent,
    Cancel,
    Cause,
    Connect,
    Departure,
    Entry,
    History,
    Journey,
    LinkStable,
    Lost,
    Opened,
    Passage,
    Policy,
    Recorder,
    Retry,
    Synced,
    Table,
    Verdict,
    forbid,
    go,
    ignore,
    journey,
    retrace,
    stay,
    timeline,
    timeline_svg,
)

HOSTILE = "\x1b]0;owned\x07 <img onerror=alert(1)>\u202e"
CAUSE = Cause(code="close 1011", text=HOSTILE, advice=Advice(retry_after=20.0))


def recorded() -> History:
    run = DryRun()
    recorder = Recorder(Policy())

    def take(event: AnyEvent, seconds: float) -> None:
        before, verdict = run.snapshot, None
        with contextlib.suppress(ForbiddenRequest):
            verdict = run.take(event).verdict
        recorder.record(
            before,
            Entry(event=event, facts=run.facts, source=before.state, target=run.snapshot.state, verdict=verdict),
        )
        run.world(now=run.now + seconds)

    take(Retry(), 1.5)
    take(Connect(), 0.25)
    take(Opened(generation=1), 0.125)
    take(Synced(generation=1, fetch=1), 30)
    take(LinkStable(ticket=run.snapshot.ticket(run.snapshot.armed[0][0]) or 0), 3600)
    take(Lost(cause=CAUSE, generation=1), 1)
    take(Lost(cause=CAUSE, generation=0), 1)
    take(Opened(generation=1), 0)
    take(Cancel(), 0)
    return recorder.history()


def test_the_timeline_is_readable() -> None:
    told = timeline(journey(recorded()))
    why = "there is no attempt to retry: call connect() first"
    assert told.splitlines()[:3] == [
        f"       0.000 s  retry        idle ✗                    {why}",
        "       1.500 s  connect      idle → connecting",
        "       1.750 s  opened       connecting → syncing",
    ]
    lines = told.splitlines()
    assert "connected =" in lines[4]
    assert "the stability timer" in lines[4]
    assert "3631.875 s  lost" in lines[5]
    assert lines[5].endswith("next attempt in 20 to 22 s")
    assert "reconnecting stale" in lines[6]
    assert "reconnecting –" in lines[7]
    assert "reconnecting → cancelled" in lines[8]


def test_text_of_a_server_moves_no_terminal_and_no_page() -> None:
    told = journey(recorded())
    assert all(line.isprintable() for line in timeline(told).splitlines())
    assert "\\x1b]0;owned\\x07" in timeline(told)
    picture = timeline_svg(told)
    assert "<img" not in picture
    assert "\u202e" not in picture


def test_the_picture_has_a_lane_for_each_state_and_a_row_for_each_event() -> None:
    told = journey(recorded())
    tree = ET.fromstring(timeline_svg(told, departure=5))
    space = "{http://www.w3.org/2000/svg}"
    texts = list(tree.iter(f"{space}text"))
    assert [text.text for text in texts[:8]] == list(told.states)
    dots = list(tree.iter(f"{space}circle"))
    assert len(dots) == len(told.passages)
    assert [dot.get("r") for dot in dots].count("7") == 1
    down = [float(dot.get("cy") or 0) for dot in dots]
    assert all(later - earlier >= 18 for earlier, later in pairwise(down))
    for dot, passage in zip(dots, told.passages, strict=True):
        row = [text.text or "" for text in texts if text.get("y") == f"{float(dot.get('cy') or 0) + 4:.1f}"]
        assert passage.event in row


def test_a_long_note_takes_several_lines_of_the_picture_and_none_is_wider_than_it() -> None:
    note = "a reason " * 30
    kept = Passage(at=0.0, event="push", source="shut", target="shut", verdict="ignored", note=note)
    tree = ET.fromstring(timeline_svg(Journey(table="gate", states=("shut",), passages=(kept, kept))))
    texts = [text for text in tree.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "quiet"]
    notes = [text for text in texts if "reason" in (text.text or "")]
    assert " ".join(text.text or "" for text in notes) == f"ignored {note}ignored {note}".strip()
    places = [float(text.get("y") or 0) for text in notes]
    assert all(later - earlier >= 13 for earlier, later in pairwise(places))
    assert all(float(text.get("x") or 0) + 6.7 * len(text.text or "") < float(tree.get("width") or 0) for text in notes)
    assert places[-1] < float((tree.get("viewBox") or "").split()[3])


def test_an_empty_journey() -> None:
    empty = journey(Recorder(Policy()).history())
    assert timeline(empty) == "nothing was recorded\n"
    assert ET.fromstring(timeline_svg(empty)) is not None


def test_the_departure_is_marked() -> None:
    lines = timeline(journey(recorded()), departure=3).splitlines()
    assert [line[0] for line in lines].index("!") == 3


# --- a lifecycle of one's own ------------------------------------------------------------------------------------


class Door(Enum):
    SHUT = "shut"
    OPEN = "open"


class Act(Enum):
    PUSH = "push"
    PULL = "pull"
    KICK = "kick"


class Visit:
    def __init__(self, state: Door) -> None:
        self.state = state

    def leave(self, source: Door, target: Door) -> None:
        pass


def door(**changes: Any) -> Table[Door, Act, Visit, Any]:
    cells: dict[Any, Any] = {
        Act.PUSH: {Door.SHUT: (go(Door.OPEN),), Door.OPEN: ignore("open")},
        Act.PULL: {Door.SHUT: ignore("shut"), Door.OPEN: (go(Door.SHUT),)},
        Act.KICK: {Door.SHUT: (forbid("not in this house"),), Door.OPEN: (stay(),)},
    }
    return Table(
        name="door",
        states=Door,
        events=Act,
        initial=Door.SHUT,
        final=frozenset(),
        cells={**cells, **changes.get("cells", {})},
        waits=dict.fromkeys(Door, "waits for somebody"),
    )


def passage(event: str, source: str, target: str, verdict: str) -> Passage:
    return Passage(at=0.0, event=event, source=source, target=target, verdict=verdict)


WAY = Journey(
    table="door",
    states=("shut", "open"),
    passages=(
        passage("kick", "shut", "shut", "forbidden"),
        passage("pull", "shut", "shut", "ignored"),
        passage("push", "shut", "open", "moved"),
        passage("kick", "open", "open", "kept"),
        passage("pull", "open", "shut", "moved"),
    ),
)


def test_a_journey_is_json_and_is_retraced() -> None:
    assert Journey.from_json(WAY.to_json()) == WAY
    assert retrace(door(), WAY) is None


@pytest.mark.parametrize("field", ["source", "target", "verdict"])
def test_where_a_journey_leaves_the_table_is_shown(field: str) -> None:
    passages = list(WAY.passages)
    passages[3] = replace(passages[3], **{field: "shut" if field != "verdict" else "moved"})
    found = retrace(door(), replace(WAY, passages=tuple(passages)))
    assert found == Departure(3, passages[3], "open", "kept")


def test_a_changed_table_is_noticed() -> None:
    changed = door(cells={Act.KICK: {Door.SHUT: (go(Door.OPEN),), Door.OPEN: (stay(),)}})
    found = retrace(changed, WAY)
    assert found is not None
    assert (found.place, found.target, found.verdict) == (0, "open", "moved")


def test_without_data_some_branch_must_give_the_recorded_result() -> None:
    guarded = door(cells={Act.KICK: {Door.SHUT: (go(Door.OPEN, when=is_hard), forbid("no")), Door.OPEN: stay()}})
    assert retrace(guarded, WAY) is None
    found = retrace(door(cells={Act.KICK: {Door.SHUT: stay(), Door.OPEN: stay()}}), WAY)
    assert found == Departure(0, WAY.passages[0], "shut", "kept")
    stale = passage("push", "open", "open", "stale")
    assert retrace(door(), replace(WAY, passages=(WAY.passages[0], stale, *WAY.passages[1:]))) is None


def is_hard(visit: Visit) -> bool:
    """Is never asked."""
    raise AssertionError


def test_names_that_the_table_does_not_have_are_refused() -> None:
    passages = (passage("shove", "ajar", "shut", "moved"), *WAY.passages)
    with pytest.raises(InvalidArgument, match="journey: the table door has no ajar, shove"):
        retrace(door(), replace(WAY, passages=passages))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 9, "table": "x", "states": []}', b"[" * 100_000])
def test_what_is_no_journey_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Journey.from_json(data)


def test_verdicts_are_shown_by_signs() -> None:
    signs = re.findall(r"shut (✗|–)|open (=)", timeline(WAY))
    assert len(signs) == 3
    assert Verdict.STALE.value == "stale"
