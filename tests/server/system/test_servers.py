"""The hub on other people's servers, and mounted in other people's applications."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from interop.event_stream import followed, opened

from towline.server import read_events

ROWS = 60
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))

ALONE = """
from towline.server import Hub, csv_import
app = Hub("hub.db")
app.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=0.005))
"""
MOUNTED = """
from contextlib import asynccontextmanager
from towline.server import Hub, HubLimits, csv_import
hub = Hub("hub.db", base_path="/jobs", limits=HubLimits(inline_result=100))
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=0.005))
@asynccontextmanager
async def lifespan(app):
    async with hub:
        yield
"""
#: What is added where the application has a page of its own at `/own`, by the framework it is made with.
APPLICATIONS = {
    "starlette": """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
app = Starlette(
    routes=[Mount("/jobs", hub), Route("/own", lambda request: PlainTextResponse("mine"))], lifespan=lifespan
)
""",
    "fastapi": """
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
app = FastAPI(lifespan=lifespan)
app.mount("/jobs", hub)
@app.get("/own", response_class=PlainTextResponse)
async def own():
    return "mine"
""",
    # Django's ASGI application knows neither lifespan nor sockets: Starlette stands before it, and passes the rest on.
    "django": """
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.routing import Mount
urlpatterns = [path("own", lambda request: HttpResponse("mine"))]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="a test's")
app = Starlette(routes=[Mount("/jobs", hub), Mount("/", get_asgi_application())], lifespan=lifespan)
""",
}
SERVERS = {
    "hypercorn": ["hypercorn", "--worker-class", "asyncio", "--bind", "127.0.0.1:{port}", "app:app"],
    "hypercorn-trio": ["hypercorn", "--worker-class", "trio", "--bind", "127.0.0.1:{port}", "app:app"],
    "granian": ["granian", "--interface", "asgi", "--ws", "--host", "127.0.0.1", "--port", "{port}", "app:app"],
    "uvicorn": ["uvicorn", "--ws", "websockets-sansio", "--no-access-log", "--port", "{port}", "app:app"],
}


@contextlib.contextmanager
def running(server: str, folder: Path, port: int, eventually: Any) -> Iterator[None]:
    """Run the application in `folder` under a server, until it answers and then for as long as it is wanted."""
    command = [part.format(port=port) for part in SERVERS[server]]
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "output").read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code > 0
            return False

        eventually(answers)
        yield
    finally:
        # Some of them are a parent with workers: the session this test began holds them all.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.mark.parametrize("server", SERVERS)
def test_other_servers(
    server: str, tmp_path: Path, client_of: Any, ready: Any, following: Any, eventually: Any, free_port: Any
) -> None:
    """A job is followed over a cut, a refusal and a killed server, and what was seen is the log."""
    pytest.importorskip(server.partition("-")[0])
    (tmp_path / "app.py").write_text(ALONE)
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}") as client:
        with running(server, tmp_path, port, eventually):
            assert client.start(CSV).status_code == 202
            path = f"/ws/progress?jobId={client.job}"
            assert client.refusal(path).status_code == 401
            with client.socket() as first:
                ready(first)
                seen = following(first, lambda frame: frame["seq"] >= 10).events
            with client.socket() as second:
                ready(second, {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]})
                seen += following(second, lambda frame: frame["seq"] >= 25).events
        with running(server, tmp_path, port, eventually):
            last = client.follow({"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]})
            assert last.code == 1000
            seen += last.events
    log = read_events(tmp_path / "hub.db", client.job)
    assert [(e["seq"], e["epoch"], e["type"], e["payload"]) for e in seen] == [
        (e.seq, e.epoch, e.type, e.payload) for e in log
    ]
    assert len(seen) == ROWS + 2


@pytest.mark.parametrize("server", SERVERS)
def test_event_streams_on_other_servers(
    server: str, tmp_path: Path, client_of: Any, eventually: Any, free_port: Any
) -> None:
    """A job is followed over a client that leaves and a killed server, and what was seen is the log."""
    pytest.importorskip(server.partition("-")[0])
    (tmp_path / "app.py").write_text(ALONE)
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}") as client:
        with running(server, tmp_path, port, eventually):
            assert client.start(CSV).status_code == 202
            path = f"/api/jobs/{client.job}/events"
            assert client.http.get(path).status_code == 401
            head = client.http.head(path, headers=client.auth)
            assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")
            with opened(client) as first:
                first.read(lambda stream: len(stream.events) >= 10)
            with opened(client, first.last_id) as second:
                second.read(lambda stream: len(stream.events) >= 15)
        with running(server, tmp_path, port, eventually):
            last = followed(client, second.last_id)
            assert last.whole
            ended = client.http.get(path, headers=client.auth | {"last-event-id": last.last_id})
            assert (ended.status_code, ended.content) == (204, b"")
    assert "Traceback" not in (tmp_path / "output").read_text()
    seen = first.events + second.events + last.events
    log = read_events(tmp_path / "hub.db", client.job)
    assert [(e["seq"], e["epoch"], e["type"], e["payload"]) for e in seen] == [
        (e.seq, e.epoch, e.type, e.payload) for e in log
    ]
    assert len(seen) == ROWS + 2


@pytest.mark.parametrize("framework", APPLICATIONS)
def test_mounted_in_an_application(
    framework: str, tmp_path: Path, client_of: Any, eventually: Any, free_port: Any
) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed (make test-system)")
    (tmp_path / "app.py").write_text(MOUNTED + APPLICATIONS[framework])
    port = free_port()
    with running("uvicorn", tmp_path, port, eventually), client_of(f"http://127.0.0.1:{port}/jobs") as client:
        assert httpx.get(f"http://127.0.0.1:{port}/own").text == "mine"
        assert client.http.post("imports/csv").status_code == 404
        assert client.start(CSV).status_code == 202
        seen = client.follow()
        assert len(seen.seqs) == ROWS + 2
        assert followed(client).events == seen.events
        url = seen.events[-1]["payload"]["resultUrl"]
        assert url == f"/jobs/api/jobs/{client.job}/results"
        result = httpx.get(f"http://127.0.0.1:{port}{url}", headers=client.auth).json()
        assert result["successRate"] == f"{ROWS}/{ROWS}"
