"""`towline demo`: one real job, followed through every kind of drop, and checked against the hub's own log.

Everything is real: the hub and the client are processes of their own, the link runs over TCP through a proxy that
breaks it, the hub is killed with SIGKILL and started again, the client is ended and resumed by the job's id alone.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
import msgspec
import typer
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from .._exceptions import InvalidArgument
from .._text import escape
from .._updates import AnyUpdate, JobComplete, JobFailed, Progress, Resynced, StateChange, load_outcome
from ..statemachine import Recording, State, replay
from ..transport import CsvImportResult
from ._exit import ExitCode, fail
from ._follow import Backend, BackendOption
from ._view import View, chosen_view, in_words

#: The whole of it, in seconds: past that something is wrong.
_LIMIT: Final = 60.0
#: Short, so that a black hole is noticed within the demo: a program would leave the defaults (15 and 25 s).
_PING_AFTER, _LOST_AFTER = 1.0, 2.5
#: A pause after each row, in seconds: the job is to outlast what is done to it.
_ROW_DELAY: Final = 0.1

_read_line: Final = msgspec.json.Decoder(AnyUpdate | StateChange).decode


def demo(
    file: Annotated[
        Path, typer.Argument(help="The CSV file to import.", exists=True, dir_okay=False, readable=True)
    ] = Path("examples/books.csv"),
    backend: BackendOption = "asyncio",
) -> None:
    """`towline demo`."""
    try:
        from ..server import read_events  # noqa: F401 - asked for now, so that its absence is told at once
    except ImportError as error:
        fail(
            ExitCode.USAGE, f"the demo needs the server extra: pip install 'towline[server]' ({error.name} is missing)"
        )
    raise typer.Exit(anyio.run(_run, file, backend, backend=backend))


class _ClientGone(Exception):
    """The client's process ended although it was to go on."""


