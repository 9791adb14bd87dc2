"""A string that must not be shown. Like `_exceptions`, a leaf that each layer may import."""

from __future__ import annotations

import hmac
from typing import Final, NoReturn

_HIDDEN: Final = "Secret(hidden)"


class Secret:
    """Holds a token. repr, str, format and pickle show nothing; only `reveal()` gives it out.

    The text is kept in a closure, not in a field: `vars()`, dataclass dumps and tracebacks that print locals
    find no attribute to follow. Equality takes the same time wherever two secrets differ.
    """

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
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
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")
