"""What the exit code tells, and how an expected failure is said: one line, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from .._exceptions import Exhausted, TowlineError, UsageError
from .._text import escape
from .._updates import JobCanceled, JobComplete, JobFailed, Outcome


class ExitCode(IntEnum):
    """How it ended."""

    COMPLETE = 0
    FAILED = 1
    """The job failed."""
    USAGE = 2
    """What was asked for cannot be; typer's own code too."""
    CANCELED = 3
    """The job was stopped on request."""
    GAVE_UP = 4
    """The job may go on, but its server could not be reached any more."""
    TROUBLE = 5
    """Something else failed: the message says what."""
    UNEXPECTED = 70
    """A bug of Towline, with its traceback on standard error; sysexits.h calls it EX_SOFTWARE."""
    INTERRUPTED = 130
    """Ctrl-C, SIGTERM or SIGHUP; the job goes on."""


def code_of(outcome: Outcome) -> ExitCode:
    """The exit code for how a job ended."""
    match outcome:
        case JobComplete():
            return ExitCode.COMPLETE
        case JobFailed():
            return ExitCode.FAILED
        case JobCanceled():
            return ExitCode.CANCELED


def fail(code: ExitCode, problem: object) -> NoReturn:
    """Say what is wrong on standard error, and exit."""
    with suppress(OSError):  # where nothing can be written any more, the code still says it
        typer.echo(f"towline: {escape(str(problem))}", err=True)
    raise typer.Exit(code)


class Commands(TyperGroup):
    """All commands: what one of them raises on purpose becomes a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with expected_failures():
            return super().invoke(ctx)


@contextmanager
def expected_failures() -> Iterator[None]:
    """Turn Towline's own errors into a line and an exit code; anything else is a bug, which `main` reports."""
    try:
        yield
    except Exhausted as error:
        fail(ExitCode.USAGE if error.reason == "usage" else ExitCode.GAVE_UP, error)
    except UsageError as error:
        fail(ExitCode.USAGE, error)
    except TowlineError as error:
        fail(ExitCode.TROUBLE, error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # What is still in the buffer would fail once more as the interpreter ends, with an exit code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(ExitCode.TROUBLE, error)
    except (KeyboardInterrupt, typer.Abort) as error:  # `Abort` is Ctrl-C at a prompt
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except BaseExceptionGroup as group:
        # Ctrl-C where nobody waits for it: on trio it comes to whichever task runs, and out of its task group.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise typer.Exit(ExitCode.INTERRUPTED) from group
