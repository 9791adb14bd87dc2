"""`towline explore`: visit every reachable situation of a state machine, and check what must always hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..._exceptions import InvalidArgument
from ...statemachine import History, Journey, Table, TableWorld, Violation, World, journey, timeline
from ...statemachine import explore as visit
from ...statemachine._explore import GRAPH_INVARIANTS
from .._exit import ExitCode, fail
from .._loading import load_object


def _worlds(name: str) -> Iterable[World[Any]]:
    found = load_object(name, "--table")
    if isinstance(found, Table):
        return [TableWorld(found)]
    worlds = list(found) if isinstance(found, Iterable) else [found]
    if not worlds or not all(isinstance(world, World) for world in worlds):
        fail(ExitCode.USAGE, f"--table {name} is neither a towline.statemachine.Table nor a World")
    return worlds


def _journey(trace: bytes) -> Journey:
    try:
        return Journey.from_json(trace)
    except InvalidArgument:  # the trace of a connection
        return journey(History.from_json(trace))


def explore(
    table: Annotated[str, typer.Option(help="Your Table or World, or several Worlds, as MODULE:NAME.")],
    check: Annotated[Path | None, typer.Option(help="Exit 1 if this document has other counts.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the trace of the first violation to this file.")] = None,
) -> None:
    """`towline explore`."""
    rows, broken, names = list[str](), list[Violation](), dict[str, None]()
    typer.echo("| world | situations | moves |\n|---|---|---|")
    for world in _worlds(table):
        found = visit(world)
        rows.append(f"| {world.name} | {len(found.situations):,} | {found.moves:,} |")
        typer.echo(rows[-1])
        broken += found.violations
        names |= dict.fromkeys(one.__name__ for one in (*world.invariants, *GRAPH_INVARIANTS))
    for violation in broken:
        typer.echo(f"\n{violation.invariant} does not hold: {violation.wrong}")
        typer.echo(timeline(_journey(violation.trace)) + violation.trace.decode())
    if broken and out is not None:
        out.write_bytes(broken[0].trace)
    if not broken:
        typer.echo(f"all {len(names)} invariants hold: {', '.join(names)}")
    if check is not None and (stale := set(rows) - set(check.read_text("utf-8").splitlines())):
        typer.echo(f"{check} is stale: it lacks\n" + "\n".join(sorted(stale)))
        raise typer.Exit(1)
    if broken:
        raise typer.Exit(1)
