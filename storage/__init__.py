"""The encrypted store of tokens and cursors. docs/format.md describes the files."""

from __future__ import annotations

from ._keyring import KeyringKey
from ._keyset import Kdf, NoKdf, Stored
from ._passphrase import PassphraseKey
from ._providers import CallerKey, CredentialKey, EnvironmentKey, KeyFile, KeyProvider
from ._record import Cursor, Record
from ._store import MemoryTokenStore, Store, TokenStore
from ._vault import Verification

__all__ = [
    "CallerKey",
    "CredentialKey",
    "Cursor",
    "EnvironmentKey",
    "Kdf",
    "KeyFile",
    "KeyProvider",
    "KeyringKey",
    "MemoryTokenStore",
    "NoKdf",
    "PassphraseKey",
    "Record",
    "Store",
    "Stored",
    "TokenStore",
    "Verification",
]
