"""Real servers of other people, and the scenes that each of their protocols is tried with.

A `Server` says how one is installed, started and asked for a job, and how to read its own record of the job. `SCENES`
are the same for all. A scene plays on a `Stage`: the server's process, a proxy that cuts in front of it, and a `Tally`.
A job makes numbered pieces (`w0`, `w1`, …), so that a lost, a doubled and a reordered piece can be counted.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec
import pytest
from anyio.abc import SocketAttribute, SocketStream
from interop.process import Process

import towline
from towline._updates import AnyUpdate
from towline.protocols._shared.kept import kept_of
from towline.statemachine import Backoff, Policy
from towline.testing import FaultProxy

ROOT: Final = Path(__file__).parents[3]
HERE: Final = Path(__file__).parent
PROGRAMS: Final = HERE / "programs"
REQUIREMENTS: Final = ROOT / "tests" / "system" / "requirements.txt"
TOKEN: Final = "an-accepted-token"

#: Attempts in short succession, so that a scene takes seconds; a server may need half a minute to start again.
QUICK: Final = Policy(
    dial_spacing=0.05,
    connect_deadline=5,
    backoff=Backoff(base=0.1, cap=0.5, shared_window=0.2, attempts=200),
)


class NotInstalled(Exception):
    """A server cannot be installed here; the text says why."""


@dataclass(frozen=True)
class Job:
    """What a job shall do: `steps` pieces, one every `pause` seconds, then `end` ("" completes; see each program)."""

    steps: int = 8
    pause: float = 0.3
    end: str = ""


@dataclass(frozen=True)
class Record:
    """What the server itself says of a job: the end's class ("" before it), and its pieces if it has them."""

    outcome: str
    pieces: list[str] | None = None


@dataclass(frozen=True)
class Server:
    """A server of other people, and the protocol that follows its jobs.

    - `name`: the protocol's name. Lines of the requirements with the marker `extra == "NAME"` are installed for it.
    - `command`: the arguments after the Python of its environment, from the port. It runs in a folder of its own.
    - `start_job`: starts a job at the URL and returns its id.
    - `protocol`: the protocol of the job with this id, at the URL.
    - `record`: the server's own record of a job that has ended.
    - `pieces`: the pieces that the delivered updates show, in order.
    - `after_kill`: how a following ends if the server was killed and started again: the reason of `Exhausted`, or the
      class of the outcome.
    - `late_cancel`, `early_cancel`: the answers to a cancel request.
    - `title`: names it in the printed line, if it is not the only one of its protocol.
    - `may_lose`, `may_double`: what the protocol's promise allows, of the pieces of one following; `allowed` in words.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    start_job: Callable[[str, Job], Awaitable[str]]
    protocol: Callable[[str, str], Any]
    record: Callable[[str, str], Awaitable[Record]]
    pieces: Callable[[Sequence[Any]], list[str]]
    after_kill: str
    early_cancel: str = "accepted"
    late_cancel: str = "too_late"
    may_lose: bool = False
    may_double: int = 0
    allowed: str = "nothing"
    environment: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def python(self) -> Path:
        """The Python of the server's environment, which is made on first use. Raises `NotInstalled`."""
        wanted = sorted(
            line.partition(";")[0].strip()
            for line in REQUIREMENTS.read_text().splitlines()
            if f'extra == "{self.name}"' in line
        )
        folder = ROOT / ".venv" / "servers" / self.name
        python, stamp = folder / "bin" / "python", folder / "installed"
        if not (stamp.exists() and stamp.read_text() == "\n".join(wanted)):
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
            stamp.write_text("\n".join(wanted))
        return python


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{' '.join(command[1:])}: took too long") from error
    if done.returncode:
        raise NotInstalled(f"{' '.join(command[1:])}: {done.stderr.strip()[-300:]}")


@dataclass
class Tally:
    """What a server's scenes did, and what was wrong with the updates. `repeated`: again after a killed process."""

    allowed: str = ""
    scenes: int = 0
    cuts: int = 0
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    repeated: int = 0
    wrong_ends: int = 0

    def line(self) -> str:
        """The counts as one line."""
        counts = [f"{name.replace('_', ' ')} {count}" for name, count in asdict(self).items() if name != "allowed"]
        return f"{', '.join(counts)}; may be lost: {self.allowed}"


