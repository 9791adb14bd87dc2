"""`towline serve`: a job hub on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ._exit import ExitCode, fail
from ._follow import StoreOption

_HOST: Final = "127.0.0.1"


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = _HOST,
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 chooses a free one and prints it.")] = 8470,
    sample: Annotated[
        bool, typer.Option("--sample", help="Also start a sample job, and print how to follow it.")
    ] = False,
    database: Annotated[Path, typer.Option("--database", help="SQLite file; created if it is missing.")] = Path(
        "towline-hub.db"
    ),
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis",
            envvar="TOWLINE_REDIS",  # every user of the machine can see arguments, and a password in them
            help="Keep the log in Redis instead (redis://…, rediss://…, unix://…).",
            metavar="URL",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option("--files", help="Folder of uploads and large results; <database>.files by default."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Number of processes; more than one need --redis.", min=1)
    ] = 1,
    row_delay: Annotated[
        float | None,
        typer.Option(
            "--row-delay", help="Pause after each row of a CSV file, in seconds (0; 0.25 for --sample).", min=0
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """`towline serve`."""
    try:
        from ..server import serve as serve_hub

        if redis is not None:
            import redis as client  # noqa: F401 - imported now, so that a missing extra is reported at once
    except ImportError as error:
        extra = "redis" if error.name == "redis" else "server"
        fail(ExitCode.USAGE, f"the hub needs its extra: pip install 'towline[{extra}]' ({error.name} is missing)")
    files = files or Path(f"{database}.files")
    if not sample:
        serve_hub(host, port, redis or database, files=files, workers=workers, row_delay=row_delay or 0)
        return
    if host != _HOST or redis is not None or workers != 1:
        fail(ExitCode.USAGE, "--sample is for this machine and one process: leave out --host, --redis and --workers")
    from ._sample import SAMPLE_DELAY, serve_sample

    serve_sample(host, port, database, files, SAMPLE_DELAY if row_delay is None else row_delay, store)
