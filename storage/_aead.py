"""The only module that uses `cryptography`: sealing with AES-256-GCM, and the two derivations of the format.

It is imported at the first use of a key: `cryptography` takes about 30 ms to load, which would slow `import towline`.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
SEAL_BYTES: Final = 16


class NotAuthentic(Exception):
    """The sealed bytes, their associated data or the key differ from those used for sealing."""


class Cipher:
    """AES-256-GCM under one key. A nonce MUST NOT be used twice under the same key."""

    def __init__(self, key: bytes) -> None:
        self._aes = AESGCM(key)

    def seal(self, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
        """Return ciphertext and tag, `SEAL_BYTES` longer than `plain`."""
        return self._aes.encrypt(nonce, plain, associated)

    def open(self, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        """Return the plaintext, or raise `NotAuthentic`."""
        try:
            return self._aes.decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise NotAuthentic from None


def record_cipher(root: bytes) -> Cipher:
    """The cipher of all records that name this root key."""
    return Cipher(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"towline record").derive(root))


def job_tag(names: bytes, job: str) -> bytes:
    """The 8 bytes with which the names of a job's files begin."""
    return hmac.digest(names, b"job\0" + job.encode(), hashlib.sha256)[:8]


def tag_of(names: bytes, protocol: str, address: str, job: str) -> bytes:
    """The 16 bytes that name a record's file. `protocol` and `address` must not hold a NUL."""
    whole = "\0".join(("whole", protocol, address, job))
    return job_tag(names, job) + hmac.digest(names, whole.encode(), hashlib.sha256)[:8]
