"""The keyset of one folder: open it once, reread it after another process replaced it, create, extend, rewrap it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from .._exceptions import Damaged, InvalidArgument, WriteFailed
from ._files import Folder, Stamp, never
from ._sealed import RECORD_NAME
from .keys._choice import default_provider, provider_of
from .keys._keyset import (
    MAX_KEYSET_BYTES,
    Entry,
    Kdf,
    Keys,
    Keyset,
    Role,
    Source,
    parse,
    spell,
    unwrap,
    unwrap_one,
    wrap,
)
from .keys._passphrase import is_dated
from .keys._providers import KeyFile, KeyProvider, created_by, opened_by

if TYPE_CHECKING:
    from ._aead import Cipher

KEYSET: Final = "keyset.json"


class Wrapping(NamedTuple):
    """The cipher and parameters that wrap keys from now on."""

    source: Source
    kdf: Kdf
    cipher: Cipher


@dataclass(slots=True, repr=False)
class _Open:
    """The keyset as it was last read. `proven`: we have seen a record that names one of these keys."""

    stamp: Stamp
    keyset: Keyset
    keys: Keys
    asked: _Asked
    proven: bool = False


class Keychain:
    """The keys of a folder. Except `prepare`, methods with a folder argument need its lock, writers exclusively."""

    def __init__(self, path: Path, *, app: str, provider: KeyProvider | None, now: Callable[[], float]) -> None:
        if isinstance(provider, KeyFile) and provider.path.parent == path:
            raise InvalidArgument("provider", "keep the key file in another folder than the records that it protects")
        self._path = path / KEYSET
        self._app = app
        self._provider = provider
        self._now = now
        self._opening = threading.Lock()
        self._open: _Open | None = None

    # --- opening ---

    def prepare(self, folder: Folder, *, begin: bool, tick: Callable[[], None]) -> Wrapping | None:
        """Ask the provider for the key before locking, because a person may have to answer.

        Returns the wrapping for a new keyset if there is none and one is needed.
        """
        stamp = folder.stamp(KEYSET)
        if stamp is None:
            return self.wrapping() if begin else None
        self._read(folder, stamp, tick)
        return None

    def current(self, folder: Folder, tick: Callable[[], None]) -> Keys | None:
        """The present keyset, opened, or None if there is none."""
        stamp = folder.stamp(KEYSET)
        if stamp is not None:
            return self._read(folder, stamp, tick)
        if any(RECORD_NAME.fullmatch(name) for name in folder.names()):
            raise Damaged("the keyset is missing although there are records; restore it from a backup", path=self._path)
        return None

    def _read(self, folder: Folder, stamp: Stamp, tick: Callable[[], None]) -> Keys | None:
        while not self._opening.acquire(timeout=0.02):  # one thread asks the provider for all
            tick()
        try:
            if self._open is None or self._open.stamp != stamp:
                data = folder.read(KEYSET, limit=MAX_KEYSET_BYTES)
                if data is None:
                    return None
                keyset = parse(data, self._path)
                asked = _Asked(self._provider, self._app)
                self._open = _Open(stamp, keyset, unwrap(keyset, asked, self._path), asked)
            return self._open.keys
        finally:
            self._opening.release()

    def wrapping(self, provider: KeyProvider | None = None) -> Wrapping:
        """A fresh answer of the given provider, or of the default provider for a new store."""
        from ._aead import Cipher

        provider = provider or self._provider or default_provider(self._app)
        kdf, key = created_by(provider)
        return Wrapping(provider.source, kdf, Cipher(key))

    def provider(self) -> KeyProvider:
        """The provider of the last opened keyset."""
        return self._provider or provider_of(self._opened().keyset.entry.source, self._app)

    # --- what it knows ---

    @property
    def proven(self) -> bool:
        """Whether we have seen a record that names one of the current keys."""
        return self._open is not None and self._open.proven

    def prove(self) -> None:
        """Note that such a record was seen."""
        if self._open is not None:
            self._open.proven = True

    @property
    def is_dated(self) -> bool:
        """Whether the costs of the last opened keyset are below today's."""
        return self._open is not None and any(is_dated(entry.kdf) for entry in self._open.keyset.keys)

    def source(self, folder: Folder) -> Source | None:
        """The kind of provider that wrapped the keyset on the disk, found without asking for a key."""
        data = folder.read(KEYSET, limit=MAX_KEYSET_BYTES)
        return None if data is None else parse(data, self._path).entry.source

    # --- writing ---

    def begin(self, folder: Folder, wrapping: Wrapping) -> None:
        """Create the keyset of a new store."""
        folder.anchor()
        root = self._entry(wrapping, "root")
        names = self._entry(wrapping, "name")
        self._write(folder, Keyset(v=2, primary=root.id, keys=(root,), names=names))

    def add(self, folder: Folder) -> None:
        """Add a root key and make it the primary."""
        opened = self._opened()
        last = opened.keyset.entry
        root = self._entry(Wrapping(last.source, last.kdf, opened.asked(last)), "root")
        keys = (*opened.keyset.keys, root)
        self._write(folder, msgspec.structs.replace(opened.keyset, primary=root.id, keys=keys))
        self.current(folder, never)

    def retire(self, folder: Folder, *, keep: Container[str]) -> None:
        """Drop all root keys except the primary and those that records still name."""
        keyset = self._opened().keyset
        kept = tuple(entry for entry in keyset.keys if entry.id == keyset.primary or entry.id in keep)
        if kept != keyset.keys:
            self._write(folder, msgspec.structs.replace(keyset, keys=kept))
            self.current(folder, never)

    def rewrap(self, folder: Folder, wrapping: Wrapping) -> None:
        """Wrap every key again; call `adopt` next. The keys stay the same, so no record has to change."""
        opened = self._opened()
        keyset = msgspec.structs.replace(
            opened.keyset,
            keys=tuple(self._rewrapped(entry, wrapping, "root") for entry in opened.keyset.keys),
            names=self._rewrapped(opened.keyset.names, wrapping, "name"),
        )
        self._write(folder, keyset)

    def adopt(self, provider: KeyProvider | None) -> None:
        """Use another provider to open the store from now on."""
        self._provider = provider or self._provider

    def _rewrapped(self, old: Entry, wrapping: Wrapping, role: Role) -> Entry:
        key = unwrap_one(old, self._opened().asked, role, self._path)
        return self._wrapped(key, wrapping, role, key_id=old.id, made=old.made)

    def _entry(self, wrapping: Wrapping, role: Role) -> Entry:
        made = round(self._now() * 1000)
        return self._wrapped(os.urandom(32), wrapping, role, key_id=os.urandom(16).hex(), made=made)

    @staticmethod
    def _wrapped(key: bytes, wrapping: Wrapping, role: Role, *, key_id: str, made: int) -> Entry:
        source, kdf, cipher = wrapping
        return wrap(key, cipher, role, key_id=key_id, made=made, source=source, kdf=kdf, nonce=os.urandom(12))

    def _write(self, folder: Folder, keyset: Keyset) -> None:
        data = spell(keyset)
        if len(data) > MAX_KEYSET_BYTES:
            raise WriteFailed("the keyset is full: delete the damaged records that name its keys", path=self._path)
        folder.write(KEYSET, data)

    def _opened(self) -> _Open:
        if self._open is None:
            raise Damaged("the keyset was not opened", path=self._path)
        return self._open


class _Asked:
    """The ciphers of the providers; each is asked once for all entries of the same source and kdf."""

    def __init__(self, provider: KeyProvider | None, app: str) -> None:
        self._provider = provider
        self._app = app
        self._ciphers: dict[tuple[Source, Kdf], Cipher] = {}

    def __call__(self, entry: Entry) -> Cipher:
        from ._aead import Cipher

        known = (entry.source, entry.kdf)
        if known not in self._ciphers:
            provider = self._provider or provider_of(entry.source, self._app)
            self._ciphers[known] = Cipher(opened_by(provider, entry))
        return self._ciphers[known]
