"""A description as SVG: the overview, its layers, two versions in one picture, and a run on the machine or
over time.

The arrows are merged here, and `_layout` finds their ways. No program is needed to draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from math import ceil, log1p
from textwrap import wrap
from typing import Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from .._exceptions import InvalidArgument
from ._cells import ANY_STATE
from ._description import Description
from ._layout import LABEL_WIDTH, UNIT, Box, Label, Line, Point, lay_out
from ._trace import Journey, printable

#: An event, a state, and the other state where the event may lead from there.
Move: TypeAlias = tuple[str, str, str]


class Arrow(NamedTuple):
    """Events that lead from a state, from a group or from any state to a state.

    `partly` are those of them that lead there from some states of the group only.
    """

    source: str
    target: str
    events: tuple[str, ...]
    partly: frozenset[str] = frozenset()


def moves(description: Description) -> list[Move]:
    """Every way from a state to another one, in table order."""
    return list(_answers(description))


def arrows(description: Description, ways: Iterable[Move], *, merged: bool = True) -> list[Arrow]:
    """Moves as arrows, at most one between two places.

    Where an event leads to one state from every other state (or every state of a group), the arrow starts at "any
    state" (or at the group). With `merged` such an arrow also has the events that do so from some of them only. A step
    of the normal way always has its own arrow.
    """
    shown = description.shown()
    steps = set(pairwise(shown.way))
    groups = {ANY_STATE: tuple(state.name for state in description.states if not state.final), **shown.groups}
    left = dict.fromkeys(ways)
    found: list[Arrow] = []
    for target in dict.fromkeys(target for _, _, target in left):
        for name, members in groups.items():
            sources = {member for member in members if member != target and (member, target) not in steps}
            by_event: dict[str, list[str]] = {}
            for event, state, there in left:
                if there == target and state in sources:
                    by_event.setdefault(event, []).append(state)
            common = {event for event, states in by_event.items() if len(states) == len(sources) > 1}
            if not common:
                continue
            several = 1 if name in shown.groups else 2
            partly = {event for event, states in by_event.items() if merged and len(states) >= several} - common
            events = sorted((event for event in by_event if event in common | partly), key=partly.__contains__)
            found.append(Arrow(name, target, tuple(events), frozenset(partly)))
            taken = {(event, state, target) for event in events for state in by_event[event]}
            left = dict.fromkeys(way for way in left if way not in taken)
        for source in dict.fromkeys(state for _, state, there in left if there == target):
            own = (event for event, state, there in left if (state, there) == (source, target))
            found.append(Arrow(source, target, tuple(own)))
    return found


def overview(description: Description) -> str:
    """The whole machine as one SVG: merged arrows, in the colours of the layers of their events."""
    found = arrows(description, moves(description))
    layers = description.shown().layers
    looks = {event: _layer_look(place) for place, events in enumerate(layers.values()) for event in events}
    notes = [(name, _layer_look(place)) for place, name in enumerate(layers)]
    if any(arrow.partly for arrow in found):
        notes.append(("in italics: only from some of the states", "quiet partly"))
    return _svg(description, found, looks, f"{description.name}: overview", notes)


def layers(description: Description) -> dict[str, str]:
    """One SVG for each layer of the picture's hints: each event from exactly the states where it leads elsewhere."""
    return {
        name: _layer(description, name, events, _layer_look(place))
        for place, (name, events) in enumerate(description.shown().layers.items())
    }


def _layer(description: Description, name: str, events: Collection[str], look: str) -> str:
    found = arrows(description, [way for way in moves(description) if way[0] in events], merged=False)
    drawn = {event for arrow in found for event in arrow.events}
    notes = [(name, look)]
    if rest := [event for event in events if event not in drawn]:
        notes.append(("no change of state: " + ", ".join(rest), "quiet"))
    return _svg(description, found, dict.fromkeys(events, look), f"{description.name}: {name}", notes)


def _layer_look(place: int) -> str:
    return f"c{place % 6}"


