"""`towline import` and `towline watch`: start a job, and follow it to its end."""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import anyio
import anyio.to_thread
import typer

from ..._connection import Connection, Token
from ..._exceptions import InvalidArgument, TowlineError
from ..._secret import Secret
from ..._text import escape
from ...host._attach import attach
from ...host._interrupts import WINDOW, Interruption, watch_interrupts
from ...protocols.towline import PROGRESS_PATH
from ...protocols.wire.messages import NAME
from ...statemachine import Policy, State
from ...storage import RecordKey, TokenStore
from ...transport import Network, Upload, parse_url
from .._exit import ExitCode, code_of
from ._output_file import output_file, recording_file
from ._protocol import FieldsOption, ProtocolOption, chosen_protocol
from ._start import start_job
from ._view import View, chosen_view

#: The hub's call that starts an import (docs/hub.md).
IMPORT_PATH: Final = "/api/imports/csv"
_PIECE: Final = 256 << 10

Backend = Literal["asyncio", "trio"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
StoreOption = Annotated[
    Path | None, typer.Option(envvar="TOWLINE_STORE", help="Folder of the token store; your own by default.")
]
BackendOption = Annotated[Backend, typer.Option(help="Event loop to run on.")]
InsecureOption = Annotated[
    bool, typer.Option("--allow-insecure", help="Allow connections without TLS to other machines.")
]
PingOption = Annotated[float, typer.Option(help="Send a ping after this many seconds of silence.")]
LostOption = Annotated[float, typer.Option(help="Reconnect after this many seconds of silence.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(help="File with the token (- for standard input). Default: TOWLINE_TOKEN, then the token store."),
]
HistoryOption = Annotated[Path | None, typer.Option(help="Write the history to this file, for `towline trace`.")]
RecordOption = Annotated[
    Path | None, typer.Option(help="Write what the server says to this file, without tokens: a recording.")
]
_DEFAULTS: Final = Policy()


def import_csv(
    file: Annotated[Path, typer.Argument(help="CSV file to import.", exists=True, dir_okay=False, readable=True)],
    url: Annotated[str, typer.Option(help="URL of the hub: http(s)://host[:port][/path].")],
    json: JsonOption = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job, store its token and exit.")] = False,
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
            raise InvalidArgument("url", "the URL of a hub has no query: leave out ? and what follows it")
        path = hub.path.rstrip("/")
        where = "ws" + hub.at(path + PROGRESS_PATH).whole.removeprefix("http")
        policy = Policy(ping_after=ping_after, lost_after=lost_after)
        tokens = TokenStore(store)

        async def run() -> ExitCode:
            size = (await anyio.Path(file).stat()).st_size
            started = await start_job(hub.at(path + IMPORT_PATH), Upload(_pieces(file), size))
            with chosen_view(json=json) as view:
                view.note(type="job", job=started.job)
                if detach:
                    key = RecordKey(NAME, hub.at(path + PROGRESS_PATH).address, started.job)
                    await tokens.save(key, started.token, parameters={"url": where})
                    return ExitCode.COMPLETE
                line = Connection(
                    where,
                    job=started.job,
                    token=Token(started.token, refresh=True),
                    store=tokens,
                    network=Network(allow_insecure=allow_insecure),
                    policy=policy,
                    on_state=view.state,
                )
                resume = resume_command(started.job, store, allow_insecure=allow_insecure)
                return await _follow(line, view, write_history, resume)

        code = anyio.run(run, backend=backend)
    raise typer.Exit(code)


def watch(
    job: Annotated[
        str | None,
        typer.Argument(help="Id of the job; write -- before an id that starts with a dash. Some protocols know it."),
    ] = None,
    protocol: ProtocolOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="URL of the job: ws(s)://…, with --protocol also http(s)://… Default: the stored one, if there is "
            "only one."
        ),
    ] = None,
    given: FieldsOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
    store: StoreOption = None,
    backend: BackendOption = "asyncio",
    allow_insecure: InsecureOption = False,
    ping_after: PingOption = _DEFAULTS.ping_after,
    lost_after: LostOption = _DEFAULTS.lost_after,
    history: HistoryOption = None,
    record: RecordOption = None,
) -> None:
    """`towline watch`."""
    chosen = chosen_protocol(protocol, url, job, given or [])
    if job is None and chosen is None:
        raise InvalidArgument("job", "is missing: pass JOB")
    with output_file(history) as write_history, recording_file(record) as observe:
        token = given_token(token_file)
        policy = Policy(ping_after=ping_after, lost_after=lost_after)

        async def run() -> ExitCode:
            with chosen_view(json=json) as view:
                line = Connection(
                    url if chosen is None else chosen,
                    job=job,
                    token=token,
                    store=TokenStore(store),
                    network=Network(allow_insecure=allow_insecure),
                    policy=policy,
                    on_state=view.state,
                )
                if observe is not None:
                    line.observe(observe)
                resume = resume_command(
                    job, store, url, allow_insecure=allow_insecure, protocol=protocol, given=given or []
                )
                return await _follow(line, view, write_history, resume)

        code = anyio.run(run, backend=backend)
    raise typer.Exit(code)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb") as opened:
        while piece := await opened.read(_PIECE):
            yield piece


def given_token(file: Path | None) -> Secret | None:
    """Read the token from a file or the environment. Every user of the machine could see an argument."""
    if file is not None:
        try:
            data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            raise InvalidArgument("token_file", f"{file} cannot be read: {error.strerror}") from error
        text = data.removeprefix(codecs.BOM_UTF8).strip().decode("ascii", "replace")
        if not text:
            raise InvalidArgument("token_file", "the file is empty; it must hold the token")
        return Secret(text)
    text = os.environ.get("TOWLINE_TOKEN", "").strip()
    return Secret(text) if text else None


async def _follow(line: Connection, view: View, write_history: Callable[[bytes], None], resume: str) -> ExitCode:
    """Show a job until it ends or is interrupted; `resume` is the command that follows it again."""
    failure: TowlineError | OSError | None = None
    entered = False
    # A second Ctrl-C has a meaning only where a person can read about it: on a terminal.
    window = WINDOW if sys.stderr.isatty() else 0.0

    def show(what: Interruption) -> None:
        with suppress(OSError):  # after SIGHUP there is no terminal to write to; the server still gets its close
            view.say("interruption", _interrupted(what, resume, window))

    async with anyio.create_task_group() as tasks:

        async def stop_on_signal() -> None:
            await watch_interrupts(line, show, window=window)

        try:
            async with line:
                entered = True
                if line.state is State.IDLE:
                    view.say(
                        "stored", "the end of this job is stored; delete its record (towline tokens) to follow it again"
                    )
                # Started first, because D-Bus may be slow to answer `attach`.
                if sys.platform != "win32":  # on Windows, Ctrl-C raises KeyboardInterrupt, which closes everything too
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


def resume_command(
    job: str | None,
    store: Path | None,
    url: str | None = None,
    *,
    allow_insecure: bool = False,
    protocol: str | None = None,
    given: Sequence[str] = (),
) -> str:
    """Make the command that follows the job again, from any folder.

    A URL that the user had to give is needed again, but its query is not printed: it may hold a secret. The record has
    the whole URL, so for a built-in protocol the job's id is enough then.
    """
    options = ["--allow-insecure"] if allow_insecure else []
    is_own = protocol is not None and ":" in protocol
    if is_own or url is None or "?" not in url:
        options += [] if protocol is None else ["--protocol", protocol]
        options += [] if url is None else ["--url", url.partition("?")[0] + ("?..." if "?" in url else "")]
        for text in given:
            options += ["-p", text]
    if store is not None:
        options += ["--store", str(store.absolute())]
    if job is None:
        return shlex.join(["towline", "watch", *options])
    # `--` lets an id start with a dash.
    return shlex.join(["towline", "watch", *([*options, "--", job] if job.startswith("-") else [job, *options])])


def _interrupted(what: Interruption, resume: str, window: float) -> str:
    match what:
        case "stopped" | "terminated":
            waits = what == "stopped" and window
            again = f"\npress Ctrl-C again within {window:.0f} s to ask the server to cancel it" if waits else ""
            return f"stopped following; the job continues. Resume with\n  {escape(resume)}{again}"
        case "accepted":
            return "the server accepted the request to cancel the job"
        case "too_late":
            return "the job had ended before it could be cancelled"
        case "unknown":
            return "the server got the request to cancel the job, but did not say whether it will"
        case TowlineError():
            return f"the request to cancel the job failed, and the job continues: {escape(str(what))}"
