"""A follower that is not served in time falls behind alone, and its progress is merged, never its end."""

import contextlib
import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from towline.server import Hub, HubLimits, JobContext, JobFailure, StartedJob, Upload

BEHIND = "gets merged progress"
Frames = Iterator[dict[str, Any]]


@pytest.fixture
def end() -> threading.Event:
    """Lets the job end."""
    return threading.Event()


@pytest.fixture
def hub(tmp_path: Path, end: threading.Event) -> Hub:
    """A hub whose job reports large events until it may end."""
    hub = Hub(tmp_path / "hub.db", limits=HubLimits(behind=0.2, send_wait=60))

    @hub.job("count", path="/start")
    async def count(context: JobContext, upload: Upload) -> None:
        done = 0
        await context.start(None)
        while not end.is_set():
            done += 1
            await context.progress(done, item="x" * 500)
            await anyio.lowlevel.checkpoint()
        if await anyio.Path(upload.path).read_bytes() == b"fail":
            raise JobFailure("TOO_BAD", "it was not to be")

    return hub


def narrow_socket(url: str) -> socket.socket:
    """A connection whose kernel buffers little, so that what is not read soon stops the sender."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect((urlsplit(url).hostname, urlsplit(url).port))
    return narrow


@contextlib.contextmanager
def by_socket(client: Any) -> Iterator[Frames]:
    """The job's messages by a WebSocket, each read when it is asked for."""
    url = client.url.replace("http", "ws", 1) + f"/ws/progress?jobId={client.job}"
    options: dict[str, Any] = {"additional_headers": client.auth, "sock": narrow_socket(client.url), "max_queue": 1}
    with connect(url, proxy=None, **options) as websocket:
        websocket.send('{"type":"ready"}')

        def frames() -> Frames:
            with contextlib.suppress(websockets.exceptions.ConnectionClosedOK):
                while True:
                    yield json.loads(websocket.recv(timeout=120))

        yield frames()


@contextlib.contextmanager
def by_stream(client: Any) -> Iterator[Frames]:
    """The job's messages by an event stream, each read when it is asked for."""
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = narrow_socket(client.url)
    connection.sock.settimeout(20)
    with contextlib.closing(connection):
        connection.request("GET", f"/api/jobs/{client.job}/events", headers=client.auth)
        answer = connection.getresponse()
        lines = iter(answer.readline, b"")
        yield (json.loads(line[6:]) for line in lines if line.startswith(b"data: "))


def covered(frames: list[dict[str, Any]]) -> list[int]:
    """The numbers of the events that the messages stand for, in their order."""
    return [
        number
        for frame in frames
        if frame["type"] != "ready_ack"
        for number in range(frame.get("firstSeq", frame["seq"]), frame["seq"] + 1)
    ]


@pytest.mark.parametrize("end_type", ["job_complete", "error", "job_canceled"])
@pytest.mark.parametrize("following_by", [by_socket, by_stream])
def test_a_follower_that_reads_nothing_falls_behind_alone(
    hub: Hub,
    end: threading.Event,
    serving: Any,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    following_by: Callable[..., Any],
    end_type: str,
) -> None:
    caplog.set_level(logging.INFO, "towline.server")
    with serving(hub) as client:
        client.start(b"fail" if end_type == "error" else b"x", "/start", content_type="application/octet-stream")
        with contextlib.ExitStack() as following:
            slow = following.enter_context(following_by(client))
            seen = [next(slow)]
            # The other follower joins later: on a busy machine it could be the one that is behind.
            eventually(lambda: BEHIND in caplog.text)
            fast = following.enter_context(by_socket(client))
            quick: list[dict[str, Any]] = []

            def keep_reading() -> None:
                quick.extend(fast)

            reader = threading.Thread(target=keep_reading)
            reader.start()
            count = client.state()["processedCount"]
            # Neither the job nor the other follower waits for the one that reads nothing.
            eventually(lambda: client.state()["processedCount"] > count + 500)
            eventually(lambda: bool(quick) and quick[-1].get("seq", 0) > count + 500)
            end.set() if end_type != "job_canceled" else client.cancel()
            seen += slow
            reader.join(20)
    for frames in (seen, quick):
        assert covered(frames) == list(range(1, frames[-1]["seq"] + 1))
        assert [frame["type"] for frame in frames if frame["type"] not in ("ready_ack", "job_progress")] == [
            "job_started",
            end_type,
        ]
    assert seen[-1] == quick[-1]
    merged = [frame for frame in seen if "firstSeq" in frame]
    assert {frame["type"] for frame in merged} == {"job_progress"}
    # The newest of what it stands for is what it shows.
    assert all(frame["payload"]["processedCount"] == frame["seq"] - 1 for frame in merged)
    assert len(seen) < seen[-1]["seq"]