def diff_svg(base: Description, head: Description) -> str:
    """Two versions as one SVG: added parts green (+), removed ones red and dashed (−), changed ones amber (~)."""
    old, new = _answers(base), _answers(head)
    signs = {way: "+ " if way not in old else "− " if way not in new else "~ " for way in old | new}
    same = [way for way in new if old.get(way) == new[way]]
    changed = [(signs[way] + way[0], *way[1:]) for way in old | new if old.get(way) != new.get(way)]
    before, after = ({state.name for state in description.states} for description in (base, head))
    both = replace(head, states=(*head.states, *(state for state in base.states if state.name not in after)))
    found = _with_rest(arrows(both, changed), arrows(both, same))
    looks = {word: _SIGNS[word[:2]] for word, _, _ in changed}
    boxes = dict.fromkeys(after - before, "added") | dict.fromkeys(before - after, "removed")
    notes = [(sign + look, look) for sign, look in _SIGNS.items()] + [("the rest did not change", "quiet")]
    return _svg(both, found, looks, f"{head.name}: what changed", notes, boxes)


def run_svg(description: Description, journey: Journey) -> str:
    """A run on the machine as one SVG: the arrows that it took, with the number of times; the rest without labels.

    Raises `InvalidArgument` if the description does not have the journey's states.
    """
    there = {state.name for state in description.states}
    if unknown := {name for one in journey.passages for name in (one.source, one.target)} - there:
        raise InvalidArgument("journey", f"the table {description.name} has no {', '.join(sorted(unknown))}")
    counts = Counter((one.event, one.source, one.target) for one in journey.passages if one.verdict == "moved")
    by_place: dict[tuple[str, str], list[str]] = {}
    for (event, source, target), times in counts.items():
        if source != target:
            by_place.setdefault((source, target), []).append(f"{event} ×{times}" if times > 1 else event)
    found = [Arrow(source, target, tuple(words)) for (source, target), words in by_place.items()]
    looks = {word: "moved" for words in by_place.values() for word in words}
    title = f"{description.name}: a run of {len(journey.passages)} events"
    found = _with_rest(found, arrows(description, moves(description)))
    return _svg(description, found, looks, title, [(title, "moved"), ("ways not taken", "quiet")])


def _with_rest(found: list[Arrow], rest: list[Arrow]) -> list[Arrow]:
    """Arrows to show, and the rest without labels, except where one is shown already."""
    places = {(arrow.source, arrow.target) for arrow in found}
    return found + [arrow._replace(events=()) for arrow in rest if (arrow.source, arrow.target) not in places]


_SIGNS: Final = {"+ ": "added", "− ": "removed", "~ ": "changed"}


def _answers(description: Description) -> dict[Move, list[object]]:
    """The branches behind each move."""
    found: dict[Move, list[object]] = {}
    for cell, branch in description.edges():
        if branch.target is not None and branch.target != cell.state:
            found.setdefault((cell.event, cell.state, branch.target), []).append(branch)
    return found


# --- SVG ---------------------------------------------------------------------------------------------------------


