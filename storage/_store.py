"""The token store's async interface, which does the file work in a worker thread.

A call there runs to its end once it has started, even if the caller is cancelled.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import anyio.from_thread
from anyio.to_thread import run_sync

from .._exceptions import InvalidArgument
from .._secret import Secret
from ._record import Parameter, Record, RecordKey, check_job, with_cursor, with_end, with_token
from ._vault import Vault, Verification
from .keys._keyset import Source
from .keys._providers import HOMES, KeyProvider, user_folder


class Store(ABC):
    """The interface that the engine needs of a token store. `TokenStore` is on disk, `MemoryTokenStore` in memory.

    A record belongs to a `RecordKey`: protocol, address and job. It has the job's token, the cursor of the last
    delivered update, the job's end, and what the protocol needs to follow the job again. Every method raises a
    `TokenStoreError` if a record cannot be read or written, and `InvalidArgument` for a value that cannot be stored.
    `None` means only that there is no record.
    """

    @abstractmethod
    async def save(
        self,
        key: RecordKey,
        token: Secret | str | None,
        expires: float | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        secrets: Mapping[str, Secret | str] | None = None,
    ) -> None:
        """Save a job's token, which may be sent only to `key.origin`. Cursor and end stay.

        `expires` is in seconds since 1970. Pass `token` None if no token belongs to the job: an earlier one is removed.
        `parameters` are the protocol's own values, without secrets: text, booleans, and numbers that are 0 or between
        0.0001 and 2**53 in size. `secrets` are its secret texts, such as headers' values. Each map replaces the earlier
        one; if left out, the earlier one stays.
        """

    @abstractmethod
    async def read(self, key: RecordKey) -> Record | None:
        """Return the whole record."""

    @abstractmethod
    async def find(self, job: str) -> list[Record]:
        """Return the records of all servers' jobs with this id, sorted by key."""

    @abstractmethod
    async def save_cursor(self, key: RecordKey, cursor: bytes | str) -> bool:
        """Save the position of the last delivered update, and leave the rest of the record unchanged.

        `cursor` is the text of a JSON object of at most 4 KiB: `{"seq":7,"epoch":"e1"}`, `{"mark":"text"}`, or any
        other without `seq`. Returns False if there is no record. Within one epoch a cursor with `seq` never goes back;
        any other replaces the earlier one.
        """

    @abstractmethod
    async def mark_ended(self, key: RecordKey, outcome: bytes | str) -> bool:
        """Save that the job ended: `outcome` is JSON text. The record stays until `delete` or its expiry.

        Returns False if there is no record. The first outcome stays. Raises `InvalidArgument` if `outcome` is not
        JSON, or too long for a record of 64 KiB.
        """

    @abstractmethod
    async def delete(self, key: RecordKey) -> None:
        """Remove the record, if there is one."""

    @abstractmethod
    async def jobs(self) -> list[RecordKey]:
        """Return the keys of all records, sorted."""

    @abstractmethod
    async def delete_all(self) -> None:
        """Remove all records, readable or not."""


class _EditedStore(Store):
    """A store that applies a pure change to one record at a time."""

    _now: Callable[[], float]

    async def save(
        self,
        key: RecordKey,
        token: Secret | str | None,
        expires: float | None = None,
        *,
        parameters: Mapping[str, Parameter] | None = None,
        secrets: Mapping[str, Secret | str] | None = None,
    ) -> None:
        # Hide both first: a traceback with locals must not show them.
        token = None if token is None else _hidden(token)
        secrets = hidden = None if secrets is None else {name: _hidden(text) for name, text in secrets.items()}

        def edit(old: Record | None) -> Record:
            return with_token(
                old, key, token=token, expires=expires, parameters=parameters, secrets=hidden, now=self._now()
            )

        await self._change(key, edit, begin=True)

    async def save_cursor(self, key: RecordKey, cursor: bytes | str) -> bool:
        text = _as_text(cursor)
        return await self._change(key, lambda old: old and with_cursor(old, text, now=self._now())) is not None

    async def mark_ended(self, key: RecordKey, outcome: bytes | str) -> bool:
        text = _as_text(outcome)
        return await self._change(key, lambda old: old and with_end(old, text, now=self._now())) is not None

    @abstractmethod
    async def _change(
        self, key: RecordKey, edit: Callable[[Record | None], Record | None], *, begin: bool = False
    ) -> Record | None:
        """Save what `edit` makes of the record; `begin`: also if there is no store yet. Returns the present record."""


