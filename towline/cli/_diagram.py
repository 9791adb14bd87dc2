"""`towline diagram`: the machine as documents and pictures, the check that the files are current, and comparison."""

from __future__ import annotations

import difflib
import importlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .._exceptions import InvalidArgument
from ..statemachine import Description, Table, describe, diff, diff_dot, diff_markdown, dot, markdown, mermaid
from ..statemachine._cells import HAS_DOCSTRINGS

app = typer.Typer(help="Show the machine: documents, pictures, comparison of versions.")

LIFECYCLE: Final = "towline.statemachine:LIFECYCLE"
FOLDER: Final = Path("docs/machine")

_MAKERS: Final[dict[str, tuple[str, Callable[[Description], str]]]] = {
    "md": (".md", markdown),
    "mermaid": (".mmd", mermaid),
    "overview": (".overview.mmd", lambda description: mermaid(description, overview=True)),
    "dot": (".dot", dot),
    "json": (".json", Description.to_json),
    "svg": (".svg", lambda description: render_svg(dot(description))),
}
#: What is committed: an SVG is made from the DOT by whoever wants one.
_COMMITTED: Final = "md,mermaid,overview,dot,json"

TableOption = Annotated[str, typer.Option("--table", help="MODULE:NAME of a table of your own.")]


def fail(problem: str) -> typer.Exit:
    """Say what is wrong, and give the exit to raise."""
    typer.echo(f"towline: {problem}", err=True)
    return typer.Exit(2)


def load_table(name: str) -> Table[Any, Any, Any, Any]:
    """Import a table by MODULE:NAME."""
    if not HAS_DOCSTRINGS:
        raise fail("the documents quote docstrings, which this Python drops: run it without -OO and PYTHONOPTIMIZE=2")
    module, _, attribute = name.partition(":")
    try:
        table = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise fail(f"no table {name}: {error}") from error
    if not isinstance(table, Table):
        raise fail(f"{name} is not a towline.statemachine.Table")
    return table


def render_svg(source: str) -> str:
    """Draw a DOT text with Graphviz."""
    program = shutil.which("dot")
    if program is None:
        raise fail("SVG is drawn by Graphviz, and there is no `dot` on the PATH; all other formats work without")
    drawn = subprocess.run(
        [program, "-Tsvg"], input=source, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    if drawn.returncode:
        raise fail(f"Graphviz failed: {drawn.stderr.strip()}")
    return drawn.stdout


def pictures(description: Description, formats: str) -> dict[str, str]:
    """File names and texts of the formats asked for, by commas."""
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    for name in wanted:
        if name not in _MAKERS:
            raise fail(f"no format {name}: there are {', '.join(_MAKERS)}")
    return {description.name + _MAKERS[name][0]: _MAKERS[name][1](description) for name in wanted}


@app.callback(invoke_without_command=True)
def diagram(
    context: typer.Context,
    formats: Annotated[str | None, typer.Option("--format", help="Any of " + ",".join(_MAKERS) + ".")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write to; without it, print.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare with the files there; exit 1 on drift.")] = False,
    table: TableOption = LIFECYCLE,
) -> None:
    """Write the machine as documents and pictures, made from its table and nothing else."""
    if context.invoked_subcommand is not None:
        return
    description = describe(load_table(table))
    if check:
        raise typer.Exit(_check(pictures(description, formats or _COMMITTED), out or FOLDER))
    if out is None:
        for text in pictures(description, formats or "mermaid").values():
            typer.echo(text, nl=False)
        return
    texts = pictures(description, formats or _COMMITTED)
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
        f"{folder} is not what the table says: run `towline diagram --out {folder}`"
        if drift
        else f"{folder} is what the table says"
    )
    return int(drift)


@app.command("diff", help="Say what changed between two versions of the machine, as Markdown.")
def compare(
    base: Annotated[str, typer.Argument(help="A JSON file, or a git revision.")],
    head: Annotated[str, typer.Argument(help="The same; without it, the table as it is now.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write a coloured picture to this .svg or .dot file.")] = None,
    fail_on: Annotated[str, typer.Option(help="`breaking`: exit 1 if a change may let somebody down.")] = "",
    table: TableOption = LIFECYCLE,
) -> None:
    """`towline diagram diff`."""
    if fail_on not in ("", "breaking"):
        raise fail(f"--fail-on {fail_on}: there is `breaking` only")
    now = describe(load_table(table))
    old, new = read_description(base, now.name), read_description(head, now.name) if head else now
    changes = diff(old, new)
    typer.echo(diff_markdown(old, new, changes), nl=False)
    if out is not None:
        picture = diff_dot(old, new)
        out.write_text(render_svg(picture) if out.suffix == ".svg" else picture, encoding="utf-8", newline="\n")
    if fail_on and any(change.breaking for change in changes):
        raise typer.Exit(1)


def read_description(source: str, name: str) -> Description:
    """Read a description from a JSON file, or from the one committed at a git revision."""
    try:
        if Path(source).is_file():
            return Description.from_json(Path(source).read_bytes())
        if source.startswith("-"):
            raise fail(f"{source} is neither a file nor a git revision")
        committed = f"{source}:./{FOLDER.as_posix()}/{name}.json"
        shown = subprocess.run(["git", "show", committed], capture_output=True, timeout=30, check=False)
        if shown.returncode:
            raise fail(f"{source} is neither a file nor a git revision with {FOLDER.as_posix()}/{name}.json")
        return Description.from_json(shown.stdout)
    except InvalidArgument as error:
        raise fail(f"{source}: {error}") from error
    except OSError as error:
        raise fail(f"{source}: {error.strerror or error}") from error