def _svg(
    description: Description,
    found: Sequence[Arrow],
    looks: Mapping[str, str],
    title: str,
    notes: Sequence[tuple[str, str]],
    boxes: Mapping[str, str] = {},
) -> str:
    """The text of a picture. `looks` gives the class of an event, `boxes` that of a state, `notes` the legend."""
    shown = description.shown()
    used = {arrow.source for arrow in found} & {ANY_STATE}
    rows = tuple(tuple(name if name != ANY_STATE or used else "" for name in row) for row in shown.rows)
    lines = tuple(Line(arrow.source, arrow.target, arrow.events) for arrow in found)
    plan = lay_out(rows, tuple(shown.groups.items()), lines, shown.way)
    width = max(plan.size[0] * UNIT, *(ceil(len(text) * LABEL_WIDTH) + 2 * UNIT for text, _ in notes), 0)
    legend, across, down = [], UNIT, (plan.size[1] + 1) * UNIT
    for text, look in notes:
        if across > UNIT and across + len(text) * LABEL_WIDTH > width:
            across, down = UNIT, down + 16
        legend.append(f'<text x="{across}" y="{down}" class="{look}">{escape(text)}</text>')
        across += ceil(len(text) * LABEL_WIDTH) + 2 * UNIT
    out = _opening(width, down + UNIT, title)
    for name, frame in plan.groups.items():
        out.append(_rect(frame, "frame quiet"))
        out.append(
            f'<text x="{frame.left * UNIT + 10}" y="{frame.bottom * UNIT - 10}" class="quiet">{escape(name)}</text>'
        )
    out += legend
    for arrow, route in zip(found, plan.routes, strict=True):
        seen = [looks.get(event, "") for event in arrow.events if event not in arrow.partly]
        out += _way(route.points, _most(seen))
        if route.label is not None:
            out += _label(route.label, arrow, looks)
    final = {state.name for state in description.states if state.final}
    ends = {end for arrow in found for end in (arrow.source, arrow.target)}
    ends |= {member for name in ends for member in shown.groups.get(name, ())}
    for name, box in plan.boxes.items():
        look = boxes.get(name, "" if name in ends else "quiet")
        out.append(_rect(box, "box fill"))
        out.append(_rect(box, "frame quiet" if name == ANY_STATE else f"edge {look}"))
        if name in final:
            out.append(_rect(box, f"edge {look}", 4))
        middle_x, middle_y = (box.left + box.right) * UNIT / 2, (box.top + box.bottom) * UNIT / 2 + 4
        start = "● " if name == description.initial else ""
        out.append(f'<text x="{middle_x:g}" y="{middle_y:g}" class="name {look}">{start}{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _most(looks: list[str]) -> str:
    """The most frequent look; an arrow is only shown as removed if all its events are."""
    return max(looks, key=lambda look: (look != "removed", looks.count(look)), default="quiet")


def _rect(box: Box, look: str, inset: int = 0) -> str:
    x, y, right, bottom = (edge * UNIT for edge in box)
    size = f'width="{right - x - 2 * inset}" height="{bottom - y - 2 * inset}"'
    return f'<rect x="{x + inset}" y="{y + inset}" {size} rx="6" class="{look.strip()}"/>'


def _way(points: Sequence[Point], look: str) -> list[str]:
    """An arrow with rounded bends, and its head."""
    at = [(x * UNIT, y * UNIT) for x, y in points]
    (tip_x, tip_y), (step_x, step_y) = at[-1], _step(at[-2], at[-1])
    at[-1] = x, y = tip_x - 7 * step_x, tip_y - 7 * step_y
    path = f"M{at[0][0]},{at[0][1]}"
    for before, (bend_x, bend_y), after in zip(at, at[1:], at[2:], strict=False):
        (in_x, in_y), (out_x, out_y) = _step(before, (bend_x, bend_y)), _step((bend_x, bend_y), after)
        path += f"L{bend_x - 5 * in_x},{bend_y - 5 * in_y}Q{bend_x},{bend_y} {bend_x + 5 * out_x},{bend_y + 5 * out_y}"
    side = f"L{x - 4 * step_y - step_x},{y - 4 * step_x - step_y}L{x + 4 * step_y - step_x},{y + 4 * step_x - step_y}"
    return [
        f'<path d="{path}L{x},{y}" class="way {look}"/>',
        f'<path d="M{tip_x},{tip_y}{side}z" class="head {look}"/>',
    ]


def _step(start: Point, end: Point) -> Point:
    return (end[0] > start[0]) - (end[0] < start[0]), (end[1] > start[1]) - (end[1] < start[1])


def _label(label: Label, arrow: Arrow, looks: Mapping[str, str]) -> list[str]:
    out = []
    for place, line in enumerate(label.lines):
        words = ", ".join(
            f'<tspan class="{looks.get(event, "")}{" partly" * (event in arrow.partly)}">{escape(event)}</tspan>'
            for event in line
        )
        comma = "," * (place + 1 < len(label.lines))
        y = label.baseline + place * UNIT
        out.append(f'<text x="{label.x:g}" y="{y:g}" text-anchor="{label.anchor}">{words}{comma}</text>')
    return out


#: The colour of each class on a light page and on a dark one.
_COLOURS: Final = {
    "page": ("#ffffff", "#0d1117"),
    "box": ("#f6f8fa", "#1c2128"),
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#818b98", "#8b949e"),
    "c0,.moved": ("#0550ae", "#79c0ff"),
    "c1,.removed,.forbidden": ("#cf222e", "#ff7b72"),
    "c2,.changed,.stale": ("#8a4600", "#e3b341"),
    "c3,.added,.kept": ("#116329", "#56d364"),
    "c4": ("#8250df", "#d2a8ff"),
    "c5": ("#1b7c83", "#39c5cf"),
}
_LIGHT, _DARK = ("".join(f".{name}{{color:{shades[dark]}}}" for name, shades in _COLOURS.items()) for dark in (0, 1))
_STYLE: Final = (
    f"{_LIGHT}@media(prefers-color-scheme:dark){{{_DARK}}}"
    "text,tspan,.page,.fill,.head{fill:currentColor}"
    "text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:11px}"
    ".name{font-size:13px;font-weight:bold;text-anchor:middle}.partly{font-style:italic}"
    ".way,.edge,.frame{fill:none;stroke:currentColor;stroke-width:1.5}"
    ".frame{stroke-dasharray:2 4}.removed{stroke-dasharray:6 3}"
)


def _opening(width: float, height: float, title: str) -> list[str]:
    """The first lines of a picture of this size in pixels: an SVG with the style and a page to draw on."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" class="ink">',
        f"<title>{escape(title)}</title>",
        "<desc>Generated; do not edit.</desc>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" class="page"/>',
    ]


# --- time --------------------------------------------------------------------------------------------------------

_LANE, _ROW, _LEFT, _NOTE = 34, 18, 84, 66  # pixels, but the last: characters


def timeline_svg(journey: Journey, departure: int | None = None) -> str:
    """A run as SVG: a lane for each state, and down the page a row for each event with its time, name and note.

    A row is higher after a longer time. `departure` marks the place where a replay differed.
    """
    passages = journey.passages
    # The journey may come from a file, so its passages may name other states than it lists.
    names = dict.fromkeys([*journey.states, *(name for one in passages for name in (one.source, one.target))])
    lanes = {name: _LEFT + _LANE * (place + 0.5) for place, name in enumerate(names)}
    right = _LEFT + _LANE * len(lanes) + 12
    notes = right + 7 * max((len(passage.event) for passage in passages), default=0) + 14
    top = 16 + 7 * max(map(len, lanes), default=0)
    rows: list[float] = []
    texts: list[list[str]] = []
    y = float(top)
    for before, passage in zip((None, *passages), passages, strict=False):
        y += _ROW + (4 * log1p(max(0.0, passage.at - before.at)) if before else 0)
        y += 13 * max(0, len(texts[-1]) - 1) if texts else 0
        rows.append(y)
        verdict = "" if passage.verdict in ("moved", "kept") else f"{passage.verdict} "
        texts.append(wrap(printable(verdict + passage.note), _NOTE))
    bottom = y + 13 * max(1, *map(len, texts[-1:]), 0) + _ROW - 13
    out = _opening(notes + 7 * _NOTE, bottom + 6, f"{journey.table}: {len(passages)} events")
    for name, x in lanes.items():
        out.append(f'<path d="M{x:g},{top}V{bottom:g}" class="frame quiet"/>')
        out.append(f'<text transform="translate({x + 4:g},{top - 6}) rotate(-60)">{escape(printable(name))}</text>')
    if passages:
        path = f"M{lanes[passages[0].source]:g},{top}"
        for passage, y in zip(passages, rows, strict=True):
            path += f"H{lanes[passage.source]:g}V{y:.1f}H{lanes[passage.target]:g}"
        out.append(f'<path d="{path}V{bottom:g}" class="way moved"/>')
    shown = ""
    for place, (passage, y) in enumerate(zip(passages, rows, strict=True)):
        look = "forbidden" if place == departure else passage.verdict
        seconds = f"{passage.at - passages[0].at:.3f} s"
        x = lanes[passage.target]
        out.append(f'<circle cx="{x:g}" cy="{y:.1f}" r="{7 if place == departure else 4}" class="fill {look}"/>')
        if seconds != shown:
            out.append(f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end" class="quiet">{seconds}</text>')
        shown = seconds
        out.append(f'<text x="{right}" y="{y + 4:.1f}" class="{look}">{escape(printable(passage.event))}</text>')
        for line, note in enumerate(texts[place]):
            out.append(f'<text x="{notes}" y="{y + 4 + 13 * line:.1f}" class="quiet">{escape(note)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
