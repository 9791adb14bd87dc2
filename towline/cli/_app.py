"""The commands. What only one of them needs is imported when it is called, so that `--help` stays quick."""

from __future__ import annotations

import typer

from ._demo import demo
from ._diagram import app as diagram
from ._exit import Commands
from ._follow import import_csv, watch
from ._rehearse import rehearse
from ._serve import serve
from ._simulate import simulate
from ._tokens import app as tokens
from ._trace import trace

app = typer.Typer(
    name="towline",
    cls=Commands,
    help="Follow long-running jobs to their true end.",
    epilog="Exit codes: 0 complete, 1 the job failed (or a check found something), 2 usage, 3 canceled, 4 gave up, "
    "5 other trouble, 70 a bug of Towline, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# The texts stand here and not in docstrings, which `python -OO` and frozen programs drop.
app.command("import", help="Upload a CSV file as a job of a hub, and follow it to its end.")(import_csv)
app.command("watch", help="Follow a job to its end; one that is on record needs its id alone.")(watch)
app.command("serve", help="Run a job hub: it takes CSV imports from this machine, and tells of their progress.")(serve)
app.command("demo", help="Follow one real job through every kind of drop, and check that nothing was lost.")(demo)
app.command(
    "trace",
    help="Replay a recorded history, show the way it took, and where it first leaves the machine as it is now.",
)(trace)
app.command(
    "rehearse",
    help="Follow a job through the faults of a script, which a proxy on this machine makes; 0 if all held that must.",
)(rehearse)
app.command(
    "simulate",
    help="Simulate many clients, side by side: Towline's presets and published algorithms. No sockets, virtual time.",
)(simulate)
app.add_typer(tokens)
app.add_typer(diagram, name="diagram")
