"""What a record keeps of a protocol, and the protocol built again from it.

The fields of a built-in protocol are its parameters. Texts, numbers and booleans are kept as they are. Texts in a
tuple, such as the values of headers, and every `Secret` are kept as secrets: `headers.0.X-Key` is the first header.
The name of something that is code ends with `()`: a record can name a function, but not hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from ..._exceptions import InvalidArgument
from ..._facts import Protocol
from ..._secret import Secret
from .names import CLASSES, protocol_class

Parameter: TypeAlias = str | int | float | bool

_CODE: Final = "()"


class Kept(NamedTuple):
    """What a record keeps of a protocol."""

    parameters: dict[str, Parameter]
    secrets: dict[str, Secret]


def kept_of(protocol: Protocol) -> Kept:
    """Return what a record keeps: the fields that differ from their defaults. Types of results are left out."""
    kept = Kept({"url": protocol.url}, {})
    if protocol.name not in CLASSES or type(protocol) is not protocol_class(protocol.name):
        kept.parameters[f"class{_CODE}"] = _name_of(type(protocol))
        return kept
    for field in fields(protocol):  # type: ignore[arg-type] # the built-in ones are dataclasses
        value = getattr(protocol, field.name)
        if field.name in ("url", "job") or value == _default(field):
            continue
        if isinstance(value, Parameter):
            kept.parameters[field.name] = value
        elif isinstance(value, Secret):
            kept.secrets[field.name] = value
        elif isinstance(value, tuple):
            kept.secrets.update(_texts(field.name, value))
        elif callable(value):
            kept.parameters[f"{field.name}{_CODE}"] = _name_of(value)
    return kept


def protocol_of(name: str, job: str, parameters: Mapping[str, Parameter], secrets: Mapping[str, Secret]) -> Protocol:
    """Build the protocol of a record again.

    Raises `InvalidArgument` if the record has no URL, if the protocol needs code that a record cannot hold, or if its
    parameters do not fit this version.
    """
    if not isinstance(parameters.get("url"), str):
        raise InvalidArgument("url", "the stored record has no URL: pass url=")
    again = "pass the protocol again (on the command line: --protocol module:object)"
    for key, value in parameters.items():
        if key.endswith(_CODE):
            raise InvalidArgument("target", f"job {job!r} is followed with code of yours, {value} ({key}): {again}")
    try:
        built: Protocol = protocol_class(name)(job=job, **parameters, **_values(secrets))
    except (TypeError, ValueError, InvalidArgument) as error:
        problem = f"the record of job {job!r} does not fit the protocol {name} of this version: {again}"
        raise InvalidArgument("target", problem) from error
    return built


def _default(field: Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _texts(name: str, texts: tuple[Any, ...]) -> Iterator[tuple[str, Secret]]:
    for place, text in enumerate(texts):
        header, value = text if isinstance(text, tuple) else ("", text)
        secret = value if isinstance(value, Secret) else Secret(value)
        yield f"{name}.{place}.{header}".rstrip("."), secret


def _values(secrets: Mapping[str, Secret]) -> dict[str, Any]:
    """The fields that `_texts` and single secrets were made of."""
    values: dict[str, Any] = {}
    texts: dict[str, list[tuple[int, Any]]] = {}
    for key, secret in secrets.items():
        name, _, rest = key.partition(".")
        place, _, header = rest.partition(".")
        if rest:
            texts.setdefault(name, []).append((int(place), (header, secret) if header else secret))
        else:
            values[name] = secret
    return values | {name: tuple(text for _, text in sorted(found, key=itemgetter(0))) for name, found in texts.items()}


def _name_of(code: Any) -> str:
    kind = code if hasattr(code, "__qualname__") else type(code)
    return f"{kind.__module__}:{kind.__qualname__}"