class Stage:
    """One server that runs, and the proxy in front of it. `url` goes through the proxy, `direct` does not."""

    def __init__(self, server: Server, process: Process, proxy: FaultProxy, folder: Path, tally: Tally) -> None:
        self.server, self.process, self.proxy, self.folder, self.tally = server, process, proxy, folder, tally
        self.url = f"http://127.0.0.1:{proxy.port}"
        self.direct = f"http://127.0.0.1:{process.port}"

    def accept_only(self, token: str) -> None:
        """Let the server refuse any other token (see `programs/gate.py`)."""
        new = self.folder / "token.new"
        new.write_text(token)
        new.replace(self.folder / "token")

    async def start(self, job: Job = Job()) -> str:
        """Start a job, not through the proxy."""
        return await self.server.start_job(self.direct, job)

    def follow(self, job: str, *, token: str | towline.TokenProvider = TOKEN, **protocol: Any) -> Following:
        """Follow a job through the proxy."""
        made = self.server.protocol(self.url, job, **protocol)
        return Following(towline.Connection(made, token=token, policy=QUICK))

    async def seen(self, following: Following, pieces: int) -> None:
        """Wait until so many pieces were delivered."""
        while len(self.server.pieces(following.updates)) < pieces:  # noqa: ASYNC110 - a list has no event
            await anyio.sleep(0.02)

    async def ended(self, job: str, within: float = 20) -> Record:
        """Wait until the job has ended, and return the server's record of it."""
        with anyio.fail_after(within):
            while True:
                record = await self.server.record(self.direct, job)
                if record.outcome:
                    return record
                await anyio.sleep(0.1)

    async def cut(self) -> None:
        """Cut the links between the follower and the server."""
        self.tally.cuts += await self.proxy.cut("rst" if self.tally.cuts % 2 else "fin")

    async def kill(self) -> None:
        """Kill the server and start it again on its port."""
        self.tally.kills += 1
        await anyio.to_thread.run_sync(self.process.end)
        await anyio.to_thread.run_sync(self.process.start)

    @asynccontextmanager
    async def answering(self, status: int) -> AsyncIterator[list[str]]:
        """Let the proxy lead to a server that answers each request with this status; yields the requests' heads."""
        heads: list[str] = []

        async def answer(stream: SocketStream) -> None:
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await stream.receive()
                heads.append(head.decode("latin-1"))
                await stream.send(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, answer)
            real, self.proxy.target = self.proxy.target, ("127.0.0.1", listener.extra(SocketAttribute.local_port))
            await self.cut()
            yield heads
            self.proxy.target = real
            await self.proxy.cut()
            tasks.cancel_scope.cancel()

    def check(self, following: Following, record: Record, *, end: str | None = None) -> None:
        """Compare what a follower got with the server's record."""
        self.compare(self.server.pieces(following.updates), record.pieces)
        self.tally.wrong_ends += following.end != (end or record.outcome)
        assert following.end == (end or record.outcome)

    def compare(self, got: list[str], expected: list[str] | None) -> None:
        """Count what is lost, doubled and reordered, and check it against the promise."""
        expected = sorted(set(got), key=lambda piece: int(piece[1:])) if expected is None else expected
        places = [expected.index(piece) for piece in got]
        lost, doubled = len(set(expected) - set(got)), len(got) - len(set(got))
        reordered = sum(later < earlier for earlier, later in pairwise(places)) - doubled
        self.tally.lost += lost
        self.tally.doubled += doubled
        self.tally.reordered += max(0, reordered)
        assert reordered <= 0, got
        assert doubled <= self.server.may_double, got
        assert self.server.may_lose or not lost, (got, expected)


class Following:
    """A connection that is followed to its end. `end` is the class of the outcome, or the reason of `Exhausted`."""

    def __init__(self, connection: towline.Connection) -> None:
        self.connection = connection
        self.updates: list[Any] = []
        self.end = ""

    async def to_end(self, each: Callable[[Any], Awaitable[object]] | None = None, within: float = 40) -> None:
        """Follow to the end, and call `each` with every update after it was noted."""
        with anyio.fail_after(within):
            async with self.connection:
                try:
                    async for update in self.connection:
                        self.updates.append(update)
                        if each is not None:
                            await each(update)
                    self.end = type(self.connection.outcome).__name__
                except towline.Exhausted as exhausted:
                    self.end = exhausted.reason


