"""`towline trace`: show a recorded run, and replay it through the current state machine or a table of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..._exceptions import InvalidArgument
from ..._text import escape
from ...statemachine import (
    Departure,
    History,
    Journey,
    Table,
    describe,
    journey,
    replay,
    retrace,
    run_svg,
    timeline,
    timeline_svg,
)
from .._exit import ExitCode, fail
from ._diagram import LIFECYCLE, TableOption, load_table


def trace(
    file: Annotated[
        Path,
        typer.Argument(help="History that `watch --history` or `history().to_json()` wrote; with --table a journey."),
    ],
    svg: Annotated[Path | None, typer.Option(help="Draw states over time to this SVG file.")] = None,
    map_: Annotated[Path | None, typer.Option("--map", help="Draw the run on the machine to this SVG file.")] = None,
    table: TableOption = LIFECYCLE,
) -> None:
    """`towline trace`."""
    own = None if table == LIFECYCLE else load_table(table)
    try:
        taken, found = _replayed(file.read_bytes(), own)
    except (InvalidArgument, OSError) as error:
        fail(ExitCode.USAGE, f"{file}: {getattr(error, 'strerror', None) or error}")
    place = None if found is None else found.place
    typer.echo(timeline(taken, place), nl=False)
    if svg is not None:
        svg.write_text(timeline_svg(taken, place), encoding="utf-8", newline="\n")
    if map_ is not None:
        map_.write_text(run_svg(describe(load_table(table)), taken), encoding="utf-8", newline="\n")
    if found is None:
        typer.echo(f"{len(taken.passages)} events replayed, none went another way")
        return
    was = found.passage
    recorded = escape(f"{was.source} → {was.target} ({was.verdict})")
    typer.echo(
        f"event {found.place + 1} ({was.event}) goes another way: recorded {recorded}, "
        f"now → {found.target} ({found.verdict})"
    )
    raise typer.Exit(1)


def _replayed(data: bytes, table: Table[Any, Any, Any, Any] | None) -> tuple[Journey, Departure | None]:
    """The run and where it goes another way now; without a table, the run of a connection."""
    try:
        taken = Journey.from_json(data)
    except InvalidArgument:
        if table is not None:
            raise
        history = History.from_json(data)
        return journey(history), replay(history)
    if table is None:
        raise InvalidArgument("table", f"this is a run of the table {taken.table}; pass --table MODULE:NAME")
    return taken, retrace(table, taken)
