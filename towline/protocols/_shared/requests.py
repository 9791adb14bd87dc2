"""What the protocols share to build requests: where the token goes, and text for URLs."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from ..._exceptions import InvalidArgument, MalformedMessage
from ..._headers import TOKEN
from ..._secret import Secret, Text

Headers: TypeAlias = tuple[tuple[str, Text], ...]

JSON: Final[tuple[str, str]] = ("Content-Type", "application/json")
ACCEPT_JSON: Final[tuple[str, str]] = ("Accept", "application/json")

_PLACE: Final = re.compile(rf"(header|query)(:{TOKEN.pattern})?|subprotocol:{TOKEN.pattern}")
_PATH: Final = re.compile(r"[!\"$-~]+")  # printable ASCII, without the # of a fragment


class Placed(NamedTuple):
    """A request's URL, headers and subprotocols, with the token in one of them."""

    url: Text
    headers: Headers = ()
    subprotocols: tuple[Text, ...] = ()


def check_token_place(place: str) -> None:
    """Raise `InvalidArgument` if `place` is none of the places that `placed` knows."""
    if not _PLACE.fullmatch(place):
        raise InvalidArgument("token_in", "must be header, header:NAME, query, query:NAME or subprotocol:NAME")


def placed(token: Secret | None, place: str, url: str) -> Placed:
    """Put the token where `place` says.

    - `header`: `Authorization: Bearer TOKEN` (RFC 6750 section 2.1). `header:NAME`: the token alone in that header.
    - `query`, `query:NAME`: a parameter of the URL, `token` by default. Servers log it.
    - `subprotocol:NAME`: the WebSocket's subprotocol `NAME.TOKEN`.
    """
    if token is None:
        return Placed(url)
    kind, _, name = place.partition(":")
    if kind == "query":
        return Placed(Secret(with_query(url, name or "token", token.reveal())))
    if kind == "subprotocol":
        return Placed(url, subprotocols=(Secret(f"{name}.{token.reveal()}"),))
    return Placed(url, headers=((name, token),) if name else bearer(token))


def bearer(token: Secret | None) -> Headers:
    """The `Authorization` header of a token, if there is one."""
    return () if token is None else (("Authorization", Secret(f"Bearer {token.reveal()}")),)


def with_query(url: str, name: str, value: str) -> str:
    """The URL with an additional query parameter, percent-encoded."""
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}{quote(name, safe='')}={quote(value, safe='')}"


def path_and_query(url: str) -> str:
    """The part of a URL that names the job on its server."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL, to compare; a WebSocket has the origin of the HTTP server that opens it.

    Raises `InvalidArgument` for a port that is none.
    """
    parts = urlsplit(http_origin(url))
    try:
        port = parts.port
    except ValueError:
        raise InvalidArgument("url", "the port is not a number from 0 to 65535") from None
    return parts.scheme, parts.hostname, port or {"https": 443, "http": 80}.get(parts.scheme)


def http_origin(url: str) -> str:
    """The origin of a URL as HTTP calls need it: `https` for `wss`, `http` for `ws`."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme.lower(), parts.scheme)
    return f"{scheme}://{parts.netloc}"


def resolved(base: str, reference: str) -> str:
    """The URL that `reference` (a `Location`) stands for, without its fragment.

    Raises `MalformedMessage` if it is no URL. The text is left out, because a URL may hold a token.
    """
    try:
        return urljoin(base, reference).partition("#")[0]
    except ValueError:
        raise MalformedMessage("location", "$", "it is not a URL") from None


def path_segment(job: str) -> str:
    """A job's id as one segment of a path, percent-encoded.

    Raises `InvalidArgument` for an id that no segment can hold: the empty text, `.` and `..` (RFC 3986 section 5.2.4
    removes them from a path), and a lone surrogate.
    """
    if not isinstance(job, str) or job in {"", ".", ".."}:
        raise InvalidArgument("job", "must be text other than the empty string, . and ..")
    try:
        return quote(job, safe="")
    except UnicodeEncodeError:
        raise InvalidArgument("job", "holds a lone surrogate") from None


def check_path(name: str, path: str, *, fixed: bool = False) -> None:
    """Raise `InvalidArgument` unless `path` begins with a slash and has `{job}` once (`fixed`: or not at all)."""
    fields = path.count("{job}")
    if not (fields == 1 or (fixed and fields == 0)) or re.search(r"[{}]", path.replace("{job}", "")):
        raise InvalidArgument(name, "must hold {job} once and no other field")
    if not path.startswith("/"):
        raise InvalidArgument(name, "must begin with a slash")
    if not _PATH.fullmatch(path):
        raise InvalidArgument(name, "holds a character that must be percent-encoded")
