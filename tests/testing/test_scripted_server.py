"""The scripted server does as the hub does, until it is told otherwise. The client here is wsproto and h11, bare."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import h11
import pytest
from anyio.abc import ByteStream
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from towline._exceptions import TowlineError
from towline.testing import (
    Accept,
    Answer,
    Drop,
    Hang,
    Reaction,
    Request,
    ScriptedServer,
    run_virtual,
    virtual_time_backends,
)
from towline.transport import Endpoint, open_websocket, request

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


class Client:
    """One WebSocket: `next()` gives the next event that is no ping."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.events: list[ws.Event] = []

    async def send(self, event: ws.Event) -> None:
        await self.stream.send(self.protocol.send(event))

    async def next(self) -> ws.Event:
        while not self.events:
            self.protocol.receive_data(await self.stream.receive())
            self.events += self.protocol.events()
        return self.events.pop(0)

    async def ready(self, **cursor: object) -> dict[str, Any]:
        await self.send(ws.TextMessage(data=json.dumps({"type": "ready", "timestamp": 0, **cursor})))
        return await self.frame()

    async def frame(self) -> dict[str, Any]:
        event = await self.next()
        assert isinstance(event, ws.TextMessage)
        frame: dict[str, Any] = json.loads(event.data)
        return frame


@asynccontextmanager
async def socket(server: ScriptedServer, token: str = "t1", job: str = "j1", **more: Any) -> AsyncIterator[Client]:
    async with await server.network.connect(Endpoint("hub", 80)) as stream:
        client = Client(stream)
        headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        await client.send(ws.Request(host="hub", target=f"/ws/progress?jobId={job}", extra_headers=headers, **more))
        yield client


async def call(
    server: ScriptedServer, method: str, target: str, *, token: str = "t1", body: bytes = b"", **headers: str
) -> tuple[int, Any]:
    http = h11.Connection(h11.CLIENT)
    async with await server.network.connect(Endpoint("hub", 80)) as stream:
        fields = {"host": "hub", "authorization": f"Bearer {token}", "content-length": str(len(body)), **headers}
        head = h11.Request(method=method, target=target, headers=list(fields.items()))
        pieces = [http.send(head), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage())]
        await stream.send(b"".join(piece or b"" for piece in pieces))
        status, answer = 0, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await stream.receive())
                except anyio.EndOfStream:
                    http.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
            else:
                return status, json.loads(answer) if answer else None


# --- the WebSocket ---------------------------------------------------------------------------------------------


async def test_live_events_come_after_ready() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        async with socket(server) as client:
            assert isinstance(await client.next(), ws.AcceptConnection)
            ack = await client.ready()
            assert (ack["type"], ack["epoch"], ack["from"], ack["to"]) == ("ready_ack", "e1", 1, 0)
            job.start(total_count=2)
            job.progress(0.5, "half", processed=1, item="Emma")
            started, progress = await client.frame(), await client.frame()
        assert (started["type"], started["seq"], started["payload"]["totalCount"]) == ("job_started", 1, 2)
        assert started["payload"]["type"] == "job_started"
        assert (progress["seq"], progress["jobId"], progress["pipeline"]) == (2, "j1", "csv_import")
        assert progress["payload"]["processedCount"] == 1
        assert [event.seq for event in server.socket.sent] == [1, 2]


async def test_what_was_missed_is_replayed_from_the_cursor() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start()
        for count in range(1, 4):
            job.progress(count / 4, processed=count)
        async with socket(server) as client:
            await client.next()
            ack = await client.ready(epoch="e1", seq=2)
            assert (ack["from"], ack["to"]) == (3, 4)
            assert [(await client.frame())["seq"] for _ in range(2)] == [3, 4]
            job.complete({"books": [], "errors": [], "successRate": "3/3"})
            end = await client.frame()
            assert (end["type"], end["seq"], end["payload"]["successRate"]) == ("job_complete", 5, "3/3")
            close = await client.next()
            assert isinstance(close, ws.CloseConnection)
            assert close.code == 1000


async def test_a_cursor_of_another_epoch_or_from_before_the_window_gets_what_there_is() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        for count in range(1, 6):
            job.progress(count / 10)
        job.forget(3)
        async with socket(server) as client:
            await client.next()
            ack = await client.ready(epoch="e1", seq=1)
            assert (ack["from"], ack["to"]) == (4, 5)
        job.begin_new_epoch("e2")
        job.progress(0.1)
        async with socket(server) as client:
            await client.next()
            ack = await client.ready(epoch="e1", seq=5)
            assert (ack["epoch"], ack["from"], ack["to"]) == ("e2", 1, 1)


async def test_a_server_without_numbers_speaks_as_the_original() -> None:
    async with ScriptedServer(numbered=False, closes_after_end=None) as server:
        job = server.job("j1", token="t1", pipeline="ai_scan")
        async with socket(server) as client:
            await client.next()
            await server.wait_sockets()
            job.progress(0.5)
            frame = await client.frame()
            assert "seq" not in frame
            assert "epoch" not in frame
            assert await client.ready() == {"type": "ready_ack", "timestamp": 0.0}
        assert "seq" not in (await call(server, "GET", "/api/job-state/j1"))[1]


