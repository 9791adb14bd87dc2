"""`towline trace`: a recorded run, replayed through the machine as it is now, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._exceptions import InvalidArgument
from ..statemachine import Recording, journey, replay, timeline, timeline_svg


def trace(
    file: Annotated[Path, typer.Argument(help="What `history()` of a connection gave, as JSON.")],
    svg: Annotated[Path | None, typer.Option(help="Draw states over time to this file.")] = None,
) -> None:
    """`towline trace`."""
    try:
        recording = Recording.from_json(file.read_bytes())
    except OSError as error:
        typer.echo(f"towline: {file}: {error.strerror or error}", err=True)
        raise typer.Exit(2) from error
    except InvalidArgument as error:
        typer.echo(f"towline: {file}: {error}", err=True)
        raise typer.Exit(2) from error
    told, divergence = journey(recording), replay(recording)
    place = None if divergence is None else divergence.place
    typer.echo(timeline(told, place), nl=False)
    if svg is not None:
        svg.write_text(timeline_svg(told, place), encoding="utf-8", newline="\n")
    if divergence is None:
        typer.echo(f"{len(told.passages)} events replayed, none went another way")
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
