"""The command line: `towline --help`. It needs the `cli` extra, and `serve` the `server` extra."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        import typer  # noqa: F401
    except ImportError:
        sys.exit("the command line needs its extra: pip install 'towline[cli]'")
    from ._app import app

    app()
