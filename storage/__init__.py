"""The encrypted store of tokens and cursors. docs/format.md says what stands on the disk."""

from __future__ import annotations

from ._providers import CallerKey, EnvironmentKey, KeyFile, KeyProvider
from ._record import Cursor, Record
from ._store import MemoryTokenStore, Store, TokenStore

__all__ = [
    "CallerKey",
    "Cursor",
    "EnvironmentKey",
    "KeyFile",
    "KeyProvider",
    "MemoryTokenStore",
    "Record",
    "Store",
    "TokenStore",
]
