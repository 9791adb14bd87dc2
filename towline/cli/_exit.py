"""The exit codes, and the report of expected errors: one line without a traceback."""

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
from .._updates import JobCancelled, JobComplete, JobFailed, Outcome


class ExitCode(IntEnum):
    """How a command ended."""

    COMPLETE = 0
    FAILED = 1
    """The job failed."""
    USAGE = 2
    """An argument or an environment variable cannot be used; typer uses this code too."""
    CANCELED = 3
    """The job was canceled."""
    GAVE_UP = 4
    """Towline stopped trying to follow the job, which may still run."""
    TROUBLE = 5
    """Another error; the message describes it."""
    UNEXPECTED = 70
    """A bug in Towline, with its traceback on standard error; EX_SOFTWARE in sysexits.h."""
    INTERRUPTED = 130
    """Ctrl-C, SIGTERM or SIGHUP; the job continues."""


def code_of(outcome: Outcome) -> ExitCode:
    """Return the exit code for the end of a job."""
    match outcome:
        case JobComplete():
            return ExitCode.COMPLETE
        case JobFailed():
            return ExitCode.FAILED
        case JobCancelled():
            return ExitCode.CANCELED


def fail(code: ExitCode, problem: object) -> NoReturn:
    """Print what is wrong on standard error, and exit."""
    with suppress(OSError):  # standard error may be closed; the exit code is still right
        typer.echo(f"towline: {escape(str(problem))}", err=True)
    raise typer.Exit(code)


class Commands(TyperGroup):
    """The group of all commands. It turns expected errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with expected_failures():
            return super().invoke(ctx)


@contextmanager
def expected_failures() -> Iterator[None]:
    """Turn Towline's errors into one line and an exit code. Other errors are bugs, which `main` reports."""
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
            # Without this the interpreter would flush the buffer at exit, fail again and change the exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(ExitCode.TROUBLE, error)
    except (KeyboardInterrupt, typer.Abort) as error:  # `Abort` is Ctrl-C at a prompt
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except BaseExceptionGroup as group:
        # Trio raises KeyboardInterrupt in the task that runs, so it may arrive in the group of a task group.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise typer.Exit(ExitCode.INTERRUPTED) from group
