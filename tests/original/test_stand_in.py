"""The stand-in answers as the recordings do: the client's half of each is played against it, in the recorded time."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from recordings import Recording
from stand_in import URL, StandIn

from towline import ConnectionClosed, HandshakeRefused
from towline.transport import Response, WebSocket, connect_websocket, request

NAMES = [
    "first-batch",
    "first-csv",
    "first-refused",
    "first-scan",
    "newest-batch",
    "newest-batch-canceled",
    "newest-batch-dropped",
    "newest-batch-ended-while-away",
    "newest-batch-reconnect-true",
    "newest-csv",
    "newest-refused",
    "newest-scan",
]


@pytest.mark.anyio
@pytest.mark.parametrize("name", NAMES)
async def test_it_plays_the_recording(name: str) -> None:
    recording = Recording(name)
    socket: WebSocket | None = None
    began = anyio.current_time()
    async with StandIn(name if not name.endswith("refused") else f"{recording.version}-csv") as server:
        for entry in recording.entries:
            await anyio.sleep_until(began + entry["t"] - recording.began)
            match entry["kind"]:
                case "http":
                    answer = await _call(server, entry)
                    assert answer.status == entry["status"], entry
                    assert answer.headers.header(b"content-type") == entry["headers"]["content-type"].encode(), entry
                    assert answer.body.decode().replace(server.token, "TOKEN") == entry["body"], entry
                case "open":
                    socket = await _dial(server, entry["path"].replace("JOB", "job-1").replace("TOKEN", server.token))
                case "refused":
                    with pytest.raises(HandshakeRefused, match="401"):
                        await _dial(server, "/ws/progress?jobId=job-1&token=bad")
                case "sent":
                    assert socket is not None
                    await socket.send(entry["text"])
                case "received":
                    assert socket is not None
                    with anyio.fail_after(0.01):
                        assert _timeless(await anext(socket)) == _timeless(entry["text"])
                case "note" if "we cut" in entry["text"]:
                    server.cut(server.sockets[-1])
                case "closed" if entry["code"] == 1006:
                    # The recorder closed with 1000 and waited for a second.
                    assert socket is not None
                    await socket.aclose(1000, timeout=1)
                    assert anyio.current_time() == pytest.approx(began + entry["t"] - recording.began + 1)
                case "closed":
                    assert socket is not None
                    with pytest.raises(ConnectionClosed) as closed, anyio.fail_after(0.01):
                        await socket.receive_batch()
                    assert (closed.value.code, closed.value.reason) == (entry["code"], entry["reason"])


@pytest.mark.anyio
@pytest.mark.parametrize("junk", ['{"type": "ping"}', "junk", b"\x00", '["ready"]'])
async def test_a_message_that_is_not_ready_ends_the_socket_and_the_token(junk: str | bytes) -> None:
    async with StandIn("newest-batch") as server:
        server.start()
        socket = await _dial(server, _path(server))
        await socket.send(junk)
        with pytest.raises(ConnectionClosed, match="1002"):
            await socket.receive_batch()
        await _assert_token_is_gone(server)


@pytest.mark.anyio
@pytest.mark.parametrize(("code", "kept"), [(1000, False), (1001, True)])
async def test_a_close_is_not_answered_and_1000_ends_the_token(code: int, kept: bool) -> None:
    async with StandIn("newest-batch", spacing=60) as server:
        server.start()
        socket = await _dial(server, _path(server))
        before = anyio.current_time()
        await socket.aclose(code, timeout=2)
        assert anyio.current_time() == before + 2
        if kept:
            await _dial(server, _path(server))
        else:
            await _assert_token_is_gone(server)
        assert len(server.complaints) == (not kept)


@pytest.mark.anyio
async def test_reconnect_true_beside_a_living_socket_cuts_both() -> None:
    async with StandIn("newest-batch", spacing=60) as server:
        server.start()
        sockets = [await _dial(server, _path(server)), await _dial(server, f"{_path(server)}&reconnect=true")]
        for socket in sockets:
            with pytest.raises(Exception, match="broke"):
                await socket.receive_batch()
        await _assert_token_is_gone(server)
        assert server.complaints


@pytest.mark.anyio
async def test_a_second_socket_makes_the_first_silent_and_its_end_the_second() -> None:
    async with StandIn("newest-batch", spacing=60) as server:
        server.start()
        first, second = await _dial(server, _path(server)), await _dial(server, _path(server))
        assert json.loads(await anext(second))["payload"]["processedCount"] == 1
        server.cut(server.sockets[0])
        with anyio.move_on_after(60 * 10):
            await anext(second)
            pytest.fail("the second socket was not silent")
        assert server.lost
        await second.aclose_forcefully()
        await first.aclose_forcefully()


@pytest.mark.anyio
async def test_the_token_dies_with_age() -> None:
    async with StandIn("newest-batch-ended-while-away") as server:
        server.start()
        await anyio.sleep(7199)
        await _dial(server, _path(server))
        await anyio.sleep(1)
        await _assert_token_is_gone(server)


def _path(server: StandIn) -> str:
    return f"/ws/progress?jobId=job-1&token={server.token}"


async def _dial(server: StandIn, path: str) -> WebSocket:
    return await connect_websocket(URL.replace("/ws/progress", path), network=server.network, liveness=None)


async def _call(server: StandIn, entry: dict[str, Any]) -> Response:
    text = json.dumps(entry["request_json"]).replace("TOKEN", server.token)
    return await request(
        entry["method"],
        f"http://backend{entry['path']}",
        headers={name: value.replace("TOKEN", server.token) for name, value in entry["request_headers"].items()},
        body=text.encode() if entry["method"] == "POST" else None,
        network=server.network,
    )


async def _assert_token_is_gone(server: StandIn) -> None:
    with pytest.raises(HandshakeRefused, match="401"):
        await _dial(server, _path(server))
    state = {"method": "GET", "path": "/api/job-state/job-1", "request_headers": {"Authorization": "Bearer TOKEN"}}
    assert (await _call(server, {**state, "request_json": None})).status == 401


def _timeless(message: str | bytes) -> Any:
    """A message without the times at which a client was answered."""
    document = json.loads(message)
    if document["type"] in ("ready_ack", "reconnected"):
        for part in (document, document.get("payload", {})):
            part.pop("timestamp", None)
            part.pop("lastUpdate", None)
    return document
