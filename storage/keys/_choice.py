"""The choice of a provider: for a new store, and for a store whose keyset names the source of its key."""

from __future__ import annotations

import os

from ..._exceptions import KeyUnavailable
from ._keyring import KeyringKey, usable
from ._keyset import Source
from ._providers import ENVIRONMENT, CredentialKey, EnvironmentKey, KeyFile, KeyProvider


def default_provider(app: str) -> KeyProvider:
    """The provider for a new store."""
    if ENVIRONMENT in os.environ:
        return EnvironmentKey()
    credential = CredentialKey()
    if credential.path is not None and credential.path.exists():
        return credential
    return usable(app) or KeyFile.default(app)


def provider_of(source: Source, app: str) -> KeyProvider:
    """The provider that a keyset names. Raises `KeyUnavailable` for a source that only the program can supply."""
    match source:
        case "env":
            return EnvironmentKey()
        case "credential":
            return CredentialKey()
        case "keyring":
            return KeyringKey(app)
        case "file":
            return KeyFile.default(app)
        case _:
            raise KeyUnavailable(f"the source {source!r} wrapped this store: pass its provider as provider=")
