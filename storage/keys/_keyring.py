"""The operating system's keyring, through `keyring` (the extra of that name).

`keyring` uses any backend that it finds, and with keyrings.alt installed that can be a plain-text file. So we only use
backends of an allow-list, each directly. We never use the chain, which falls back to the next backend.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeVar

from ..._exceptions import Damaged, KeyUnavailable, Locked, TokenStoreError
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
    """A key in the OS keyring: service `app`, one entry per store, named in the keyset.

    With a Secret Service we unlock nothing and show no prompt; macOS and KWallet may show their own dialogue.
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
        return kdf, self.open(kdf)  # read it back: a key that the keyring did not save must not wrap a store

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        if not isinstance(kdf, Stored):
            raise Damaged("the keyset does not name an entry of the keyring")
        entry = kdf.id
        key = _within(self.seconds, lambda: _get(self.app, entry))
        if key is None:
            raise KeyUnavailable(f"the keyring has no usable entry {entry!r} of {self.app!r}")
        return key

    def check(self) -> None:
        """Raise `KeyUnavailable` or `Locked` unless an allowed, unlocked keyring answers."""
        _within(self.seconds, _backend)


def usable(app: str) -> KeyProvider | None:
    """The OS keyring if it can be used without a prompt, else None."""
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
    """The backend that `keyring` prefers, if it is allowed and unlocked."""
    if importlib.util.find_spec("keyring") is None:
        raise KeyUnavailable("the package `keyring` is not installed: pip install 'towline[keyring]'")
    import keyring
    from keyring.backends.chainer import ChainerBackend

    backend = keyring.get_keyring()
    chained = list(backend.backends) if isinstance(backend, ChainerBackend) else [backend]
    allowed = [one for one in chained if _name(one) in ALLOWED]
    if not allowed:
        found = _name(chained[0]) if chained else "none"
        raise KeyUnavailable(f"no allowed keyring was found (found: {found}); pass another provider as provider=")
    if _name(allowed[0]) in _SECRET_SERVICE:
        _check_unlocked()
    return allowed[0]


def _check_unlocked() -> None:
    """Check the default collection, because `keyring` would prompt the user to unlock or create it."""
    import secretstorage

    connection = secretstorage.dbus_init()
    try:
        locked = secretstorage.Collection(connection, _DEFAULT_COLLECTION).is_locked()
    except secretstorage.ItemNotFoundException:
        raise KeyUnavailable("the Secret Service has no default collection; create one") from None
    finally:
        connection.close()
    if locked:
        raise Locked("the keyring is locked: unlock it and try again")


def _name(backend: object) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Run `call` in a separate thread, which is abandoned after the timeout: a keyring may wait for an absent user."""
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
    """Convert an error and drop its cause: the frames of `keyring` hold the key, and tracebacks may print locals."""
    if isinstance(exc, TokenStoreError):
        return exc
    from keyring.errors import KeyringLocked

    if isinstance(exc, KeyringLocked) or type(exc).__name__ in ("LockedException", "PromptDismissedException"):
        return Locked("the keyring is locked: unlock it and try again")
    return KeyUnavailable(f"the keyring failed with {type(exc).__name__}")
