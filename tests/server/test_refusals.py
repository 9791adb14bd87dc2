"""Who is refused, and that the log says why: addresses, origins, limits."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from towline import InvalidArgument
from towline.server import Hub, HubLimits, JobContext, Upload, serve
from towline.server.web import _answers

pytestmark = pytest.mark.anyio

RAW = {"content-type": "application/octet-stream"}
APP = "https://app.example"


async def anybody(request: Any) -> str | None:
    """An application that knows its users by a cookie, which browsers send for any page."""
    return "somebody"


def make_hub(folder: Path, **options: Any) -> Hub:
    hub = Hub(folder / "hub.db", **options)

    @hub.job("good", path="/start")
    async def good(context: JobContext, upload: Upload) -> None:
        pass

    return hub


def calling(hub: Hub, url: str = "http://127.0.0.1") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(hub), base_url=url)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8470", "http://127.0.0.1:8470", 202),
        ("127.0.0.1", "http://127.0.0.1:80", 202),
        ("127.0.0.1:80", "http://127.0.0.1", 202),
        ("127.0.0.1:443", "https://127.0.0.1", 202),
        ("LocalHost", "http://localhost", 202),
        ("127.0.0.1:443", "http://127.0.0.1", 403),
        ("127.0.0.1", "http://127.0.0.1:8470", 403),
        ("127.0.0.1", "https://evil.example", 403),
        ("127.0.0.1", "null", 403),
        ("127.0.0.1", "http://127.0.0.1:x", 403),
        ("127.0.0.1:x", "http://127.0.0.1:x", 403),
        ("127.0.0.1", "http://[", 403),
        ("127.0.0.1", "", 403),
    ],
)
async def test_a_default_port_may_be_left_out(tmp_path: Path, host: str, origin: str, status: int) -> None:
    hub = make_hub(tmp_path)
    async with hub, calling(hub) as client:
        headers = RAW | {"host": host, "origin": origin}
        assert (await client.post("/start", content=b"x", headers=headers)).status_code == status


@pytest.mark.parametrize("path", ["/start", "/api/jobs/1/token"])
async def test_a_page_of_another_origin_starts_nothing(tmp_path: Path, path: str) -> None:
    """A form on it posts with the visitor's cookie, and asks nobody."""
    hub = make_hub(tmp_path, authorize=anybody, origins=[APP])
    async with hub, calling(hub) as client:
        answer = await client.post(path, content=b"x", headers=RAW | {"origin": "https://evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
        assert "access-control-allow-origin" not in answer.headers
        for headers in (RAW, RAW | {"origin": "http://127.0.0.1"}, RAW | {"origin": APP}):
            answer = await client.post(path, content=b"x", headers=headers)
            assert answer.status_code in (202, 404)  # the second path names no job
        assert await hub.log.count_running("somebody") <= 3


async def test_a_page_of_a_named_origin_may_call(tmp_path: Path) -> None:
    hub = make_hub(tmp_path, origins=[APP])
    async with hub, calling(hub) as client:
        asked = {
            "origin": APP,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,idempotency-key",
        }
        before = await client.options("/start", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == APP
        answer = await client.post("/start", content=b"x", headers=RAW | {"origin": APP})
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == APP
        for origin in ("https://evil.example", "null"):
            answer = await client.options("/start", headers=asked | {"origin": origin})
            assert answer.status_code == 400
            assert "access-control-allow-origin" not in answer.headers


async def test_without_named_origins_no_other_page_may_call(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    async with hub, calling(hub) as client:
        answer = await client.get("/healthz", headers={"origin": APP})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "problem"),
    [
        ("*", "name each origin"),
        ("app.example", "'app.example' is no origin"),
        ("https://app.example/", "without a path"),
        ("HTTPS://app.example", "is no origin"),
    ],
)
def test_what_is_no_origin_is_refused(tmp_path: Path, origin: str, problem: str) -> None:
    """It would match no page, or any."""
    with pytest.raises(InvalidArgument, match=problem):
        Hub(tmp_path / "hub.db", origins=[APP, origin])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"host": "evil.example"}, ["403 forbidden", "the Host 'evil.example' is not this machine's loopback address"]),
        ({"x-forwarded-for": "10.0.0.1"}, ["403 forbidden", "the request has the header x-forwarded-for"]),
        ({"origin": "https://evil.example"}, ["403 foreign_origin", "Origin 'https://evil.example'"]),
        ({"idempotency-key": "x" * 300}, ["400 bad_request", "1 to 255 characters"]),
        ({"host": "127.0.0.1\x1b[2J"}, ["403 forbidden", "\\x1b[2J"]),
    ],
)
async def test_a_refusal_is_logged_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, headers: dict[str, str], words: list[str]
) -> None:
    hub = make_hub(tmp_path)
    async with hub, calling(hub) as client:
        await client.post("/start", content=b"x", headers=RAW | headers)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [word for word in words if not any(word in message for message in messages)] == []
    assert "\x1b" not in caplog.text


