"""A small server of your own with one kind of job, to be followed in three ways: `python own_server.py`.

- `/jobs/7/ws` sends JSON messages over a WebSocket.
- `/jobs/7/events` sends Server-Sent Events with names and ids, and continues after `Last-Event-ID`.
- `/jobs/7` answers 202 while the job runs, then 200 with the result.

The job makes a step whenever it is asked for one, so the example needs no clock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

STEPS: Final = 4
RESULT: Final = {"books": 318}

_polls: Counter[str] = Counter()


def _messages(after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    for step in range(after + 1, STEPS + 1):
        yield step, {"event": "progress", "percent": 100 * step / STEPS}
    yield STEPS + 1, {"event": "done", "result": RESULT}


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    for _, message in _messages():
        await socket.send_json(message)
    await socket.close()


def _event(numbered: tuple[int, dict[str, Any]]) -> str:
    number, message = numbered
    return f"id: {number}\nevent: {message.pop('event')}\ndata: {json.dumps(message)}\n\n"


async def _events(request: Request) -> Response:
    after = int(request.headers.get("Last-Event-ID", "0"))
    return StreamingResponse(map(_event, _messages(after)), media_type="text/event-stream")


async def _job(request: Request) -> Response:
    job = request.path_params["job"]
    _polls[job] += 1
    if _polls[job] < STEPS:
        return JSONResponse({"event": "progress", "percent": 100 * _polls[job] / STEPS}, 202, {"Retry-After": "0"})
    return JSONResponse({"event": "done", "result": RESULT})


app = Starlette(
    routes=[
        WebSocketRoute("/jobs/{job}/ws", _socket),
        Route("/jobs/{job}/events", _events),
        Route("/jobs/{job}", _job),
    ]
)

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=8471, ws="websockets-sansio")
