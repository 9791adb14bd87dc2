"""The records of a locked folder whose keys are open."""

from __future__ import annotations

import os

from .._exceptions import Damaged, RecordMismatch, TokenStoreError, UnknownVersion
from ._aead import job_tag, tag_of
from ._files import TEMPORARY, Folder, temporary_of
from ._keychain import KEYSET, Keychain
from ._record import Record, RecordKey
from ._sealed import MAX_RECORD_BYTES, RECORD_NAME, Header, Opened, name_of, read_header, seal, unseal
from .keys._keyset import Keys


class Session:
    """Access to the records while the lock is held; methods that write need the exclusive lock."""

    def __init__(self, folder: Folder, keychain: Keychain, keys: Keys) -> None:
        self.folder = folder
        self._keychain = keychain
        self._keys = keys

    def read(self, key: RecordKey) -> Opened | None:
        """The record of this key, or None if it has no file."""
        tag = self._tag(key)
        opened = self.open(tag)
        if opened is None:
            self._prove()
        # Two keys may have one tag, if hardly ever; the token is for one server.
        elif opened.record.key != key:
            raise self._mismatch(tag)
        return opened

    def find(self, job: str) -> list[Opened]:
        """The records of all servers' jobs with this id. No other file is opened."""
        mark = job_tag(self._keys.names, job)
        found = [opened for tag in self.tags() if tag.startswith(mark) and (opened := self.open(tag)) is not None]
        if not found:
            self._prove()
        # Half a tag is no proof of the job.
        return [opened for opened in found if opened.record.key.job == job]

    def open(self, tag: bytes) -> Opened | None:
        """The record of a file, or None if there is no such file."""
        name = name_of(tag)
        data = self.folder.read(name, limit=MAX_RECORD_BYTES)
        if data is None:
            return None
        opened = unseal(data, self._keys.ciphers.get, tag=tag, path=self.folder.path / name)
        if self._tag(opened.record.key) != tag:
            raise self._mismatch(tag)
        self._keychain.prove()
        return opened

    def tags(self) -> list[bytes]:
        """The tags of all records, from their files' names; other files are not read."""
        return [bytes.fromhex(found[1]) for name in self.folder.names() if (found := RECORD_NAME.fullmatch(name))]

    def leftovers(self) -> list[str]:
        """The names of leftover temporaries: we hold the lock, so their writers were killed."""
        return [name for name in self.folder.names() if name.endswith(TEMPORARY)]

    def strangers(self) -> list[str]:
        """The names of files that a store does not create."""
        ours = {KEYSET, *self.folder.own_names, *self.leftovers(), *(name_of(tag) for tag in self.tags())}
        return [name for name in self.folder.names() if name not in ours]

    def put(self, old: Opened | None, record: Record) -> None:
        """Replace a record, as returned by `read`."""
        tag = self._tag(record.key)
        header = Header(self._keys.primary, 1 if old is None else old.header.generation + 1)
        cipher = self._keys.ciphers[self._keys.primary]
        self.folder.write(name_of(tag), seal(record, cipher, header, nonce=os.urandom(12), tag=tag))
        self._keychain.prove()

    def reseal(self, tag: bytes) -> bool:
        """Seal a file with the primary key. Returns False if it already is, or no longer exists."""
        opened = self.open(tag)
        if opened is None or opened.header.key_id == self._keys.primary:
            return False
        self.put(opened, opened.record)
        return True

    def keys_in_use(self) -> set[str]:
        """The ids of the keys that records name; all keys if a file cannot be read.

        A file without a valid header opens under no key, so no key is kept for it.
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

    def remove(self, key: RecordKey) -> None:
        """Remove a record's file and its temporary, even if the file is unreadable."""
        name = name_of(self._tag(key))
        if self.folder.stamp(name) is None:
            self._prove()
        self.folder.remove(name, temporary_of(name))

    def _mismatch(self, tag: bytes) -> RecordMismatch:
        return RecordMismatch("the record belongs to another job or server", path=self.folder.path / name_of(tag))

    def _tag(self, key: RecordKey) -> bytes:
        return tag_of(self._keys.names, key.protocol, key.address, key.job)

    def _prove(self) -> None:
        """Raise `Damaged` if there are records and none of them names a key of this keyset (K8).

        Another store's keyset opens without error if the same key wrapped it, and then no job has a file. Without this
        check the store would look empty.
        """
        if self._keychain.proven:
            return
        tags = self.tags()
        if tags and not any(self._knows(tag) for tag in tags):
            raise Damaged(
                "no record was sealed with this keyset: is it another store's?", path=self.folder.path / KEYSET
            )
        if tags:
            self._keychain.prove()

    def _knows(self, tag: bytes) -> bool:
        try:
            data = self.folder.read(name_of(tag), limit=MAX_RECORD_BYTES)
            return data is not None and read_header(data).key_id in self._keys.ciphers
        except TokenStoreError:
            return False
