"""Text from a server is data: what a terminal or a log would obey is escaped before it sees it."""

from __future__ import annotations

import unicodedata
from typing import Final

# Control (Cc), format (Cf: bidirectional overrides, zero-width), surrogate (Cs) and line or paragraph separators.
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape(text: str) -> str:
    """`text` with every character that a terminal, a log or a reader's eye would obey written as an escape."""
    if text.isprintable():
        # Printable by Python's rule: none of those categories, and cheap to ask.
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _OBEYED else character
        for character in text
    )
