"""A record as a value, and its sealed bytes (docs/format.md). Pure: no files, no clock, no randomness.

No frame that an error passes through holds the plaintext, because tracebacks that print locals would show the token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import msgspec

from .._exceptions import Damaged, InvalidArgument, RecordMismatch, UnknownVersion
from .._secret import Secret

if TYPE_CHECKING:
    from ._aead import Cipher

MAGIC: Final = b"TWL1"
SUITE: Final = 1
HEADER_BYTES: Final = 44
BLOCK: Final = 256
OVERHEAD: Final = HEADER_BYTES + 16
MAX_RECORD_BYTES: Final = 64 * 1024
RECORD_NAME: Final = re.compile(r"([0-9a-f]{32})\.tok")


class Cursor(NamedTuple):
    """The position of the last delivered update: event `seq` of the server's log `epoch`."""

    epoch: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that is kept of one job.

    Times are seconds since 1970, to the millisecond. `outcome` is JSON text, None until the job is known to have ended.
    `context` is the program's own text (where the job was followed) and is not meant for secrets.
    """

    job: str
    origin: str
    token: Secret | None
    expires: float | None = None
    saved: float
    cursor: Cursor | None = None
    outcome: str | None = None
    context: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def ended(self) -> bool:
        """Whether the consumer has received the job's end."""
        return self.outcome is not None

    def is_over(self, now: float) -> bool:
        """Whether the job has ended and its record has expired, so that it counts as deleted."""
        return self.ended and self.expires is not None and self.expires <= now

    def for_origin(self, origin: str, path: Path | None = None) -> Record:
        """Return this record if it was saved for `origin`, or raise `RecordMismatch`."""
        if self.origin != origin:
            raise RecordMismatch(f"the token was saved for {self.origin!r}, not for {origin!r}", path=path)
        return self


# --- changes ---------------------------------------------------------------------------------------------------


def with_token(
    old: Record | None,
    *,
    job: str,
    origin: str,
    token: Secret | None,
    expires: float | None,
    context: Mapping[str, str] | None,
    now: float,
) -> Record:
    """The record after a save: at the same origin it keeps cursor, end and, unless a new one is given, context."""
    new = Record(job=_text("job", job), origin=_text("origin", origin), token=_token(token), saved=_time("now", now))
    if old is not None and old.origin == origin:
        new = replace(new, cursor=old.cursor, outcome=old.outcome, context=old.context)
    if context is not None:
        new = replace(
            new,
            context=MappingProxyType(
                {_text("context", k): _text("context", v, empty=True) for k, v in context.items()}
            ),
        )
    return new if expires is None else replace(new, expires=_time("expires", expires))


def with_cursor(old: Record, cursor: Cursor, *, now: float) -> Record:
    """The record after a delivery. Within one epoch a cursor never goes back: then the record stays the same."""
    _text("epoch", cursor.epoch)
    if not 0 <= cursor.seq < 2**63:
        raise InvalidArgument("seq", "must be between 0 and 2**63 - 1")
    if old.cursor is not None and old.cursor.epoch == cursor.epoch and old.cursor.seq >= cursor.seq:
        return old
    return replace(old, cursor=cursor, saved=_time("now", now))


def with_end(old: Record, outcome: str, *, now: float) -> Record:
    """The record after the job's end. The first end stays: if there is one, the record stays the same."""
    if old.ended:
        return old
    try:
        msgspec.json.decode(outcome)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise InvalidArgument("outcome", "is not JSON") from None
    return replace(old, outcome=outcome, saved=_time("now", now))


def check_job(job: str) -> str:
    """Return `job` if it can be a job id, or raise `InvalidArgument`."""
    return _text("job", job)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # its error carries the whole text, so it must not become the context of ours
        return False
    return True


def _text(name: str, text: str, *, empty: bool = False) -> str:
    if not text and not empty:
        raise InvalidArgument(name, "must not be empty")
    if not _encodable(text):
        raise InvalidArgument(name, "holds half a surrogate pair, which UTF-8 cannot encode")
    return text


def _token(token: Secret | None) -> Secret | None:
    if token is not None and not token.reveal():
        raise InvalidArgument("token", "must not be empty")
    if token is not None and not _encodable(token.reveal()):
        raise InvalidArgument("token", "holds half a surrogate pair, which UTF-8 cannot encode")
    return token


def _time(name: str, seconds: float) -> float:
    if not math.isfinite(seconds) or not 0 <= round(seconds * 1000) < 2**53:
        raise InvalidArgument(name, "must be seconds since 1970")
    return round(seconds * 1000) / 1000


# --- sealed bytes ----------------------------------------------------------------------------------------------


_Ms = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Seq = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class _PlainCursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: _Text
    seq: _Seq


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    job: _Text
    origin: _Text
    token: _Text | None
    kind: Literal["live", "ended"]
    expires: _Ms | None
    saved: _Ms
    cursor: _PlainCursor | None
    outcome: str | None
    context: dict[_Text, str]


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
        raise UnknownVersion("a newer version wrote this record: upgrade Towline", path=path)
    if data[5:8] != bytes(3):
        raise Damaged("the header's reserved bytes are not zero", path=path)
    return Header(data[8:24].hex(), int.from_bytes(data[24:32]))


def seal(record: Record, cipher: Cipher, header: Header, *, nonce: bytes, tag: bytes) -> bytes:
    """The bytes of the file `<tag in hex>.tok`. Raises `InvalidArgument` if they would be more than 64 KiB."""
    clear = MAGIC + bytes((SUITE, 0, 0, 0)) + bytes.fromhex(header.key_id) + header.generation.to_bytes(8) + nonce
    data = clear + cipher.seal(nonce, _spell(record), clear + tag)
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidArgument("record", f"token, outcome and context together are longer than {MAX_RECORD_BYTES} bytes")
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
        raise Damaged("the record's content is not in the exact form of version 1", path=path)
    return Opened(record, header)


def _spell(record: Record) -> bytes:
    return _pad(
        _ENCODER.encode(
            _Plain(
                job=record.job,
                origin=record.origin,
                token=None if record.token is None else record.token.reveal(),
                kind="ended" if record.ended else "live",
                expires=None if record.expires is None else round(record.expires * 1000),
                saved=round(record.saved * 1000),
                cursor=None if record.cursor is None else _PlainCursor(*record.cursor),
                outcome=record.outcome,
                context=dict(record.context),
            )
        )
    )


def _pad(text: bytes) -> bytes:
    return text + b" " * (-len(text) % BLOCK)


def _read(plain: bytes) -> Record | None:
    """The record, or None: the caller raises, because a traceback through this frame would show `plain`."""
    try:
        found = _DECODER.decode(plain)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if _pad(_ENCODER.encode(found)) != plain or (found.kind == "ended") is not (found.outcome is not None):
        return None
    return Record(
        job=found.job,
        origin=found.origin,
        token=None if found.token is None else Secret(found.token),
        expires=None if found.expires is None else found.expires / 1000,
        saved=found.saved / 1000,
        cursor=None if found.cursor is None else Cursor(found.cursor.epoch, found.cursor.seq),
        outcome=found.outcome,
        context=MappingProxyType(found.context),
    )
