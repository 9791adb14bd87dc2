"""The encrypted store of tokens and cursors. docs/format.md describes the files."""

from __future__ import annotations

from ._record import Parameter, Record, RecordKey
from ._store import MemoryTokenStore, Store, TokenStore
from ._vault import Verification
from .keys._keyring import KeyringKey
from .keys._keyset import Kdf, NoKdf, Stored
from .keys._passphrase import PassphraseKey
from .keys._providers import CallerKey, CredentialKey, EnvironmentKey, KeyFile, KeyProvider

__all__ = [
    "CallerKey",
    "CredentialKey",
    "EnvironmentKey",
    "Kdf",
    "KeyFile",
    "KeyProvider",
    "KeyringKey",
    "MemoryTokenStore",
    "NoKdf",
    "Parameter",
    "PassphraseKey",
    "Record",
    "RecordKey",
    "Store",
    "Stored",
    "TokenStore",
    "Verification",
]
