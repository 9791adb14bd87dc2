"""The command line: `towline --help`. It needs the `cli` extra, and `serve` the `server` extra."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import Final

from ._streams import prepare_streams

# What `_exit.ExitCode` calls USAGE, UNEXPECTED and INTERRUPTED: that module needs the extra.
_USAGE: Final = 2
_UNEXPECTED: Final = 70
_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line and exit with its code.

    An error that no command expects is a bug: it keeps its traceback, and has an exit code that nothing else has.
    """
    prepare_streams()
    try:
        import typer  # noqa: F401
    except ImportError:
        print("towline: the command line needs its extra: pip install 'towline[cli]'", file=sys.stderr)
        sys.exit(_USAGE)
    try:
        from ._app import app

        app()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except SystemExit:
        raise
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
            print("towline: this error is a bug of Towline; please report it with the lines above", file=sys.stderr)
        sys.exit(_UNEXPECTED)
