"""`towline tokens`: list and maintain the token store. Only `show --reveal` prints a token or another secret."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import anyio
import typer

from .. import _exceptions as errors
from .._text import escape
from ..protocols._shared.names import CLASSES
from ..storage import KeyFile, PassphraseKey, Record, RecordKey, TokenStore, Verification
from ..storage._record import check_cursor
from ..transport import parse_url
from ._exit import ExitCode, fail
from .follow._follow import JsonOption, StoreOption

_T = TypeVar("_T")

JobArgument = Annotated[str, typer.Argument(help="Id of the job.", metavar="JOB")]
UrlOption = Annotated[
    str | None, typer.Option(help="URL of the job's stream, if several servers' jobs with this id are stored.")
]

_NO_RECORD: Final = "no record of the job {!r}: `towline tokens list` shows the stored jobs"

# What the user can do; subclasses come before their base classes.
ADVICE: Final[tuple[tuple[type[errors.TokenStoreError], str], ...]] = (
    (errors.Locked, "Unlock your keyring and try again."),
    (
        errors.KeyUnavailable,
        "The tokens cannot be read without that key. Restore it, or start over with `towline tokens delete --all`.",
    ),
    (errors.WrongKey, "Set the key or passphrase of this store, or start over with `towline tokens delete --all`."),
    (
        errors.Damaged,
        "The file was changed or cut short; Towline left it as it is. `towline tokens verify` lists all such files. "
        "Delete the file, or the record with `towline tokens delete JOB --url URL`, and pass the token again.",
    ),
    (errors.RecordMismatch, "The record belongs to another job or server. Delete it and pass the token again."),
    (errors.AmbiguousJob, "`towline tokens list` shows the address of each; pass one with --url."),
    (
        errors.UnsafePermissions,
        "Remove the access of other users from a folder of yours (chmod -R go-rwx FOLDER), or pass another --store.",
    ),
    (
        errors.UnknownVersion,
        "Use the version of Towline that wrote it, or start over with `towline tokens delete --all`.",
    ),
    (errors.ReadFailed, "Check the permissions of the folder and the disk, and try again."),
    (errors.WriteFailed, "Check the free space on the disk and the permissions of the folder, and try again."),
)

app = typer.Typer(
    name="tokens", help="List, check and delete stored tokens.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list", help="List the stored jobs. Tokens are not shown.")
def list_jobs(store: StoreOption = None, json: JsonOption = False) -> None:
    """`towline tokens list`."""
    found = _run(store, lambda tokens: tokens.verify())
    for record in found.records:
        typer.echo(jsonlib.dumps(_facts(record)) if json else _line(record))
    if not found.records and found.is_sound and not json:
        typer.echo("no jobs are stored", err=True)
    _report(found.findings)


@app.command(help="Show a job's record; the token and other secrets only with --reveal.")
def show(
    job: JobArgument,
    url: UrlOption = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Show the token, secrets, parameters and cursor too.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """`towline tokens show`."""
    record = _run(store, lambda tokens: _find(tokens, job, url))
    if record is None:
        fail(ExitCode.TROUBLE, _NO_RECORD.format(job))
    facts = _facts(record)
    if reveal:
        facts |= {
            "token": None if record.token is None else record.token.reveal(),
            "secrets": {name: secret.reveal() for name, secret in record.secrets.items()},
            "parameters": dict(record.parameters),
            "cursor": record.cursor,
        }
    if json:
        typer.echo(jsonlib.dumps(facts))
        return
    for name, value in facts.items():
        text = jsonlib.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        typer.echo(f"{name:<10} {escape(text)}")


@app.command(help="Delete a job's record, or all. Run `rotate` afterwards, so that no old copy can be read.")
def delete(
    job: Annotated[str | None, typer.Argument(help="Id of the job.", metavar="JOB")] = None,
    url: UrlOption = None,
    every: Annotated[bool, typer.Option("--all", help="Delete every record and the store's keys.")] = False,
    store: StoreOption = None,
) -> None:
    """`towline tokens delete`."""
    if (job is None) is not every:
        fail(ExitCode.USAGE, "pass either JOB or --all")
    if every and url is not None:
        fail(ExitCode.USAGE, "pass either --url or --all")
    if job is None:
        _run(store, lambda tokens: tokens.delete_all(), key=False)
    elif not _run(store, lambda tokens: _delete(tokens, job, url)):
        typer.echo(_NO_RECORD.format(job), err=True)


@app.command(help="Encrypt every record with a new key.")
def rotate(store: StoreOption = None) -> None:
    """`towline tokens rotate`."""
    count = _run(store, lambda tokens: tokens.rotate())
    typer.echo(f"{count} records encrypted with a new key")


@app.command(help="Read every record, and list the damaged ones.")
def verify(store: StoreOption = None) -> None:
    """`towline tokens verify`."""
    found, is_dated = _run(store, _verified)
    typer.echo(f"{len(found.records)} records are intact, {len(found.findings)} are not")
    for name in found.leftovers:
        typer.echo(f"harmless leftover of an interrupted save: {escape(name)}")
    for name in found.strangers:
        typer.echo(f"not a file of the store: {escape(name)}")
    if is_dated:
        typer.echo("the passphrase has weaker protection than new stores: call TokenStore.rewrap() to update it")
    _report(found.findings)


async def _verified(tokens: TokenStore) -> tuple[Verification, bool]:
    return await tokens.verify(), await tokens.needs_rewrap()


@app.command(help="Print the folder of the store and the source of its key.")
def where(store: StoreOption = None) -> None:
    """`towline tokens where`."""
    source = _run(store, lambda tokens: tokens.source(), key=False)
    typer.echo(f"folder   {escape(str(TokenStore(store).folder))}")
    typer.echo(f"key      {_named(source)}")


async def _find(tokens: TokenStore, job: str, url: str | None) -> Record | None:
    found = await tokens.find(job)
    if url is not None:
        address = _address(url)
        found = [record for record in found if record.key.address == address]
    if len(found) > 1:
        raise errors.AmbiguousJob(job, (record.key.server for record in found))
    return found[0] if found else None


async def _delete(tokens: TokenStore, job: str, url: str | None) -> bool:
    """Delete the record; whether there may have been one."""
    if url is not None:  # an unreadable record too, which no search can find
        stored = {record.key.protocol for record in (await tokens.verify()).records}  # also protocols of the user's
        address = _address(url)
        for protocol in stored.union(CLASSES):
            await tokens.delete(RecordKey(protocol, address, job))
        return True
    if (record := await _find(tokens, job, None)) is None:
        return False
    await tokens.delete(record.key)
    return True


def _address(url: str) -> str:
    return parse_url(url, schemes=("wss", "ws", "https", "http"), allow_insecure=True).address


def _run(store: Path | None, call: Callable[[TokenStore], Coroutine[Any, Any, _T]], *, key: bool = True) -> _T:
    """Call the store and report its errors. Without `key` the user is not asked for a passphrase."""

    async def run() -> _T:
        tokens = TokenStore(store)
        if key and await tokens.source() == "passphrase":
            tokens = TokenStore(store, provider=PassphraseKey(_ask))
        return await call(tokens)

    try:
        return anyio.run(run)
    except errors.TokenStoreError as error:
        _print_error(error)
        raise typer.Exit(ExitCode.TROUBLE) from None


def _ask() -> str:
    return str(typer.prompt("Passphrase of the token store", hide_input=True, err=True))


def _report(findings: tuple[errors.TokenStoreError, ...]) -> None:
    for finding in findings:
        _print_error(finding)
    if findings:
        raise typer.Exit(ExitCode.TROUBLE)


def _print_error(error: errors.TokenStoreError) -> None:
    typer.echo(f"towline: {escape(str(error))}", err=True)
    typer.echo(next((advice for kind, advice in ADVICE if isinstance(error, kind)), ""), err=True)


def _facts(record: Record) -> dict[str, object]:
    return {
        "job": record.key.job,
        "protocol": record.key.protocol,
        "address": record.key.address,
        "token": "none" if record.token is None else "hidden",
        "secrets": "hidden" if record.secrets else "none",
        "state": "ended" if record.ended else "live",
        "saved": _when(record.saved),
        "expires": None if record.expires is None else _when(record.expires),
        "cursor": None if record.cursor is None else _position(record.cursor),
    }


def _position(cursor: str) -> str:
    numbered = check_cursor(cursor)
    return "hidden" if numbered is None else f"{numbered.seq} of {numbered.epoch}"


def _line(record: Record) -> str:
    expiry = "" if record.expires is None else f", expires {_when(record.expires)}"
    state = "ended" if record.ended else "live"
    key = record.key
    return f"{escape(key.job)}  {key.protocol}  {key.address}  {state}, saved {_when(record.saved)}{expiry}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _named(source: str | None) -> str:
    match source:
        case None:
            return "none yet: the first record creates it"
        case "file":
            return f"the key file {escape(str(KeyFile.default().path))}"
        case "env":
            return "the environment variable TOWLINE_KEY"
        case "credential":
            return "a systemd credential"
        case "keyring":
            return "the system keyring"
        case "passphrase":
            return "a passphrase"
        case _:
            return "supplied by the program that created the store"
