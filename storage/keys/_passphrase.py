"""A passphrase as the key, stretched by Argon2id, or by scrypt if the installed OpenSSL has no Argon2."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from typing import Final

from ..._exceptions import Damaged, InvalidArgument, KeyUnavailable
from ..._secret import Secret
from ._keyset import Argon2id, Kdf, Scrypt

# RFC 9106, section 4, the second recommended choice: 64 MiB, 3 passes, 4 lanes.
MEMORY_KIB: Final = 64 * 1024
PASSES: Final = 3
LANES: Final = 4
# OWASP's choice for scrypt, 128 MiB.
SCRYPT_N: Final = 2**17
SCRYPT_R: Final = 8
_SALT_BYTES: Final = 16
_KEY_BYTES: Final = 32


class PassphraseKey:
    """Derives the key from a passphrase. `ask` returns the passphrase; a worker thread calls it when a store is opened.

    No lock is held during the call. The caller of the store gets any error that `ask` raises. The passphrase is
    normalised to NFC, so that it does not matter on which system it is typed.
    """

    source: Final = "passphrase"

    def __init__(self, ask: Callable[[], Secret | str]) -> None:
        self._ask = ask

    def create(self) -> tuple[Kdf, bytes]:
        """See `KeyProvider`."""
        kdf = todays_costs(os.urandom(_SALT_BYTES))
        return kdf, self.open(kdf)

    def open(self, kdf: Kdf) -> bytes:
        """See `KeyProvider`."""
        match kdf:
            case Argon2id():
                return _argon2id(self._passphrase(), kdf)
            case Scrypt():
                return _scrypt(self._passphrase(), kdf)
            case _:
                raise Damaged("the keyset names no derivation for a passphrase")

    def _passphrase(self) -> Secret:
        answer = self._ask()
        secret = Secret(answer) if isinstance(answer, str) else answer
        del answer
        if not secret.reveal():
            raise InvalidArgument("passphrase", "must not be empty")
        return secret


def todays_costs(salt: bytes) -> Argon2id | Scrypt:
    """The derivation and costs for a new passphrase."""
    if has_argon2():
        return Argon2id(MEMORY_KIB, PASSES, LANES, salt)
    return Scrypt(SCRYPT_N, SCRYPT_R, 1, salt)


def is_dated(kdf: Kdf) -> bool:
    """Whether today's costs are higher, so that the store should be wrapped again."""
    match kdf:
        case Argon2id():
            return kdf.m < MEMORY_KIB or kdf.t < PASSES
        case Scrypt():
            return kdf.n * kdf.r < SCRYPT_N * SCRYPT_R or has_argon2()
        case _:
            return False


def has_argon2() -> bool:
    """Whether the OpenSSL that `cryptography` is linked to supports Argon2 (3.2 and later)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as Derivation

    try:
        Derivation(salt=bytes(16), length=_KEY_BYTES, iterations=1, lanes=1, memory_cost=8)
    except UnsupportedAlgorithm:
        return False
    return True


def _argon2id(passphrase: Secret, kdf: Argon2id) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as Derivation

    try:
        derivation = Derivation(
            salt=kdf.salt, length=_KEY_BYTES, iterations=kdf.t, lanes=kdf.p, memory_cost=kdf.m, ad=None, secret=None
        )
    except UnsupportedAlgorithm as exc:
        raise KeyUnavailable("the store was wrapped with Argon2id, which needs OpenSSL 3.2 or later") from exc
    return derivation.derive(_spelled(passphrase))


def _scrypt(passphrase: Secret, kdf: Scrypt) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt as Derivation

    return Derivation(salt=kdf.salt, length=_KEY_BYTES, n=kdf.n, r=kdf.r, p=kdf.p).derive(_spelled(passphrase))


def _spelled(passphrase: Secret) -> bytes:
    return unicodedata.normalize("NFC", passphrase.reveal()).encode("utf-8", "surrogatepass")
