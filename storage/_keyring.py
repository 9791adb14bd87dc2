"""The operating system's keyring, through `keyring` (the extra of that name).

`keyring` takes whatever backend it finds, and with keyrings.alt installed that can be a plain-text file. So only
backends of an allow-list are spoken to, each directly: never the chain, which falls through to the next one.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeVar

from .._exceptions import Damaged, KeyUnavailable, Locked, TokenStoreError
from ._keyset import Kdf, Stored
from ._providers import KEY_BYTES, KeyProvider, decoded

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

ALLOWED: Final = frozenset(
    {
        "keyring.backends.SecretService.Keyring",
        "keyring.backends.Windows.WinVaultKeyring",
        "keyring.backends.kwallet.DBusKeyring",
        "keyring.backends.kwallet.DBusKeyringKWallet4",
        "keyring.backends.libsecret.Keyring",
        "keyring.backends.macOS.Keyring",
    }
)
SECONDS: Final = 3.0
_SECRET_SERVICE: Final = ("keyring.backends.SecretService.Keyring", "keyring.backends.libsecret.Keyring")
_DEFAULT_COLLECTION: Final = "/org/freedesktop/secrets/aliases/default"

_T = TypeVar("_T")


class KeyringKey:
    """A key in the OS keyring: service `app`, one entry a store, named in the keyset.

    Nothing is unlocked and nobody is asked on a Secret Service; macOS and KWallet may show their own dialogue.
    An answer that takes longer than `seconds` counts as `Locked`.
    """

    source: Final = "keyring"

    def __init__(self, app: str = "towline", *, seconds: float = SECONDS) -> None:
        self.app = app
        self.seconds = seconds

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        kdf = Stored(os.urandom(16).hex())
        _within(self.seconds, lambda: _put(self.app, kdf.id))
        return kdf, self.open(kdf)  # read back: what the keyring did not keep must not wrap anything

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        if not isinstance(kdf, Stored):
            raise Damaged("the keyset does not name the keyring's entry")
        entry = kdf.id
        key = _within(self.seconds, lambda: _get(self.app, entry))
        if key is None:
            raise KeyUnavailable(f"the keyring has no usable entry {entry!r} of {self.app!r}")
        return key

    def check(self) -> None:
        """Raise `KeyUnavailable` or `Locked` unless there is an allowed, unlocked keyring that answers."""
        _within(self.seconds, _backend)


def usable(app: str) -> KeyProvider | None:
    """The OS keyring if it can be used without asking anybody, else None."""
    if importlib.util.find_spec("keyring") is None:
        return None
    provider = KeyringKey(app)
    try:
        provider.check()
    except TokenStoreError:
        return None
    return provider


def _put(app: str, entry: str) -> None:
    _backend().set_password(app, entry, base64.b64encode(os.urandom(KEY_BYTES)).decode())


def _get(app: str, entry: str) -> bytes | None:
    return decoded(_backend().get_password(app, entry) or "")


def _backend() -> KeyringBackend:
    """The backend that `keyring` would take first, if it is an allowed one and unlocked."""
    if importlib.util.find_spec("keyring") is None:
        raise KeyUnavailable("the package `keyring` is not installed: pip install 'towline[keyring]'")
    import keyring
    from keyring.backends.chainer import ChainerBackend

    backend = keyring.get_keyring()
    chained = list(backend.backends) if isinstance(backend, ChainerBackend) else [backend]
    allowed = [one for one in chained if _name(one) in ALLOWED]
    if not allowed:
        raise KeyUnavailable(f"the keyring {_name(chained[0]) if chained else 'of no kind'} is not one to trust")
    if _name(allowed[0]) in _SECRET_SERVICE:
        _check_unlocked()
    return allowed[0]


def _check_unlocked() -> None:
    """`keyring` would ask the user to unlock, or to make, the default collection; we must not."""
    import secretstorage

    connection = secretstorage.dbus_init()
    try:
        locked = secretstorage.Collection(connection, _DEFAULT_COLLECTION).is_locked()
    except secretstorage.ItemNotFoundException:
        raise KeyUnavailable("the Secret Service has no default collection") from None
    finally:
        connection.close()
    if locked:
        raise Locked("the keyring is locked: unlock it and call again")


def _name(backend: object) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread of its own, since a keyring may wait for a user who is away: it is left behind then."""
    values: SimpleQueue[_T | TokenStoreError] = SimpleQueue()

    def run() -> None:
        try:
            values.put(call())
        except Exception as exc:
            values.put(_ours(exc))

    threading.Thread(target=run, name="towline keyring", daemon=True).start()
    try:
        value = values.get(timeout=seconds)
    except Empty:
        raise Locked(f"the keyring did not answer within {seconds:g} s") from None
    if isinstance(value, TokenStoreError):
        raise value
    return value


def _ours(exc: Exception) -> TokenStoreError:
    """Without the cause: the frames of `keyring` hold the key, and a traceback that prints locals would show it."""
    if isinstance(exc, TokenStoreError):
        return exc
    from keyring.errors import KeyringLocked

    if isinstance(exc, KeyringLocked) or type(exc).__name__ in ("LockedException", "PromptDismissedException"):
        return Locked("the keyring is locked: unlock it and call again")
    return KeyUnavailable(f"the keyring failed with {type(exc).__name__}")