async def test_limits_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = make_hub(tmp_path, limits=HubLimits(starts=1, upload=10))
    async with hub, calling(hub) as client:
        assert (await client.post("/start", content=b"x" * 100, headers=RAW)).status_code == 413
        assert (await client.post("/start", content=b"x", headers=RAW)).status_code == 429
    assert "413 too_large" in caplog.text
    assert "429 too_many_starts" in caplog.text


@pytest.mark.parametrize("path", ["/start", "/api/token/refresh"])
@pytest.mark.parametrize("ends", [True, False], ids=["the rest comes", "the rest never comes"])
async def test_a_body_that_is_too_large_is_dropped_before_the_connection_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, ends: bool
) -> None:
    """A server that closes with bytes unread resets the connection, and the client may lose the answer."""
    monkeypatch.setattr(_answers, "_LINGER", 0.0 if not ends else 10.0)
    pieces = [True, True, False] if ends else [True, True]
    what: list[str] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            await anyio.sleep_forever()
        what.append("received")
        return {"type": "http.request", "body": b"x" * 5, "more_body": pieces.pop(0)}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert (message["status"], dict(message["headers"])[b"connection"]) == (413, b"close")
        else:
            what.append("answered" if message["more_body"] else "closed")

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/octet-stream"), (b"content-length", b"20000")]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": headers}
    hub = make_hub(tmp_path, limits=HubLimits(upload=10))
    async with hub:
        await hub(scope | {"client": ("127.0.0.1", 1), "scheme": "http"}, receive, send)
    assert what == ["answered", *["received"] * (3 if ends else 2), "closed"]


def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            serve("127.0.0.1", port, hub=make_hub(tmp_path))
    with pytest.raises(OSError, match=r"cannot listen on .*nowhere/hub\.sock: No such file"):
        serve(hub=make_hub(tmp_path), uds=tmp_path / "nowhere" / "hub.sock")


# --- file descriptors, and the first moment ----------------------------------------------------------------------

LIMITED = """
import resource, sys
from towline.server import Hub, serve
resource.setrlimit(resource.RLIMIT_NOFILE, (70, 110))
hub = Hub(sys.argv[2])
@hub.job("endless", path="/start")
async def endless(context, upload):
    import anyio
    await anyio.sleep_forever()
serve(port=int(sys.argv[1]), hub=hub)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_sockets_leave_descriptors_for_everything_else(hub_process: Any) -> None:
    hub = hub_process(program=LIMITED)
    client = hub.start()
    assert client.start(b"x", "/start", content_type="application/octet-stream").status_code == 202
    with contextlib.ExitStack() as stack:
        for _ in range(110 - 64):
            stack.enter_context(client.socket())
        assert client.refusal(f"/ws/progress?jobId={client.job}", additional_headers=client.auth).status_code == 503
        assert client.http.get("/healthz").status_code == 200
        assert client.state()["status"] == "running"


SLOW = """
import sys
from towline.server import Hub, HubLimits, serve
hub = Hub(sys.argv[2], limits=HubLimits(send_wait=0.3))
@hub.job("lengthy", path="/start")
async def lengthy(context, upload):
    for done in range(1, 4001):
        await context.progress(done, item="\U0001f40c" * 500, status="\U0001f40c" * 500)