class TokenStore(_EditedStore):
    """An encrypted store in a private folder; docs/format.md describes the files.

    Several stores, threads and processes may use one folder. The change of a call that has returned survives a power
    cut; a cancelled call has either made its whole change or none. No file is opened and no key is requested before
    the first call.

    `folder` is by default `<user state folder>/<app>/tokens`. `provider` supplies the key that wraps the store. By
    default it is the first available one of: `TOWLINE_KEY`, a systemd credential, the system's keyring, and a key file
    in the user's configuration folder, which is created at first use. Only the kind of provider that wrapped an
    existing store can open it. `now` is the wall clock.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        app: str = "towline",
        provider: KeyProvider | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        path = Path(folder) if folder else default_folder(app)
        self._vault = Vault(path, app=app, provider=provider, now=now, tick=_tick)
        self._now = now

    def __repr__(self) -> str:
        return f"<TokenStore {str(self.folder)!r}>"

    @property
    def folder(self) -> Path:
        """The folder of the records."""
        return self._vault.folder

    async def read(self, key: RecordKey) -> Record | None:
        return await run_sync(self._vault.read, key)

    async def find(self, job: str) -> list[Record]:
        """See `Store.find`. It opens no other job's files."""
        return await run_sync(self._vault.find, check_job(job))

    async def delete(self, key: RecordKey) -> None:
        """See `Store.delete`. It also removes an unreadable record."""
        await run_sync(self._vault.delete, key)

    async def jobs(self) -> list[RecordKey]:
        return await run_sync(self._vault.jobs)

    async def delete_all(self) -> None:
        """See `Store.delete_all`. It needs no key, so it also works if the key is lost."""
        await run_sync(self._vault.delete_all)

    async def source(self) -> Source | None:
        """Return the kind of provider that wrapped the store, or None if there is no store. No key is requested."""
        return await run_sync(self._vault.source)

    async def rotate(self) -> int:
        """Seal every record with a new key and drop the old one; return the number of sealed records.

        Call it after a `delete` to make copies of the deleted record unreadable. An interrupted call loses nothing, and
        the next one finishes the work. Raises `Damaged` if a record cannot be read: the old key stays until you
        delete that record.
        """
        return await run_sync(self._vault.rotate)

    async def rewrap(self, provider: KeyProvider | None = None) -> None:
        """Wrap the store with another provider, which opens it from now on. None: the same one with today's costs."""
        await run_sync(self._vault.rewrap, provider)

    async def needs_rewrap(self) -> bool:
        """Return whether the store was wrapped with lower costs than today's default."""
        return await run_sync(self._vault.needs_rewrap)

    async def verify(self) -> Verification:
        """Read everything, change nothing, and report damaged records."""
        return await run_sync(self._vault.verify)

    async def _change(
        self, key: RecordKey, edit: Callable[[Record | None], Record | None], *, begin: bool = False
    ) -> Record | None:
        return await run_sync(partial(self._vault.change, key, edit, begin=begin))


class MemoryTokenStore(_EditedStore):
    """A store in memory with the same behaviour: for tests under virtual time and programs that save no tokens."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._records: dict[RecordKey, Record] = {}
        self._now = now

    def __repr__(self) -> str:
        return f"<MemoryTokenStore of {len(self._records)} jobs>"

    async def read(self, key: RecordKey) -> Record | None:
        record = self._records.get(key)
        if record is not None and record.is_over(self._now()):
            del self._records[key]
            return None
        return record

    async def find(self, job: str) -> list[Record]:
        check_job(job)
        found = [await self.read(key) for key in sorted(self._records) if key.job == job]
        return [record for record in found if record is not None]

    async def _change(
        self, key: RecordKey, edit: Callable[[Record | None], Record | None], *, begin: bool = False
    ) -> Record | None:
        new = edit(await self.read(key))
        if new is not None:
            self._records[key] = new
        return new

    async def delete(self, key: RecordKey) -> None:
        self._records.pop(key, None)

    async def jobs(self) -> list[RecordKey]:
        return [key for key in sorted(self._records) if await self.read(key) is not None]

    async def delete_all(self) -> None:
        self._records.clear()


def default_folder(app: str) -> Path:
    """The default folder of a store. Raises `InvalidArgument` for a user without a home."""
    from platformdirs import user_state_path

    folder = user_folder(user_state_path, app)
    if folder is None:
        raise InvalidArgument(
            "folder",
            f"this user has no home folder; name a folder (--store or TOWLINE_STORE on the command line), {HOMES}",
        )
    return folder / "tokens"


def _hidden(text: Secret | str) -> Secret:
    return Secret(text) if isinstance(text, str) else text


def _as_text(given: bytes | str) -> str:
    return given if isinstance(given, str) else given.decode("utf-8", "surrogateescape")


def _tick() -> None:
    """End the wait for another process's lock if the call was cancelled; nothing has started by then."""
    anyio.from_thread.check_cancelled()
