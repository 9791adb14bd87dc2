"""The pages of docs/how-to whose programs need a real counterpart: FastAPI, Django, a notebook's kernel, a kill."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import AnyByteStream
from anyio.streams.tls import TLSListener
from interop.process import Process, free_port

import towline
from towline.cli.follow._start import StartedJob, start_job
from towline.testing import FaultProxy

ROOT = Path(__file__).parents[3]
HOW_TO = ROOT / "docs" / "how-to"
ROWS = 100
ROW_DELAY = 0.02
pytestmark = pytest.mark.timeout(120)


def blocks(page: str, language: str = "python") -> list[str]:
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def job(hub: str) -> StartedJob:
    """A job of two seconds on a real hub."""
    table = b"title,author\n" + b"Emma,Jane Austen\n" * ROWS
    return anyio.run(start_job, f"{hub}/api/imports/csv", table)


def stream_of(hub: str) -> str:
    return hub.replace("http", "ws", 1) + "/ws/progress"


@contextmanager
def served(application: str, folder: Path, **environment: str) -> Iterator[str]:
    """Serve an ASGI application of the folder with uvicorn, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port), "--log-level", "warning"]
    process = Process(command, port, folder, environment)
    process.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.end()


# --- fastapi -------------------------------------------------------------------------------------------------------


def test_fastapi(tmp_path: Path) -> None:
    """One page's program follows the other's, through a proxy that cuts the stream in the middle of the job."""
    pytest.importorskip("fastapi.sse", reason="needs FastAPI 0.135")
    endpoint, follower = blocks("fastapi")
    (tmp_path / "jobs.py").write_text(endpoint)
    (tmp_path / "watch.py").write_text(follower)

    async def follow() -> None:
        with served("jobs:app", tmp_path) as jobs:
            async with FaultProxy("127.0.0.1", int(jobs.rpartition(":")[2])) as proxy:
                with served("watch:app", tmp_path, JOBS=f"http://127.0.0.1:{proxy.port}") as watch:
                    async with httpx.AsyncClient() as http:
                        assert (await http.post(f"{jobs}/jobs/7")).status_code == 202
                        assert (await http.post(f"{watch}/watch/7")).status_code == 202
                        seen: list[Any] = []
                        while (view := (await http.get(f"{watch}/watch/7")).json())["type"] != "job_complete":
                            assert view["type"] in ("unknown", "progress", "resynced")
                            if view not in seen:
                                seen.append(view)
                                if view.get("fraction") == 0.5:
                                    await proxy.cut("rst")
                            await anyio.sleep(0.01)
                        assert view["result"] == {"books": 318}
                        assert 0.5 in [view.get("fraction") for view in seen]
                        assert len(proxy.dials) >= 2
                        again = await http.get(f"{jobs}/jobs/7/events", headers={"Last-Event-ID": "3"})
                        assert re.findall(r"^id: (\d+)", again.text, re.MULTILINE) == ["4", "5"]

    with_deadline(follow)


def with_deadline(main: Callable[[], Any]) -> None:
    async def run() -> None:
        with anyio.fail_after(90):
            await main()

    anyio.run(run)


# --- a job that runs until the test ends it ------------------------------------------------------------------------

HUB = """
from pathlib import Path

import anyio

from towline.server import Hub, serve

hub = Hub("hub.db")


@hub.job("count", path="/start", media_types=("text/csv",))
async def count(context, upload):
    done = 0
    while not Path("end").exists():
        done += 1
        await context.progress(done)
        await anyio.sleep(0.02)
    return {"last": done}


serve(port=0, hub=hub)
"""


@dataclass
class Running:
    """A job on a hub of its own."""

    url: str
    started: StartedJob
    folder: Path

    def end(self) -> None:
        (self.folder / "end").touch()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    folder = tmp_path / "hub"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-P", "-c", HUB], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            started = anyio.run(start_job, f"{url}/start", b"x")
            yield Running(stream_of(url), started, folder)
        finally:
            process.terminate()
    assert process.returncode == 0


# --- django --------------------------------------------------------------------------------------------------------

PROJECT = """
import os
from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
application = get_asgi_application()
"""
SETTINGS = """
import os

SECRET_KEY = "only for this test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]
JOBS_URL, JOBS_TOKEN = os.environ["JOBS_URL"], os.environ["JOBS_TOKEN"]
"""


