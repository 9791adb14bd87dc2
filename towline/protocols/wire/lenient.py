"""Reads a server's JSON field by field, so that one unusable field does not cost the whole message.

The typed decoders run first, because they are fast and fit nearly every message. This reader handles the rest. It knows
kinds of fields (a count, a fraction, a time), not messages: the caller knows which field is required.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Raw, Struct

T = TypeVar("T", bound=Struct)

#: The largest number that the store keeps, and that JSON readers in other languages can hold.
MAX_WHOLE: Final = 2**63 - 1

#: Values nested deeper than this are left out when a message is read field by field.
MAX_DEPTH: Final = 200

#: How far outside 0 to 1 a sum of floats may land and still count as 0 or 1.
_ROUNDING: Final = 1e-6

Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_WHOLE)]
Sequence: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_WHOLE)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
#: Milliseconds since 1970. The description distinguishes this kind of number from others.
Timestamp: TypeAlias = Annotated[float, Meta(description="milliseconds since 1970")]

#: Errors of a typed decoder for JSON that does not fit. Deep nesting exhausts its stack, lone surrogates break its
#: codec; the sender is at fault in both cases.
UNFIT: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


# --- text to plain values ----------------------------------------------------------------------------------------


def load(data: str | bytes | Raw) -> Any:
    """Parse JSON into plain values. Raises `ValueError` for text that is not JSON.

    A byte order mark is skipped. NaN, infinite numbers and values nested deeper than `MAX_DEPTH` become None; lone
    surrogates become U+FFFD.
    """
    text = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
    text = text.removeprefix("\ufeff")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        text = _pruned(text)
    with suppress(*UNFIT):
        return msgspec.json.decode(text)
    return _cleaned(json.loads(text, strict=False, parse_int=_parsed_int))


_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _pruned(text: str) -> str:
    """The text with `null` in place of values nested too deep, which would exhaust a parser's stack."""
    kept: list[str] = []
    depth = start = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept.append(text[start : match.start()] + "null")
        elif match[0] in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                start = match.end()
    return "".join(kept) + text[start:] if depth <= MAX_DEPTH else text[:0]


def _parsed_int(digits: str) -> float:
    # Python refuses to convert very long texts. As a float such a number is infinite, and is left out.
    return int(digits) if len(digits) < 300 else math.inf


def _cleaned(value: Any) -> Any:
    """The value without anything JSON cannot represent: infinite numbers, NaN, lone surrogates."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_cleaned(item) for item in value]
        case dict():
            return {_cleaned(name): _cleaned(item) for name, item in value.items()}
    return value


def unwrapped(value: Any, *deciding: str) -> Any:
    """The `data` of an envelope `{data, metadata}` if it holds a deciding field, otherwise the value itself."""
    data = value.get("data") if isinstance(value, dict) else None
    return data if isinstance(data, dict) and any(name in data for name in deciding) else value


# --- plain values to fields --------------------------------------------------------------------------------------

# Each converter returns None for a value that does not fit its kind.


def _number(value: Any) -> float | None:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            return number if math.isfinite(number) else None
    return None


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        whole = value
    elif isinstance(value, str) and value.isdecimal() and len(value) < 20:
        whole = int(value)  # exact above 2**53, where a float is not
    else:
        number = _number(value)
        if number is None or not number.is_integer():
            return None
        whole = int(number)
    return whole if 0 <= whole <= MAX_WHOLE else None


def _sequence(value: Any) -> int | None:
    return _whole(value) or None


def fraction(value: Any) -> float | None:
    """A share of 1 without the errors of rounding; None if it is none."""
    number = _number(value)
    if number is None or not -_ROUNDING <= number <= 1 + _ROUNDING:
        return None
    return min(1.0, max(0.0, number))


def _timestamp(value: Any) -> float | None:
    if (number := _number(value)) is not None or not isinstance(value, str):
        return number
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _unchanged(value: Any) -> Any:
    return value


_CONVERTERS: Final[Mapping[Any, Callable[[Any], Any]]] = {
    Count: _whole,
    Sequence: _sequence,
    Fraction: fraction,
    Timestamp: _timestamp,
    float: _number,
    int: _whole,
    str: _text,
    bool: _flag,
    Any: _unchanged,
}


@cache
def _plan(struct: type[Struct]) -> tuple[tuple[str, str, Callable[[Any], Any], Any], ...]:
    """Each readable field: its name, its name on the wire, its converter, and its value if absent."""
    plan = []
    for field in msgspec.structs.fields(struct):
        kinds = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        convert = next((_CONVERTERS[kind] for kind in kinds if kind in _CONVERTERS), None)
        absent = field.default if field.default is not NODEFAULT else "" if kinds == (str,) else None
        if convert is not None:
            plan.append((field.name, field.encode_name, convert, absent))
    return tuple(plan)


def build(struct: type[T], fields: Mapping[str, Any], **given: Any) -> T:
    """Build a struct from the fields that fit; `given` are fields that are known already.

    Null counts as absent. An absent or unusable field gets its default, otherwise "" for text and None for the rest.
    """
    values = given
    for name, key, convert, absent in _plan(struct):
        if name in given:
            continue
        value = fields.get(key)
        converted = None if value is None else convert(value)
        values[name] = absent if converted is None else converted
    return struct(**values)


def as_text(value: Any) -> str:
    """A value as text for people: text unchanged, None as "", everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
