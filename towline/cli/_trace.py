"""`towline trace`: show a recorded run, and replay it through the current state machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._exceptions import InvalidArgument
from ..statemachine import History, journey, replay, timeline, timeline_svg


def trace(
    file: Annotated[Path, typer.Argument(help="History that `watch --history` or `history().to_json()` wrote.")],
    svg: Annotated[Path | None, typer.Option(help="Draw states over time to this SVG file.")] = None,
) -> None:
    """`towline trace`."""
    try:
        history = History.from_json(file.read_bytes())
    except OSError as error:
        typer.echo(f"towline: {file}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from error
    except InvalidArgument as error:
        typer.echo(f"towline: {file}: {error}", err=True)
        raise typer.Exit(2) from error
    taken, divergence = journey(history), replay(history)
    place = None if divergence is None else divergence.place
    typer.echo(timeline(taken, place), nl=False)
    if svg is not None:
        svg.write_text(timeline_svg(taken, place), encoding="utf-8", newline="\n")
    if divergence is None:
        typer.echo(f"{len(taken.passages)} events replayed, none went another way")
        return
    entry = divergence.entry
    recorded = entry.verdict.value if entry.verdict is not None else "forbidden"
    now = divergence.verdict.value if divergence.verdict is not None else "forbidden"
    typer.echo(
        f"event {divergence.place + 1} ({entry.event.trigger.value}) goes another way: recorded "
        f"{entry.source.value} → {entry.target.value} ({recorded}), now "
        f"{divergence.source.value} → {divergence.target.value} ({now})"
    )
    raise typer.Exit(1)
