"""The records of a folder whose lock is held and whose keys are open."""

from __future__ import annotations

import os

from .._exceptions import Damaged, RecordMismatch, TokenStoreError, UnknownVersion
from ._aead import tag_of
from ._files import TEMPORARY, Folder, temporary_of
from ._keychain import KEYSET, Keychain
from ._keyset import Keys
from ._record import MAX_RECORD_BYTES, RECORD_NAME, Header, Opened, Record, name_of, read_header, seal, unseal


class Session:
    """Lives as long as the lock; what writes needs the exclusive one."""

    def __init__(self, folder: Folder, keychain: Keychain, keys: Keys) -> None:
        self.folder = folder
        self._keychain = keychain
        self._keys = keys

    def find(self, job: str) -> Opened | None:
        """The job's record, or None where there is no file for it."""
        opened = self.open(tag_of(self._keys.names, job))
        if opened is None:
            self._prove()
        return opened

    def open(self, tag: bytes) -> Opened | None:
        """The record of a file, or None where there is no such file."""
        name = name_of(tag)
        data = self.folder.read(name, limit=MAX_RECORD_BYTES)
        if data is None:
            return None
        opened = unseal(data, self._keys.ciphers.get, tag=tag, path=self.folder.path / name)
        if tag_of(self._keys.names, opened.record.job) != tag:
            raise RecordMismatch("the record speaks of another job", path=self.folder.path / name)
        self._keychain.prove()
        return opened

    def tags(self) -> list[bytes]:
        """The tags of all records, from their files' names; other names are not ours to read."""
        return [bytes.fromhex(found[1]) for name in self.folder.names() if (found := RECORD_NAME.fullmatch(name))]

    def leftovers(self) -> list[str]:
        """The names of temporaries. Under the lock nobody is writing them: their writers were killed."""
        return [name for name in self.folder.names() if name.endswith(TEMPORARY)]

    def strangers(self) -> list[str]:
        """The names of files that no store makes."""
        ours = {KEYSET, *self.folder.own_names, *self.leftovers(), *(name_of(tag) for tag in self.tags())}
        return [name for name in self.folder.names() if name not in ours]

    def put(self, old: Opened | None, record: Record) -> None:
        """Write a job's record in place of the one that `find` gave."""
        tag = tag_of(self._keys.names, record.job)
        header = Header(self._keys.primary, 1 if old is None else old.header.generation + 1)
        cipher = self._keys.ciphers[self._keys.primary]
        self.folder.write(name_of(tag), seal(record, cipher, header, nonce=os.urandom(12), tag=tag))
        self._keychain.prove()

    def reseal(self, tag: bytes) -> bool:
        """Seal a file with the primary key. False if it is so already, or gone."""
        opened = self.open(tag)
        if opened is None or opened.header.key_id == self._keys.primary:
            return False
        self.put(opened, opened.record)
        return True

    def keys_in_use(self) -> set[str]:
        """The ids of the keys that records name; all keys if a file may not be read.

        A file without a sound header opens under no key, so none is kept for it.
        """
        found: set[str] = set()
        for tag in self.tags():
            try:
                found.add(read_header(self.folder.read(name_of(tag), limit=MAX_RECORD_BYTES) or b"").key_id)
            except (Damaged, UnknownVersion):
                continue
            except TokenStoreError:
                return set(self._keys.ciphers)
        return found

    def remove(self, job: str) -> None:
        """Remove a job's file and its temporary. The file need not be readable."""
        name = name_of(tag_of(self._keys.names, job))
        if self.folder.stamp(name) is None:
            self._prove()
        self.folder.remove(name, temporary_of(name))

    def _prove(self) -> None:
        """Raise `Damaged` if there are records and none of them knows this keyset (K8).

        Another store's keyset opens well if the same key wrapped it, and then no job has a file: without this look
        the store would pass for an empty one.
        """
        if self._keychain.proven:
            return
        tags = self.tags()
        if tags and not any(self._knows(tag) for tag in tags):
            raise Damaged("none of the records was sealed with this keyset", path=self.folder.path / KEYSET)
        if tags:
            self._keychain.prove()

    def _knows(self, tag: bytes) -> bool:
        try:
            data = self.folder.read(name_of(tag), limit=MAX_RECORD_BYTES)
            return data is not None and read_header(data).key_id in self._keys.ciphers
        except TokenStoreError:
            return False