# --- scenes --------------------------------------------------------------------------------------------------------


async def cut_after_every_event(stage: Stage) -> None:
    """The link is cut after each update."""
    job = await stage.start()
    following = stage.follow(job)

    async def cut(update: Any) -> None:
        if not isinstance(update, towline.Resynced):
            await stage.cut()

    await following.to_end(cut)
    stage.check(following, await stage.ended(job))


async def unavailable_for_5_seconds(stage: Stage) -> None:
    """Each request is answered 503 for 5 s, while the job goes on."""
    job = await stage.start(Job(steps=24))
    following = stage.follow(job)
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 3)
            async with stage.answering(503) as heads:
                await anyio.sleep(5)
            assert heads
    stage.check(following, await stage.ended(job))


async def token_refused_then_fresh(stage: Stage) -> None:
    """The server refuses the token in the middle of the job; the provider has another one."""
    stage.accept_only("old")
    tokens: list[str] = []

    async def provide() -> str:
        tokens.append("new" if tokens else "old")
        return tokens[-1]

    try:
        job = await _with_token("old", lambda: stage.start(Job(steps=20)))
        following = stage.follow(job, token=provide)
        with anyio.fail_after(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(following.to_end)
                await stage.seen(following, 2)
                stage.accept_only("new")
                await stage.cut()
        assert tokens == ["old", "new"]
        stage.check(following, await _with_token("new", lambda: stage.ended(job)))
    finally:
        stage.accept_only(TOKEN)


async def ended_while_away(stage: Stage) -> None:
    """The job ends while the follower has no network."""
    job = await stage.start()
    following = stage.follow(job)
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 2)
            await stage.proxy.refuse()
            await stage.cut()
            record = await stage.ended(job)
            await stage.proxy.heal()
    stage.check(following, record)


async def followed_after_the_end(stage: Stage) -> None:
    """The job had ended before it was followed."""
    job = await stage.start(Job(steps=3, pause=0.05))
    record = await stage.ended(job)
    following = stage.follow(job)
    await following.to_end()
    stage.check(following, record)


async def failed(stage: Stage) -> None:
    """The job fails."""
    job = await stage.start(Job(steps=3, pause=0.1, end="failed"))
    following = stage.follow(job)
    await following.to_end()
    stage.check(following, await stage.ended(job), end="JobFailed")


async def follower_killed_and_resumed(stage: Stage) -> None:
    """`towline watch --protocol NAME --url URL ID` is killed in the middle of the job; `towline watch ID` resumes it.

    The account's token is not stored: both have it from the environment.
    The position is saved every 5 s, so that some pieces come again, but not all.
    """
    job = await stage.start(Job(steps=50))
    first, _ = await anyio.to_thread.run_sync(_followed, stage, job, 6.0)
    stage.tally.kills += 1
    second, end = await anyio.to_thread.run_sync(_followed, stage, job, None)
    record = await stage.ended(job)
    stage.tally.repeated += len(set(first) & set(second))
    stage.compare([*first, *(piece for piece in second if piece not in first)], record.pieces)
    assert len(first) > 1
    assert second[:1] != first[:1], "the position was not stored"
    stage.tally.wrong_ends += end != record.outcome
    assert end == record.outcome


async def cancelled_early(stage: Stage) -> None:
    """The job is cancelled while it runs."""
    job = await stage.start(Job(steps=60))
    following = stage.follow(job)
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 2)
            assert await following.connection.cancel_job() == stage.server.early_cancel
    stage.check(following, await stage.ended(job), end="JobCancelled")


async def cancelled_too_late(stage: Stage) -> None:
    """The job is cancelled after its end, of which the follower does not know yet."""
    job = await stage.start(Job(steps=3))
    following = stage.follow(job)
    answers: list[str] = []

    async def cancel(_: Any) -> None:
        if answers or not stage.server.pieces(following.updates):
            return
        stage.proxy.black_hole("down")
        await stage.ended(job)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_healed, stage, 0.3)
            answers.append(await following.connection.cancel_job())

    await following.to_end(cancel)
    assert answers == [stage.server.late_cancel]
    stage.check(following, await stage.ended(job), end="JobComplete")


