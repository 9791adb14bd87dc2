"""The command line: `towline --help`. It needs the extra `cli`; `serve` and `demo` also need the extra `server`."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import Final

from ._streams import prepare_streams

# The same as in `_exit.ExitCode`, which cannot be imported without the extra.
_USAGE: Final = 2
_UNEXPECTED: Final = 70
_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line and exit with its code.

    An unexpected error is a bug: it is printed with its traceback, and exits with a code that is used for nothing else.
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
            print("towline: this error is a bug in Towline; please report it with the lines above", file=sys.stderr)
        sys.exit(_UNEXPECTED)
