"""Standard streams that accept all text that a command prints.

A pipe in cp1252, a terminal in latin-1 or `LANG=C` cannot encode every title, and a service may start without standard
streams. Neither must stop a command.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

#: Name of the error handler below; `PYTHONIOENCODING=ascii:NAME` accepts it too.
ESCAPED: Final = "towline.escaped"
# Python's defaults, and one that would break a line of JSON. Other handlers were chosen by the user.
_REPLACED: Final = frozenset({"strict", "surrogateescape", "backslashreplace"})


def prepare_streams() -> None:
    """Replace closed streams by the null device, and make standard output escape text that it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    codecs.register_error(ESCAPED, _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in _REPLACED:
        sys.stdout.reconfigure(errors=ESCAPED)


def encodable(text: str) -> str:
    """Return the text as standard output will show it. Escapes make it wider than it was."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, getattr(sys.stdout, "errors", None) or "strict").decode(encoding)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write a character as JSON escapes it, so that a line of JSON stays one: `\\u65e5`, or two of these."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end
