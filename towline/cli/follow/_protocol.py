"""`--protocol`, `-p` and `towline protocols`: the protocol that a job is followed with."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
import typer

from ..._exceptions import InvalidArgument
from ..._facts import Protocol
from ...protocols._shared.names import CLASSES, MAY_LOSE, protocol_class
from .._loading import load_object

ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="How to follow the job: a name that `towline protocols` lists, or module:object, which is a protocol of "
        "yours or a function that makes one."
    ),
]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="FIELD=VALUE", help="Set a field of the protocol. May be repeated; not for secrets."),
]

#: The types of fields that a text on the command line can stand for.
_SIMPLE: Final = frozenset({str, int, float, bool, type(None)})
#: Fields with an option or an argument of their own, which differs between the commands.
_OWN_OPTIONS: Final = {"url": "a URL", "job": "a job"}


def chosen_protocol(name: str | None, url: str | None, job: str | None, given: Sequence[str]) -> Protocol | None:
    """Make the protocol that the options name. Without `--protocol` and `-p` there is none: the record has it.

    Raises `InvalidArgument` for a name, a field or a value that cannot be used.
    """
    texts = _split(given)
    if name is None and not texts:
        return None
    maker = _found(name) if name is not None and ":" in name else protocol_class(name or "towline")
    if not callable(maker):
        if url is not None or texts:
            raise InvalidArgument("protocol", f"{name} is a protocol with its own values: leave the URL and -p out")
        return _checked(name, maker)
    types_of, needed = _parameters(maker)
    values = {field: _value(field, text, types_of, name or "towline") for field, text in texts.items()}
    if url is not None and "url" not in types_of:
        problem = f"{name} has no parameter `url`: leave the URL out, or pass a function of it that returns a protocol"
        raise InvalidArgument("url", problem)
    named = {"url": url, "job": job}
    values |= {field: value for field, value in named.items() if value is not None and field in types_of}
    if missing := [field for field in needed if field not in values]:
        raise InvalidArgument(missing[0], _missing(missing[0], name or "towline"))
    try:
        made = maker(**values)
    except InvalidArgument:
        raise
    except Exception as error:  # code of the user's may raise anything
        raise InvalidArgument("protocol", f"{name} failed: {type(error).__name__}: {error}") from error
    return _checked(name, made)


def _split(given: Sequence[str]) -> dict[str, str]:
    texts = {}
    for text in given:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise InvalidArgument("-p", f"{text!r} is not FIELD=VALUE")
        if field in _OWN_OPTIONS:
            raise InvalidArgument("-p", f"{field} is not set with -p: it has a separate option or argument")
        texts[field] = value
    return texts


def _found(name: str) -> Any:
    found = load_object(name, "protocol")
    if isinstance(found, type) or not isinstance(getattr(found, "name", None), str):
        return found if callable(found) else _checked(name, found)
    return found


def _checked(name: str | None, made: Any) -> Protocol:
    if not all(hasattr(made, part) for part in ("name", "url", "job", "sources", "promise", "ask", "read")):
        raise InvalidArgument("protocol", f"{name} is a {type(made).__name__}, which is not a protocol")
    protocol: Protocol = made
    return protocol


def _parameters(maker: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """The parameters' types by name, and the names of those without a default."""
    try:
        is_plain_class = isinstance(maker, type) and not is_dataclass(maker)
        hints = typing.get_type_hints(maker.__init__ if is_plain_class else maker)
        signature = inspect.signature(maker)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidArgument("protocol", f"its parameters cannot be read: {error}") from error
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    needed = [name for name, parameter in named.items() if parameter.default is parameter.empty]
    return {name: hints.get(name, str) for name in named}, needed


def _value(field: str, text: str, types_of: Mapping[str, Any], name: str) -> Any:
    if field not in types_of:
        known = ", ".join(one for one, kind in types_of.items() if one not in _OWN_OPTIONS and _is_simple(kind))
        raise InvalidArgument("-p", f"{name} has no field {field!r}: it has {known or 'none to set here'}")
    kind = types_of[field]
    if not _is_simple(kind):
        problem = f"{field} of {name} cannot be set here: write a function and pass --protocol module:function"
        raise InvalidArgument("-p", problem)
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument("-p", f"{field}={text} does not fit: {error}") from error


def _is_simple(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return all(_is_simple(part) for part in typing.get_args(kind))
    return typing.get_origin(kind) is Literal or kind in _SIMPLE


def _missing(field: str, name: str) -> str:
    if field in _OWN_OPTIONS:
        return f"is missing: {name} needs {_OWN_OPTIONS[field]}"
    if name in CLASSES:
        return f"is missing: {name} calls a function of yours. Make the protocol in Python, and pass module:object"
    return f"is missing: pass -p {field}=VALUE"


# --- towline protocols -----------------------------------------------------------------------------------------


def protocols(
    explained: Annotated[
        str | None, typer.Argument(help="Explain the fields of this protocol.", metavar="NAME")
    ] = None,
) -> None:
    """`towline protocols`."""
    if explained is not None:
        for part in protocol_class(explained).__mro__[:-1]:
            typer.echo(f"{inspect.cleandoc(part.__doc__ or '')}\n")
        return
    rows = [("name", "sources", "promise", "what it follows"), *(_row(name) for name in CLASSES)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row, name in zip(rows, ("", *CLASSES), strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[3]]).rstrip())
        if name:
            typer.echo(f"  may be lost: {MAY_LOSE.get(name, 'nothing')}")
            typer.echo(f"  fields: {', '.join(_fields(protocol_class(name)))}")
    typer.echo("`towline protocols NAME` explains the fields.")


def _row(name: str) -> tuple[str, str, str, str]:
    kind = protocol_class(name)
    plain = _example(kind)
    promise = str(plain.promise)
    if "state" in kind.__dataclass_fields__ and (other := _example(kind, state="/state").promise) != promise:
        promise += f"; with state: {other}"
    if "resumable" in kind.__dataclass_fields__:
        promise += f"; not resumable: {_example(kind, resumable=False).promise}"
    return name, ", ".join(plain.sources), promise, (kind.__doc__ or "").partition("\n")[0]


def _example(kind: Any, **changes: Any) -> Protocol:
    """A protocol of this class, whose values do not matter."""
    needed = {field.name: "x" for field in fields(kind) if field.default is field.default_factory is MISSING}
    return _checked(kind.__name__, kind(**{**needed, "url": "https://server.example/", "job": "job", **changes}))


def _fields(kind: Any) -> list[str]:
    """The fields, those that are needed first."""
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    others = [field.name for field in fields(kind) if field.name not in needed]
    return [*(f"{name} (needed)" for name in needed), *others]
