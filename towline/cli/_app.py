"""The commands. What only one of them needs is imported when it is called, so that `--help` stays quick."""

from __future__ import annotations

import typer

from ._demo import demo
from ._diagram import app as diagram
from ._follow import import_csv, watch
from ._rehearse import rehearse
from ._serve import serve
from ._simulate import simulate
from ._tokens import app as tokens
from ._trace import trace

app = typer.Typer(
    name="towline",
    help="Follow long-running jobs to their true end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("import")(import_csv)
app.command("watch")(watch)
app.command("serve")(serve)
app.command("demo")(demo)
app.command("trace")(trace)
app.command("rehearse")(rehearse)
app.command("simulate")(simulate)
app.add_typer(tokens)
app.add_typer(diagram, name="diagram")
