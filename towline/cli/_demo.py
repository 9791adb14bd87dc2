"""`towline demo`: follow one real job through every kind of drop, and check the updates against the hub's log.

Nothing is simulated: the hub and the client are separate processes, and a proxy breaks the TCP connection between
them. The hub is killed with SIGKILL and restarted. The client is ended, and another one resumes by the job's id.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import as_file
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
import msgspec
import typer
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from .._exceptions import InvalidArgument
from .._text import escape
from .._updates import AnyUpdate, JobComplete, Progress, Resynced
from ..statemachine import History, State, StateChange, replay
from ._exit import ExitCode, fail
from ._sample import SAMPLE_FILE
from .follow._follow import Backend, BackendOption
from .follow._view import View, chosen_view, in_words

#: Seconds for the whole demo; it fails if it takes longer.
_LIMIT: Final = 60.0
#: Short, so that the demo detects a black hole quickly. Your program should keep the defaults (15 and 25 s).
_PING_AFTER, _LOST_AFTER = 1.0, 2.5
#: Seconds between two rows, so that the job outlasts the faults.
_ROW_DELAY: Final = 0.1

_read_line: Final = msgspec.json.Decoder(AnyUpdate | StateChange).decode


def demo(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="CSV file to import. Default: a sample of 318 books.", exists=True, dir_okay=False, readable=True
        ),
    ] = None,
    backend: BackendOption = "asyncio",
) -> None:
    """`towline demo`."""
    try:
        from ..server import read_events  # noqa: F401 - imported now, so that a missing extra is reported at once
    except ImportError as error:
        fail(
            ExitCode.USAGE, f"the demo needs the server extra: pip install 'towline[server]' ({error.name} is missing)"
        )
    with nullcontext(file) if file is not None else as_file(SAMPLE_FILE) as table:
        code = anyio.run(_run, table, backend, backend=backend)
    raise typer.Exit(code)


class _ClientGone(Exception):
    """The client's process ended too early."""


