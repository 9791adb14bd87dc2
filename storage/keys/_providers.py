"""The sources of the key that wraps a store. None keeps it with the records; by default none shows a prompt.

No frame that an error passes through holds a key, because tracebacks that print locals would show it.
"""

from __future__ import annotations

import base64
import binascii
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, Self

from ..._exceptions import Damaged, KeyUnavailable
from .._files import Folder
from ._keyset import Entry, Kdf, NoKdf, Source

ENVIRONMENT: Final = "TOWLINE_KEY"
CREDENTIAL: Final = "towline-key"
KEY_BYTES: Final = 32
_NEEDED: Final = f"{KEY_BYTES} random bytes: make one with `openssl rand -base64 {KEY_BYTES}`"
_FILE_BYTES: Final = 45


class KeyProvider(Protocol):
    """Supplies the 32 bytes that wrap a store's keys. It is called in a worker thread.

    Only a provider of the same `source` can open a store. A program's own provider has the source `caller` and, unless
    it derives keys or keeps several, the `kdf` `NoKdf()`.
    """

    @property
    def source(self) -> Source:
        """The name that the keyset records."""

    def create(self) -> tuple[Kdf, bytes]:
        """The key for a new or rewrapped store, and the parameters with which `open` returns it again.

        Raises `KeyUnavailable` or `Locked`. If two processes create the store at once, one answer is discarded.
        """

    def open(self, kdf: Kdf) -> bytes:
        """Return the key again. Raises `KeyUnavailable`, or `Locked` if the user can unlock it."""


class _OneKey(ABC):
    """A provider of one key of 32 random bytes."""

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        return NoKdf(), self._read()

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        return self._read()

    @abstractmethod
    def _read(self) -> bytes: ...


class CallerKey(_OneKey):
    """Thirty-two random bytes that the program keeps itself."""

    source: Final = "caller"

    def __init__(self, key: bytes) -> None:
        self._key = key
        problem = _problem(key)
        if problem is not None:
            del key
            raise KeyUnavailable(f"the program's own key {problem}")

    def _read(self) -> bytes:
        return self._key


class EnvironmentKey(_OneKey):
    """`TOWLINE_KEY`: base64 of 32 random bytes."""

    source: Final = "env"

    def __init__(self, variable: str = ENVIRONMENT) -> None:
        self.variable = variable

    def _read(self) -> bytes:
        if self.variable not in os.environ:
            raise KeyUnavailable(f"the environment variable {self.variable} is not set")
        key = decoded(os.environ[self.variable])
        if key is None:
            raise KeyUnavailable(f"the value of {self.variable} is not base64 of {_NEEDED}")
        return key


class CredentialKey(_OneKey):
    """A systemd credential (systemd.exec(5), `LoadCredential=`): a file with base64 of 32 random bytes.

    The service manager keeps that folder apart from every other service and user; no mode is checked here.
    """

    source: Final = "credential"

    def __init__(self, name: str = CREDENTIAL) -> None:
        self.name = name

    @property
    def path(self) -> Path | None:
        """The credential's path from the service manager; None outside a service."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        return None if not folder else Path(folder) / self.name

    def _read(self) -> bytes:
        path = self.path
        if path is None:
            raise KeyUnavailable(f"there is no systemd credential {self.name!r}: add LoadCredential= to the service")
        try:
            with path.open("rb") as file:
                key = decoded(file.read(_FILE_BYTES + 1).removesuffix(b"\n"))
        except OSError as exc:
            raise KeyUnavailable(f"the credential cannot be read: {exc.strerror}", path=path) from exc
        if key is None:
            raise KeyUnavailable(f"the credential is not base64 of {_NEEDED}", path=path)
        return key


class KeyFile(_OneKey):
    """A file of mode 0600, created at first use: the default when a program configures no other provider.

    It protects copies made without it (backups of the state folder) and against other users. It does not protect
    against programs of the same user, which can read both files.
    """

    source: Final = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls, app: str = "towline") -> Self:
        """The key file in the user's configuration folder. Raises `KeyUnavailable` for a user without a home."""
        from platformdirs import user_config_path

        folder = user_folder(user_config_path, app)
        if folder is None:
            raise KeyUnavailable(f"this user has no home folder for a key file; set {ENVIRONMENT}, {HOMES}")
        return cls(folder / "key")

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        with Folder.make(self.path.parent, private=False) as folder:
            folder.lock(exclusive=True)  # if two processes create it at once, the second one uses the key of the first
            if folder.stamp(self.path.name) is None:
                folder.anchor()
                folder.write(self.path.name, memoryview(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n"))
        return super().create()

    def _read(self) -> bytes:
        folder = Folder.open(self.path.parent, private=False)
        if folder is not None:
            with folder:
                if folder.stamp(self.path.name) is not None:
                    key = _parsed(folder.read(self.path.name, limit=_FILE_BYTES) or b"")
                    if key is not None:
                        return key
                    problem = "this is not a key file, which holds 44 characters of base64 and a newline"
                    raise Damaged(problem, path=self.path)
        raise KeyUnavailable("the key file is missing; restore it from a backup", path=self.path)


def opened_by(provider: KeyProvider, entry: Entry) -> bytes:
    """The provider's key for an entry. Raises `KeyUnavailable` if another provider wrapped it (K7)."""
    if provider.source != entry.source:
        raise KeyUnavailable(
            f"the source {entry.source!r} wrapped this store, but provider= is of the source {provider.source!r}"
        )
    return checked(provider.open(entry.kdf), provider)


def created_by(provider: KeyProvider) -> tuple[Kdf, bytes]:
    """The provider's key for a new store."""
    kdf, key = provider.create()
    return kdf, checked(key, provider)


def checked(key: bytes, provider: KeyProvider) -> bytes:
    """Check the provider's answer; raise `KeyUnavailable` if it cannot be a key."""
    problem = _problem(key)
    if problem is not None:
        del key
        raise KeyUnavailable(f"the key of the source {provider.source!r} {problem}")
    return key


def decoded(text: bytes | str) -> bytes | None:
    """Decode a key from base64, or return None if it is not one. It never raises, because its frame holds the key."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    spelled = base64.b64encode(key)
    same = spelled == text if isinstance(text, bytes) else spelled.decode() == text
    return key if same and _problem(key) is None else None


def _problem(key: bytes) -> str | None:
    if len(key) != KEY_BYTES:
        return f"is not {KEY_BYTES} bytes long"
    # 32 random bytes have fewer than 16 distinct values once in 10**16 times; typed text often does.
    return "is not random" if len(set(key)) < 16 else None


#: The variables that a user without a home can set instead of naming a file or folder.
HOMES: Final = "or set HOME, or XDG_STATE_HOME and XDG_CONFIG_HOME"


def user_folder(find: Callable[..., Path], app: str) -> Path | None:
    """A folder of this user, or None if it is unknown: no `HOME`, and no entry for the user id."""
    try:
        folder = find(app, appauthor=False)
    except RuntimeError:  # raised by platformdirs, through `Path.home`
        return None
    return folder if folder.is_absolute() else None  # older versions leave the `~` in the path


def _parsed(data: bytes) -> bytes | None:
    return decoded(data[:-1]) if data.endswith(b"\n") else None
