"""`towline serve`: a job hub on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._exit import ExitCode, expected_failures, fail


def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port; 0 takes a free one and says which.")] = 8470,
    database: Annotated[Path, typer.Option("--database", help="The SQLite file; made where it is missing.")] = Path(
        "towline-hub.db"
    ),
    row_delay: Annotated[
        float, typer.Option("--row-delay", help="A pause after each row of a CSV file, in seconds.", min=0)
    ] = 0.0,
) -> None:
    """Run a job hub: it takes CSV imports from this machine, and tells of their progress."""
    try:
        from ..server import serve as serve_hub
    except ImportError as error:
        fail(ExitCode.USAGE, f"the hub needs its extra: pip install 'towline[server]' ({error.name} is missing)")
    with expected_failures():
        serve_hub(host, port, database, row_delay=row_delay)
