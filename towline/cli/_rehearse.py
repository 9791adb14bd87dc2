"""`towline rehearse`: follow a job while faults happen, and report what happened.

The job is a real one, and a proxy causes the faults of a script; or it is in a recording, and a protocol is checked.
"""

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
from .._text import escape
from ..host._interrupts import heeded
from ..storage import TokenStore
from ._exit import ExitCode, fail
from .follow._follow import BackendOption, InsecureOption, StoreOption, TokenFileOption, given_token
from .follow._output_file import output_file
from .follow._protocol import FieldsOption, ProtocolOption, chosen_protocol

if TYPE_CHECKING:
    from .._facts import Protocol
    from ..testing import RehearsalEntry


def rehearse(
    url: Annotated[str | None, typer.Argument(help="URL of the job's stream: ws(s)://…")] = None,
    job: Annotated[str | None, typer.Option(help="Id of the job.")] = None,
    script: Annotated[
        Path | None, typer.Option(help="TOML file with the faults.", exists=True, dir_okay=False, readable=True)
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a script: check the protocol on this recording (`towline watch --record`). Nothing is "
            "sent; URL and --job are those of the recorded job."
        ),
    ] = None,
    protocol: ProtocolOption = None,
    given: FieldsOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the one in the script.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file, as JSON.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw states and faults to this SVG file.")] = None,
    token_file: TokenFileOption = None,
    store: StoreOption = None,
    backend: BackendOption = "asyncio",
    allow_insecure: InsecureOption = False,
) -> None:
    """`towline rehearse`."""
    if recording is not None:
        _check(chosen_protocol(protocol or "towline", url, job, given or []), recording, report, backend)
        return
    if url is None or job is None or script is None:
        raise InvalidArgument("recording", "is missing: pass URL, --job and --script, or --protocol and --recording")
    if protocol is not None or given:
        raise InvalidArgument("protocol", "a storm is for Towline's own protocol: pass --recording to check another")
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
        fail(ExitCode.FAILED, "; ".join(rehearsal.findings))


def _check(protocol: Protocol | None, recording: Path, report: Path | None, backend: str) -> None:
    from ..testing import check_protocol

    assert protocol is not None, "it was named"
    with output_file(report) as write_report:
        found = check_protocol(protocol, recording, backend=backend)
        write_report(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    for line in str(found).splitlines():
        typer.echo(escape(line))
    if found.findings:
        raise typer.Exit(ExitCode.FAILED)


def _text_of(script: Path) -> str:
    try:
        return script.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument("script", "the file is not UTF-8 text") from error


def _show(entry: RehearsalEntry) -> None:
    what = f"{entry.state}{f': {entry.what}' if entry.what else ''}" if entry.state is not None else f"~ {entry.what}"
    with suppress(OSError):  # standard output may be closed, and the report still wanted
        typer.echo(f"{entry.at:8.3f} s  {what}")
