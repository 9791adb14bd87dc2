"""Checks the headers and subprotocols of a request, and knows the HTML page that answers in place of a server.

Errors quote no value, because one may hold a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from ._exceptions import InvalidArgument
from ._secret import Text, revealed

#: Headers to add to a request, as a mapping or as pairs; a value that must not be shown may be a `Secret`.
Headers: TypeAlias = Mapping[str, Text] | Iterable[tuple[str, Text]]

#: A name (RFC 9110 section 5.6.2).
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PAGES: Final = frozenset({"text/html", "application/xhtml+xml"})
_FIELD_VALUE: Final = re.compile(r"[!-~]([\t -~]*[!-~])?|")  # the ASCII part of RFC 9110 section 5.5
# A last event id is sent as UTF-8, as the standard for event streams says; RFC 9110 section 5.5 calls that opaque data.
_ID_VALUE: Final = re.compile(
    r"[^\x00- \x7f\ud800-\udfff]([^\x00-\x08\n-\x1f\x7f\ud800-\udfff]*[^\x00- \x7f\ud800-\udfff])?|"
)


def is_page(content_type: str | None) -> bool:
    """Whether a `Content-Type` names an HTML page: gateways and a network's login page answer so, no server of jobs."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() in _PAGES


def as_pairs(headers: Headers) -> tuple[tuple[str, Text], ...]:
    """Headers as pairs, unchecked."""
    return tuple(headers.items() if isinstance(headers, Mapping) else headers)


def header_pairs(headers: Headers, *, reserved: frozenset[str] = frozenset()) -> tuple[tuple[str, Text], ...]:
    """Check headers and return them as pairs; names in `reserved` (lower case) are refused.

    A value is printable ASCII on one line; that of `Last-Event-ID` may hold other characters too. Raises
    `InvalidArgument` with the header's name, never its value.
    """
    pairs = as_pairs(headers)
    for name, value in pairs:
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise InvalidArgument("headers", "a name is not a token (RFC 9110 section 5.6.2)")
        if name.lower() in reserved:
            raise InvalidArgument("headers", f"{name} is set by the protocol: leave it out")
        allowed = _ID_VALUE if name.lower() == "last-event-id" else _FIELD_VALUE
        if not isinstance(value, Text) or not allowed.fullmatch(revealed(value)):
            raise InvalidArgument("headers", f"the value of {name} is not printable ASCII on one line")
    return pairs


def check_subprotocols(subprotocols: Iterable[Text]) -> tuple[Text, ...]:
    """Check the subprotocols to offer: each a token, without repeats. Errors quote none: one may hold a credential."""
    if isinstance(subprotocols, str):
        raise InvalidArgument("subprotocols", "must be a sequence of names, not a single text")
    offered = tuple(subprotocols)
    if not all(isinstance(name, Text) and TOKEN.fullmatch(revealed(name)) for name in offered):
        raise InvalidArgument("subprotocols", "a name is not a token (RFC 6455 section 4.1)")
    if len({revealed(name) for name in offered}) != len(offered):
        raise InvalidArgument("subprotocols", "a name is offered twice")
    return offered