# --- what happened -----------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What happened so far, and the updates that the client reported."""

    view: View
    started: float = field(default_factory=time.monotonic)
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    updates: list[AnyUpdate] = field(default_factory=list)
    job: str = ""
    share: float = 0.0
    state: State = State.IDLE
    changed: anyio.Event = field(default_factory=anyio.Event)
    client_gone: bool = False

    def add(self, who: str, what: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((time.monotonic() - self.started, who, what))
        if who != "client":
            self.view.note(**{who: what})

    def read(self, line: bytes) -> None:
        """Read a line of the client's JSON."""
        facts = msgspec.json.decode(line)
        if facts["type"] == "job":
            self.job = facts["job"]
            return
        if facts["type"] == "interruption":
            self.add("client", facts["text"].partition(".")[0])
            return
        event = _read_line(line)
        if isinstance(event, StateChange):
            self.state = event.state
            cause = "" if event.cause is None else f"  ({escape(event.cause.text)})"
            self.add("client", event.state.value + cause)
            self.view.state(event)
        else:
            self.updates.append(event)
            self.view.update(event)
            if isinstance(event, Progress):
                self.share = self.share if event.fraction is None else event.fraction
            else:
                self.add("client", in_words(event))
        self.notify()

    def notify(self) -> None:
        """Let `until` check its condition again."""
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the client's reports make the condition true."""
        while not condition():
            if self.client_gone:
                raise _ClientGone
            await self.changed.wait()


# --- processes ---------------------------------------------------------------------------------------------------


class HubProcess:
    """A hub in a separate process. It can be killed and restarted on the same port and database."""

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
            raise AssertionError("stdout is a pipe")
        announced = await BufferedByteReceiveStream(self._process.stdout).receive_until(b"\n", 1024)
        self.port = int(announced.rstrip().rpartition(b":")[2])

    async def stop(self, number: signal.Signals) -> None:
        """End it with a signal, and wait for the process to exit."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            await process.wait()


@asynccontextmanager
async def _client(
    story: Story, *arguments: str, backend: Backend, environment: dict[str, str]
) -> AsyncIterator[Process]:
    """Run a `towline` process and read its JSON lines into the story. It has exited when the block ends."""
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
        raise AssertionError("stdout is a pipe")
    story.client_gone = False
    rest = b""
    async for piece in process.stdout:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            story.read(line)
    story.client_gone = True
    story.notify()


# --- the run -----------------------------------------------------------------------------------------------------


async def _run(file: Path, backend: Backend) -> int:
    with tempfile.TemporaryDirectory(prefix="towline-demo-") as folder, chosen_view(json=False) as view:
        story = Story(view)
        hub = HubProcess(Path(folder) / "hub.db")
        with anyio.move_on_after(_LIMIT) as limit:
            try:
                await _follow_through_drops(story, hub, file, Path(folder), backend)
            except* _ClientGone:
                story.add("demo", "the client's process ended too early")
            finally:
                with anyio.CancelScope(shield=True):
                    await hub.stop(signal.SIGTERM)
        if limit.cancelled_caught:
            story.add("demo", f"not finished within {_LIMIT:.0f} s")
        findings = _check(story, hub.database) + _check_histories(Path(folder))
    _print_story(story, findings)
    return ExitCode.COMPLETE if not findings else ExitCode.TROUBLE


async def _follow_through_drops(story: Story, hub: HubProcess, file: Path, folder: Path, backend: Backend) -> None:
    # Imported here, because the other commands do not need it.
    from ..testing import FaultProxy

    # A separate key and store, so that the demo leaves the user's own alone.
    environment = {
        **os.environ,
        "TOWLINE_KEY": base64.b64encode(os.urandom(32)).decode(),
        "TOWLINE_STORE": str(folder / "tokens"),
    }
    await hub.start()
    story.add("hub", f"listening on port {hub.port}, with SQLite in {folder}")
    async with FaultProxy("127.0.0.1", hub.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        story.add("demo", f"uploads {file.name} and follows the job through a proxy")
        start = ["import", str(file), "--url", url, "--history", str(folder / "history-1.json")]
        async with _client(story, *start, backend=backend, environment=environment) as process:
            await _at(story, 0.12)
            await _drop(story, "the connection is closed (FIN)", lambda: proxy.cut("fin"))
            await _at(story, 0.28)
            await _drop(story, "the connection is reset (RST)", lambda: proxy.cut("rst"))
            await _at(story, 0.42)

            async def swallow_everything() -> None:
                proxy.black_hole()

            await _drop(story, "the connection becomes a black hole", swallow_everything)
            await proxy.heal()
            story.add("fault", "the network works again")
            await _at(story, 0.55)
            await _drop(story, "the hub is killed with SIGKILL", lambda: hub.stop(signal.SIGKILL))
            await anyio.sleep(0.5)
            await hub.start()
            story.add("hub", "is restarted, and continues the job")
            await _at(story, 0.7)
            story.add("fault", "the client's process is terminated")
            process.terminate()
        story.add("demo", f"resumes job {story.job} in another process, by its id")
        resume = ["watch", story.job, "--history", str(folder / "history-2.json")]
        async with _client(story, *resume, backend=backend, environment=environment):
            pass


async def _at(story: Story, share: float) -> None:
    """Wait until the job has reached this share and the client is connected."""
    await story.until(lambda: story.share >= share and story.state is State.CONNECTED)


async def _drop(story: Story, what: str, act: Callable[[], Awaitable[Any]]) -> None:
    """Cause a fault, and wait until the client has noticed it."""
    story.add("fault", what)
    await act()
    await story.until(lambda: story.state is not State.CONNECTED)


# --- the check ---------------------------------------------------------------------------------------------------


def _check(story: Story, database: Path) -> list[str]:
    """Compare the client's updates with the hub's log. Each finding is a sentence; no finding is a success."""
    from ..server import read_events
    from ..testing import audit_updates

    logged = [event.seq for event in read_events(database, story.job)] if story.job else []
    findings = audit_updates(story.updates)
    findings += [
        f"{one.missed} events were missed" for one in story.updates if isinstance(one, Resynced) and one.missed
    ]
    last = story.updates[-1] if story.updates else None
    if last is None or logged[-1:] != [last.seq]:
        findings.append(f"the last update is not the last of the {len(logged)} events of the hub's log")
    if not isinstance(last, JobComplete):
        findings.append("the job did not complete" + ("" if last is None else f": {in_words(last)}"))
    return findings


def _check_histories(folder: Path) -> list[str]:
    """Replay the history of each client."""
    files = sorted(folder.glob("history-*.json"))
    findings = [] if len(files) == 2 else [f"there are {len(files)} histories, not 2"]
    for file in files:
        try:
            divergence = replay(History.from_json(file.read_bytes()))
        except InvalidArgument as error:  # the client was killed before it wrote anything
            findings.append(f"{file.name} cannot be read: {error}")
            continue
        if divergence is not None:
            findings.append(f"{file.name} replays differently from event {divergence.place + 1} on")
    return findings


def _print_story(story: Story, findings: list[str]) -> None:
    print("\nTimeline")
    for at, who, what in story.timeline:
        print(f"  {at:6.2f} s  {who:<7} {what}")
    end = story.updates[-1] if story.updates else None
    if isinstance(end, JobComplete):
        print(f"\nResult\n  {in_words(end)}")
        rejected = end.result.get("errors", []) if isinstance(end.result, dict) else []
        for row in rejected[:5]:
            print(f"  rejected: {escape(row['title'])}: {escape(row['error'])}")
        if len(rejected) > 5:
            print(f"  ... and {len(rejected) - 5} more")
    print("\nCheck against the hub's log")
    if findings:
        for finding in findings:
            print(f"  WRONG: {finding}")
    else:
        last = story.updates[-1].seq
        print("  both histories replay through the state machine as recorded")
        print(f"  events 1 to {last}: each delivered once, in order, with one end")
