"""`towline import` and `towline watch`: start a job, and follow one to its end."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import anyio
import anyio.to_thread
import typer

from .._connection import Connection
from .._exceptions import InvalidArgument, TowlineError
from .._secret import Secret
from .._text import escape
from ..host._attach import attach
from ..host._interrupts import WINDOW, Interruption, watch_interrupts
from ..statemachine import Policy
from ..storage import TokenStore
from ..transport import JobCalls, Upload, parse_url
from ..transport._job_calls import PROGRESS_PATH
from ._exit import ExitCode, code_of
from ._output_file import output_file
from ._view import View, chosen_view

#: Where a hub starts an import (docs of the hub).
IMPORT_PATH: Final = "/api/imports/csv"
_PIECE: Final = 256 << 10

Backend = Literal["asyncio", "trio"]

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", envvar="TOWLINE_STORE", help="Folder of the token store, if not the user's.")
]
BackendOption = Annotated[Backend, typer.Option("--backend", help="The event loop to run on.")]
InsecureOption = Annotated[
    bool, typer.Option("--allow-insecure", help="Allow a line without TLS to other hosts than this one.")
]
PingOption = Annotated[float, typer.Option("--ping-after", help="Silence after which the link is pinged, in seconds.")]
LostOption = Annotated[float, typer.Option("--lost-after", help="Silence after which it counts as lost, in seconds.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="Read the token from this file (- for standard input). TOWLINE_TOKEN is read else, then the store.",
    ),
]
HistoryOption = Annotated[
    Path | None, typer.Option("--history", help="Write what the machine did to this file, for `towline trace`.")
]
_DEFAULTS: Final = Policy()


def import_csv(
    file: Annotated[Path, typer.Argument(help="The CSV file to import.", exists=True, dir_okay=False, readable=True)],
    url: Annotated[str, typer.Option("--url", help="The hub: http(s)://host[:port][/path].")],
    json: JsonOption = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job, keep its token, and leave.")] = False,
    store: StoreOption = None,
    backend: BackendOption = "asyncio",
    allow_insecure: InsecureOption = False,
    ping_after: PingOption = _DEFAULTS.ping_after,
    lost_after: LostOption = _DEFAULTS.lost_after,
    history: HistoryOption = None,
) -> None:
    """`towline import`."""
    with output_file(history) as write_history:
        hub = parse_url(url, schemes=("https", "http"), allow_insecure=allow_insecure)
        if "?" in hub.target:
            raise InvalidArgument("url", "a hub's URL has no query")
        path = hub.path.rstrip("/")
        where = "ws" + hub.at(path + PROGRESS_PATH).whole.removeprefix("http")
        policy = Policy(ping_after=ping_after, lost_after=lost_after)
        tokens = TokenStore(store)

        async def run() -> ExitCode:
            size = (await anyio.Path(file).stat()).st_size
            started = await JobCalls(hub).start_job(path + IMPORT_PATH, Upload(_pieces(file), size))
            with chosen_view(json=json) as view:
                view.note(type="job", job=started.job)
                if detach:
                    await tokens.save(started.job, started.token, str(hub.origin), context={"url": where})
                    return ExitCode.COMPLETE
                line = Connection(
                    where,
                    job=started.job,
                    token=started.token,
                    refresh=True,
                    store=tokens,
                    allow_insecure=allow_insecure,
                    policy=policy,
                    on_state=view.state,
                )
                resume = _resume(started.job, store, allow_insecure=allow_insecure)
                return await _follow(line, view, write_history, resume)

        code = anyio.run(run, backend=backend)
    raise typer.Exit(code)


def watch(
    job: Annotated[str, typer.Argument(help="The job's id; write -- before one that begins with a dash.")],
    url: Annotated[
        str | None, typer.Option("--url", help="Where it is followed: ws(s)://… Left out: as on record.")
    ] = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
    store: StoreOption = None,
    backend: BackendOption = "asyncio",
    allow_insecure: InsecureOption = False,
    ping_after: PingOption = _DEFAULTS.ping_after,
    lost_after: LostOption = _DEFAULTS.lost_after,
    history: HistoryOption = None,
) -> None:
    """`towline watch`."""
    with output_file(history) as write_history:
        token = given_token(token_file)
        policy = Policy(ping_after=ping_after, lost_after=lost_after)

        async def run() -> ExitCode:
            with chosen_view(json=json) as view:
                line = Connection(
                    url,
                    job=job,
                    token=token,
                    store=TokenStore(store),
                    allow_insecure=allow_insecure,
                    policy=policy,
                    on_state=view.state,
                )
                return await _follow(line, view, write_history, _resume(job, store, allow_insecure=allow_insecure))

        code = anyio.run(run, backend=backend)
    raise typer.Exit(code)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb") as opened:
        while piece := await opened.read(_PIECE):
            yield piece


def given_token(file: Path | None) -> Secret | None:
    """The token from a file or the environment: an argument would be seen by every user of the machine."""
    if file is not None:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = data.removeprefix(codecs.BOM_UTF8).strip().decode("ascii", "replace")
        if not text:
            raise InvalidArgument("token_file", "the file is empty")
        return Secret(text)
    text = os.environ.get("TOWLINE_TOKEN", "").strip()
    return Secret(text) if text else None


async def _follow(line: Connection, view: View, write_history: Callable[[bytes], None], resume: str) -> ExitCode:
    """Show a job until it ends or somebody presses Ctrl-C; `resume` is the command that follows it again."""
    failure: TowlineError | OSError | None = None
    entered = False
    # Only somebody at a terminal can read that a second Ctrl-C does more, and press it.
    window = WINDOW if sys.stderr.isatty() else 0.0

    def tell(what: Interruption) -> None:
        with suppress(OSError):  # SIGHUP comes when the terminal is gone: the server is told all the same
            view.say("interruption", _interrupted(what, resume, window))

    async with anyio.create_task_group() as tasks:

        async def stop_on_signal() -> None:
            await watch_interrupts(line, tell, window=window)

        try:
            async with line:
                entered = True
                # Before the rest, for a bus may take its time to answer.
                if sys.platform != "win32":  # there Ctrl-C is a KeyboardInterrupt, which closes everything too
                    tasks.start_soon(stop_on_signal)
                async with attach(line, job_control=sys.platform != "win32"):
                    async for update in line:
                        view.update(update)
        except (TowlineError, OSError) as error:
            failure = error
        tasks.cancel_scope.cancel()
    if entered:
        await anyio.to_thread.run_sync(write_history, line.history().to_json())
    if failure is not None:
        raise failure
    return ExitCode.INTERRUPTED if line.outcome is None else code_of(line.outcome)


def _resume(job: str, store: Path | None, *, allow_insecure: bool) -> str:
    """The command that follows a job on record, from any folder."""
    options = ["--allow-insecure"] if allow_insecure else []
    if store is not None:
        options += ["--store", str(store.absolute())]
    # After `--` a job is a job, whatever it begins with.
    return shlex.join(["towline", "watch", *([*options, "--", job] if job.startswith("-") else [job, *options])])


def _interrupted(what: Interruption, resume: str, window: float) -> str:
    match what:
        case "stopped" | "terminated":
            waits = what == "stopped" and window
            again = f"\npress Ctrl-C again within {window:.0f} s to ask the server to cancel it" if waits else ""
            return f"stopped following; the job goes on. Resume with\n  {escape(resume)}{again}"
        case "accepted":
            return "the server was asked to cancel the job, and will"
        case "too_late":
            return "the job had ended before it could be cancelled"
        case "unknown":
            return "the server was asked to cancel the job, and does not say whether it will"
        case TowlineError():
            return f"the server could not be asked to cancel the job, which goes on: {escape(str(what))}"
