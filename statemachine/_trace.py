"""The path of a run through a machine, as a timeline of text and as a picture of states over time.

A `Journey` describes such a path, for any table, and `retrace` runs a journey through the present table. Each lifecycle
writes its own journeys; the connection's are in `lifecycle/_history.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from .._exceptions import ForbiddenRequest, InvalidArgument
from ._cells import Kind
from ._table import Table

VERSION: Final = 1


class Passage(Struct, frozen=True, kw_only=True):
    """One event of a journey: its time in seconds, the states before and after, the verdict and a note."""

    at: float
    event: str
    source: str
    target: str
    verdict: str
    note: str = ""


class Journey(Struct, frozen=True, kw_only=True):
    """A path through a machine. `states` are those of the table, in its order."""

    version: int = VERSION
    table: str
    states: tuple[str, ...]
    passages: tuple[Passage, ...] = ()

    def to_json(self) -> bytes:
        """The journey as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> Journey:
        """Read a journey; raise `InvalidArgument` if it is damaged or of another version."""
        try:
            journey = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidArgument("journey", str(error)) from error
        if journey.version != VERSION:
            raise InvalidArgument("journey", f"version {journey.version} is unknown; use {VERSION}")
        return journey


class Departure(NamedTuple):
    """The first event whose replay differs from the journey: its place, and the result in the present table."""

    place: int
    passage: Passage
    target: str
    verdict: str


def retrace(
    table: Table[Any, Any, Any, Any],
    journey: Journey,
    scratch_for: Callable[[Passage, Any], Any] | None = None,
) -> Departure | None:
    """Run a journey through the table; None if every event gives the same result.

    `scratch_for(passage, state)` makes the scratch for an event that starts in `state`. If the scratch needs data from
    earlier events (counters, say), `scratch_for` must keep it. Without it no guard is asked: some branch of each cell
    must give the recorded result. A stale event changed nothing and is passed over. Raises `InvalidArgument` if the
    table does not have the journey's states and events.
    """
    names = {member.value for kind in (table.states, table.events) for member in kind}
    if unknown := {name for one in journey.passages for name in (one.source, one.event)} - names:
        raise InvalidArgument("journey", f"the table {table.name} has no {', '.join(sorted(unknown))}")
    state = table.states(journey.passages[0].source) if journey.passages else table.initial
    for place, passage in enumerate(journey.passages):
        if passage.verdict == "stale":
            continue
        event = table.events(passage.event)
        if scratch_for is None:
            results = [(branch.target or state, branch.kind) for branch in table.cell(event, state)]
        else:
            scratch = scratch_for(passage, state)
            try:
                branch = table.fire(event, scratch)
            except ForbiddenRequest:
                results = [(state, Kind.FORBIDDEN)]
            else:
                results = [(scratch.state, branch.kind)]
        recorded = (passage.source, passage.target, passage.verdict)
        same = [target for target, kind in results if (state.value, target.value, kind.value) == recorded]
        if not same:
            target, kind = results[0]
            return Departure(place, passage, target.value, kind.value)
        state = same[0]
    return None


# --- text --------------------------------------------------------------------------------------------------------


def timeline(journey: Journey, departure: int | None = None) -> str:
    """One line for each event; `departure` marks the place where a replay differed."""
    return "\n".join(_timeline(journey, departure)) + "\n"


def _timeline(journey: Journey, departure: int | None) -> Iterator[str]:
    if not journey.passages:
        yield "nothing was recorded"
        return
    start = journey.passages[0].at
    event_width = max(len(passage.event) for passage in journey.passages)
    width = max(len(_way(passage)) for passage in journey.passages)
    for place, passage in enumerate(journey.passages):
        mark = "!" if place == departure else " "
        line = f"{mark} {passage.at - start:10.3f} s  {passage.event:<{event_width}}  {_way(passage):<{width}}"
        yield f"{line}  {printable(passage.note)}".rstrip()


def _way(passage: Passage) -> str:
    if passage.verdict == "moved":
        return f"{passage.source} → {passage.target}"
    sign = {"kept": "=", "ignored": "–", "forbidden": "✗", "stale": "stale"}.get(passage.verdict, passage.verdict)
    return f"{passage.source} {sign}"


def printable(text: str) -> str:
    """Escape text that may come from a server, so that it cannot control the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# --- picture -----------------------------------------------------------------------------------------------------

_LANE: Final = 36
_LEFT: Final = 120
_TOP: Final = 30
_COLOURS: Final = {
    "moved": "#234a75",
    "kept": "#1a7f37",
    "ignored": "#999999",
    "stale": "#bf8700",
    "forbidden": "#cf222e",
}


def timeline_svg(journey: Journey, departure: int | None = None) -> str:
    """States over time as SVG: one lane per state, the path as a line, a dot with a tooltip for each event.

    Time runs from left to right on a logarithmic scale, so that both a second and an hour fit on the page.
    """
    lanes = {name: _TOP + _LANE * (place + 0.5) for place, name in enumerate(journey.states)}
    marks, x = [], float(_LEFT + 20)
    for place, passage in enumerate(journey.passages):
        if place:
            x += 16 + 22 * math.log1p(max(0.0, passage.at - journey.passages[place - 1].at))
        marks.append(x)
    width, height = (marks[-1] if marks else _LEFT) + 140, _TOP + _LANE * len(lanes) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(journey.table)}: {len(journey.passages)} events</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for name, y in lanes.items():
        out.append(f'<line x1="{_LEFT}" y1="{y:g}" x2="{width - 20:.0f}" y2="{y:g}" stroke="#dddddd"/>')
        out.append(f'<text x="{_LEFT - 10}" y="{y + 4:g}" text-anchor="end" fill="#333333">{escape(name)}</text>')
    if marks:
        points = [f"{marks[0]:.1f},{lanes[journey.passages[0].source]:g}"]
        for passage, x in zip(journey.passages, marks, strict=True):
            points += [f"{x:.1f},{lanes[passage.source]:g}", f"{x:.1f},{lanes[passage.target]:g}"]
        points.append(f"{width - 20:.1f},{lanes[journey.passages[-1].target]:g}")
        out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#234a75" stroke-width="2"/>')
    bottom = _TOP + _LANE * len(lanes) + 16
    last_label = -math.inf
    for place, (passage, x) in enumerate(zip(journey.passages, marks, strict=True)):
        seconds = passage.at - journey.passages[0].at
        tooltip = f"{seconds:.3f} s: {passage.event}, {_way(passage)}. {passage.note}"
        radius = 7 if place == departure else 4
        colour = _COLOURS.get(passage.verdict, "#234a75")
        out.append(
            f'<circle cx="{x:.1f}" cy="{lanes[passage.target]:g}" r="{radius}" fill="{colour}">'
            f"<title>{escape(printable(tooltip))}</title></circle>"
        )
        if x - last_label >= 60:
            out.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle" fill="#666666">{seconds:.3g} s</text>')
            last_label = x
    return "\n".join([*out, "</svg>"]) + "\n"