@pytest.fixture
def shop(tmp_path: Path, running: Running) -> Iterator[str]:
    """A Django project with the page's views and URLs."""
    pytest.importorskip("django", reason="no Django (tests/system/requirements.txt)")
    views, urls, command = blocks("django")
    folder = tmp_path / "shop"
    folder.mkdir()
    programs = {"__init__": "", "asgi": PROJECT, "settings": SETTINGS, "urls": urls, "views": views + "\n\n" + command}
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    with served(
        "shop.asgi:application", tmp_path, JOBS_URL=running.url, JOBS_TOKEN=running.started.token.reveal()
    ) as url:
        yield f"{url}/jobs/{running.started.job}"


def test_django(shop: str, running: Running) -> None:
    """The updates arrive while the job runs, through Django's own middleware for compression."""
    events: list[Any] = []
    with httpx.stream("GET", f"{shop}/progress", timeout=60) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
            if len(events) == 5:
                running.end()
    assert events.pop() == {"complete": True}
    counts = [event["count"] for event in events]
    assert len(counts) >= 5
    assert counts == sorted(set(counts))
    assert httpx.get(f"{shop}/outcome", timeout=60).json() == {"end": "JobComplete"}


def test_django_and_a_browser_that_leaves(shop: str, running: Running) -> None:
    """Twice, so that the server is seen to work after it."""
    for _ in range(2):
        with httpx.stream("GET", f"{shop}/progress", timeout=60) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    running.end()
    assert httpx.get(f"{shop}/outcome", timeout=60).json() == {"end": "JobComplete"}


