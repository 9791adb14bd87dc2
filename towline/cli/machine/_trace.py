"""`towline trace`: show a recorded run, and replay it through the current state machine or a table of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..._exceptions import InvalidArgument
from ...statemachine import (
    Departure,
    History,
    Journey,
    describe,
    journey,
    replay,
    retrace,
    run_svg,
    timeline,
    timeline_svg,
)
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
    try:
        taken, found = _replayed(file.read_bytes(), table)
    except OSError as error:
        typer.echo(f"towline: {file}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from error
    except InvalidArgument as error:
        typer.echo(f"towline: {file}: {error}", err=True)
        raise typer.Exit(2) from error
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
    typer.echo(
        f"event {found.place + 1} ({was.event}) goes another way: recorded {was.source} → {was.target} "
        f"({was.verdict}), now → {found.target} ({found.verdict})"
    )
    raise typer.Exit(1)


def _replayed(data: bytes, table: str) -> tuple[Journey, Departure | None]:
    try:
        taken = Journey.from_json(data)
    except InvalidArgument:
        if table != LIFECYCLE:
            raise
    else:
        if table == LIFECYCLE:
            raise InvalidArgument("table", f"this is a run of the table {taken.table}; pass --table MODULE:NAME")
        return taken, retrace(load_table(table), taken)
    history = History.from_json(data)
    taken, divergence = journey(history), replay(history)
    if divergence is None:
        return taken, None
    verdict = "forbidden" if divergence.verdict is None else divergence.verdict.value
    return taken, Departure(divergence.place, taken.passages[divergence.place], divergence.target.value, verdict)