# --- what is seen ------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What happened, and what the client told of the job."""

    view: View
    began: float = field(default_factory=time.monotonic)
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    updates: list[AnyUpdate] = field(default_factory=list)
    job: str = ""
    share: float = 0.0
    state: State = State.IDLE
    changed: anyio.Event = field(default_factory=anyio.Event)
    client_gone: bool = False

    def tell(self, who: str, what: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.monotonic() - self.began, who, what))
        if who != "client":
            self.view.note(**{who: what})

    def take(self, line: bytes) -> None:
        """Take in a line of the client's JSON."""
        facts = msgspec.json.decode(line)
        if facts["type"] == "job":
            self.job = facts["job"]
            return
        if facts["type"] == "interruption":
            self.tell("client", facts["text"].partition(".")[0])
            return
        told = _read_line(line)
        if isinstance(told, StateChange):
            self.state = told.state
            cause = "" if told.cause is None else f"  ({escape(told.cause.text)})"
            self.tell("client", told.state.value + cause)
            self.view.state(told)
        else:
            if isinstance(told, JobComplete):
                told = load_outcome(line.decode(), {})
            self.updates.append(told)
            self.view.update(told)
            if isinstance(told, Progress):
                self.share = self.share if told.progress is None else told.progress
            else:
                self.tell("client", in_words(told))
        self.look_again()

    def look_again(self) -> None:
        """Let whoever waits for something look whether it is so."""
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what the client told makes the condition true."""
        while not condition():
            if self.client_gone:
                raise _ClientGone
            await self.changed.wait()


# --- the parts ---------------------------------------------------------------------------------------------------


class HubProcess:
    """A hub as a process of its own, that can be killed and started again on the same port and database."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.port = 0
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = await anyio.open_process(
            [
                *(sys.executable, "-m", "towline", "serve", "--port", str(self.port)),
                *("--database", str(self.database), "--row-delay", str(_ROW_DELAY)),
            ],
            stderr=None,
        )
        if self._process.stdout is None:
            raise AssertionError("a pipe was asked for")
        announced = await BufferedByteReceiveStream(self._process.stdout).receive_until(b"\n", 1024)
        self.port = int(announced.rstrip().rpartition(b":")[2])

    async def stop(self, number: signal.Signals) -> None:
        """End it with a signal, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            await process.wait()


@asynccontextmanager
async def _client(
    story: Story, *arguments: str, backend: Backend, environment: dict[str, str]
) -> AsyncIterator[Process]:
    """A `towline` process whose JSON lines go into the story; it has ended when the block is left."""
    options = ["--json", "--backend", backend, "--ping-after", str(_PING_AFTER), "--lost-after", str(_LOST_AFTER)]
    command = [sys.executable, "-m", "towline", *arguments, *options]
    async with anyio.create_task_group() as tasks:
        process = await anyio.open_process(command, stderr=None, env=environment)
        try:
            tasks.start_soon(_read_lines, process, story)
            yield process
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()


async def _read_lines(process: Process, story: Story) -> None:
    if process.stdout is None:
        raise AssertionError("a pipe was asked for")
    story.client_gone = False
    rest = b""
    async for piece in process.stdout:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            story.take(line)
    story.client_gone = True
    story.look_again()


# --- the run -----------------------------------------------------------------------------------------------------


async def _run(file: Path, backend: Backend) -> int:
    with tempfile.TemporaryDirectory(prefix="towline-demo-") as folder, chosen_view(json=False) as view:
        story = Story(view)
        hub = HubProcess(Path(folder) / "hub.db")
        with anyio.move_on_after(_LIMIT) as limit:
            try:
                await _follow_through_drops(story, hub, file, Path(folder), backend)
            except* _ClientGone:
                story.tell("demo", "the client's process ended although it was to go on")
            finally:
                with anyio.CancelScope(shield=True):
                    await hub.stop(signal.SIGTERM)
        if limit.cancelled_caught:
            story.tell("demo", f"not done within {_LIMIT:.0f} s")
        findings = _check(story, hub.database) + _check_histories(Path(folder))
    _print_story(story, findings)
    return ExitCode.COMPLETE if not findings else ExitCode.TROUBLE


async def _follow_through_drops(story: Story, hub: HubProcess, file: Path, folder: Path, backend: Backend) -> None:
    # Product code of `towline.testing`, imported here: the other commands do not need it.
    from ..testing import FaultProxy

    # A key of its own, so that the user's key file is neither needed nor made.
    environment = {
        **os.environ,
        "TOWLINE_KEY": base64.b64encode(os.urandom(32)).decode(),
        "TOWLINE_STORE": str(folder / "tokens"),
    }
    await hub.start()
    story.tell("hub", f"listens on port {hub.port}, with SQLite in {folder}")
    async with FaultProxy("127.0.0.1", hub.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        story.tell("demo", f"uploads {file} and follows the job through a proxy")
        begin = ["import", str(file), "--url", url, "--history", str(folder / "history-1.json")]
        async with _client(story, *begin, backend=backend, environment=environment) as process:
            await _at(story, 0.12)
            await _drop(story, "the link is cut by FIN", lambda: proxy.cut("fin"))
            await _at(story, 0.28)
            await _drop(story, "the link is cut by RST", lambda: proxy.cut("rst"))
            await _at(story, 0.42)

            async def swallow_everything() -> None:
                proxy.black_hole()

            await _drop(story, "the link becomes a black hole", swallow_everything)
            await proxy.heal()
            story.tell("fault", "the black hole is gone")
            await _at(story, 0.55)
            await _drop(story, "the hub is killed with SIGKILL", lambda: hub.stop(signal.SIGKILL))
            await anyio.sleep(0.5)
            await hub.start()
            story.tell("hub", "is started again, and takes its job up where it was")
            await _at(story, 0.7)
            story.tell("fault", "the client's process is ended")
            process.terminate()
        story.tell("demo", f"resumes job {story.job} by its id alone")
        resume = ["watch", story.job, "--history", str(folder / "history-2.json")]
        async with _client(story, *resume, backend=backend, environment=environment):
            pass


async def _at(story: Story, share: float) -> None:
    """Wait until the job has come this far, and the client is in step."""
    await story.until(lambda: story.share >= share and story.state is State.CONNECTED)


async def _drop(story: Story, what: str, act: Callable[[], Awaitable[Any]]) -> None:
    """Do it, and wait until the client has noticed."""
    story.tell("fault", what)
    await act()
    await story.until(lambda: story.state is not State.CONNECTED)


# --- the check ---------------------------------------------------------------------------------------------------


def _check(story: Story, database: Path) -> list[str]:
    """Compare what the client told with the hub's own log; each finding is a sentence, none is success."""
    from ..server import read_events

    logged = [event.seq for event in read_events(database, story.job)] if story.job else []
    told: list[int] = []
    findings = []
    for update in story.updates:
        if isinstance(update, Resynced):
            if update.missed:
                findings.append(f"{update.missed} events were missed")
        elif update.seq is not None:
            first = update.first_seq if isinstance(update, Progress) else None
            told.extend(range(first or update.seq, update.seq + 1))
    ends = [update for update in story.updates if isinstance(update, JobComplete | JobFailed)]
    if not logged:
        findings.append("the hub's log is empty")
    if told != logged:
        findings.append(f"the client told {len(told)} events, not the {len(logged)} of the log, once each and in order")
    if len(ends) != 1 or story.updates[-1] is not ends[-1]:
        findings.append(f"the end was told {len(ends)} times, or not last")
    elif not isinstance(ends[0], JobComplete):
        findings.append(f"the job did not complete: {in_words(ends[0])}")
    return findings


def _check_histories(folder: Path) -> list[str]:
    """Replay what each client's machine did."""
    files = sorted(folder.glob("history-*.json"))
    findings = [] if len(files) == 2 else [f"{len(files)} recordings were left, not 2"]
    for file in files:
        try:
            divergence = replay(Recording.from_json(file.read_bytes()))
        except InvalidArgument as error:  # its client was killed before it wrote anything
            findings.append(f"{file.name} cannot be read: {error}")
            continue
        if divergence is not None:
            findings.append(f"{file.name} replays otherwise from event {divergence.place + 1} on")
    return findings


def _print_story(story: Story, findings: list[str]) -> None:
    print("\nTimeline")
    for at, who, what in story.timeline:
        print(f"  {at:6.2f} s  {who:<7} {what}")
    end = story.updates[-1] if story.updates else None
    if isinstance(end, JobComplete):
        print(f"\nResult\n  {in_words(end)}")
        rejected = end.result.errors if isinstance(end.result, CsvImportResult) else []
        for row in rejected[:5]:
            print(f"  rejected: {escape(row.title)}: {escape(row.error)}")
        if len(rejected) > 5:
            print(f"  ... and {len(rejected) - 5} more")
    print("\nCheck against the hub's own log")
    if findings:
        for finding in findings:
            print(f"  WRONG: {finding}")
    else:
        last = story.updates[-1].seq
        print("  both recorded runs replay through the machine without divergence")
        print(f"  events 1 to {last}: each once, in order, one end")