def test_django_the_function_for_a_command(hub: str, job: StartedJob, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec("import towline\nimport towline.blocking\n" + blocks("django")[2], names)
    assert type(names["save_outcome"](stream_of(hub), job.job, job.token.reveal())).__name__ == "JobComplete"
    assert capsys.readouterr().out.count("Progress(") > 3


# --- jupyter-and-textual -------------------------------------------------------------------------------------------


def notebook_of(*cells: str) -> Any:
    formats = pytest.importorskip("nbformat.v4", reason="no nbclient (tests/system/requirements.txt)")
    return formats.new_notebook(cells=[formats.new_code_cell(cell) for cell in cells])


def run_notebook(book: Any, hub: str, job: StartedJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="no nbclient (tests/system/requirements.txt)")
    pytest.importorskip("ipykernel", reason="no ipykernel (tests/system/requirements.txt)")
    for name, value in {"JOB_URL": stream_of(hub), "JOB": job.job, "TOWLINE_TOKEN": job.token.reveal()}.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(
        book, timeout=90, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


def test_jupyter_and_textual(hub: str, job: StartedJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cells run in a real kernel; the block about Textual is a part of the example, which its own tests run."""
    first, second, example = blocks("jupyter-and-textual")
    assert textwrap.indent(example.replace("\n\n\n", "\n\n"), "    ") in (
        ROOT / "examples" / "textual_watch.py"
    ).read_text(encoding="utf-8")
    wrong = "try:\n    import anyio\n    anyio.run(anyio.sleep, 0)\nexcept RuntimeError as error:\n    print(error)"
    book = notebook_of(first, second, "print(connection.state.value)", "await task", wrong)
    run_notebook(book, hub, job, monkeypatch, tmp_path)
    assert "JobComplete(" in book.cells[0].outputs[-1]["data"]["text/plain"]
    assert "text/html" in book.cells[0].outputs[0]["data"]
    assert "JobComplete(" in book.cells[3].outputs[-1]["data"]["text/plain"]
    assert book.cells[4].outputs[0]["text"].strip() in (HOW_TO / "jupyter-and-textual.md").read_text()


# --- resume-after-a-crash ------------------------------------------------------------------------------------------


def test_resume_after_a_crash(running: Running, tmp_path: Path) -> None:
    """`kill -9` in mid-job. The second start has only the job's id, and goes on to its end; a third delivers it."""
    program, forget = blocks("resume-after-a-crash")
    (tmp_path / "follow.py").write_text(program)
    main = program.partition("\n\nif __name__")[0]
    (tmp_path / "forget.py").write_text(f"{main}\n\n{forget}\n\nanyio.run(forget, *sys.argv[1:])\n")
    job, token = running.started.job, running.started.token.reveal()
    command = [sys.executable, "-P", "follow.py", job]
    first: list[str] = []
    with subprocess.Popen(
        [*command, running.url],
        cwd=tmp_path,
        env={**os.environ, "TOWLINE_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while len(first) < 5 or not list((tmp_path / "jobs").glob("*.tok")):
            first.append(process.stdout.readline())
            assert first[-1]
        process.kill()
    running.end()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    second = run(*command)
    assert (second.returncode, second.stderr) == (0, "")
    numbers = [int(line.split()[0]) for line in [*first, *second.stdout.splitlines()] if line[0].isdigit()]
    assert set(numbers) == set(range(1, max(numbers) + 1))
    last = second.stdout.splitlines()[-1]
    assert last == f"{max(numbers)} JobComplete"
    assert run(*command).stdout.splitlines() == [last]
    assert run(sys.executable, "-P", "forget.py", job).returncode == 0
    assert "no record of job" in run(*command).stderr


# --- private-ca-or-proxy -------------------------------------------------------------------------------------------


async def join(one: AnyByteStream, other: AnyByteStream) -> None:
    """Pass bytes on in both directions, until one side ends."""
    async with one, other, anyio.create_task_group() as tasks:

        async def copy(source: AnyByteStream, target: AnyByteStream) -> None:
            with suppress(anyio.BrokenResourceError):
                async for data in source:
                    await target.send(data)
            tasks.cancel_scope.cancel()

        tasks.start_soon(copy, one, other)
        tasks.start_soon(copy, other, one)


@asynccontextmanager
async def secure(port: int, authority: Any) -> AsyncIterator[tuple[int, int, list[bytes]]]:
    """TLS in front of a port of this machine, and a proxy: the ports of both, and what the proxy was asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asked: list[bytes] = []

    async def front(stream: AnyByteStream) -> None:
        await join(stream, await anyio.connect_tcp("127.0.0.1", port))

    async def proxy(stream: AnyByteStream) -> None:
        line = (await stream.receive()).partition(b"\r\n")[0]
        asked.append(line)
        host, _, number = line.split()[1].decode().partition(":")
        there = await anyio.connect_tcp(host, int(number))
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await join(stream, there)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as plain,
        await anyio.create_tcp_listener(local_host="127.0.0.1") as behind,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(TLSListener(behind, context, standard_compatible=False).serve, front)
        tasks.start_soon(plain.serve, proxy)
        ports = [listener.extra(anyio.abc.SocketAttribute.local_port) for listener in (behind, plain)]
        yield ports[0], ports[1], asked
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_private_ca_or_proxy(hub: str, job: StartedJob, tmp_path: Path, backend: str) -> None:
    """Only with the authority's file is the server trusted, and only with `proxy=` is the proxy asked."""
    trustme = pytest.importorskip("trustme")
    authority, file = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    names: dict[str, Any] = {}
    exec(blocks("private-ca-or-proxy")[0], names)

    async def follow() -> None:
        async with secure(int(hub.rpartition(":")[2]), authority) as (port, proxy, asked):
            url = f"wss://127.0.0.1:{port}/ws/progress"
            options = url, job.job, job.token
            assert type(await names["main"](*options, str(file))).__name__ == "JobComplete"
            assert asked == []
            ended = await names["main"](*options, str(file), f"http://127.0.0.1:{proxy}")
            assert type(ended).__name__ == "JobComplete"
            assert asked
            assert set(asked) == {f"CONNECT 127.0.0.1:{port} HTTP/1.1".encode()}
            stranger = tmp_path / "stranger.pem"
            trustme.CA().cert_pem.write_to_path(stranger)
            with pytest.raises(towline.Exhausted, match="unable to get local issuer certificate") as gave_up:
                await names["main"](*options, str(stranger))
            assert gave_up.value.reason == "protocol"
            environment = {**os.environ, "TOWLINE_TOKEN": job.token.reveal(), "SSL_CERT_FILE": str(file)}
            command = [sys.executable, "-P", "-m", "towline", "watch", job.job, "--url", url]
            watched = await anyio.run_process(command, env=environment, check=False)
            assert watched.returncode == 0, watched.stderr

    anyio.run(follow, backend=backend)
