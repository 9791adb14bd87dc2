"""The path of a run through a machine, as a timeline of text and as a picture of states over time.

A `Journey` describes such a path, for any table, and `retrace` runs a journey through the present table. Each lifecycle
writes its own journeys; the connection's are in `lifecycle/_history.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape
from textwrap import wrap
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from .._exceptions import ForbiddenRequest, InvalidArgument
from ._cells import Kind
from ._svg import opening
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

_LANE, _ROW, _LEFT, _NOTE = 34, 18, 84, 66  # pixels, but the last: characters


def timeline_svg(journey: Journey, departure: int | None = None) -> str:
    """A run as SVG: a lane for each state, and down the page a row for each event with its time, name and note.

    A row is higher after a longer time. `departure` marks the place where a replay differed.
    """
    passages = journey.passages
    lanes = {name: _LEFT + _LANE * (place + 0.5) for place, name in enumerate(journey.states)}
    right = _LEFT + _LANE * len(lanes) + 12
    notes = right + 7 * max((len(passage.event) for passage in passages), default=0) + 14
    top = 16 + 7 * max(map(len, lanes))
    rows: list[float] = []
    texts: list[list[str]] = []
    y = float(top)
    for before, passage in zip((None, *passages), passages, strict=False):
        y += _ROW + (4 * math.log1p(max(0.0, passage.at - before.at)) if before else 0)
        y += 13 * max(0, len(texts[-1]) - 1) if texts else 0
        rows.append(y)
        verdict = "" if passage.verdict in ("moved", "kept") else f"{passage.verdict} "
        texts.append(wrap(printable(verdict + passage.note), _NOTE))
    bottom = y + 13 * max(1, *map(len, texts[-1:]), 0) + _ROW - 13
    out = opening(notes + 7 * _NOTE, bottom + 6, f"{journey.table}: {len(passages)} events")
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
