"""The other end of the jobs, for many kinds of server: `python -m interop.app KIND PORT`, or `interop.app:app` as ASGI.

The jobs themselves run elsewhere, as with a real service: a file in the folder JOBS names how many of a job's events
have happened, so a server that was killed knows the whole log when it is back. What it does with a job is in its files:

- `JOB`: how many events have happened.
- `JOB.refusal`: how to refuse the job's upgrades (`Refusal`), until the file is gone.
- `JOB.close`: how to close the job's next socket (`Close`) as soon as its client is ready.
- `JOB.upgrades`: written here, the time of each upgrade asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs
from weakref import WeakSet

EVENTS = 24
FOLDER = Path(os.environ.get("JOBS", "."))
STATE_PATH = "/api/job-state/"


class Refusal(NamedTuple):
    """How an upgrade is refused. `once`: only the next one. `state`: what the state call answers meanwhile."""

    status: int
    headers: dict[str, str]
    body: str
    once: bool
    state: int | None


class Close(NamedTuple):
    """How a socket is closed."""

    code: int = 1000
    reason: str = ""


def log_type(seq: int) -> str:
    """The type of a job's event number `seq`."""
    return "job_started" if seq == 1 else "job_complete" if seq == EVENTS else "job_progress"


def frame(job: str, seq: int) -> str:
    """The job's event number `seq`, as it is sent."""
    payload: dict[str, Any] = {"type": log_type(seq)}
    if seq == 1:
        payload |= {"totalCount": EVENTS}
    elif seq == EVENTS:
        payload |= {"books": [], "errors": [], "successRate": f"{EVENTS}/{EVENTS}"}
    else:
        payload |= {"progress": seq / EVENTS, "status": "x", "processedCount": seq}
    head = {"type": payload["type"], "jobId": job, "pipeline": "csv_import", "version": "1.0.0"}
    return json.dumps({**head, "timestamp": seq, "seq": seq, "epoch": "e1", "payload": payload})


def happened(job: str) -> int:
    """How many of the job's events have happened."""
    return int((FOLDER / job).read_text())


def refusal(job: str, *, upgrade: bool) -> Refusal | None:
    """How to refuse the job's upgrade, or its state call."""
    file = FOLDER / f"{job}.refusal"
    if upgrade:
        with (FOLDER / f"{job}.upgrades").open("a") as upgrades:
            upgrades.write(f"{time.time()}\n")
    if not file.exists():
        return None
    found = Refusal(*json.loads(file.read_text()))
    if upgrade and found.once:
        file.unlink()
    return found


def state(job: str) -> tuple[int, str]:
    """Status and body of the state call's answer."""
    refused = refusal(job, upgrade=False)
    if refused is not None and refused.state is not None:
        return refused.state, "{}"
    seq = happened(job)
    answer: dict[str, Any] = {"pipeline": "csv_import", "status": "running", "seq": seq, "epoch": "e1"}
    answer |= {"totalCount": EVENTS, "processedCount": seq, "startTime": 0, "version": "1.0.0"}
    if seq == EVENTS:
        result = {"books": [], "errors": [], "successRate": f"{EVENTS}/{EVENTS}"}
        answer |= {"status": "complete", "results": result}
    return 200, json.dumps(answer)


