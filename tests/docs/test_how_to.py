"""The programs of docs/how-to run as they are written there, and print what the pages show.

Here they run against servers in memory and in virtual time; `system/test_how_to_*.py` have those that need a real
counterpart.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import towline
from towline.testing import Accept, Answer, ScriptedServer, controlled, run_virtual, virtual_time_backends

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
URL = "ws://hub/ws/progress"
Through = Callable[[ScriptedServer], None]
backends = pytest.mark.parametrize("backend", virtual_time_backends())


def blocks(page: str, language: str = "python") -> list[str]:
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def load(page: str) -> dict[str, Any]:
    """The names of all programs of a page, as one module."""
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(page):
        exec(compile(block, f"docs/how-to/{page}.md", "exec"), names)
    return names


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Through:
    """Make each connection of a program go to a server in memory, with jitter in the middle of its range."""
    connection = towline.Connection

    def through(server: ScriptedServer) -> None:
        def in_memory(*arguments: Any, **options: Any) -> towline.Connection:
            return controlled(connection(*arguments, network=server.network, **options), random=lambda: 0.5)

        monkeypatch.setattr(towline, "Connection", in_memory)

    return through


# --- reconnect-a-websocket -----------------------------------------------------------------------------------------


def said(event: str, **fields: object) -> str:
    return json.dumps({"event": event, **fields})


@backends
def test_reconnect_a_websocket(backend: str, through: Through, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("reconnect-a-websocket")["main"]

    async def drop() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            through(server)
            server.always("upgrade", Accept())
            tasks.start_soon(main, URL)
            socket = await server.wait_sockets()
            socket.send_text(said("progress", percent=25))
            await anyio.sleep(40)
            server.script("upgrade", Answer(503))
            socket.cut("rst")
            socket = await server.wait_sockets(2)
            socket.send_text(said("progress", percent=75))
            await anyio.sleep(1)
            socket.send_text(said("done", result={"books": 318}))

    run_virtual(drop, backend=backend)
    assert capsys.readouterr().out == blocks("reconnect-a-websocket", "text")[0]


@backends
def test_reconnect_a_websocket_with_a_state(backend: str, through: Through, capsys: pytest.CaptureFixture[str]) -> None:
    """The end that was sent while the program was away is found."""
    main = load("reconnect-a-websocket")["main"]

    async def miss_the_end() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            through(server)
            server.always("upgrade", Accept())
            server.always("state", Answer(200, {"event": "progress", "percent": 50}))
            tasks.start_soon(main, URL, "http://hub/api/job-state/7")
            socket = await server.wait_sockets()
            await anyio.sleep(40)
            server.always("state", Answer(200, {"event": "done", "result": {"books": 318}}))
            socket.cut("rst")

    run_virtual(miss_the_end, backend=backend)
    shown = capsys.readouterr().out
    assert "50%" in shown
    assert shown.endswith("complete: {'books': 318}\n")


@backends
@pytest.mark.parametrize("status", [404, 503])
def test_reconnect_a_websocket_gives_up(backend: str, through: Through, status: int) -> None:
    main = load("reconnect-a-websocket")["main"]

    async def stay_away() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            through(server)
            server.script("upgrade", Accept())
            server.always("upgrade", Answer(status))

            async def cut() -> None:
                socket = await server.wait_sockets()
                await anyio.sleep(40)
                socket.cut("rst")

            tasks.start_soon(cut)
            with pytest.raises(towline.Exhausted) as gave_up:
                await main(URL)
            assert gave_up.value.reason == "budget"
            assert len(server.times("upgrade")) == 1 + 20

    run_virtual(stay_away, backend=backend)


# --- refresh-a-token -----------------------------------------------------------------------------------------------


@backends
def test_refresh_a_token(backend: str, through: Through, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("refresh-a-token")["main"]

    async def expire() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            job = server.job("j1", token="t1")
            through(server)

            async def sign_in() -> dict[str, Any]:
                return {"access_token": job.token, "expires_in": 3600}

            tasks.start_soon(main, URL, "j1", sign_in)
            await server.wait_ready()
            job.start(total_count=2)
            job.progress(0.5, processed=1)
            await anyio.sleep(40)
            server.renew(job)
            server.revoke("t1")
            server.socket.cut("rst")
            await server.wait_ready(2)
            job.progress(1.0, processed=2)
            await anyio.sleep(1)
            job.complete({})

    run_virtual(expire, backend=backend)
    assert capsys.readouterr().out == blocks("refresh-a-token", "text")[0]


@backends
def test_refresh_a_token_that_the_server_exchanges(backend: str, through: Through) -> None:
    exchange = load("refresh-a-token")["exchange"]

    async def expire() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            job = server.job("j1", token="t1")
            through(server)
            server.script("upgrade", Answer(401))

            async def end() -> None:
                await server.wait_ready()
                job.complete({})

            tasks.start_soon(end)
            assert isinstance(await exchange(URL, "j1", "t1"), towline.JobComplete)
            assert [request.token for request in server.requests if request.call == "upgrade"] == ["t1", "t1+"]

    run_virtual(expire, backend=backend)


# --- follow-100-jobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "at_once"), [("asyncio", 100), ("trio", 20)])
def test_follow_100_jobs(backend: str, at_once: int, through: Through) -> None:
    """Through a restart of the server in their middle; one job is unknown, which the others do not notice."""
    main = load("follow-100-jobs")["main"]

    async def follow() -> dict[str, Any]:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            jobs = [server.job(f"j{number}", token=f"t{number}") for number in range(100)]
            through(server)

            async def restart() -> None:
                await server.wait_ready(at_once)
                assert len(server.open_sockets) == at_once
                for socket in server.open_sockets:
                    socket.cut("rst")
                for job in jobs:
                    job.complete({})

            tasks.start_soon(restart)
            return await main(URL, {job.id: job.token for job in jobs} | {"unknown": "t"}, at_once)

    ends = run_virtual(follow, backend=backend)
    assert isinstance(ends.pop("unknown"), towline.Exhausted)
    assert len(ends) == 100
    assert {type(end) for end in ends.values()} == {towline.JobComplete}


# --- read-the-logs -------------------------------------------------------------------------------------------------


@pytest.fixture
def same_logging() -> Iterator[None]:
    """The program sets a level and the root's handlers."""
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    level = logging.getLogger("towline").level
    yield
    root.handlers[:] = handlers
    logging.getLogger("towline").setLevel(level)


