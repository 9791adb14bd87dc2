"""Escapes a server's text, so that no terminal or log interprets it."""

from __future__ import annotations

import unicodedata
from typing import Final

# Control (Cc), format (Cf: bidirectional overrides, zero-width), surrogate (Cs) and line or paragraph separators.
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape(text: str) -> str:
    """Return `text` with every character escaped that a terminal or log interprets, or that misleads a reader."""
    if text.isprintable():
        # Printable in Python's sense: none of those categories, and a cheap test.
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _OBEYED else character
        for character in text
    )
