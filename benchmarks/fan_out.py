"""A fan-out as it is often written, without a log, replay or tokens: what `benchmarks/hub.py` compares the hub with.

python benchmarks/fan_out.py FOLDER     # prints its URL; a job begins when FOLDER/<job>/go exists
"""

import asyncio
import json
import secrets
import socket
import sys
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

followers: dict[str, set[WebSocket]] = {}
jobs: set[asyncio.Task[None]] = set()


async def run(job: str, events: int, pause: float) -> None:
    (folder := Path(sys.argv[1]) / job).mkdir(parents=True)
    while not (folder / "go").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)
    for done in range(1, events + 1):
        payload = {"processedCount": done, "progress": done / events, "currentItem": str(time.time_ns())}
        text = json.dumps({"type": "job_progress", "jobId": job, "payload": payload})
        for follower in tuple(followers[job]):
            await follower.send_text(text)
        await asyncio.sleep(pause)
    for follower in tuple(followers[job]):
        await follower.close()


async def start(request: Request) -> JSONResponse:
    events, pause = (await request.body()).split()
    followers[job := secrets.token_hex(16)] = set()
    jobs.add(asyncio.create_task(run(job, int(events), float(pause))))
    return JSONResponse({"jobId": job, "token": "none"}, 202)


async def follow(follower: WebSocket) -> None:
    await follower.accept()
    followers[follower.query_params["jobId"]].add(follower)
    await follower.send_text('{"type":"job_started"}')
    try:
        while True:
            await follower.receive_text()
    except WebSocketDisconnect:
        followers[follower.query_params["jobId"]].discard(follower)


if __name__ == "__main__":
    app = Starlette(routes=[Route("/start", start, methods=["POST"]), WebSocketRoute("/ws/progress", follow)])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    # The hub's server and event loop.
    config = uvicorn.Config(
        app, ws="websockets-sansio", ws_per_message_deflate=False, log_level="warning", loop="asyncio"
    )
    uvicorn.Server(config).run([listener])
