"""`towline rehearse`: follow a real job while a proxy causes the faults of a script, and report what happened."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
import typer

from .._exceptions import InvalidArgument
from ..host._interrupts import heeded
from ..storage import TokenStore
from ._exit import ExitCode, fail
from ._follow import BackendOption, InsecureOption, StoreOption, TokenFileOption, given_token
from ._output_file import output_file

if TYPE_CHECKING:
    from ..testing import RehearsalEntry


def rehearse(
    url: Annotated[str, typer.Argument(help="URL of the job's stream: ws(s)://…")],
    job: Annotated[str, typer.Option("--job", help="Id of the job.")],
    script: Annotated[
        Path, typer.Option("--script", help="TOML file with the faults.", exists=True, dir_okay=False, readable=True)
    ],
    seed: Annotated[int | None, typer.Option("--seed", help="Seed, instead of the one in the script.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this file, as JSON.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw states and faults to this SVG file.")] = None,
    token_file: TokenFileOption = None,
    store: StoreOption = None,
    backend: BackendOption = "asyncio",
    allow_insecure: InsecureOption = False,
) -> None:
    """`towline rehearse`."""
    from ..testing import Rehearsal, StormScript
    from ..testing import rehearse as run_rehearsal

    interrupted = False

    async def wait_interrupt() -> None:
        nonlocal interrupted
        if sys.platform == "win32":  # on Windows, Ctrl-C raises KeyboardInterrupt, which closes everything too
            await anyio.sleep_forever()
        with anyio.open_signal_receiver(*heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
            await anext(signals)
        interrupted = True

    with ExitStack() as files:
        storm = StormScript.from_toml(_text_of(script))
        if seed is not None:
            storm = msgspec.structs.replace(storm, seed=seed)
        token = given_token(token_file)
        write_report = files.enter_context(output_file(report))
        write_svg = files.enter_context(output_file(svg))

        async def run() -> Rehearsal:
            return await run_rehearsal(
                url,
                storm,
                report=_show,
                until=wait_interrupt,
                job=job,
                token=token,
                store=TokenStore(store) if token is None else None,
                allow_insecure=allow_insecure,
            )

        rehearsal = anyio.run(run, backend=backend)
        write_report(msgspec.json.format(msgspec.json.encode(rehearsal)) + b"\n")
        write_svg(rehearsal.svg().encode())
        typer.echo(
            f"{rehearsal.outcome or 'no end'} after {rehearsal.seconds:.1f} s: {rehearsal.updates} updates, "
            f"{rehearsal.dials} dials, seed {rehearsal.seed}"
        )
    if interrupted and rehearsal.outcome is None:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if rehearsal.findings:
        fail(ExitCode.TROUBLE, "; ".join(rehearsal.findings))


def _text_of(script: Path) -> str:
    try:
        return script.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument("script", "the file is not UTF-8 text") from error


def _show(entry: RehearsalEntry) -> None:
    what = f"{entry.state}{f': {entry.what}' if entry.what else ''}" if entry.state is not None else f"~ {entry.what}"
    with suppress(OSError):  # standard output may be closed, and the report still wanted
        typer.echo(f"{entry.at:8.3f} s  {what}")
