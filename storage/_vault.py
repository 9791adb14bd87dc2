"""The store without its event loop: blocking calls, one lock a call, meant for a worker thread."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .._exceptions import Damaged, RecordMismatch, TokenStoreError, WriteFailed
from . import _keyset
from ._files import Folder, Stamp, temporary_of
from ._keyset import MAX_KEYSET_BYTES, Entry, Keys, Keyset
from ._providers import KeyProvider, default_provider, opened_by, provider_of
from ._record import MAX_RECORD_BYTES, Header, Opened, Record, read_header, seal, unseal

if TYPE_CHECKING:
    from ._aead import Cipher

KEYSET: Final = "keyset.json"
RECORD_SUFFIX: Final = ".tok"
_RECORD_NAME: Final = re.compile(r"[0-9a-f]{32}\.tok")


def never() -> None:
    """The `tick` of a call that nobody can cancel."""


class Vault:
    """The records of one folder. Safe between threads and between processes.

    `tick` of every call is called while it waits for another process, and may raise to end the waiting; once the
    lock is held nothing interrupts.
    """

    def __init__(self, folder: Path, *, app: str, provider: KeyProvider | None, now: Callable[[], float]) -> None:
        self.folder = folder
        self._app = app
        self._provider = provider
        self._now = now
        self._opening = threading.Lock()
        self._opened: tuple[Stamp, Keys, bool] | None = None

    # --- one job ---

    def read(self, job: str, tick: Callable[[], None] = never) -> Record | None:
        """The job's record, or None where there is no file for it."""
        with self._reading(tick) as folder:
            if folder is None:
                return None
            keys = self._keys(folder)
            if keys is None:
                return None
            opened = self._read(folder, keys, job)
        if opened is not None and opened.record.is_over(self._now()):
            self._sweep([_tag(keys, job)])
            return None
        return None if opened is None else opened.record

    def change(
        self,
        job: str,
        edit: Callable[[Record | None], Record | None],
        *,
        create: bool,
        tick: Callable[[], None] = never,
    ) -> Record | None:
        """Replace the job's record by what `edit` makes of it, if that is another one; return what stands then.

        With `create` false a store that is not there stays away, and None is returned without `edit`.
        """
        folder = Folder.make(self.folder) if create else Folder.open(self.folder)
        if folder is None:
            return None
        with folder:
            folder.lock(exclusive=True, tick=tick)
            keys = self._keys(folder)
            if keys is None:
                if not create:
                    return None
                keys = self._begin(folder)
            opened = self._read(folder, keys, job)
            old = None if opened is None or opened.record.is_over(self._now()) else opened.record
            new = edit(old)
            if new is not None and new is not old:
                generation = 1 if opened is None else opened.header.generation + 1
                self._write(folder, keys, _tag(keys, job), new, generation)
            return new

    def delete(self, job: str, tick: Callable[[], None] = never) -> None:
        """Remove the job's record; a job without one is well."""
        folder = Folder.open(self.folder)
        if folder is None:
            return
        with folder:
            folder.lock(exclusive=True, tick=tick)
            keys = self._keys(folder)
            if keys is None:
                return
            name = _name(_tag(keys, job))
            if folder.stamp(name) is None:
                self._prove(folder, keys)
            folder.remove(name, temporary_of(name))

    # --- all jobs ---

    def jobs(self, tick: Callable[[], None] = never) -> list[str]:
        """The ids of all jobs on record, sorted."""
        with self._reading(tick) as folder:
            keys = None if folder is None else self._keys(folder)
            if folder is None or keys is None:
                return []
            found = {tag: self._open(folder, keys, tag) for tag in _tags(folder)}
        now = self._now()
        over = [tag for tag, opened in found.items() if opened is not None and opened.record.is_over(now)]
        if over:
            self._sweep(over)
        return sorted(opened.record.job for tag, opened in found.items() if opened is not None and tag not in over)

    def delete_all(self, tick: Callable[[], None] = never) -> None:
        """Remove every record and the keyset. No key is needed, so this also ends a store whose key is lost."""
        folder = Folder.open(self.folder)
        if folder is None:
            return
        with folder:
            folder.lock(exclusive=True, tick=tick)
            names = folder.names()
            # In this order: a power cut in between must not leave records without a keyset.
            folder.remove(*(name for name in names if name.endswith((RECORD_SUFFIX, ".tmp"))))
            folder.remove(KEYSET)

    # --- records ---

    def _read(self, folder: Folder, keys: Keys, job: str) -> Opened | None:
        opened = self._open(folder, keys, _tag(keys, job))
        if opened is None:
            self._prove(folder, keys)
            return None
        if opened.record.job != job:
            raise RecordMismatch("the record speaks of another job", path=self.folder)
        return opened

    def _open(self, folder: Folder, keys: Keys, tag: bytes) -> Opened | None:
        name = _name(tag)
        data = folder.read(name, limit=MAX_RECORD_BYTES)
        return None if data is None else unseal(data, keys.ciphers.get, tag=tag, path=self.folder / name)

    def _sweep(self, tags: list[bytes]) -> None:
        """Remove ended records whose time is up. Where that cannot be done they stay, unseen."""
        folder = Folder.open(self.folder)
        if folder is None:
            return
        with folder, suppress(WriteFailed):
            folder.lock(exclusive=True)
            keys = self._keys(folder)
            if keys is None:
                return
            for tag in tags:
                opened = self._open(folder, keys, tag)
                if opened is not None and opened.record.is_over(self._now()):
                    folder.remove(_name(tag))

    def _write(self, folder: Folder, keys: Keys, tag: bytes, record: Record, generation: int) -> None:
        header = Header(keys.primary, generation)
        folder.write(_name(tag), seal(record, keys.ciphers[keys.primary], header, nonce=os.urandom(12), tag=tag))

    # --- keys ---

    def _keys(self, folder: Folder) -> Keys | None:
        """The opened keyset, read again whenever the file was replaced; None where no store was begun."""
        stamp = folder.stamp(KEYSET)
        if stamp is None:
            if _tags(folder):
                raise Damaged("the keyset is gone, though there are records", path=self.folder / KEYSET)
            return None
        with self._opening:  # one thread asks the provider, the others wait for its answer
            if self._opened is None or self._opened[0] != stamp:
                data = folder.read(KEYSET, limit=MAX_KEYSET_BYTES)
                if data is None:
                    raise Damaged("the keyset went away while it was read", path=self.folder / KEYSET)
                path = self.folder / KEYSET
                keyset = _keyset.parse(data, path)
                self._opened = (stamp, _keyset.unwrap(keyset, _Wrapping(self._provider, self._app), path), False)
            return self._opened[1]

    def _begin(self, folder: Folder) -> Keys:
        """Make the keyset of a new store. The exclusive lock is held: nobody else makes one."""
        from ._aead import Cipher

        provider = self._provider or default_provider(self._app)
        kdf, key = provider.create()
        wrapping = Cipher(key)
        made = round(self._now() * 1000)

        def entry(role: _keyset.Role) -> Entry:
            return _keyset.wrap(
                os.urandom(32),
                wrapping,
                role,
                key_id=os.urandom(16).hex(),
                made=made,
                source=provider.source,
                kdf=kdf,
                nonce=os.urandom(12),
            )

        root = entry("root")
        folder.write(KEYSET, _keyset.spell(Keyset(v=1, primary=root.id, keys=(root,), names=entry("name"))))
        keys = self._keys(folder)  # as every later reader will
        if keys is None:
            raise Damaged("the keyset went away as soon as it was made", path=self.folder / KEYSET)
        return keys

    def _prove(self, folder: Folder, keys: Keys) -> None:
        """Raise `Damaged` if there are records and none of them knows this keyset (K8).

        Another store's keyset opens well if the same key wrapped it, and then no job has a file: without this look
        the store would pass for an empty one.
        """
        if self._opened is None or self._opened[2]:
            return
        tags = _tags(folder)
        if tags and not any(self._knows(folder, keys, tag) for tag in tags):
            raise Damaged("none of the records was sealed with this keyset", path=self.folder / KEYSET)
        self._opened = (*self._opened[:2], True)

    def _knows(self, folder: Folder, keys: Keys, tag: bytes) -> bool:
        try:
            data = folder.read(_name(tag), limit=MAX_RECORD_BYTES)
            return data is not None and read_header(data).key_id in keys.ciphers
        except TokenStoreError:
            return False

    @contextmanager
    def _reading(self, tick: Callable[[], None]) -> Iterator[Folder | None]:
        folder = Folder.open(self.folder)
        if folder is None:
            yield None
            return
        with folder:
            folder.lock(exclusive=False, tick=tick)
            yield folder


class _Wrapping:
    """Gives the cipher of an entry's provider, asking it once for all entries of the same costs and salt."""

    def __init__(self, provider: KeyProvider | None, app: str) -> None:
        self._provider = provider
        self._app = app
        self._ciphers: dict[object, Cipher] = {}

    def __call__(self, entry: Entry) -> Cipher:
        from ._aead import Cipher

        known = (entry.source, entry.kdf)
        if known not in self._ciphers:
            provider = self._provider or provider_of(entry.source, self._app)
            self._ciphers[known] = Cipher(opened_by(provider, entry))
        return self._ciphers[known]


def _tag(keys: Keys, job: str) -> bytes:
    from ._aead import tag_of

    return tag_of(keys.names, job)


def _name(tag: bytes) -> str:
    return tag.hex() + RECORD_SUFFIX


def _tags(folder: Folder) -> list[bytes]:
    """The tags of all records, by their files' names; other names are not ours to read."""
    return [bytes.fromhex(name[:32]) for name in folder.names() if _RECORD_NAME.fullmatch(name)]
