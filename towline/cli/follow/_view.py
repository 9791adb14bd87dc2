"""Three ways to show a job: a progress bar on a terminal that can move its cursor, plain lines, or JSON.

Text from a server is escaped before it is shown. JSON needs no extra escaping.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from ..._text import escape
from ..._updates import (
    AnyUpdate,
    JobCancelled,
    JobComplete,
    JobFailed,
    JobStarted,
    Output,
    Paused,
    Progress,
    Resynced,
    Stalled,
)
from ...statemachine import State, StateChange
from .._streams import encodable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Width of the longest state.
_STATE: Final = max(len(state.value) for state in State)
#: Seconds between two lines of progress in a pipe, so that a log stays readable.
_PLAIN_EVERY: Final = 1.0


class View(Protocol):
    """Shows states, updates and messages. All but `state` raise `OSError` if the output fails."""

    def state(self, change: StateChange) -> None: ...
    def update(self, update: AnyUpdate) -> None: ...
    def note(self, **facts: Any) -> None: ...
    def say(self, kind: str, text: str) -> None: ...


class JsonView:
    """Prints one JSON object per line, each with a `type`."""

    def state(self, change: StateChange) -> None:
        with suppress(OSError):  # `state` is a handler, whose errors are only logged; the next update raises
            self._write(change)

    def update(self, update: AnyUpdate) -> None:
        self._write(update)

    def note(self, **facts: Any) -> None:
        self._write(facts)

    def say(self, kind: str, text: str) -> None:
        self._write({"type": kind, "text": text})

    def _write(self, facts: object) -> None:
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
        sys.stdout.flush()


class PlainView:
    """Prints a line for each state and each update, and at most one line of progress per second."""

    def __init__(self) -> None:
        self._next_progress = 0.0

    def state(self, change: StateChange) -> None:
        with suppress(OSError):
            self._line(f"[{change.state.value}]{_because(change)}")

    def update(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress):
            now = time.monotonic()
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
    """Redraws one line: percentage, state, bar and item. Other lines scroll above it."""

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
            with suppress(OSError):  # the terminal may be closed
                self._live.stop()

    def state(self, change: StateChange) -> None:
        self._state = change.state
        self._console.show_cursor(change.state is State.BACKGROUNDED)  # after Ctrl-Z the shell needs its cursor
        self._print(f"[{change.state.value}]{_because(change)}")

    def update(self, update: AnyUpdate) -> None:
        if isinstance(update, Progress):
            self._share = self._share if update.fraction is None else update.fraction
            self._item = escape(update.current_item or update.status)
        else:
            self._print(in_words(update))

    def say(self, kind: str, text: str) -> None:
        self._console.print(encodable(text), soft_wrap=True)  # one line, so that a command in it can be copied

    def note(self, **facts: Any) -> None:
        self._print("  ".join(f"{name}: {escape(str(value))}" for name, value in facts.items() if name != "type"))

    def _print(self, text: str) -> None:
        self._console.print(encodable(text))

    def _line(self) -> Text:
        stroke = "━" if self._console.encoding.startswith("utf") else "-"
        return bar_line(self._console.width, self._share, self._state, encodable(self._item), stroke)


def bar_line(width: int, share: float, state: State, item: str, stroke: str = "━") -> Text:
    """Make one line of at most `width` columns: percentage, state, bar and item.

    In a narrow terminal the bar is left out first. Then the item is cut, and then the state is left out.
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
    """Yield a JSON view if `json` is set, else a bar on a terminal that can move its cursor, else plain lines."""
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
    """Return the terminal if a line on it can be redrawn. `TERM` and rich's variables decide this."""
    from rich.console import Console

    if sys.platform != "win32" and not os.environ.get("TERM"):
        return None
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and console.is_interactive and not console.is_dumb_terminal else None


def in_words(update: AnyUpdate) -> str:
    """Describe an update in one line."""
    match update:
        case JobStarted():
            return "started" + (f", {update.total_count} items" if update.total_count is not None else "")
        case Progress():
            count = "" if update.processed_count is None else f"  {update.processed_count} done"
            item = "" if update.current_item is None else f"  {escape(update.current_item)}"
            share = " " * 5 if update.fraction is None else f"{update.fraction:5.1%}"
            return f"{share}{count}  {escape(update.status)}{item}"
        case Output():
            value = update.value if isinstance(update.value, str) else msgspec.json.encode(update.value).decode()
            return f"{escape(update.key)}: {escape(value)}"
        case Paused():
            return f"paused: waits for {escape(update.kind)}  {escape(update.message)}".rstrip()
        case Resynced():
            if update.first:
                return "in step"
            missed = {None: "", 0: ", nothing missed"}.get(update.missed, f", {update.missed} events not shown")
            return f"in step again ({update.kind}{missed})"
        case Stalled():
            return f"no sign of the job for {update.seconds:.0f} s"
        case JobComplete():
            return "complete" + _problem(update.problem) + _size_of(update.result)
        case JobFailed():
            return f"failed: {escape(update.code)} {escape(update.message)}" + _problem(update.problem)
        case JobCancelled():
            reason = "" if update.reason is None else f" ({escape(update.reason)})"
            assumed = " (assumed: the server agreed to stop it and does not know it any more)" if update.assumed else ""
            return "canceled" + reason + assumed + _problem(update.problem)


def _because(change: StateChange) -> str:
    return "" if change.cause is None else f" {escape(change.cause.text)}"


def _problem(problem: str | None) -> str:
    return "" if problem is None else f", but {escape(problem)}"


def _size_of(result: object) -> str:
    """Describe a result that has a success rate."""
    if not isinstance(result, dict) or result.get("successRate") is None:
        return ""
    errors = result.get("errors")
    rejected = f", {len(errors)} rows rejected" if isinstance(errors, list) and errors else ""
    return f": {escape(str(result['successRate']))}{rejected}"
