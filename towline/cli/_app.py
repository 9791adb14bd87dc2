"""The commands. Each imports what only it needs when it is called, so that `--help` stays fast."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ._demo import demo
from ._exit import Commands
from ._rehearse import rehearse
from ._serve import serve
from ._tokens import app as tokens
from .follow._follow import import_csv, watch
from .follow._protocol import protocols
from .machine._diagram import app as diagram
from .machine._explore import explore
from .machine._trace import trace

app = typer.Typer(
    name="towline",
    cls=Commands,
    epilog="Exit codes: 0 complete, 1 the job failed (or a check found something), 2 usage, 3 canceled, 4 gave up, "
    "5 other error, 70 a bug in Towline, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"towline {__version__}")
        raise typer.Exit


# The help texts are arguments and not docstrings, because `python -OO` and frozen programs drop docstrings.
# The first sentence of each is at most 60 characters, because the list of commands cuts longer ones.
@app.callback(help="Follow long-running jobs to their end, across lost connections and restarts.")
def towline(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """`towline`."""


app.command("import", help="Upload a CSV file to a hub and follow the job.")(import_csv)
app.command("watch", help="Follow a job to its end. A job in the token store needs only its id.")(watch)
app.command("protocols", help="List the protocols that a job can be followed with. With NAME, explain one.")(protocols)
app.command("serve", help="Run a job hub on this machine. It imports CSV files and reports their progress.")(serve)
app.command("demo", help="Follow a real job through every kind of drop. Then check that no update was lost.")(demo)
app.command(
    "trace",
    help="Replay a recorded history. Shows each step, and the first one that the current machine takes differently.",
)(trace)
app.command(
    "rehearse",
    help="Follow a job of your server through scripted faults. A proxy on this machine makes the faults. "
    "The exit code is 0 if every check passed.",
)(rehearse)
app.command(
    "explore",
    help="Visit every reachable situation of a state machine. Checks what must always hold, and prints the shortest "
    "trace to what does not.",
)(explore)
app.add_typer(tokens)
app.add_typer(diagram, name="diagram")
