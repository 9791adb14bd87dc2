"""keyset.json as a value, and its bytes (docs/format.md). Pure: no files, no clock, no randomness.

`Keyset` is the wrapped content of the file. `Keys` are the opened keys, after a provider gave the wrapping key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from ..._exceptions import Damaged, UnknownVersion, WrongKey

if TYPE_CHECKING:
    from .._aead import Cipher

MAX_KEYSET_BYTES: Final = 16 * 1024

Source = Literal["caller", "env", "credential", "keyring", "file", "passphrase"]

_Id = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Ms = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Salt = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Wrapped = Annotated[bytes, msgspec.Meta(min_length=60, max_length=60)]
_Lanes = Annotated[int, msgspec.Meta(ge=1, le=8)]


class NoKdf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="none"):
    """No derivation: the provider has 32 random bytes."""


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="stored"):
    """The name of the key in use: the provider keeps several keys of 32 random bytes."""

    id: _Id


class Argon2id(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="argon2id"):
    """Argon2id (RFC 9106): `m` KiB of memory, `t` passes, `p` lanes. Values above these bounds are rejected."""

    m: Annotated[int, msgspec.Meta(ge=8, le=1024 * 1024)]
    t: Annotated[int, msgspec.Meta(ge=1, le=10)]
    p: _Lanes
    salt: _Salt


class Scrypt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="scrypt"):
    """scrypt (RFC 7914): cost `n`, a power of two, block size `r`, `p` lanes."""

    n: Annotated[int, msgspec.Meta(ge=2, le=2**20)]
    r: Annotated[int, msgspec.Meta(ge=1, le=8)]
    p: Annotated[int, msgspec.Meta(ge=1, le=4)]
    salt: _Salt


Kdf = NoKdf | Stored | Argon2id | Scrypt


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wrapped key."""

    id: _Id
    made: _Ms
    source: Source
    kdf: Kdf
    wrapped: _Wrapped


class Keyset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file. `primary` is the id of the root key that seals new records."""

    v: Literal[2]
    primary: _Id
    keys: Annotated[tuple[Entry, ...], msgspec.Meta(min_length=1)]
    names: Entry
    sum: str = ""

    @property
    def entry(self) -> Entry:
        """The primary's entry."""
        return next(entry for entry in self.keys if entry.id == self.primary)


class _Version(msgspec.Struct):
    v: int


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(Keyset)
_VERSION: Final = msgspec.json.Decoder(_Version)


def spell(keyset: Keyset) -> bytes:
    """The bytes of the file."""
    return _ENCODER.encode(msgspec.structs.replace(keyset, sum=_sum(keyset)))


def parse(data: bytes, path: Path | None = None) -> Keyset:
    """Read what `spell` wrote. Raises `Damaged` or `UnknownVersion` (K1 to K5)."""
    if len(data) > MAX_KEYSET_BYTES:
        raise Damaged(f"the keyset is longer than {MAX_KEYSET_BYTES} bytes", path=path)
    try:
        version = _VERSION.decode(data).v
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Damaged("the keyset is not JSON with a version", path=path) from exc
    if version != 2:
        raise UnknownVersion(f"the store has version {version}, and this program reads only version 2", path=path)
    try:
        keyset = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Damaged(f"the keyset is not valid: {exc}", path=path) from exc
    if spell(keyset) != data:
        raise Damaged("the keyset was changed after it was written", path=path)
    ids = [entry.id for entry in (*keyset.keys, keyset.names)]
    if len(set(ids)) != len(ids) or keyset.primary not in ids[:-1]:
        raise Damaged("the keyset's ids contradict each other", path=path)
    for entry in (*keyset.keys, keyset.names):
        if not _bounded(entry.kdf):
            raise Damaged("the keyset has derivation costs out of range", path=path)
    return keyset


def _sum(keyset: Keyset) -> str:
    return hashlib.sha256(_ENCODER.encode(msgspec.structs.replace(keyset, sum=""))).hexdigest()


def _bounded(kdf: Kdf) -> bool:
    """Check the bounds that involve more than one field."""
    match kdf:
        case Argon2id():
            return kdf.m >= 8 * kdf.p
        case Scrypt():
            return kdf.n & (kdf.n - 1) == 0
        case _:
            return True


# --- wrapping --------------------------------------------------------------------------------------------------

Role = Literal["root", "name"]


def wrap(
    key: bytes, wrapping: Cipher, role: Role, *, key_id: str, made: int, source: Source, kdf: Kdf, nonce: bytes
) -> Entry:
    """Wrap one key with the provider's cipher and return its entry."""
    entry = Entry(id=key_id, made=made, source=source, kdf=kdf, wrapped=bytes(60))
    return msgspec.structs.replace(entry, wrapped=nonce + wrapping.seal(nonce, key, _associated(entry, role)))


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """An opened keyset: the name key, and a cipher for each root key by its id."""

    primary: str
    names: bytes
    ciphers: dict[str, Cipher]


def unwrap(keyset: Keyset, cipher_for: Callable[[Entry], Cipher], path: Path | None = None) -> Keys:
    """Open every entry. `cipher_for` returns the cipher for an entry's source and kdf. Raises `WrongKey` (K6)."""
    from .._aead import record_cipher

    return Keys(
        keyset.primary,
        unwrap_one(keyset.names, cipher_for, "name", path),
        {entry.id: record_cipher(unwrap_one(entry, cipher_for, "root", path)) for entry in keyset.keys},
    )


def unwrap_one(entry: Entry, cipher_for: Callable[[Entry], Cipher], role: Role, path: Path | None = None) -> bytes:
    """Open one entry."""
    from .._aead import NotAuthentic

    try:
        return cipher_for(entry).open(entry.wrapped[:12], entry.wrapped[12:], _associated(entry, role))
    except NotAuthentic:
        raise WrongKey(
            f"the key from the source {entry.source!r} is not the one that wrapped this store", path=path
        ) from None


def _associated(entry: Entry, role: Role) -> bytes:
    fields = {name: value for name, value in msgspec.structs.asdict(entry).items() if name != "wrapped"}
    return f"towline {role} key\0".encode() + msgspec.json.encode(fields)
