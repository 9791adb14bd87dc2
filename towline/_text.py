"""Text for terminals and logs: a server's characters escaped, and log lines that name their job."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any, Final, TypeAlias

LOG: Final = logging.getLogger("towline")

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


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """Begins each line with the job that it is about: a program may follow a hundred of them."""

    def __init__(self, job: str) -> None:
        super().__init__(LOG)
        self._job = escape(job)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log one line, as `logging.Logger.log`."""
        if self.isEnabledFor(level):
            # The line's place is the caller's, beyond this frame.
            self.logger.log(level, f"job %s: {msg}", self._job, *args, stacklevel=2, **kwargs)


#: What `unexpected` and others write to.
AnyLog: TypeAlias = logging.Logger | JobLog