@pytest.mark.parametrize(("token", "job", "status"), [("bad", "j1", 401), ("", "j1", 401), ("t1", "other", 404)])
async def test_an_upgrade_needs_a_token_and_a_job(token: str, job: str, status: int) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        async with socket(server, token, job) as client:
            refusal = await client.next()
            assert isinstance(refusal, ws.RejectConnection)
            assert refusal.status_code == status


async def test_the_token_may_come_as_a_subprotocol() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.script("upgrade", Accept(subprotocol="towline.t1"))
        async with socket(server, "", subprotocols=["towline.t1"]) as client:
            accepted = await client.next()
            assert isinstance(accepted, ws.AcceptConnection)
            assert accepted.subprotocol == "towline.t1"
        assert server.requests[0].token == "t1"


async def test_upgrades_follow_the_script_and_are_counted_with_their_times() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.script("upgrade", Answer(503, headers={"Retry-After": "3"}, after=0.5), Drop("fin"), Drop("rst"), Hang())
        async with socket(server) as client:
            refusal = await client.next()
            assert isinstance(refusal, ws.RejectConnection)
            assert (refusal.status_code, dict(refusal.headers)[b"retry-after"]) == (503, b"3")
        await anyio.sleep(2.5)
        for error in (anyio.EndOfStream, anyio.BrokenResourceError):
            async with socket(server) as client:
                with pytest.raises(error):
                    await client.next()
        async with socket(server) as client:
            with anyio.move_on_after(60) as scope:
                await client.next()
            assert scope.cancelled_caught
        async with socket(server) as client:
            assert isinstance(await client.next(), ws.AcceptConnection)
        assert server.times("upgrade") == pytest.approx([0, 3, 3, 3, 63])


async def test_a_flapping_server() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.always("upgrade", Accept(close_after=1, close_code=1012))
        for _ in range(3):
            async with socket(server) as client:
                await client.next()
                close = await client.next()
                assert isinstance(close, ws.CloseConnection)
                assert close.code == 1012
                await client.send(close.response())
        assert server.times("upgrade") == pytest.approx([0, 1, 2])
        await anyio.wait_all_tasks_blocked()
        assert not server.open_sockets


async def test_always_may_decide_by_the_request() -> None:
    def every_second(request: Request) -> Reaction | None:
        return Answer(429) if len(server.times("upgrade")) % 2 else None

    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.always("upgrade", every_second)
        seen = []
        for _ in range(4):
            async with socket(server) as client:
                seen.append(type(await client.next()))
        assert seen == [ws.RejectConnection, ws.AcceptConnection] * 2
        server.always("upgrade", None)
        async with socket(server) as client:
            assert isinstance(await client.next(), ws.AcceptConnection)


async def test_hanging_at_each_phase_of_a_socket() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        server.script(
            "upgrade", Accept(answers_ready=False), Accept(answers_pings=False), Accept(answers_close=False), Accept()
        )
        for event in (ws.TextMessage('{"type":"ready","timestamp":0}'), ws.Ping(), ws.CloseConnection(code=1001)):
            async with socket(server) as client:
                await client.next()
                with anyio.move_on_after(60) as scope:
                    await client.send(event)
                    await client.next()
                assert scope.cancelled_caught
        assert server.socket.client_close == (1001, "")
        async with socket(server) as client:
            await client.next()
            await client.send(ws.Ping(payload=b"x"))
            assert await client.next() == ws.Pong(payload=b"x")


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (lambda one: one.close(4401, "token"), ws.CloseConnection(code=4401, reason="token")),
        (lambda one: one.send_text("not json"), ws.TextMessage(data="not json")),
        (lambda one: one.send_bytes(b"\0"), ws.BytesMessage(data=b"\0")),
        (lambda one: one.send_raw(b"\x81\x01?"), ws.TextMessage(data="?")),
        (lambda one: one.ping(b"p"), ws.Ping(payload=b"p")),
        (lambda one: one.cut("fin"), anyio.EndOfStream),
        (lambda one: one.cut("rst"), anyio.BrokenResourceError),
    ],
)
async def test_a_test_can_make_the_socket_do_it(act: Callable[[Any], None], seen: Any) -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        async with socket(server) as client:
            await client.next()
            act(await server.wait_sockets())
            if isinstance(seen, type):
                with pytest.raises(seen):
                    await client.next()
            else:
                assert await client.next() == seen


async def test_a_black_hole_and_silence() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        async with socket(server) as client:
            await client.next()
            await client.ready()
            job.silent = True
            job.progress(0.1)
            job.silent = False
            job.progress(0.2)
            assert (await client.frame())["seq"] == 2  # a gap: the first was logged, not sent
            server.socket.hold("down")
            job.progress(0.3)
            with anyio.move_on_after(100) as scope:
                await client.frame()
            assert scope.cancelled_caught


# --- HTTP ------------------------------------------------------------------------------------------------------


