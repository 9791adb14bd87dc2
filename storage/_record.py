"""A record as a value, its key, and what a save changes in it. Pure: no files, no clock, no randomness.

`_sealed.py` has the bytes of a record; docs/format.md describes both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from .._exceptions import InvalidArgument, RecordMismatch
from .._secret import Secret

MAX_CURSOR_BYTES: Final = 4096

#: A value among a protocol's parameters.
Parameter: TypeAlias = str | int | float | bool

_PROTOCOL: Final = re.compile(r"[!-~]+")
# An origin with its port, and a path: printable ASCII without ? and #.
_ADDRESS: Final = re.compile(r"(https?://[a-z0-9._:\[\]-]+:[0-9]{1,5})/[!\"$->@-~]*")


@dataclass(frozen=True, slots=True, order=True)
class RecordKey:
    """What a record belongs to: two servers may both have a job `1`.

    `protocol` is the name of the protocol, `address` the origin and path at which the job is followed, without a query
    (`https://api.example:443/ws/progress`), `job` the job's id. Raises `InvalidArgument`.
    """

    protocol: str
    address: str
    job: str

    def __post_init__(self) -> None:
        if not _PROTOCOL.fullmatch(self.protocol):
            raise InvalidArgument("protocol", "must be printable ASCII without spaces, and not empty")
        if not _ADDRESS.fullmatch(self.address):
            raise InvalidArgument(
                "address", "must be an origin and a path without a query, such as https://api.example:443/ws/progress"
            )
        check_job(self.job)

    @property
    def server(self) -> str:
        """Protocol and address, as errors name them."""
        return f"{self.protocol} at {self.address}"

    @property
    def origin(self) -> str:
        """The only place the token may be sent to, such as `https://api.example:443`."""
        found = _ADDRESS.fullmatch(self.address)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that is kept of one job.

    Times are seconds since 1970, to the millisecond. `token` is None if no token belongs to the job. `cursor` is the
    text of a JSON object, None until an update was delivered. `outcome` is JSON text, None until the job is known to
    have ended. `parameters` and `secrets` are what the protocol needs to follow the job again.
    """

    key: RecordKey
    token: Secret | None
    expires: float | None = None
    saved: float
    # A cursor or a parameter may be a URL, whose query stays out of logs.
    cursor: str | None = field(default=None, repr=False)
    outcome: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    secrets: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def ended(self) -> bool:
        """Whether the consumer has received the job's end."""
        return self.outcome is not None

    def is_over(self, now: float) -> bool:
        """Whether the job has ended and its record has expired, so that it counts as deleted."""
        return self.ended and self.expires is not None and self.expires <= now

    def for_address(self, protocol: str, address: str) -> Record:
        """Return this record if it is that server's, or raise `RecordMismatch`: its token goes nowhere else."""
        if (self.key.protocol, self.key.address) != (protocol, address):
            raise RecordMismatch(f"the record is of {self.key.server}, not of {protocol} at {address}")
        return self


# --- changes ---------------------------------------------------------------------------------------------------


def with_token(
    old: Record | None,
    key: RecordKey,
    *,
    token: Secret | None,
    expires: float | None,
    parameters: Mapping[str, Parameter] | None,
    secrets: Mapping[str, Secret] | None,
    now: float,
) -> Record:
    """The record after a save: cursor and end stay, and so do parameters and secrets unless new ones are given."""
    new = Record(key=key, token=_checked("token", token), saved=_time("now", now))
    if old is not None:
        new = replace(new, cursor=old.cursor, outcome=old.outcome, parameters=old.parameters, secrets=old.secrets)
    if parameters is not None:
        new = replace(new, parameters=check_parameters(parameters))
    if secrets is not None:
        new = replace(new, secrets=_check_secrets(secrets))
    return new if expires is None else replace(new, expires=_time("expires", expires))


def with_cursor(old: Record, cursor: str, *, now: float) -> Record:
    """The record after a delivery. Within one epoch a numbered cursor never goes back: then the record stays the same.

    Any other cursor replaces the old one.
    """
    new = check_cursor(cursor)
    if old.cursor == cursor:
        return old
    before = None if old.cursor is None else check_cursor(old.cursor)
    if new is not None and before is not None and new.epoch == before.epoch and new.seq <= before.seq:
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


# --- checks ----------------------------------------------------------------------------------------------------


class Numbered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cursor that counts: event `seq` of the server's log `epoch`."""

    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    epoch: str


_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def check_cursor(cursor: str) -> Numbered | None:
    """Check the text of a cursor, and return its position if it is numbered. Raises `InvalidArgument`."""
    if len(_text("cursor", cursor).encode()) > MAX_CURSOR_BYTES:
        raise InvalidArgument("cursor", f"must not be longer than {MAX_CURSOR_BYTES} bytes")
    try:
        found = _OBJECT.decode(cursor)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidArgument("cursor", "must be the text of a JSON object") from None
    if "seq" not in found:
        return None
    try:
        return msgspec.convert(found, Numbered)
    except msgspec.ValidationError:
        problem = 'with seq must have epoch and nothing else: {"seq":7,"epoch":"text"}, seq from 0 to 2**63 - 1'
        raise InvalidArgument("cursor", problem) from None


def check_job(job: str) -> str:
    """Return `job` if it can be a job id, or raise `InvalidArgument`."""
    return _text("job", job)


def check_parameters(parameters: Mapping[str, Parameter]) -> Mapping[str, Parameter]:
    """Return a copy that cannot be changed, or raise `InvalidArgument`."""
    return MappingProxyType({_text("parameters", name): _parameter(value) for name, value in parameters.items()})


def _parameter(value: Parameter) -> Parameter:
    match value:
        case bool():
            return value
        case str():
            return _text("parameters", value, empty=True)
        case int() if abs(value) <= 2**53:
            return value
        # Within these bounds no writer of JSON needs an exponent, so there is one spelling.
        case float() if value == 0 or 0.0001 <= abs(value) <= 2**53:
            return value
    raise InvalidArgument(
        "parameters", "a value must be text, a boolean, or a number: 0, or between 0.0001 and 2**53 in size"
    )


def _check_secrets(secrets: Mapping[str, Secret]) -> Mapping[str, Secret]:
    for name, secret in secrets.items():
        _text("secrets", name)
        _checked("secrets", secret, empty=True)
    return MappingProxyType(dict(secrets))


def _checked(name: str, secret: Secret | None, *, empty: bool = False) -> Secret | None:
    """Check a secret text; no frame here holds it."""
    if secret is not None and not empty and not secret.reveal():
        raise InvalidArgument(name, "must not be empty")
    if secret is not None and not _encodable(secret.reveal()):
        raise InvalidArgument(name, "holds half a surrogate pair, which UTF-8 cannot encode")
    return secret


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


def _time(name: str, seconds: float) -> float:
    if not math.isfinite(seconds) or not 0 <= round(seconds * 1000) < 2**53:
        raise InvalidArgument(name, "must be seconds since 1970")
    return round(seconds * 1000) / 1000