serve(port=int(sys.argv[1]), hub=hub)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_USER_TIMEOUT")
def test_a_reader_that_takes_nothing_keeps_no_descriptor(hub_process: Any, eventually: Any) -> None:
    """16 MB of events are more than the buffers on the way hold, and a server's `close` waits until they are sent."""
    hub = hub_process(program=SLOW)
    client = hub.start()
    folder = Path(f"/proc/{hub.process_id}/fd")

    def sockets() -> int:
        found = 0
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += str(path.readlink()).startswith("socket:")
        return found

    before = sockets()
    client.start(b"x", "/start", content_type="application/octet-stream")
    eventually(lambda: client.state()["status"] == "complete")
    client.http.close()
    eventually(lambda: sockets() == before)
    auth = f"Authorization: {client.auth['authorization']}\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(client.url.rpartition(":")[2])))
        connection.sendall(f"GET /api/jobs/{client.job}/events HTTP/1.1\r\nHost: x\r\n{auth}\r\n".encode())
        eventually(lambda: sockets() == before + 1)
        eventually(lambda: sockets() == before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_out_of_descriptors_is_logged_once_and_passes(tmp_path: Path, free_port: Any, eventually: Any) -> None:
    port = free_port()
    output = tmp_path / "output"
    with output.open("wb") as file:
        arguments = [sys.executable, "-c", LIMITED, str(port), str(tmp_path / "hub.db")]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=file)
    url = f"http://127.0.0.1:{port}/healthz"

    def healthy() -> bool:
        try:
            return httpx.get(url, timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(healthy)
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            eventually(lambda: "no connection can be accepted now" in output.read_text())
            time.sleep(2.5)  # asyncio tries again every second
            assert output.read_text().count("no connection can be accepted now") == 1
            assert "Traceback" not in output.read_text()
        eventually(healthy)
    finally:
        process.terminate()
        assert process.wait(120) == 0


SLOW_START = """
import sys, time
from towline.server import Hub, serve
import towline.server.log._sqlite as sqlite
opened = sqlite.SqliteLog._open
def open_slowly(*args):
    print("starting", flush=True)
    time.sleep(0.5)
    return opened(*args)
sqlite.SqliteLog._open = open_slowly
serve(port=0, database=sys.argv[1])
"""


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_hub_starts_is_a_stop(tmp_path: Path, sig: signal.Signals) -> None:
    arguments = [sys.executable, "-c", SLOW_START, str(tmp_path / "hub.db")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        os.kill(process.pid, sig)
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "", "")


# A process in between, because two children of one process count as workers of one server.
SECOND = """
import subprocess, sys
program = "import sys; from towline.server import serve; serve(port=0, database=sys.argv[1])"
process = subprocess.Popen([sys.executable, "-c", program, sys.argv[1]])
print(process.pid, flush=True)
sys.exit(process.wait())
"""


@contextlib.contextmanager
def second_hub(database: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a hub on the database, in a process of its own: that of its parent, and its id."""
    arguments = [sys.executable, "-c", SECOND, str(database)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_second_hub_says_whom_it_waits_for_and_can_be_stopped(hub_process: Any, sig: signal.Signals) -> None:
    first = hub_process()
    first.start()
    with second_hub(first.database) as (process, hub_id):
        assert process.stderr is not None
        assert f"for another hub (process {first.process_id}) to stop" in process.stderr.readline()
        os.kill(hub_id, sig)
        output, errors = process.communicate(timeout=120)
    # It neither began to serve nor waited until it had to give up.
    assert (process.returncode, output, errors) == (0, "", "")


def test_a_second_hub_goes_on_when_the_first_has_stopped(hub_process: Any) -> None:
    first = hub_process()
    first.start()
    with second_hub(first.database) as (process, hub_id):
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.readline()
        first.kill()
        assert "listening on" in process.stdout.readline()
        os.kill(hub_id, signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0


def test_a_refused_upgrade_is_no_error(serving: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(make_hub(tmp_path)) as client:
        assert client.refusal("/ws/progress?jobId=j1&token=wrong").status_code == 401
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