async def tell(
    job: str,
    ready: str,
    send: Callable[[str], Awaitable[object]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Close:
    """Replay what the client has not, then go on live to the end; returns how to close then."""
    seen = int(json.loads(ready).get("seq") or 0)
    to = max(happened(job), seen)
    await send(json.dumps({"type": "ready_ack", "timestamp": 0, "epoch": "e1", "from": seen + 1, "to": to}))
    file = FOLDER / f"{job}.close"
    if file.exists():
        close = Close(*json.loads(file.read_text()))
        file.unlink()
        return close
    while seen < EVENTS:
        while seen < happened(job):
            seen += 1
            await send(frame(job, seen))
        await sleep(0.03)
    return Close()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """For every ASGI server; anyio's sleep, because one of them runs on trio."""
    import anyio

    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        status, body = state(scope["path"].removeprefix(STATE_PATH))
        head = {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        await send(head)
        await send({"type": "http.response.body", "body": body.encode()})
    else:
        job = parse_qs(scope["query_string"].decode())["jobId"][0]
        await receive()
        if refused := refusal(job, upgrade=True):
            # Where a server does not have the extension, a close before the accept is all that ASGI offers: 403.
            if "websocket.http.response" not in scope.get("extensions", {}):
                await send({"type": "websocket.close"})
                return
            headers = [(name.encode(), value.encode()) for name, value in refused.headers.items()]
            await send({"type": "websocket.http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": refused.body.encode()})
            return
        await send({"type": "websocket.accept"})
        message = await receive()
        if message["type"] == "websocket.receive":

            async def say(text: str) -> None:
                await send({"type": "websocket.send", "text": text})

            close = await tell(job, message["text"], say, anyio.sleep)
            await send({"type": "websocket.close", "code": close.code, "reason": close.reason})


def serve_aiohttp(port: int) -> None:
    """aiohttp."""
    from aiohttp import web

    async def watch(request: web.Request) -> web.StreamResponse:
        job = request.query["jobId"]
        if refused := refusal(job, upgrade=True):
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)
        line = web.WebSocketResponse(heartbeat=0.5)
        await line.prepare(request)
        lines.add(line)

        async def tell_all(ready: str) -> None:
            close = await tell(job, ready, line.send_str)
            await line.close(code=close.code, message=close.reason.encode())

        telling = asyncio.create_task(tell_all(await line.receive_str()))
        # Pings are answered, and pongs seen, by whoever reads.
        async for _ in line:
            pass
        telling.cancel()
        return line

    async def leave(application: web.Application) -> None:
        for line in lines:
            await line.close(code=1001)

    async def answer(request: web.Request) -> web.Response:
        status, body = state(request.match_info["job"])
        return web.Response(status=status, body=body, content_type="application/json")

    # Closing its sockets at shutdown is the application's part with aiohttp, and its manual says how.
    lines = WeakSet[web.WebSocketResponse]()
    application = web.Application()
    application.on_shutdown.append(leave)
    application.add_routes([web.get("/ws/progress", watch), web.get(STATE_PATH + "{job}", answer)])
    web.run_app(application, host="127.0.0.1", port=port, print=None, shutdown_timeout=0.5)


def serve_websockets(port: int) -> None:
    """The `websockets` library, which answers other requests by its hook."""
    from http import HTTPStatus
    from urllib.parse import urlsplit

    from websockets.asyncio.server import ServerConnection, serve
    from websockets.datastructures import Headers
    from websockets.http11 import Request, Response

    def job_of(request: Request) -> str:
        return parse_qs(urlsplit(request.path).query)["jobId"][0]

    async def watch(line: ServerConnection) -> None:
        assert line.request is not None
        close = await tell(job_of(line.request), str(await line.recv()), line.send)
        await line.close(close.code, close.reason)

    def answer(line: ServerConnection, request: Request) -> Response | None:
        if request.path.startswith(STATE_PATH):
            status, body = state(request.path.removeprefix(STATE_PATH))
            headers = {"content-type": "application/json"}
        elif refused := refusal(job_of(request), upgrade=True):
            status, headers, body = refused.status, refused.headers, refused.body
        else:
            return None
        length = {"content-length": str(len(body)), "connection": "close"}
        return Response(status, HTTPStatus(status).phrase, Headers({**headers, **length}), body.encode())

    async def listen() -> None:
        async with serve(watch, "127.0.0.1", port, process_request=answer, ping_interval=0.5, ping_timeout=2) as server:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
            await server.wait_closed()

    asyncio.run(listen())


def serve_tornado(port: int) -> None:
    """tornado."""
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler

    class Watch(WebSocketHandler):
        def prepare(self) -> None:
            if refused := refusal(self.get_query_argument("jobId"), upgrade=True):
                self.set_status(refused.status)
                for name, value in refused.headers.items():
                    self.set_header(name, value)
                self.finish(refused.body)

        telling: asyncio.Task[None] | None = None

        def on_message(self, message: str | bytes) -> None:
            # Not awaited here: tornado reads nothing more, not even a pong, before this has returned.
            self.telling = asyncio.create_task(self.tell_all(str(message)))

        async def tell_all(self, ready: str) -> None:
            close = await tell(self.get_query_argument("jobId"), ready, self.write_message)
            self.close(close.code, close.reason)

        def on_close(self) -> None:
            if self.telling is not None:
                self.telling.cancel()

    class State(RequestHandler):
        def get(self, job: str) -> None:
            status, body = state(job)
            self.set_status(status)
            self.set_header("content-type", "application/json")
            self.finish(body)

    async def listen() -> None:
        routes = [(r"/ws/progress", Watch), (STATE_PATH + "(.*)", State)]
        Application(routes, websocket_ping_interval=0.5, websocket_ping_timeout=0.5).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(listen())


OWN = {"aiohttp": serve_aiohttp, "websockets": serve_websockets, "tornado": serve_tornado}

if __name__ == "__main__":
    OWN[sys.argv[1]](int(sys.argv[2]))
