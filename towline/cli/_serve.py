"""`towline serve`: a job hub on this machine."""

from __future__ import annotations

import logging
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .._exceptions import InvalidArgument
from ._exit import ExitCode, fail
from ._loading import load_object
from .follow._follow import StoreOption

if TYPE_CHECKING:
    from ..server import Hub

_HOST: Final = "127.0.0.1"
#: Options that belong together, and options that cannot be used with them.
_ALONE: Final = (
    (("target",), ("sample", "database", "redis", "files", "row_delay", "store"), "your hub has its own"),
    (("sample",), ("host", "redis", "workers", "uds", "fd"), "--sample is for this machine and one process"),
    (("uds", "fd"), ("host", "port"), "there is one place to listen"),
    (("uds",), ("fd",), "there is one place to listen"),
)


class LogLevel(Enum):
    """What is logged on standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:HUB]", help="A Hub of your own, or a function that makes it; without it, CSV imports."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _HOST,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 chooses a free one and prints it.", min=0, max=65_535)
    ] = 8470,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on instead.")] = None,
    fd: Annotated[
        int | None, typer.Option(help="File descriptor of a listening socket; systemd's first is 3.", min=0)
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What to log on standard error.")] = LogLevel.WARNING,
    origins: Annotated[
        list[str] | None, typer.Option(help="Origin of pages that may use the hub (https://…). May be repeated.")
    ] = None,
    watchers: Annotated[
        int | None, typer.Option(help="Number of followers that a job may have at once (64).", min=1)
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Also start a sample job, and print how to follow it.")
    ] = False,
    database: Annotated[Path, typer.Option(help="SQLite file; created if it is missing.")] = Path("towline-hub.db"),
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="TOWLINE_REDIS",  # every user of the machine can see arguments, and a password in them
            help="Keep the log in Redis instead (redis://…, rediss://…, unix://…).",
            metavar="URL",
        ),
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder of uploads and large results; <database>.files by default.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of processes; more than one need --redis.", min=1)] = 1,
    row_delay: Annotated[
        float | None,
        typer.Option(help="Pause after each row of a CSV file, in seconds (0; 0.25 for --sample).", min=0, max=3600),
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
    _check_together(context)
    files = files or Path(f"{database}.files")
    make = partial(_make_hub, target, redis or database, files, row_delay or 0, origins or (), watchers, log_level)
    if not sample:
        serve_hub(host, port, hub=make, workers=workers, uds=uds, fd=fd)
        return
    if redis is not None:  # of the environment
        fail(ExitCode.USAGE, "--sample is for this machine and one process: unset TOWLINE_REDIS")
    from ._sample import SAMPLE_DELAY, serve_sample

    delay = SAMPLE_DELAY if row_delay is None else row_delay
    hub = _make_hub(None, database, files, delay, origins or (), watchers, log_level)
    serve_sample(hub, host, port, store)


def _check_together(context: typer.Context) -> None:
    """Refuse options that would do nothing together with others."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for names, others, reason in _ALONE:
        unfit = [f"--{name.replace('_', '-')}" for name in others if name in given]
        if unfit and not given.isdisjoint(names):
            fail(ExitCode.USAGE, f"{reason}: leave out {', '.join(unfit)}")


def _make_hub(
    target: str | None,
    database: Path | str,
    files: Path,
    row_delay: float,
    origins: list[str] | tuple[str, ...],
    watchers: int | None,
    log_level: LogLevel,
) -> Hub:
    """Make the hub of this process, which may be one of several, and start to log."""
    from ..server import Hub
    from ..server._serve import csv_hub

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("towline").setLevel(log_level.value.upper())
    if target is None:
        hub = csv_hub(database, files, row_delay)
    else:
        found = load_object(target, "module:hub")
        try:
            hub = found() if callable(found) and not isinstance(found, Hub) else found
        except Exception as error:  # code of the user's may raise anything
            raise InvalidArgument("module:hub", f"{target} failed: {type(error).__name__}: {error}") from error
        if not isinstance(hub, Hub):
            raise InvalidArgument("module:hub", f"{target} is a {type(hub).__name__}, which is not a Hub")
    hub.adjust(origins=origins, watchers=watchers)
    return hub