@backends
def test_read_the_logs(
    backend: str,
    through: Through,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    same_logging: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    main = load("read-the-logs")["main"]

    async def drop() -> None:
        async with ScriptedServer() as server, anyio.create_task_group() as tasks:
            job = server.job("j1", token="t1")
            through(server)
            tasks.start_soon(main, URL, "j1", "t1")
            await server.wait_ready()
            await anyio.sleep(40)
            server.script("upgrade", Answer(503))
            server.socket.cut("rst")
            await server.wait_ready(2)
            job.complete({})

    run_virtual(drop, backend=backend)
    lines = [f"{record.levelname} {record.name}: {record.message}" for record in caplog.records]
    shown = "\n".join([*lines, capsys.readouterr().out])
    assert shown == blocks("read-the-logs", "text")[0]
    if backend == "asyncio":  # as it is drawn from a clock that begins at 0
        trace = subprocess.run(
            [sys.executable, "-P", "-m", "towline", "trace", "history.json"], capture_output=True, text=True
        )
        assert (trace.returncode, trace.stderr) == (0, "")
        assert trace.stdout == blocks("read-the-logs", "console")[0].partition("\n")[2]


def test_the_lines_of_the_table_are_in_the_sources() -> None:
    text = (HOW_TO / "read-the-logs.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "towline").rglob("*.py"))
    lines = [line for line in re.findall(r"^\| `(.*?)` (?:\||with)", text, re.MULTILINE) if "->" not in line]
    assert len(lines) >= 6
    for line in lines:
        for part in filter(None, line.split("…")):
            assert part.strip() in sources, part


# --- test-reconnect-logic ------------------------------------------------------------------------------------------


@backends
def test_test_reconnect_logic(backend: str) -> None:
    """The page's own tests, on the backends that its fixture names."""
    names = load("test-reconnect-logic")
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert f"{len(virtual_time_backends()) * len(tests)} passed" in blocks("test-reconnect-logic", "console")[0]
    for test in tests:
        run_virtual(test, backend=backend)


# --- all pages -----------------------------------------------------------------------------------------------------


def test_every_page_is_short_and_run_by_a_test() -> None:
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = "".join(text for text in files if "how-to" in text)
    pages = sorted(HOW_TO.glob("*.md"))
    assert 0 < len(pages) <= 12
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 110, page.name
        assert f"def test_{page.stem.replace('-', '_')}(" in tests, page.name
        assert "\n## What goes wrong\n" in text, page.name
