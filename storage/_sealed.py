"""The sealed bytes of a record (docs/format.md). Pure: no files, no clock, no randomness.

No frame that an error passes through holds the plaintext, because tracebacks that print locals would show the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec

from .._exceptions import Damaged, InvalidArgument, UnknownVersion
from .._secret import Secret
from ._record import Record, RecordKey, check_cursor, check_parameters

if TYPE_CHECKING:
    from ._aead import Cipher

MAGIC: Final = b"TWL2"
SUITE: Final = 1
HEADER_BYTES: Final = 44
BLOCK: Final = 256
OVERHEAD: Final = HEADER_BYTES + 16
MAX_RECORD_BYTES: Final = 64 * 1024
RECORD_NAME: Final = re.compile(r"([0-9a-f]{32})\.tok")

_Ms = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protocol: str
    address: str
    job: str
    token: _Text | None
    kind: Literal["live", "ended"]
    expires: _Ms | None
    saved: _Ms
    cursor: str | None
    outcome: str | None
    parameters: dict[str, str | int | float | bool]
    secrets: dict[_Text, str]


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(_Plain)


def name_of(tag: bytes) -> str:
    """The name of a record's file."""
    return tag.hex() + ".tok"


class Header(NamedTuple):
    """The clear part of a record."""

    key_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A record as it was read, and its header."""

    record: Record
    header: Header


def read_header(data: bytes, path: Path | None = None) -> Header:
    """Check all rules that need no key (R1 to R4)."""
    if not OVERHEAD + BLOCK <= len(data) <= MAX_RECORD_BYTES or (len(data) - OVERHEAD) % BLOCK:
        raise Damaged(f"the record has an impossible length of {len(data)} bytes", path=path)
    if data[:3] != MAGIC[:3]:
        raise Damaged("this is not a record of a token store", path=path)
    if data[3] != MAGIC[3] or data[4] != SUITE:
        raise UnknownVersion("another version of Towline wrote this record, and this one cannot read it", path=path)
    if data[5:8] != bytes(3):
        raise Damaged("the header's reserved bytes are not zero", path=path)
    return Header(data[8:24].hex(), int.from_bytes(data[24:32]))


def seal(record: Record, cipher: Cipher, header: Header, *, nonce: bytes, tag: bytes) -> bytes:
    """The bytes of the file `<tag in hex>.tok`. Raises `InvalidArgument` if they would be more than 64 KiB."""
    clear = MAGIC + bytes((SUITE, 0, 0, 0)) + bytes.fromhex(header.key_id) + header.generation.to_bytes(8) + nonce
    data = clear + cipher.seal(nonce, _spell(record), clear + tag)
    if len(data) > MAX_RECORD_BYTES:
        problem = f"token, outcome, parameters and secrets together are longer than {MAX_RECORD_BYTES} bytes"
        raise InvalidArgument("record", problem)
    return data


def unseal(data: bytes, cipher_of: Callable[[str], Cipher | None], *, tag: bytes, path: Path | None = None) -> Opened:
    """Read what `seal` wrote. `cipher_of` maps the keyset's key ids to ciphers. Raises `Damaged`, `UnknownVersion`."""
    from ._aead import NotAuthentic

    header = read_header(data, path)
    cipher = cipher_of(header.key_id)
    if cipher is None:
        raise Damaged("the keyset does not have the key that this record names", path=path)
    try:
        record = _read(cipher.open(data[32:44], data[44:], data[:44] + tag))
    except NotAuthentic:
        raise Damaged("the record was changed after it was written", path=path) from None
    if record is None:
        raise Damaged("the record's content is not in the exact form of version 2", path=path)
    return Opened(record, header)


def _spell(record: Record) -> bytes:
    return _pad(
        _ENCODER.encode(
            _Plain(
                protocol=record.key.protocol,
                address=record.key.address,
                job=record.key.job,
                token=None if record.token is None else record.token.reveal(),
                kind="ended" if record.ended else "live",
                expires=None if record.expires is None else round(record.expires * 1000),
                saved=round(record.saved * 1000),
                cursor=record.cursor,
                outcome=record.outcome,
                parameters=dict(record.parameters),
                secrets={name: secret.reveal() for name, secret in record.secrets.items()},
            )
        )
    )


def _pad(text: bytes) -> bytes:
    return text + b" " * (-len(text) % BLOCK)


def _read(plain: bytes) -> Record | None:
    """The record, or None: the caller raises, because a traceback through this frame would show `plain`."""
    try:
        found = _DECODER.decode(plain)
        key = RecordKey(found.protocol, found.address, found.job)
        parameters = check_parameters(found.parameters)
        if found.cursor is not None:
            check_cursor(found.cursor)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidArgument):
        return None
    if _pad(_ENCODER.encode(found)) != plain or (found.kind == "ended") is not (found.outcome is not None):
        return None
    return Record(
        key=key,
        token=None if found.token is None else Secret(found.token),
        expires=None if found.expires is None else found.expires / 1000,
        saved=found.saved / 1000,
        cursor=found.cursor,
        outcome=found.outcome,
        parameters=parameters,
        secrets=MappingProxyType({name: Secret(text) for name, text in found.secrets.items()}),
    )
