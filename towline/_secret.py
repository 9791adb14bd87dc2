"""A string that must not be shown. Like `_exceptions`, it imports no other module of ours: each layer may import it."""

from __future__ import annotations

import hmac
from typing import Final, NoReturn, Self, TypeAlias

_HIDDEN: Final = "Secret(hidden)"


class Secret:
    """A token or other secret text. repr, str, format, JSON and pickle hide it; only `reveal()` returns it.

    The text is kept in a closure and not in an attribute, so that `vars()`, dataclass dumps and tracebacks with locals
    cannot show it. No method can raise while its frame or exception holds the text. Comparing takes the same time
    wherever two secrets differ. A secret never changes, so a copy is the same object.
    """

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
        kind: type = type(text)
        if not issubclass(kind, str):
            del text
            raise TypeError(f"a Secret holds a str, not {kind.__name__}")

        def reveal() -> str:
            """Return the secret text. Use it only to send the text or to write it into the encrypted record."""
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
    """Encode any text, even lone surrogates: the exception for those would hold the complete text."""
    return secret.reveal().encode("utf-8", "surrogatepass")


#: Text that may be secret: it is revealed only when a request is written.
Text: TypeAlias = str | Secret


def revealed(text: Text) -> str:
    """The text as sent. A frame that may raise must not hold it in a variable."""
    return text.reveal() if isinstance(text, Secret) else text
