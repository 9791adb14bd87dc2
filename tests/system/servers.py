"""One job served by many kinds of server: `python servers.py KIND PORT FILE`.

The job is nothing but time: its n-th event happens `PACE` seconds after the one before, counted from the moment that
FILE holds (seconds since 1970). So a server that was killed goes on where it would be, and knows its whole log.
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
from typing import Any

EVENTS, PACE = 40, 0.15
ASGI = {
    "uvicorn-websockets": ["uvicorn", "--ws", "websockets-sansio", "--port"],
    "uvicorn-wsproto": ["uvicorn", "--ws", "wsproto", "--port"],
    "hypercorn-asyncio": ["hypercorn", "--worker-class", "asyncio", "--graceful-timeout", "1", "--bind"],
    "hypercorn-trio": ["hypercorn", "--worker-class", "trio", "--graceful-timeout", "1", "--bind"],
    "daphne": ["daphne", "-p"],
    "granian": ["granian", "--interface", "asgi", "--port"],
}


def frame(seq: int) -> dict[str, Any]:
    """The job's event number `seq`."""
    payload: dict[str, Any] = {"type": "job_progress", "progress": seq / EVENTS, "status": "x", "processedCount": seq}
    if seq == 1:
        payload = {"type": "job_started", "totalCount": EVENTS}
    elif seq == EVENTS:
        payload = {"type": "job_complete", "books": [], "errors": [], "successRate": "40/40"}
    head = {"type": payload["type"], "jobId": "j1", "pipeline": "csv_import", "version": "1.0.0"}
    return {**head, "timestamp": seq, "seq": seq, "epoch": "e1", "payload": payload}


def last(began: Path) -> int:
    """How many events have happened."""
    return max(1, min(EVENTS, int((time.time() - float(began.read_text())) / PACE)))


def state(began: Path) -> bytes:
    """The answer of the state call."""
    seq = last(began)
    answer: dict[str, Any] = {"pipeline": "csv_import", "status": "running", "seq": seq, "epoch": "e1"}
    answer |= {"totalCount": EVENTS, "processedCount": seq, "startTime": 0, "version": "1.0.0"}
    if seq == EVENTS:
        answer |= {"status": "complete", "results": {"books": [], "errors": [], "successRate": "40/40"}}
    return json.dumps(answer).encode()


async def tell(
    began: Path,
    ready: str,
    send: Callable[[str], Awaitable[object]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Replay what the client has not, then go on live to the end."""
    seen = int(json.loads(ready).get("seq") or 0)
    to = last(began)
    await send(json.dumps({"type": "ready_ack", "timestamp": 0, "epoch": "e1", "from": seen + 1, "to": max(to, seen)}))
    while seen < EVENTS:
        while seen < last(began):
            seen += 1
            await send(json.dumps(frame(seen)))
        await sleep(0.03)


def asgi_app(began: Path) -> Any:
    """For every ASGI server; anyio's sleep, because one of them runs on trio."""
    import anyio

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
            )
            await send({"type": "http.response.body", "body": state(began)})
        else:
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            if message["type"] == "websocket.receive":

                async def say(text: str) -> None:
                    await send({"type": "websocket.send", "text": text})

                await tell(began, message["text"], say, anyio.sleep)
                await send({"type": "websocket.close", "code": 1000})

    return app


async def serve_aiohttp(port: int, began: Path) -> None:
    """aiohttp."""
    from aiohttp import web

    async def watch(request: web.Request) -> web.WebSocketResponse:
        line = web.WebSocketResponse()
        await line.prepare(request)
        await tell(began, await line.receive_str(), line.send_str)
        await line.close()
        return line

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=state(began), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/ws/progress", watch), web.get("/api/job-state/{job}", answer)])
    await web._run_app(app, host="127.0.0.1", port=port, print=None, shutdown_timeout=0.5)


async def serve_websockets(port: int, began: Path) -> None:
    """The `websockets` library, which answers the state call by its hook."""
    from http import HTTPStatus

    from websockets.asyncio.server import ServerConnection, serve
    from websockets.http11 import Request, Response

    async def watch(line: ServerConnection) -> None:
        await tell(began, str(await line.recv()), line.send)

    def answer(line: ServerConnection, request: Request) -> Response | None:
        if request.path.startswith("/api/"):
            response = line.respond(HTTPStatus.OK, state(began).decode())
            del response.headers["content-type"]
            response.headers["content-type"] = "application/json"
            return response
        return None

    async with serve(watch, "127.0.0.1", port, process_request=answer) as server:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, server.close)
        await server.wait_closed()


async def serve_tornado(port: int, began: Path) -> None:
    """tornado."""
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler

    class Watch(WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            await tell(began, str(message), self.write_message)
            self.close(1000)

    class State(RequestHandler):
        def get(self, job: str) -> None:
            self.set_header("content-type", "application/json")
            self.write(state(began))

    Application([(r"/ws/progress", Watch), (r"/api/job-state/(.*)", State)]).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


def main() -> None:
    """Serve until a signal."""
    kind, port, began = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    own = {"aiohttp": serve_aiohttp, "websockets": serve_websockets, "tornado": serve_tornado}
    if kind in own:
        asyncio.run(own[kind](port, began))
        return
    program, *arguments = ASGI[kind]
    where = f"127.0.0.1:{port}" if program == "hypercorn" else str(port)
    # In this very process, so that a signal meant for the server meets the server.
    os.execv(sys.executable, [sys.executable, "-m", program, *arguments, where, "servers:app"])


if "BEGAN" in os.environ:
    app = asgi_app(Path(os.environ["BEGAN"]))  # `servers:app`, for the ASGI servers

if __name__ == "__main__":
    main()
