"""`towline diagram`: write the state machine as documents and pictures, check such files, and compare versions."""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..._exceptions import InvalidArgument
from ...statemachine import (
    Description,
    Table,
    describe,
    diff,
    diff_markdown,
    diff_svg,
    events_markdown,
    layers,
    markdown,
    overview,
)
from ...statemachine._cells import HAS_DOCSTRINGS
from .._exit import ExitCode, fail
from .._loading import load_object

app = typer.Typer(help="Draw the state machine, check the pictures, compare versions.")

LIFECYCLE: Final = "towline.statemachine:LIFECYCLE"

#: Each format and its files: the ends of their names, and their texts.
_MAKERS: Final[dict[str, Callable[[Description], dict[str, str]]]] = {
    "md": lambda description: {".md": markdown(description)},
    "events": lambda description: {".events.md": events_markdown(description)},
    "overview": lambda description: {".overview.svg": overview(description)},
    "layers": lambda description: {
        f".{name.replace(' ', '-')}.svg": drawn for name, drawn in layers(description).items()
    },
    "json": lambda description: {".json": description.to_json().decode()},
}
_ALL: Final = ",".join(_MAKERS)

TableOption = Annotated[str, typer.Option("--table", help="Your own table, as MODULE:NAME.")]


def load_table(name: str) -> Table[Any, Any, Any, Any]:
    """Import a table by MODULE:NAME."""
    if not HAS_DOCSTRINGS:
        fail(ExitCode.USAGE, "the documents need docstrings: run Python without -OO and PYTHONOPTIMIZE=2")
    table = load_object(name, "--table")
    if not isinstance(table, Table):
        fail(ExitCode.USAGE, f"--table {name} is not a towline.statemachine.Table")
    return table


def pictures(description: Description, formats: str = _ALL) -> dict[str, str]:
    """Make the documents of some formats, separated by commas: file names and texts."""
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    for name in wanted:
        if name not in _MAKERS:
            fail(ExitCode.USAGE, f"there is no format {name}: use {', '.join(_MAKERS)}")
    return {description.name + end: text for name in wanted for end, text in _MAKERS[name](description).items()}


@app.callback(invoke_without_command=True)
def diagram(
    context: typer.Context,
    formats: Annotated[str | None, typer.Option("--format", help=f"Formats, separated by commas: {_ALL}.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; without it, print.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the files in the folder --out; exit 1 if stale.")
    ] = False,
    table: TableOption = LIFECYCLE,
) -> None:
    """`towline diagram`."""
    if context.invoked_subcommand is not None:
        return
    if check and out is None:
        fail(ExitCode.USAGE, "--check needs the folder of the files: add --out FOLDER")
    description = describe(load_table(table))
    if out is None:
        for text in pictures(description, formats or "md").values():
            typer.echo(text, nl=False)
        return
    texts = pictures(description, formats or _ALL)
    if check:
        raise typer.Exit(_check(texts, out))
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        typer.echo(out / name)


def _check(texts: dict[str, str], folder: Path) -> int:
    drift = False
    for name, text in texts.items():
        path = folder / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there == text:
            continue
        drift = True
        lines = difflib.unified_diff(there.splitlines(), text.splitlines(), str(path), "the table", lineterm="", n=1)
        typer.echo("\n".join(lines))
    typer.echo(
        f"{folder} is stale: run `towline diagram --out {folder}`" if drift else f"{folder} agrees with the table"
    )
    return int(drift)


@app.command("diff", help="List what changed between two versions, as Markdown.")
def compare(
    base: Annotated[str, typer.Argument(help="JSON file, or REVISION:PATH of one in git.")],
    head: Annotated[str, typer.Argument(help="The same; default: the current table.")] = "",
    out: Annotated[Path | None, typer.Option(help="Also draw the changes to this SVG file.")] = None,
    fail_on: Annotated[str, typer.Option(help="`breaking`: exit 1 if a change may break a program.")] = "",
    table: TableOption = LIFECYCLE,
) -> None:
    """`towline diagram diff`."""
    if fail_on not in ("", "breaking"):
        fail(ExitCode.USAGE, f"--fail-on {fail_on}: use --fail-on breaking")
    now = describe(load_table(table))
    old, new = read_description(base), read_description(head) if head else now
    changes = diff(old, new)
    typer.echo(diff_markdown(old, new, changes), nl=False)
    if out is not None:
        out.write_text(diff_svg(old, new), encoding="utf-8", newline="\n")
    if fail_on and any(change.breaking for change in changes):
        raise typer.Exit(1)


def read_description(source: str) -> Description:
    """Read a description from a JSON file, or from one that is committed in git (`REVISION:PATH`)."""
    try:
        if Path(source).is_file():
            return Description.from_json(Path(source).read_bytes())
        if source.startswith("-") or ":" not in source:
            fail(ExitCode.USAGE, f"{source} is neither a file nor a REVISION:PATH in git")
        shown = subprocess.run(["git", "show", source], capture_output=True, timeout=30, check=False)
        if shown.returncode:
            fail(
                ExitCode.USAGE,
                f"{source} is neither a file nor in git: {shown.stderr.decode(errors='replace').strip()}",
            )
        return Description.from_json(shown.stdout)
    except (InvalidArgument, OSError) as error:
        fail(ExitCode.USAGE, f"{source}: {getattr(error, 'strerror', None) or error}")
