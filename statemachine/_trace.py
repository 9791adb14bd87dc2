"""The path of a run through a machine, as a timeline of text and as a picture of states over time.

A `Journey` describes such a path, for any table, and `retrace` runs a journey through the present table. Each lifecycle
writes its own journeys; the connection's are in `lifecycle/_history.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

import msgspec
from msgspec import Struct

from .._exceptions import InvalidArgument
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


class Recorded(Struct, frozen=True, kw_only=True):
    """A value that is kept as JSON, with the version of its form."""

    version: int = VERSION

    def to_json(self) -> bytes:
        """The value as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read a value; raise `InvalidArgument` if it is damaged or of another version."""
        name = cls.__name__.lower()
        try:
            found = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidArgument(name, str(error)) from error
        if found.version != VERSION:
            raise InvalidArgument(name, f"version {found.version} is unknown; use {VERSION}")
        return found


class Journey(Recorded, frozen=True, kw_only=True):
    """A path through a machine. `states` are those of the table, in its order.

    `to_json()` gives it as JSON. `from_json(data)` reads that, and raises `InvalidArgument` if it is damaged or of
    another version.
    """

    table: str
    states: tuple[str, ...]
    passages: tuple[Passage, ...] = ()


class Departure(NamedTuple):
    """The first event whose replay differs from the journey: its place, and the result in the present table."""

    place: int
    passage: Passage
    target: str
    verdict: str


def retrace(table: Table[Any, Any, Any, Any], journey: Journey) -> Departure | None:
    """Run a journey through the table; None if every event can give the same result.

    A journey holds no data, so no guard is asked: some branch of each cell must give the recorded result. A stale event
    changed nothing and is passed over. Raises `InvalidArgument` if the table does not have the journey's states and
    events.
    """
    states, events = ({member.value for member in kind} for kind in (table.states, table.events))
    sources, taken = {one.source for one in journey.passages}, {one.event for one in journey.passages}
    if unknown := (sources - states) | (taken - events):
        raise InvalidArgument("journey", f"the table {table.name} has no {', '.join(sorted(unknown))}")
    state = table.states(journey.passages[0].source) if journey.passages else table.initial
    for place, passage in enumerate(journey.passages):
        if passage.verdict == "stale":
            continue
        results = [(branch.target or state, branch.kind) for branch in table.cell(table.events(passage.event), state)]
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
        yield printable(f"{line}  {passage.note}").rstrip()


def _way(passage: Passage) -> str:
    if passage.verdict == "moved":
        return f"{passage.source} → {passage.target}"
    sign = {"kept": "=", "ignored": "–", "forbidden": "✗", "stale": "stale"}.get(passage.verdict, passage.verdict)
    return f"{passage.source} {sign}"


def printable(text: str) -> str:
    """Escape text that may come from a server or a file, so that it cannot control the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
