"""Standard streams that can take whatever the command prints.

A pipe in cp1252, a terminal in latin-1 or `LANG=C` cannot encode every title, and a service may start without any
standard stream. Neither is a reason to stop following a job.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

#: The name of the error handler below, as `PYTHONIOENCODING=ascii:NAME` could name it.
ESCAPED: Final = "towline.escaped"
# `replace` and the like are a choice of the user's. These are Python's own, and what would break a line of JSON.
_REPLACED: Final = frozenset({"strict", "surrogateescape", "backslashreplace"})


def prepare_streams() -> None:
    """Open what is closed on the null device, and let standard output escape what it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    codecs.register_error(ESCAPED, _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in _REPLACED:
        sys.stdout.reconfigure(errors=ESCAPED)


def encodable(text: str) -> str:
    """The text as standard output will show it: what cannot be encoded is an escape, which is wider."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, getattr(sys.stdout, "errors", None) or "strict").decode(encoding)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write a character as JSON escapes it, so that a line of JSON stays one: `\\u65e5`, or two of these."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end