async def server_killed_and_restarted(stage: Stage) -> None:
    """The server is killed in the middle of the job and started again."""
    job = await stage.start(Job(steps=40))
    following = stage.follow(job, **({"stall_limit": 10} if stage.server.after_kill == "stalled" else {}))
    with anyio.fail_after(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(following.to_end)
            await stage.seen(following, 3)
            await stage.kill()
    stage.tally.wrong_ends += following.end != stage.server.after_kill
    assert following.end == stage.server.after_kill


SCENES: Final = (
    cut_after_every_event,
    unavailable_for_5_seconds,
    token_refused_then_fresh,
    ended_while_away,
    followed_after_the_end,
    failed,
    follower_killed_and_resumed,
    cancelled_early,
    cancelled_too_late,
    server_killed_and_restarted,
)


def play(
    scene: Callable[[Stage], Awaitable[None]], server: Server, running: tuple[Process, Path, Tally], backend: str
) -> None:
    """Play a scene on the server's process, which runs in the folder."""
    process, folder, tally = running

    async def main() -> None:
        async with FaultProxy("127.0.0.1", process.port) as proxy:
            await scene(Stage(server, process, proxy, folder, tally))

    tally.scenes += 1
    anyio.run(main, backend=backend)


def facts(*scenes: Callable[[Stage], Awaitable[None]]) -> list[Any]:
    """Scenes as parameters of a test, by their names. The event loops take turns."""
    return [
        pytest.param(scene, ("asyncio", "trio")[place % 2], id=scene.__name__) for place, scene in enumerate(scenes)
    ]


#: The scenes that are the same for all servers.
PARAMETERS: Final = facts(*SCENES)


# --- helpers -------------------------------------------------------------------------------------------------------


async def _healed(stage: Stage, after: float) -> None:
    await anyio.sleep(after)
    await stage.proxy.heal()


def program(page: str) -> Callable[..., Awaitable[None]]:
    """The function `main` of the program on a page in docs/protocols."""
    text = (ROOT / "docs" / "protocols" / f"{page}.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": page}
    exec(compile(block, f"docs/protocols/{page}.md", "exec"), names)
    main: Callable[..., Awaitable[None]] = names["main"]
    return main


_SENT_TOKEN = [TOKEN]


def headers() -> dict[str, str]:
    """The headers of a scene's own requests to the server."""
    return {"Authorization": f"Bearer {_SENT_TOKEN[-1]}"}


async def _with_token(token: str, work: Callable[[], Awaitable[Any]]) -> Any:
    _SENT_TOKEN.append(token)
    try:
        return await work()
    finally:
        _SENT_TOKEN.pop()


async def post(url: str, body: Any = None, more: Mapping[str, str] | None = None) -> httpx.Response:
    """Post JSON to the server."""
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.post(url, json=body, headers={**headers(), **(more or {})})


async def get(url: str) -> httpx.Response:
    """Get something of the server."""
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.get(url, headers=headers())


_KEY: Final = b64encode(os.urandom(32)).decode()


def _followed(stage: Stage, job: str, kill_after: float | None) -> tuple[list[str], str]:
    """Follow a job with `towline watch` in a process of its own; kill it so many seconds after its first update.

    The first process gets the protocol by its name and fields, the second one has it from the store.
    """
    protocol = stage.server.protocol(stage.url, job)
    command = [sys.executable, "-P", "-m", "towline", "watch", job, "--json", "--store", str(stage.folder / "store")]
    if kill_after is not None:
        fields = kept_of(protocol).parameters
        command += ["--protocol", protocol.name, "--url", str(fields.pop("url"))]
        command += [part for name, value in fields.items() for part in ("-p", f"{name}={value}")]
    environment = {**os.environ, "TOWLINE_TOKEN": TOKEN, "TOWLINE_KEY": _KEY}
    updates: list[Any] = []
    lines: list[bytes] = []
    kill_at = None
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            with suppress(msgspec.ValidationError):  # a change of the state is no update
                updates.append(msgspec.json.decode(line, type=AnyUpdate))
            if updates and kill_at is None:
                kill_at = time.monotonic() + (kill_after or 600)
            if kill_at is not None and time.monotonic() > kill_at:
                process.send_signal(signal.SIGKILL)
                break
    assert updates, lines
    return stage.server.pieces(updates), type(updates[-1]).__name__
