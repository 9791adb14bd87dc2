"""`towline serve`: a job hub on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._exit import ExitCode, fail


def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port; 0 takes a free one and says which.")] = 8470,
    database: Annotated[Path, typer.Option("--database", help="The SQLite file; made where it is missing.")] = Path(
        "towline-hub.db"
    ),
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis",
            envvar="TOWLINE_REDIS",  # an argument, and a password in it, is seen by every user of the machine
            help="Keep the log there instead (redis://…, rediss://…, unix://…).",
            metavar="URL",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option("--files", help="The folder of uploads and large results; else <database>.files."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="So many processes serve the port; more than one need --redis.", min=1)
    ] = 1,
    row_delay: Annotated[
        float, typer.Option("--row-delay", help="A pause after each row of a CSV file, in seconds.", min=0)
    ] = 0.0,
) -> None:
    """`towline serve`."""
    try:
        from ..server import serve as serve_hub

        if redis is not None:
            import redis as client  # noqa: F401 - asked for now, so that its absence is told at once
    except ImportError as error:
        extra = "redis" if error.name == "redis" else "server"
        fail(ExitCode.USAGE, f"the hub needs its extra: pip install 'towline[{extra}]' ({error.name} is missing)")
    files = files or Path(f"{database}.files")
    serve_hub(host, port, redis or database, files=files, workers=workers, row_delay=row_delay)
