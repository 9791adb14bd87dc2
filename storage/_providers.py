"""Where the key that wraps a store comes from. Never plain text beside the records, never a prompt by default."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Final, Protocol

from .._exceptions import Damaged, KeyUnavailable
from ._files import Folder
from ._keyset import Entry, Kdf, NoKdf, Source

ENVIRONMENT: Final = "TOWLINE_KEY"
_KEY_BYTES: Final = 32


class KeyProvider(Protocol):
    """Gives the 32 bytes that wrap a store's keys. Called in a worker thread, under the store's lock.

    `source` is written into the keyset; a store is opened by a provider of the same source only. A program's own
    provider has the source `caller`.
    """

    @property
    def source(self) -> Source:
        """What the keyset records."""
        ...

    def create(self) -> tuple[Kdf, bytes]:
        """The key for a store that begins (or is wrapped anew), made if there is none yet."""
        ...

    def open(self, kdf: Kdf) -> bytes:
        """The key again. Raises `KeyUnavailable`, or `Locked` where the user can unlock it."""
        ...


class CallerKey:
    """Thirty-two random bytes that the program keeps itself."""

    source: Final = "caller"

    def __init__(self, key: bytes) -> None:
        self._key = checked_key(key, "the program's own key")

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        return NoKdf(), self._key

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        return self._key


class EnvironmentKey:
    """`TOWLINE_KEY`: base64 of 32 random bytes."""

    source: Final = "env"

    def __init__(self, variable: str = ENVIRONMENT) -> None:
        self.variable = variable

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        return NoKdf(), self._read()

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        return self._read()

    def _read(self) -> bytes:
        if self.variable not in os.environ:
            raise KeyUnavailable(f"the environment variable {self.variable} is not set")
        return _decoded(os.environ[self.variable].encode("utf-8", "replace"), f"the value of {self.variable}")


class KeyFile:
    """A file of mode 0600, made at first use: what a program gets that sets up nothing.

    It guards what is copied without it (backups of the state folder, other users). It does not guard against
    programs of the same user, who can read both files.
    """

    source: Final = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        with Folder.make(self.path.parent, private=False) as folder:
            folder.lock(exclusive=True)  # of two first uses, the second finds the key of the first
            found = folder.read(self.path.name, limit=_FILE_LIMIT)
            if found is None:
                found = base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n"
                folder.write(self.path.name, found)
        return NoKdf(), self._parse(found)

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        folder = Folder.open(self.path.parent, private=False)
        if folder is not None:
            with folder:
                found = folder.read(self.path.name, limit=_FILE_LIMIT)
                if found is not None:
                    return self._parse(found)
        raise KeyUnavailable("the key file is gone", path=self.path)

    def _parse(self, data: bytes) -> bytes:
        if len(data) != _FILE_LIMIT or not data.endswith(b"\n"):
            raise Damaged("this is not a key file: it must be 44 characters of base64 and a newline", path=self.path)
        return _decoded(data[:-1], "the key file", self.path)


_FILE_LIMIT: Final = 45


def default_provider(app: str) -> KeyProvider:
    """What a store that begins is wrapped with."""
    if ENVIRONMENT in os.environ:
        return EnvironmentKey()
    return provider_of("file", app)


def provider_of(source: Source, app: str) -> KeyProvider:
    """The provider that a keyset names. Raises `KeyUnavailable` for those that only the program can give."""
    match source:
        case "env":
            return EnvironmentKey()
        case "file":
            from platformdirs import user_config_path

            return KeyFile(user_config_path(app, appauthor=False) / "key")
        case _:
            raise KeyUnavailable(f"this store was wrapped by the source {source!r}: pass that provider")


def opened_by(provider: KeyProvider, entry: Entry) -> bytes:
    """The provider's key for an entry. Raises `KeyUnavailable` if another provider wrapped it (K7)."""
    if provider.source != entry.source:
        raise KeyUnavailable(
            f"this store was wrapped by the source {entry.source!r}, the provider given is {provider.source!r}"
        )
    return checked_key(provider.open(entry.kdf), f"the key of the source {entry.source!r}")


def checked_key(key: bytes, what: str, path: Path | None = None) -> bytes:
    """Return 32 bytes that can be random ones, or raise `KeyUnavailable`."""
    if len(key) != _KEY_BYTES:
        raise KeyUnavailable(f"{what} must be {_KEY_BYTES} bytes long", path=path)
    # 32 random bytes have fewer than 16 distinct values once in 10**16 times; what a person types has them often.
    if len(set(key)) < 16:
        raise KeyUnavailable(f"{what} is not random", path=path)
    return key


def _decoded(text: bytes, what: str, path: Path | None = None) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if base64.b64encode(key) != text:
        raise KeyUnavailable(f"{what} must be base64 of {_KEY_BYTES} bytes", path=path)
    return checked_key(key, what, path)