def test_a_follower_that_has_caught_up_gets_every_event_again(
    hub: Hub, end: threading.Event, serving: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Merging lasts no longer than the delay: what follows is not merged."""
    caplog.set_level(logging.INFO, "towline.server")
    with serving(hub) as client:
        client.start(b"x", "/start", content_type="application/octet-stream")
        with by_socket(client) as slow:
            seen = [next(slow)]
            eventually(lambda: BEHIND in caplog.text)
            while "firstSeq" not in seen[-1]:
                seen.append(next(slow))
            while "firstSeq" in seen[-1]:
                seen.append(next(slow))
            end.set()
            seen += slow
    assert covered(seen) == list(range(1, seen[-1]["seq"] + 1))


def test_a_replay_is_never_merged(tmp_path: Path, serving: Any) -> None:
    """It was announced event by event, however long it takes."""
    hub = Hub(tmp_path / "hub.db", limits=HubLimits(behind=0.001))

    @hub.job("count", path="/start")
    async def count(context: JobContext, upload: Upload) -> None:
        for done in range(1, 3000):
            await context.progress(done)

    with serving(hub) as client:
        client.start(b"x", "/start", content_type="application/octet-stream")
        client.follow()
        again = client.follow({"epoch": client.state()["epoch"], "seq": 1})
        assert again.ack["from"] == 2
        assert again.seqs == list(range(2, 3002))


def events_of(started: StartedJob) -> dict[str, Any]:
    """The ASGI scope of a job's event stream."""
    return {
        "type": "http",
        "method": "GET",
        "path": f"/api/jobs/{started.job_id}/events",
        "raw_path": b"",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + started.token.reveal().encode())],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }


def waiting_hub(folder: Path, limits: HubLimits | None = None) -> Hub:
    """A hub whose jobs wait."""
    hub = Hub(folder / "hub.db", limits=limits or HubLimits())
    hub.job("wait", path="/start")(lambda context, upload: anyio.sleep_forever())
    return hub


async def receive() -> dict[str, Any]:
    """The client says nothing more."""
    return await anyio.sleep_forever()


@pytest.mark.anyio
async def test_a_stream_that_cannot_begin_is_let_go_and_the_hub_goes_on(tmp_path: Path) -> None:
    """The client reads nothing of what it asked for before on the same connection, so not even the answer begins."""
    hub = waiting_hub(tmp_path, HubLimits(comment_every=0.2, send_wait=0.5))
    stuck = anyio.Event()

    async def send(message: Any) -> None:
        stuck.set()
        await anyio.sleep_forever()

    async with hub:
        started = await hub.start("wait", b"")
        with anyio.fail_after(20):
            await hub(events_of(started), receive, send)
        assert stuck.is_set()
        assert hub.statistics().streams == 0
        assert hub.statistics().jobs_at_work == 1


@pytest.mark.anyio
async def test_a_stream_that_is_sent_away_before_its_answer_begins_has_an_answer(tmp_path: Path) -> None:
    """A framework's layer waits before it passes the start on. Without one, it answers with an error of the server."""
    hub = waiting_hub(tmp_path)
    sent: list[dict[str, Any]] = []
    is_stopping = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            await hub.drain()
        sent.append(message)

    async with hub:
        started = await hub.start("wait", b"")
        with anyio.fail_after(20):
            await hub(events_of(started), receive, send)
    start, end = sent
    assert start["status"] == 200
    assert end["body"].startswith(b"retry: ")
    assert not end["more_body"]
