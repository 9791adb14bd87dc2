"""How following a job looks: a bar on a terminal that can move its cursor, plain lines elsewhere, JSON for machines.

All text from a server is escaped before it is shown; JSON escapes by itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

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
from ._streams import encodable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Room for the longest state.
_STATE: Final = max(len(state.value) for state in State)
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
    """One line that is drawn again and again: how far the job is, the state, a bar, the item.

    Other lines scroll above it.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._share = 0.0
        self._state = State.IDLE
        self._item = ""
        self._live = Live(console=console, get_renderable=self._line, transient=True, refresh_per_second=10)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the line while the block runs."""
        self._live.start()
        try:
            yield
        finally:
            with suppress(OSError):  # a terminal that was closed needs no tidying
                self._live.stop()

    def state(self, change: StateChange) -> None:
        self._state = change.state
        self._console.show_cursor(change.state is State.BACKGROUNDED)  # a shell may be next, by Ctrl-Z
        self._print(f"[{change.state.value}]{_because(change)}")

    def update(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress):
            self._share = self._share if update.progress is None else update.progress
            self._item = escape(update.current_item or update.status)
        else:
            self._print(in_words(update))

    def say(self, kind: str, text: str) -> None:
        self._console.print(encodable(text), soft_wrap=True)  # a command in it is to be copied whole

    def note(self, **facts: Any) -> None:
        self._print("  ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if name != "type"))

    def _print(self, text: str) -> None:
        self._console.print(encodable(text))

    def _line(self) -> Text:
        stroke = "━" if self._console.encoding.startswith("utf") else "-"
        return bar_line(self._console.width, self._share, self._state, encodable(self._item), stroke)


def bar_line(width: int, share: float, state: State, item: str, stroke: str = "━") -> Text:
    """One line of at most `width` columns: the percentage first, then the state, a bar, and the item last.

    Where there is little room, the bar goes first, then the item is cut, then the state goes.
    """
    from rich.text import Text

    line = Text(no_wrap=True, overflow="crop").append(f"{share:4.0%}", style="magenta")
    room = width - len(line)
    if room > _STATE:
        line.append(f" {state.value:<{_STATE}}")
        room -= 1 + _STATE
    bar = min(40, (room - 20) // 2)
    if bar >= 10:
        done = round(bar * share)
        line.append(" ").append(stroke * done, style="green").append(stroke * (bar - done), style="bright_black")
        room -= 1 + bar
    if room > 4:
        title = Text(item)
        title.truncate(room - 1, overflow="ellipsis" if stroke == "━" else "crop")
        line.append(" ").append_text(title)
    return line


@contextmanager
def chosen_view(*, json: bool) -> Iterator[View]:
    """JSON if asked for, else a bar on a terminal that can move its cursor, else plain lines."""
    console = None if json or not sys.stdout.isatty() else _console()
    if json:
        yield JsonView()
    elif console is not None:
        bar = BarView(console)
        with bar.shown():
            yield bar
    else:
        yield PlainView()


def _console() -> Console | None:
    """The terminal, if a line on it can be drawn again. `TERM` and rich's own variables decide that."""
    from rich.console import Console

    if sys.platform != "win32" and not os.environ.get("TERM"):
        return None
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and console.is_interactive and not console.is_dumb_terminal else None


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
