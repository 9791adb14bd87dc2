"""A follower that is killed and a second one that resumes from its folder, on a real server, for each source."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import uvicorn

#: Seconds for what takes milliseconds.
PATIENCE = 20

KEY = base64.b64encode(secrets.token_bytes(32)).decode()

FOLLOWER = """
import sys
import anyio, msgspec, towline
from towline.protocols import EventStream, Messages, Polling

def each(message):
    match message:
        case {"done": done}:
            return towline.Progress(fraction=done / 10)
        case {"end": result}:
            return towline.JobComplete(result=result)

async def main(way, port, folder):
    protocol = {
        "websocket": Messages(f"ws://127.0.0.1:{port}/ws", each, state="/state"),
        "events": EventStream(f"http://127.0.0.1:{port}/events", each),
        "poll": Polling(f"http://127.0.0.1:{port}/poll", each),
    }[way]
    async with towline.Connection(protocol, store=towline.TokenStore(folder)) as connection:
        async for update in connection:
            print(msgspec.json.encode(update).decode(), flush=True)

anyio.run(main, *sys.argv[1:])
"""


class Job:
    """One job as an ASGI application: `/events` honours `Last-Event-ID`, `/poll` and `/state` answer the newest."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await self._while_open(receive, self._messages(send))
        elif scope["path"] == "/events":
            last = dict(scope["headers"]).get(b"last-event-id", b"0")
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await receive()
            await self._while_open(receive, self._events(send, int(last)))
        else:
            body = json.dumps(self.log[-1] if self.log else {}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _while_open(self, receive: Any, sending: Any) -> None:
        task = asyncio.create_task(sending)
        while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
            pass
        task.cancel()

    async def _messages(self, send: Any) -> None:
        sent = len(self.log)
        while True:
            for message in self.log[sent:]:
                await send({"type": "websocket.send", "text": json.dumps(message)})
                sent += 1
            await asyncio.sleep(0.01)

    async def _events(self, send: Any, sent: int) -> None:
        while True:
            for message in self.log[sent:]:
                sent += 1
                text = f"id: {sent}\ndata: {json.dumps(message)}\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await asyncio.sleep(0.01)


@contextmanager
def serving(job: Job) -> Iterator[int]:
    config = uvicorn.Config(job, log_config=None, lifespan="off", http="h11", ws="wsproto", loop="asyncio")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


@contextmanager
def following(way: str, port: int, folder: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    command = [sys.executable, "-c", FOLLOWER, way, str(port), str(folder)]
    environment = {**os.environ, "TOWLINE_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            yield process, process.stdout
        finally:
            timer.cancel()
            process.kill()


@pytest.mark.parametrize("way", ["websocket", "events", "poll"])
def test_a_killed_follower_is_resumed(way: str, tmp_path: Path) -> None:
    job = Job()
    with serving(job) as port:
        with following(way, port, tmp_path / "store") as (process, output):
            first: list[dict[str, Any]] = []
            job.log.append({"done": 1})
            for done in (1, 2):
                while not any(update.get("fraction") == done / 10 for update in first):
                    first.append(json.loads(output.readline()))
                job.log.append({"done": done + 1})
            process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
        job.log.append({"done": 4})
        job.log.append({"end": "result"})
        with following(way, port, tmp_path / "store") as (process, output):
            second = [json.loads(line) for line in output]
            assert process.wait(PATIENCE) == 0
    assert [update["type"] for update in first + second].count("job_complete") == 1
    assert (second[-1]["type"], second[-1]["result"]) == ("job_complete", "result")
    told = [update["fraction"] for update in second if update["type"] == "progress"]
    assert told == sorted(set(told))
    if way == "events":
        # Updates since the last saved cursor come again; none is missing.
        assert told == [0.1, 0.2, 0.3, 0.4][-len(told) :]
        assert {0.3, 0.4} <= set(told)
        assert not any(update["type"] == "resynced" and update.get("missed") != 0 for update in second)
    # The server is gone, and the end is on record.
    with following(way, port, tmp_path / "store") as (process, output):
        assert [json.loads(line)["type"] for line in output] == ["job_complete"]
        assert process.wait(PATIENCE) == 0