async def test_the_state_tells_the_story_so_far() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=4)
        job.progress(0.25, processed=1, item="Emma")
        status, state = await call(server, "GET", "/api/job-state/j1")
        assert (status, state["status"], state["processedCount"], state["totalCount"]) == (200, "running", 1, 4)
        assert (state["seq"], state["epoch"], state["currentItem"]) == (2, "e1", "Emma")
        job.fail("E_BOOM", "broken", retryable=True)
        _, state = await call(server, "GET", "/api/job-state/j1")
        assert (state["status"], state["error"]["code"], state["seq"]) == ("failed", "E_BOOM", 3)
        server.remove(job)
        assert (await call(server, "GET", "/api/job-state/j1"))[0] == 404
        server.revoke("t1")
        assert (await call(server, "GET", "/api/job-state/j1"))[0] == 401


async def test_a_stale_state_and_failures_can_be_scripted() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.progress(0.1, processed=1)
        old = job.state()
        job.progress(0.2, processed=2)
        html = Answer(200, b"<html>log in", {"content-type": "text/html"})
        server.script("state", Answer(body=old), Answer(500), html)
        assert (await call(server, "GET", "/api/job-state/j1"))[1]["processedCount"] == 1
        assert (await call(server, "GET", "/api/job-state/j1"))[0] == 500
        with pytest.raises(json.JSONDecodeError):
            await call(server, "GET", "/api/job-state/j1")
        assert (await call(server, "GET", "/api/job-state/j1"))[1]["processedCount"] == 2


async def test_the_token_is_renewed_and_the_old_one_lives_on_until_revoked() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        body = json.dumps({"jobId": "j1", "oldToken": "t1"}).encode()
        status, answer = await call(server, "POST", "/api/token/refresh", body=body)
        assert (status, answer["jobId"]) == (200, "j1")
        assert answer["token"] == job.token != "t1"
        for token in ("t1", job.token):
            assert (await call(server, "GET", "/api/job-state/j1", token=token))[0] == 200
        server.revoke("t1")
        assert (await call(server, "GET", "/api/job-state/j1"))[0] == 401
        assert (await call(server, "POST", "/api/token/refresh", body=body))[0] == 401
        assert (await call(server, "POST", "/api/token/refresh", body=b"?"))[0] == 400


async def test_cancelling_is_idempotent_and_may_come_too_late() -> None:
    async with ScriptedServer() as server:
        job, other = server.job("j1", token="t1"), server.job("j2", token="t2")
        key = {"idempotency-key": "k"}
        for _ in range(2):
            answer = await call(server, "POST", "/api/jobs/j1/cancel", **key)
            assert answer == (200, {"jobId": "j1", "result": "accepted"})
        assert [event.type for event in job.log] == ["job_canceled"]
        other.complete({"books": [1]})
        assert (await call(server, "POST", "/api/jobs/j2/cancel", token="t2"))[1]["result"] == "too_late"
        assert await call(server, "GET", "/api/jobs/j2/results", token="t2") == (200, {"books": [1]})
        assert (await call(server, "GET", "/api/jobs/j1/results"))[0] == 404
        assert (await call(server, "GET", "/elsewhere"))[0] == 404


# --- with the transport of the engine --------------------------------------------------------------------------


async def test_the_transport_runs_on_it_unchanged() -> None:
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.progress(0.5, processed=1)
        server.script("state", Answer(503))
        for status in (503, 200):
            response = await request(
                "GET",
                "http://hub/api/job-state/j1",
                headers={"Authorization": "Bearer t1"},
                network=server.network,
            )
            assert response.status == status
        assert json.loads(response.body)["processedCount"] == 1
        url = "ws://hub/ws/progress?jobId=j1"
        async with open_websocket(url, headers={"Authorization": "Bearer t1"}, network=server.network) as line:
            await line.send('{"type":"ready","timestamp":0}')
            job.complete()
            types = [json.loads(message)["type"] async for message in line]
        assert types == ["ready_ack", "job_progress", "job_complete"]


async def test_the_transport_notices_a_black_hole_under_virtual_time() -> None:
    async with ScriptedServer() as server:
        server.job("j1", token="t1")
        headers = {"Authorization": "Bearer t1"}
        with pytest.raises(TowlineError):
            async with open_websocket("ws://hub/ws/progress?jobId=j1", headers=headers, network=server.network) as line:
                await server.wait_sockets()
                server.socket.hold()
                async for _ in line:
                    pass
        assert 20 < anyio.current_time() < 30


# --- at scale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_hundreds_of_watchers_and_the_same_course_twice(backend: str) -> None:
    async def main() -> list[float]:
        async with ScriptedServer() as server:
            job = server.job("j1", token="t1")

            async def watch(number: int) -> None:
                await anyio.sleep(number * 0.01)
                async with socket(server) as client:
                    await client.next()
                    await client.ready()
                    while (await client.frame())["type"] != "job_complete":
                        pass

            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(watch, number)
                await anyio.sleep(3600)
                job.progress(0.5)
                job.complete()
            assert sum(len(one.sent) for one in server.sockets) == 200
            return server.times("upgrade")

    assert run_virtual(main, backend=backend) == run_virtual(main, backend=backend)
