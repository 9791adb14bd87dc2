"""The blocking calls of the store, to be made in a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._exceptions import (
    Damaged,
    ReadFailed,
    RecordMismatch,
    TokenStoreError,
    UnknownVersion,
    UnsafePermissions,
    WriteFailed,
)
from ._files import TEMPORARY, Folder, never
from ._keychain import KEYSET, Keychain
from ._record import Record, RecordKey
from ._sealed import Opened
from .keys._keyset import Source
from .keys._providers import KeyProvider

if TYPE_CHECKING:
    from ._session import Session

_UNREADABLE: Final = (Damaged, ReadFailed, RecordMismatch, UnknownVersion, UnsafePermissions)


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: every readable record, and an error for each unreadable one.

    `leftovers` are the names of temporaries that a killed writer left; they are harmless, and the next writer of the
    same record removes them. `strangers` are files that the store did not create.
    """

    records: tuple[Record, ...]
    findings: tuple[TokenStoreError, ...]
    leftovers: tuple[str, ...]
    strangers: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every record is readable."""
        return not self.findings


class Vault:
    """The records of one folder, safe for use by several threads and processes.

    While a call waits for another process it calls `tick`, which may raise to end the wait. Nothing interrupts a call
    that holds the lock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        app: str,
        provider: KeyProvider | None,
        now: Callable[[], float],
        tick: Callable[[], None] = never,
    ) -> None:
        self.folder = folder
        self._now = now
        self._tick = tick
        self._keychain = Keychain(folder, app=app, provider=provider, now=now)

    # --- one record ---

    def read(self, key: RecordKey) -> Record | None:
        """The record of this key, or None if it has no file."""
        with self._session(exclusive=False) as session:
            opened = None if session is None else session.read(key)
        if opened is not None and self._is_over(opened):
            self._sweep([opened])
            return None
        return None if opened is None else opened.record

    def change(self, key: RecordKey, edit: Callable[[Record | None], Record | None], *, begin: bool) -> Record | None:
        """Apply `edit` to the record and save the result if it differs; return the present record.

        If there is no store and `begin` is false, create none and return None without calling `edit`.
        """
        with self._session(exclusive=True, begin=begin) as session:
            if session is None:
                return None
            opened = session.read(key)
            old = None if opened is None or self._is_over(opened) else opened.record
            new = edit(old)
            if new is not None and new is not old:
                session.put(opened, new)
            return new

    def delete(self, key: RecordKey) -> None:
        """Remove the record, if there is one."""
        with self._session(exclusive=True) as session:
            if session is not None:
                session.remove(key)

    # --- several records ---

    def find(self, job: str) -> list[Record]:
        """The records of all servers' jobs with this id, sorted by key."""
        with self._session(exclusive=False) as session:
            found = [] if session is None else session.find(job)
        return self._current(found)

    def jobs(self) -> list[RecordKey]:
        """The keys of all records, sorted."""
        with self._session(exclusive=False) as session:
            found = [] if session is None else [one for tag in session.tags() if (one := session.open(tag))]
        return [record.key for record in self._current(found)]

    def delete_all(self) -> None:
        """Remove every record and the keyset. It needs no key, so it also works if the key is lost."""
        folder = Folder.open(self.folder)
        if folder is None:
            return
        with folder:
            folder.lock(exclusive=True, tick=self._tick)
            # In this order: a power cut in between must not leave records without a keyset.
            folder.remove(*(name for name in folder.names() if name.endswith((".tok", TEMPORARY))))
            folder.remove(KEYSET)

    # --- upkeep ---

    def source(self) -> Source | None:
        """The kind of provider that wrapped the store, or None if there is no store. No key is needed."""
        folder = Folder.open(self.folder)
        if folder is None:
            return None
        with folder:
            folder.lock(exclusive=False, tick=self._tick)
            return self._keychain.source(folder)

    def verify(self) -> Verification:
        """Read everything, change nothing. Raises if the folder, the keyset or the key cannot be used."""
        records: list[Record] = []
        findings: list[TokenStoreError] = []
        with self._session(exclusive=False) as session:
            if session is None:
                return Verification((), (), (), ())
            for tag in session.tags():
                try:
                    opened = session.open(tag)
                except _UNREADABLE as exc:
                    findings.append(exc)
                else:
                    records += [] if opened is None else [opened.record]
            return Verification(
                records=tuple(sorted(records, key=lambda record: record.key)),
                findings=tuple(findings),
                leftovers=tuple(session.leftovers()),
                strangers=tuple(session.strangers()),
            )

    def rotate(self) -> int:
        """Seal every record with a new root key, then drop the old one. Returns the number of sealed records.

        The lock is released between records. If the call is interrupted, each record stays readable under the old key
        or the new one, and the next `rotate` finishes the work. Raises `Damaged` if a record cannot be read: the key
        that it names is kept.
        """
        sealed = 0
        with self._session(exclusive=True) as session:
            if session is None:
                return sealed
            tags = session.tags()
            self._keychain.retire(session.folder, keep=session.keys_in_use())  # left by interrupted rotations
            self._keychain.add(session.folder)
        for tag in tags:
            with self._session(exclusive=True) as session, suppress(*_UNREADABLE):
                sealed += session is not None and session.reseal(tag)
        with self._session(exclusive=True) as session:
            if session is None:
                return sealed
            broken: list[TokenStoreError] = []
            for tag in session.tags():  # all are sealed by now, except unreadable ones and those saved in the meantime
                try:
                    sealed += session.reseal(tag)
                except _UNREADABLE as exc:
                    broken.append(exc)
            self._keychain.retire(session.folder, keep=session.keys_in_use())
            session.folder.remove(*session.leftovers())
        if broken:
            problem = f"{len(broken)} records cannot be read and were not sealed with the new key; this is the first"
            raise Damaged(problem, path=broken[0].path) from broken[0]
        return sealed

    def rewrap(self, provider: KeyProvider | None) -> None:
        """Wrap the store's keys with another provider, or with the same at today's costs; records stay the same."""
        with self._session(exclusive=False) as session:
            own = None if session is None else self._keychain.provider()
        wrapping = self._keychain.wrapping(provider or own)
        with self._session(exclusive=True) as session:
            if session is not None:
                self._keychain.rewrap(session.folder, wrapping)
            self._keychain.adopt(provider)

    def needs_rewrap(self) -> bool:
        """Whether the store was wrapped with lower costs than today's."""
        with self._session(exclusive=False) as session:
            return session is not None and self._keychain.is_dated

    # --- the common part ---

    @contextmanager
    def _session(self, *, exclusive: bool, begin: bool = False) -> Iterator[Session | None]:
        """The locked folder and its keys, or None if there is no store and `begin` is false."""
        folder = Folder.make(self.folder) if begin else Folder.open(self.folder)
        if folder is None:
            yield None
            return
        with folder:
            wrapping = self._keychain.prepare(folder, begin=begin, tick=self._tick)
            folder.lock(exclusive=exclusive, tick=self._tick)
            keys = self._keychain.current(folder, self._tick)
            if keys is None and begin:
                self._keychain.begin(folder, wrapping or self._keychain.wrapping())
                keys = self._keychain.current(folder, self._tick)  # read it back, as every later reader will
            if keys is None:
                yield None
                return
            from ._session import Session

            yield Session(folder, self._keychain, keys)

    def _is_over(self, opened: Opened) -> bool:
        return opened.record.is_over(self._now())

    def _current(self, found: list[Opened]) -> list[Record]:
        """The records that are not over, sorted; the others are removed."""
        now = self._now()
        over = [opened for opened in found if opened.record.is_over(now)]
        if over:
            self._sweep(over)
        records = (opened.record for opened in found)
        return sorted((record for record in records if not record.is_over(now)), key=lambda record: record.key)

    def _sweep(self, over: list[Opened]) -> None:
        """Remove ended records that have expired. If that fails they stay on disk, but are not returned."""
        with suppress(WriteFailed), self._session(exclusive=True) as session:
            if session is None:
                return
            for old in over:
                opened = session.read(old.record.key)
                if opened is not None and self._is_over(opened):
                    session.remove(old.record.key)
