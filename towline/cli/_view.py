"""How following a job looks: a bar on a terminal, plain lines in a pipe, JSON lines for machines.

All text from a server is escaped before it is shown; JSON escapes by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import msgspec

from .._text import escape
from .._updates import (
    AnyUpdate,
    JobCanceled,
    JobComplete,
    JobFailed,
    JobStarted,
    Progress,
    Resynced,
    Stalled,
    StateChange,
)
from ..statemachine import State

#: A pipe is told of progress at most this often, in seconds: a log is to be read.
_PLAIN_EVERY: Final = 1.0


class View(Protocol):
    """What is told of a job as it is followed. All but `state` raise `OSError` when it cannot be written."""

    def state(self, change: StateChange) -> None: ...
    def update(self, update: AnyUpdate) -> None: ...
    def note(self, **facts: Any) -> None: ...
    def say(self, kind: str, text: str) -> None: ...


class JsonView:
    """One JSON object a line, each with a `type`."""

    def state(self, change: StateChange) -> None:
        with suppress(OSError):  # an error of a handler stops nobody; the next update's does
            self._write(change)

    def update(self, update: AnyUpdate) -> None:
        self._write(update)

    def note(self, **facts: Any) -> None:
        self._write(facts)

    def say(self, kind: str, text: str) -> None:
        self._write({"type": kind, "text": text})

    def _write(self, told: object) -> None:
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        sys.stdout.flush()


class PlainView:
    """A line for each change of state and for what is worth one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_progress = 0.0

    def state(self, change: StateChange) -> None:
        with suppress(OSError):
            self._line(f"[{change.state.value}]{_because(change)}")

    def update(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress):
            now = self._clock()
            if now < self._next_progress:
                return
            self._next_progress = now + _PLAIN_EVERY
        self._line(in_words(update))

    def say(self, kind: str, text: str) -> None:
        sys.stderr.write(text + "\n")

    def note(self, **facts: Any) -> None:
        self._line("  ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if name != "type"))

    def _line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class BarView:
    """A progress bar with the state beside it; what is worth a line scrolls above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            TextColumn("{task.fields[state]:>13}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[item]:<40}", markup=False),
            console=Console(highlight=False, markup=False),
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0, state="idle", item="")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar while the block runs."""
        with self._progress:
            yield

    def state(self, change: StateChange) -> None:
        self._progress.console.show_cursor(change.state is State.BACKGROUNDED)  # a shell may be next, by Ctrl-Z
        self._progress.update(self._task, state=change.state.value)
        self._progress.console.print(f"[{change.state.value}]{_because(change)}")

    def update(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress):
            item = escape(update.current_item or update.status)
            self._progress.update(self._task, completed=update.progress, item=item[:40])
        else:
            self._progress.console.print(in_words(update))

    def say(self, kind: str, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)  # a command in it is to be copied whole

    def note(self, **facts: Any) -> None:
        line = "  ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if name != "type")
        self._progress.console.print(line)


@contextmanager
def chosen_view(*, json: bool) -> Iterator[View]:
    """JSON if asked for, else a bar on a terminal, else plain lines."""
    if json:
        yield JsonView()
    elif sys.stdout.isatty():
        bar = BarView()
        with bar.shown():
            yield bar
    else:
        yield PlainView()


def in_words(update: AnyUpdate) -> str:
    """An update as one line for people."""
    match update:
        case JobStarted():
            return "started" + (f", {update.total_count} items" if update.total_count is not None else "")
        case Progress():
            count = "" if update.processed_count is None else f"  {update.processed_count} done"
            item = "" if update.current_item is None else f"  {escape(update.current_item)}"
            share = " " * 5 if update.progress is None else f"{update.progress:5.1%}"
            return f"{share}{count}  {escape(update.status)}{item}"
        case Resynced():
            if update.first:
                return "in step" + _counts(update)
            missed = {None: "", 0: ", nothing missed"}.get(update.missed, f", {update.missed} events not shown")
            return f"in step again ({update.kind}{missed})"
        case Stalled():
            return f"no sign of the job for {update.seconds:.0f} s"
        case JobComplete():
            return "complete" + _problem(update.problem) + _size_of(update.result)
        case JobFailed():
            return f"failed: {escape(update.code)} {escape(update.message)}" + _problem(update.problem)
        case JobCanceled():
            reason = "" if update.reason is None else f" ({escape(update.reason)})"
            assumed = " (assumed: the server agreed to stop it and does not know it any more)" if update.assumed else ""
            return "canceled" + reason + assumed + _problem(update.problem)


def _counts(update: Resynced) -> str:
    """How far the job has come, as far as its state says."""
    if update.processed_count is None:
        return ""
    total = "" if update.total_count is None else f" of {update.total_count}"
    return f", {update.processed_count}{total} done"


def _because(change: StateChange) -> str:
    return "" if change.cause is None else f" {escape(change.cause.text)}"


def _problem(problem: str | None) -> str:
    return "" if problem is None else f", but {escape(problem)}"


def _size_of(result: object) -> str:
    """A few words about a result whose type is known."""
    rate, errors = getattr(result, "success_rate", None), getattr(result, "errors", None)
    if rate is None:
        return ""
    return f": {escape(str(rate))}" + ("" if not errors else f", {len(errors)} rows rejected")
