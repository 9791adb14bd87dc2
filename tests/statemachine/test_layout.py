"""In no picture does a label overlap anything, and every arrow can be followed: measured in the pixels of the SVG."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from towline.statemachine import ANY_STATE, LIFECYCLE, Description, Picture, describe, diff_svg, layers, overview
from towline.statemachine._description import BranchWords, CellWords, EventWords, StateWords
from towline.statemachine._layout import LABEL_WIDTH, Line, lay_out

LIFE = describe(LIFECYCLE)


class Area(NamedTuple):
    """A rectangle in pixels, or a piece of an arrow, which has no width."""

    left: float
    top: float
    right: float
    bottom: float

    def apart(self, other: Area) -> float:
        """The distance between two areas; 0 if they touch."""
        across = max(other.left - self.right, self.left - other.right, 0)
        down = max(other.top - self.bottom, self.top - other.bottom, 0)
        return max(across, down)


class Drawn(NamedTuple):
    """An arrow as it stands in the SVG, and the areas of the lines of its label."""

    pieces: list[Area]
    start: tuple[float, float]
    end: tuple[float, float]
    label: list[Area]


def read(svg: str) -> tuple[list[Drawn], list[Area], list[Area], list[Area]]:
    """The arrows with their labels, the boxes, the frames, and all other texts outside boxes."""
    arrows: list[Drawn] = []
    boxes, frames, texts = [], [], []
    for element in ET.fromstring(svg):
        look = (element.get("class") or "").split()
        tag = element.tag.rpartition("}")[2]
        if tag == "path" and "way" in look:
            numbers = re.sub(r"L[-\d.]+,[-\d.]+Q", "L", element.get("d") or "")  # a bend is its corner
            points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", numbers)]
            pieces = [Area(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in pairwise(points)]
            arrows.append(Drawn(pieces, points[0], points[-1], []))
        elif tag == "rect" and look != ["page"]:
            left, top, width, height = (float(element.get(name) or 0) for name in ("x", "y", "width", "height"))
            (boxes if "fill" in look else frames if "frame" in look else []).append(
                Area(left, top, left + width, top + height)
            )
        elif tag == "text" and "name" not in look:
            width = len("".join(element.itertext())) * LABEL_WIDTH
            x, y = float(element.get("x") or 0), float(element.get("y") or 0)
            left = x - {None: 0.0, "start": 0.0, "middle": width / 2, "end": width}[element.get("text-anchor")]
            area = Area(left, y - 8, left + width, y + 3)
            (arrows[-1].label if element.find("{*}tspan") is not None else texts).append(area)
    return arrows, boxes, [frame for frame in frames if frame not in boxes], texts


def check(svg: str) -> None:
    arrows, boxes, frames, texts = read(svg)
    width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    page = Area(0, 0, width, height)
    labels = [line for arrow in arrows for line in arrow.label]
    for text in labels + texts:
        assert page.left <= text.left and text.right <= page.right  # noqa: PT018 (one place)
        assert page.top <= text.top and text.bottom <= page.bottom  # noqa: PT018 (one place)
        assert all(text.apart(box) > 1 for box in boxes)
        for frame in frames:
            inside = frame.left < text.left and text.right < frame.right
            assert text.apart(frame) > 0 or (inside and frame.top < text.top and text.bottom < frame.bottom)
    for one, other in combinations(labels + texts, 2):
        assert one.apart(other) > 0 or one.top == other.top - 12 or other.top == one.top - 12
    for arrow in arrows:
        for line in arrow.label:
            assert all(line.apart(piece) > 1 for other in arrows for piece in other.pieces)
        if arrow.label:
            near = [min(line.apart(piece) for piece in arrow.pieces) for line in arrow.label]
            rest = [piece for other in arrows if other is not arrow for piece in other.pieces]
            assert min(near) < 8
            assert all(line.apart(piece) > min(near) for line in arrow.label for piece in rest)
        for box in boxes:
            assert all(piece.apart(box) >= 7 for piece in arrow.pieces[1:-1])
    ends = [end for arrow in arrows for end in (arrow.start, arrow.end)]
    assert len(set(ends)) == len(ends)
    for one_arrow, other_arrow in combinations(arrows, 2):
        for one in one_arrow.pieces:
            for other in other_arrow.pieces:
                flat = one.top == one.bottom
                if flat == (other.top == other.bottom):
                    assert one.apart(other) > 0, "two arrows run on the same way"


@pytest.mark.parametrize("name", ["overview", *LIFE.shown().layers])
def test_nothing_overlaps_in_the_committed_pictures(name: str) -> None:
    check(overview(LIFE) if name == "overview" else layers(LIFE)[name])


def test_nothing_overlaps_in_a_comparison() -> None:
    cells = tuple(
        replace(cell, branches=(BranchWords(kind="moved", target="exhausted"),)) if cell.event == "foreground" else cell
        for cell in LIFE.cells
    )
    check(diff_svg(LIFE, replace(LIFE, cells=cells)))


NAMES = ("a", "state_b", "the_longest_state_of_all", "d", "e_state")
EVENTS = ("go", "an_event_with_a_long_name", "stop", "x")


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    """A small machine with any moves, with or without hints."""
    names = NAMES[: draw(st.integers(2, len(NAMES)))]
    targets = st.lists(st.sampled_from(names), max_size=2)
    cells = tuple(
        CellWords(
            event=event,
            state=name,
            branches=tuple(BranchWords(kind="moved", target=target) for target in draw(targets)),
        )
        for event in EVENTS
        for name in names
    )
    hints = Picture(way=names[:2], rows=((ANY_STATE, *names[2:]), *((name,) for name in names[:2])))
    framed = Picture(hints.way, hints.rows, {draw(st.sampled_from(["in", "a_frame_with_a_long_name"])): names[:2]})
    return Description(
        name="any",
        initial=names[0],
        states=tuple(StateWords(name=name, final=name == names[-1] and draw(st.booleans())) for name in names),
        events=tuple(EventWords(name=event) for event in EVENTS),
        cells=cells,
        guards=(),
        actions=(),
        timers=(),
        picture=draw(st.sampled_from([None, hints, framed])),
    )


# A picture takes up to a second, so a failure is shown as it was found instead of being made smaller for minutes.
@settings(max_examples=15, phases=[Phase.generate])
@given(description=descriptions())
def test_nothing_overlaps_in_any_picture(description: Description) -> None:
    check(overview(description))


def test_a_box_has_a_port_for_each_of_its_arrows() -> None:
    names = tuple(f"s{number}" for number in range(12))
    rows = (("hub",), names[:6], names[6:])
    lines = tuple(Line(*way, ("go",)) for name in names for way in ((name, "hub"), ("hub", name)))
    plan = lay_out(rows, (), lines)
    ends = [end for route in plan.routes for end in (route.points[0], route.points[-1])]
    assert len(set(ends)) == 2 * len(lines)


def test_steps_of_the_way_are_straight() -> None:
    shown = LIFE.shown()
    lines = tuple(Line(source, target, ("event",)) for source, target in pairwise(shown.way))
    for route in lay_out(shown.rows, tuple(shown.groups.items()), lines, shown.way).routes:
        assert len(route.points) == 2
