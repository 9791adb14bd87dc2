"""`towline serve module:hub`: a hub of the user's own, on a port, on a Unix socket, and on a socket of the parent's."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect, unix_connect

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets here")

APP = """
from towline.server import Hub

async def anybody(request):
    return "somebody"

hub = Hub("hub.db", authorize=anybody)
broken = 5

@hub.job("echo", path="/api/echo")
async def echo(context, upload):
    await context.progress(1, 1)
    return {"text": upload.path.read_text()}

def make():
    other = Hub("other.db", authorize=anybody)
    other.job("other", path="/api/other")(echo)
    return other
"""
ORIGIN = "https://app.example"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", "serve", *arguments]


class Served:
    """The command as a person runs it; `place` is what it says it listens on."""

    def __init__(self, folder: Path, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        assert self.process.stdout is not None
        self.place = self.process.stdout.readline().split()[-1]

    def stop(self) -> tuple[int, str]:
        """Its exit code, and what it has logged."""
        self.process.send_signal(signal.SIGTERM)
        _, logged = self.process.communicate(timeout=30)
        return self.process.returncode, logged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@contextlib.contextmanager
def served(folder: Path, *arguments: str, **options: Any) -> Iterator[Served]:
    one = Served(folder, *arguments, **options)
    try:
        yield one
    finally:
        if one.process.returncode is None:
            one.process.kill()
            one.process.communicate()


def start(http: httpx.Client, path: str = "/api/echo", **headers: str) -> httpx.Response:
    return http.post(path, content=b"hello", headers={"content-type": "application/octet-stream"} | headers)


def last_of(websocket: Any) -> str:
    websocket.send('{"type": "ready"}')
    texts = []
    with contextlib.suppress(websockets.exceptions.ConnectionClosedOK):
        while True:
            texts.append(websocket.recv(timeout=20))
    return str(texts[-1])


def work(http: httpx.Client, path: Path | None = None, url: str = "") -> None:
    """A job from its start to its end, over a WebSocket."""
    started = start(http).json()
    headers = {"authorization": f"Bearer {started['token']}"}
    place = f"/ws/progress?jobId={started['jobId']}"
    if path is not None:
        opened: Any = unix_connect(str(path), f"ws://localhost{place}", additional_headers=headers)
    else:
        opened = connect(url.replace("http", "ws", 1) + place, additional_headers=headers, proxy=None)
    with opened as websocket:
        assert '"text":"hello"' in last_of(websocket)


def test_a_port_with_origins_a_log_and_few_watchers(folder: Path) -> None:
    arguments = ["app:hub", "--port", "0", "--log-level", "info", "--origins", ORIGIN, "--watchers", "1"]
    with served(folder, *arguments) as hub, httpx.Client(base_url=hub.place, timeout=20) as http:
        work(http, url=hub.place)
        assert start(http, origin=ORIGIN).status_code == 202
        assert start(http, origin="https://evil.example").status_code == 403
        started = start(http).json()
        headers = {"authorization": f"Bearer {started['token']}"}
        url = f"{hub.place.replace('http', 'ws', 1)}/ws/progress?jobId={started['jobId']}"
        with connect(url, additional_headers=headers, proxy=None):
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                connect(url, additional_headers=headers, proxy=None)
        assert refused.value.response.status_code == 429
        code, logged = hub.stop()
    assert code == 0
    assert "INFO towline.server: job" in logged
    assert "WARNING towline.server: refused '/api/echo': 403 foreign_origin" in logged
    assert started["token"] not in logged


def test_without_a_log_level_only_warnings_are_logged(folder: Path) -> None:
    with served(folder, "app:make", "--port", "0") as hub, httpx.Client(base_url=hub.place, timeout=20) as http:
        assert start(http, "/api/other").status_code == 202
        assert hub.stop() == (0, "")
    assert (folder / "other.db").is_file()
    assert not (folder / "hub.db").exists()


def test_a_unix_socket(folder: Path) -> None:
    path = folder / "hub.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # a killed hub leaves its socket
    with served(folder, "app:hub", "--uds", "hub.sock") as hub:
        assert hub.place == "unix:hub.sock"
        assert path.stat().st_mode & 0o777 == 0o666
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=20) as http:
            assert http.get("/healthz").status_code == 200
            work(http, path)
        second = subprocess.run(
            command("app:make", "--uds", "hub.sock"), cwd=folder, capture_output=True, text=True, timeout=50
        )
        assert second.returncode == 5
        assert "hub.sock" in second.stderr
        assert "Traceback" not in second.stderr
        assert path.is_socket()  # the first one's, still
        assert hub.stop() == (0, "")
    assert not path.exists()


def test_the_usual_hub_takes_no_jobs_over_a_unix_socket(folder: Path) -> None:
    """A proxy that adds no header may stand in front of it, and the whole world in front of that one."""
    with served(folder, "--uds", "hub.sock") as hub:
        transport = httpx.HTTPTransport(uds=str(folder / "hub.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=20) as http:
            answer = http.post("/api/imports/csv", content=b"a", headers={"content-type": "text/csv"})
            assert answer.status_code == 403
        code, logged = hub.stop()
    assert code == 0
    assert "the request comes over a Unix socket" in logged


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_socket_of_the_parents(folder: Path, family: str) -> None:
    """As systemd does it: the socket is there before the hub, and stays when the hub ends."""
    path = folder / "parent.sock"
    if family == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        options: dict[str, Any] = {"base_url": f"http://127.0.0.1:{listener.getsockname()[1]}"}
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        options = {"base_url": "http://localhost", "transport": httpx.HTTPTransport(uds=str(path))}
    fd = listener.fileno()
    with listener, httpx.Client(timeout=20, **options) as http:
        for _ in range(2):
            with served(folder, "app:hub", "--fd", str(fd), pass_fds=[fd]) as hub:
                assert hub.place == (f"unix:{path}" if family == "unix" else options["base_url"])
                assert http.get("/healthz").status_code == 200
                work(http, path if family == "unix" else None, options["base_url"])
                assert hub.stop() == (0, "")
    assert path.exists() == (family == "unix")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["app"], 2, "is not module:object"),
        (["nowhere:hub"], 2, "No module named 'nowhere'"),
        (["app:nothing"], 2, "AttributeError"),
        (["app:broken"], 2, "app:broken is a int, which is not a Hub"),
        (["app:anybody"], 2, "app:anybody failed: TypeError"),
        (["app:hub", "--workers", "2"], 2, "must be 1 with an SQLite file"),
        (["app:hub", "--database", "x.db", "--row-delay", "1"], 2, "leave out --database, --row-delay"),
        (["app:hub", "--sample"], 2, "leave out --sample"),
        (["--sample", "--uds", "x"], 2, "leave out --uds"),
        (["--uds", "x", "--port", "1"], 2, "leave out --port"),
        (["--uds", "x", "--fd", "3"], 2, "leave out --fd"),
        (["--fd", "99"], 2, "99 is no socket"),
        (["--uds", "no/such/folder/hub.sock"], 5, "no/such/folder/hub.sock"),
        (["--uds", "x" * 200], 5, "too long"),
        (["--origins", "*"], 2, "name each origin"),
        (["--watchers", "0"], 2, "--watchers"),
        (["--log-level", "loud"], 2, "--log-level"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_said_at_once(folder: Path, arguments: list[str], code: int, words: str) -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    answer = subprocess.run(
        command(*arguments), cwd=folder, env=environment, capture_output=True, text=True, timeout=50
    )
    assert answer.returncode == code, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_socket_that_does_not_listen(folder: Path) -> None:
    with socket.socket() as idle:
        answer = subprocess.run(
            command("--fd", str(idle.fileno())),
            cwd=folder,
            pass_fds=[idle.fileno()],
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert answer.returncode == 2
    assert "does not listen" in answer.stderr
