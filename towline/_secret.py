"""A string that must not be shown. Like `_exceptions`, a leaf that each layer may import."""

from __future__ import annotations

import hmac
from typing import Final, NoReturn, Self

_HIDDEN: Final = "Secret(hidden)"


class Secret:
    """Holds a token. repr, str, format, JSON and pickle show nothing; only `reveal()` gives it out.

    The text is kept in a closure, not in a field: `vars()`, dataclass dumps and tracebacks that print locals
    find no attribute to follow. No method can raise while a frame of it, or its exception, holds the text. Equality
    takes the same time wherever two secrets differ. A secret never changes, so a copy of it is the same one.
    """

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
        kind: type = type(text)
        if not issubclass(kind, str):
            del text
            raise TypeError(f"a Secret holds a str, not {kind.__name__}")

        def reveal() -> str:
            """Give the secret out: only where it goes onto the wire or into the sealed record."""
            return text

        self.reveal = reveal

    def __repr__(self) -> str:
        return _HIDDEN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(_HIDDEN, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


def _bytes(secret: Secret) -> bytes:
    """Any text, half surrogate pairs too: the exception for those would carry the whole of it."""
    return secret.reveal().encode("utf-8", "surrogatepass")
