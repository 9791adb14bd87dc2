"""Where the key that wraps a store comes from. Never plain text beside the records, never a prompt by default.

No frame that an error passes through holds a key: tracebacks that print locals would show it.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, Self

from .._exceptions import Damaged, KeyUnavailable
from ._files import Folder
from ._keyset import Entry, Kdf, NoKdf, Source

ENVIRONMENT: Final = "TOWLINE_KEY"
CREDENTIAL: Final = "towline-key"
KEY_BYTES: Final = 32
_FILE_BYTES: Final = 45


class KeyProvider(Protocol):
    """Gives the 32 bytes that wrap a store's keys. Called in a worker thread.

    A store is opened by a provider of the `source` that wrapped it, and by no other. A program's own provider has
    the source `caller` and, unless it derives or keeps several keys, the `kdf` `NoKdf()`.
    """

    @property
    def source(self) -> Source:
        """What the keyset records."""
        ...

    def create(self) -> tuple[Kdf, bytes]:
        """The key for a store that begins or is wrapped anew, and what `open` needs to give it again.

        Raises `KeyUnavailable` or `Locked`. Of two first uses at the same moment one answer is thrown away.
        """
        ...

    def open(self, kdf: Kdf) -> bytes:
        """The key again. Raises `KeyUnavailable`, or `Locked` where the user can unlock it."""
        ...


class CallerKey:
    """Thirty-two random bytes that the program keeps itself."""

    source: Final = "caller"

    def __init__(self, key: bytes) -> None:
        self._key = key
        problem = _problem(key)
        if problem is not None:
            del key
            raise KeyUnavailable(f"the program's own key {problem}")

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
        key = decoded(os.environ[self.variable])
        if key is None:
            raise KeyUnavailable(f"the value of {self.variable} is not base64 of {KEY_BYTES} random bytes")
        return key


class CredentialKey:
    """A systemd credential (systemd.exec(5), `LoadCredential=`): a file with base64 of 32 random bytes.

    The service manager keeps that folder apart from every other service and user; no mode is checked here.
    """

    source: Final = "credential"

    def __init__(self, name: str = CREDENTIAL) -> None:
        self.name = name

    @property
    def path(self) -> Path | None:
        """Where the service manager put it; None outside a service."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        return None if not folder else Path(folder) / self.name

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        return NoKdf(), self._read()

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        return self._read()

    def _read(self) -> bytes:
        path = self.path
        if path is None:
            raise KeyUnavailable(f"there is no credential {self.name!r}: this is not a service that was given one")
        try:
            with path.open("rb") as file:
                key = decoded(file.read(_FILE_BYTES + 1).removesuffix(b"\n"))
        except OSError as exc:
            raise KeyUnavailable(f"the credential cannot be read: {exc.strerror}", path=path) from exc
        if key is None:
            raise KeyUnavailable(f"the credential is not base64 of {KEY_BYTES} random bytes", path=path)
        return key


class KeyFile:
    """A file of mode 0600, made at first use: what a program gets that sets up nothing.

    It guards what is copied without it (backups of the state folder, other users). It does not guard against
    programs of the same user, who can read both files.
    """

    source: Final = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls, app: str = "towline") -> Self:
        """The one in the user's configuration folder. Raises `KeyUnavailable` for a user without a home."""
        from platformdirs import user_config_path

        folder = user_folder(user_config_path, app)
        if folder is None:
            raise KeyUnavailable(f"this user has no home folder for a key file; set {ENVIRONMENT}, {HOMES}")
        return cls(folder / "key")

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        with Folder.make(self.path.parent, private=False) as folder:
            folder.lock(exclusive=True)  # of two first uses, the second finds the key of the first
            if folder.stamp(self.path.name) is None:
                folder.anchor()
                folder.write(self.path.name, memoryview(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n"))
        return NoKdf(), self._read()

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        return self._read()

    def _read(self) -> bytes:
        folder = Folder.open(self.path.parent, private=False)
        if folder is None:
            raise KeyUnavailable("the key file is gone", path=self.path)
        with folder:
            key = _parsed(folder.read(self.path.name, limit=_FILE_BYTES))
        if isinstance(key, bytes):
            return key
        if key is _Absent:
            raise KeyUnavailable("the key file is gone", path=self.path)
        raise Damaged("this is no key file: 44 characters of base64 and a newline", path=self.path)


def default_provider(app: str) -> KeyProvider:
    """What a store that begins is wrapped with."""
    if ENVIRONMENT in os.environ:
        return EnvironmentKey()
    credential = CredentialKey()
    if credential.path is not None and credential.path.exists():
        return credential
    from ._keyring import usable

    return usable(app) or KeyFile.default(app)


def provider_of(source: Source, app: str) -> KeyProvider:
    """The provider that a keyset names. Raises `KeyUnavailable` for those that only the program can give."""
    match source:
        case "env":
            return EnvironmentKey()
        case "credential":
            return CredentialKey()
        case "keyring":
            from ._keyring import KeyringKey

            return KeyringKey(app)
        case "file":
            return KeyFile.default(app)
        case _:
            raise KeyUnavailable(f"this store was wrapped by the source {source!r}: pass that provider")


def opened_by(provider: KeyProvider, entry: Entry) -> bytes:
    """The provider's key for an entry. Raises `KeyUnavailable` if another provider wrapped it (K7)."""
    if provider.source != entry.source:
        raise KeyUnavailable(
            f"this store was wrapped by the source {entry.source!r}, the provider given is {provider.source!r}"
        )
    return checked(provider.open(entry.kdf), provider)


def created_by(provider: KeyProvider) -> tuple[Kdf, bytes]:
    """The provider's key for a store that begins."""
    kdf, key = provider.create()
    return kdf, checked(key, provider)


def checked(key: bytes, provider: KeyProvider) -> bytes:
    """The provider's answer, or `KeyUnavailable` if that cannot be a key."""
    problem = _problem(key)
    if problem is not None:
        del key
        raise KeyUnavailable(f"the key of the source {provider.source!r} {problem}")
    return key


def decoded(text: bytes | str) -> bytes | None:
    """The key that base64 spells, or None where it spells none. It raises nothing: its frame holds the key."""
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
    # 32 random bytes have fewer than 16 distinct values once in 10**16 times; what a person types often has.
    return "is not random" if len(set(key)) < 16 else None


#: What a user without a home can set in place of naming a file or folder.
HOMES: Final = "or set HOME, or XDG_STATE_HOME and XDG_CONFIG_HOME"


def user_folder(find: Callable[..., Path], app: str) -> Path | None:
    """A folder of this user, or None where none is known: no `HOME`, and a user id that has no entry."""
    try:
        folder = find(app, appauthor=False)
    except RuntimeError:  # platformdirs, and `Path.home` beneath it
        return None
    return folder if folder.is_absolute() else None  # older ones leave the `~` as it is


class _Absent:
    """There is no file."""


def _parsed(data: bytes | None) -> bytes | type[_Absent] | None:
    if data is None:
        return _Absent
    return decoded(data[:-1]) if data.endswith(b"\n") else None
