"""The clients to compare. `python clients.py CONTESTANT WORK URL N` runs one workload and prints one JSON line.

Workloads: `receive` (N messages in a row), `send` (N messages, until the server has them all), `send-batch` (the same
in batches, if the client can), `echo` (N round trips),
`drops` (N times from the end of a connection to the first message on the next), `idle` (N connections without traffic
for some seconds), `idle-connections` (the same with whole `Connection`s), `follow` (a job of N events), `parse`
(N events of an event stream, from memory).
`cpu` is this process's CPU time in seconds from the first message to the last, `wall` is the real time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

BATCH = 50  # messages to send at once
QUIET = 20.0  # seconds of measuring an idle process


class Watch:
    """CPU and real time between `start` and `stop`."""

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self, **more: float) -> NoReturn:
        """Print the result and exit the process at once, so that the shutdown of a library is not measured."""
        used = {"cpu": time.process_time() - self.cpu, "wall": time.perf_counter() - self.wall}
        os.write(1, json.dumps({**used, **more}).encode() + b"\n")
        os._exit(0)


WATCH = Watch()


def size_of(url: str) -> int:
    """The size in `/sink/SIZE/COUNT`."""
    return int(url.rsplit("/", 2)[1])


def memory() -> int:
    """The resident memory of this process, in bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a benchmark's own process
        return int(file.read().split()[1]) * resource.getpagesize()


def event_stream(url: str, count: int) -> list[bytes]:
    """An event stream of `count` events in chunks, as `/events/BYTES OF AN EVENT'S DATA/BYTES OF A CHUNK` asks.

    A chunk of 0 bytes is one event: what a server sends that has nothing more to say yet.
    """
    size, chunk = (int(part) for part in url.rsplit("/", 2)[1:])
    events = []
    for number in range(count):
        data = json.dumps({"type": "job_progress", "seq": number, "payload": {"status": ""}})
        data = f"{data[:-3]}{'x' * (size - len(data))}{data[-3:]}"
        events.append(f"id: {number}\nevent: progress\ndata: {data}\n\n".encode())
    whole = b"".join(events)
    return [whole[i : i + chunk] for i in range(0, len(whole), chunk)] if chunk else events


# --- Towline -----------------------------------------------------------------------------------------------------


def towline(backend: str, **backend_options: Any) -> Any:
    import anyio

    from towline._exceptions import TowlineError
    from towline.transport import Limits, connect_websocket, open_websocket

    deflate: dict[str, Any] = {}

    async def receive(url: str, count: int) -> None:
        if "/deflate/" in url:
            from towline.transport import Deflate

            deflate["deflate"] = Deflate()
        async with open_websocket(url, limits=Limits(max_message=4 << 20), **deflate) as socket:
            seen = 0
            async for _ in socket:
                if seen == 0:
                    WATCH.start()
                seen += 1
                if seen == count:
                    WATCH.stop()
        raise AssertionError(seen)

    async def echo(url: str, count: int) -> None:
        message = "x" * int(url.rsplit("/", 1)[1])
        async with open_websocket(url) as socket:
            for number in range(count + 100):
                if number == 100:
                    WATCH.start()
                await socket.send(message)
                await socket.receive_batch()
            WATCH.stop()

    async def send(url: str, count: int) -> None:
        message = "x" * size_of(url)
        async with open_websocket(url) as socket:
            WATCH.start()
            for _ in range(count):
                await socket.send(message)
            await socket.receive_batch()
            WATCH.stop()

    async def send_batch(url: str, count: int) -> None:
        batch = ["x" * size_of(url)] * BATCH
        async with open_websocket(url) as socket:
            WATCH.start()
            for _ in range(count // BATCH):
                await socket.send_batch(batch)
            await socket.receive_batch()
            WATCH.stop()

    async def drops(url: str, count: int) -> None:
        for number in range(count + 20):
            if number == 20:
                WATCH.start()
            socket = await connect_websocket(url)
            await socket.receive_batch()
            try:
                await socket.receive_batch()
            except TowlineError:
                pass
        WATCH.stop()

    async def hold_many(hold: Callable[[], Awaitable[None]], count: int, *, together: int) -> None:
        """Run `hold` `count` times concurrently and measure the idle load."""
        before = memory()
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(hold)
                if number % together == 0:
                    await anyio.sleep(0.02)
            await anyio.sleep(5)
            each = (memory() - before) / count
            WATCH.start()
            await anyio.sleep(QUIET)
            WATCH.stop(bytes=each)

    async def idle(url: str, count: int) -> None:
        async def hold() -> None:
            socket = await connect_websocket(url, deadline=120)
            await socket.receive_batch()

        await hold_many(hold, count, together=50)

    async def idle_connections(url: str, count: int) -> None:
        import towline as package

        async def hold() -> None:
            async with package.Connection(url, job="j", token="t") as line:
                await line.wait_for(package.State.CONNECTED)
                await anyio.sleep_forever()

        await hold_many(hold, count, together=20)

    async def follow(url: str, count: int) -> None:
        import towline as package

        seen = 0
        async with package.Connection(url, job="j", token="t") as line:
            WATCH.start()
            async for update in line:
                seen += 1
                last = update
            assert type(last).__name__ == "JobComplete", last
            WATCH.stop(updates=seen)

    async def parse(url: str, count: int) -> None:
        from towline.transport import EventParser

        chunks, parser, seen = event_stream(url, count), EventParser(), 0
        WATCH.start()
        for chunk in chunks:
            for event in parser.feed(chunk):
                seen += bool(event.data)
        assert seen == count
        WATCH.stop()

    def run(work: str, url: str, count: int) -> None:
        works: dict[str, Callable[[str, int], Awaitable[None]]] = {
            "receive": receive,
            "send": send,
            "send-batch": send_batch,
            "echo": echo,
            "drops": drops,
            "idle": idle,
            "idle-connections": idle_connections,
            "follow": follow,
            "parse": parse,
        }
        anyio.run(works[work], url, count, backend=backend, backend_options=backend_options)

    return run


# --- websockets --------------------------------------------------------------------------------------------------


def websockets_asyncio(work: str, url: str, count: int) -> None:
    import asyncio

    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    compression = "deflate" if "/deflate/" in url else None

    async def main() -> None:
        if work == "receive" or work == "follow":
            async with connect(url, compression=compression, max_size=4 << 20) as socket:
                seen = 0
                async for message in socket:
                    if seen == 0:
                        WATCH.start()
                    seen += 1
                    if work == "follow":
                        json.loads(message)
                    if seen == count:
                        WATCH.stop()
        if work == "echo":
            message = "x" * int(url.rsplit("/", 1)[1])
            async with connect(url, compression=None) as socket:
                for number in range(count + 100):
                    if number == 100:
                        WATCH.start()
                    await socket.send(message)
                    await socket.recv()
                WATCH.stop()
        if work in {"send", "send-batch"}:  # it has no batches
            message = "x" * size_of(url)
            async with connect(url, compression=None) as socket:
                WATCH.start()
                for _ in range(count):
                    await socket.send(message)
                await socket.recv()
                WATCH.stop()
        if work == "drops":
            for number in range(count + 20):
                if number == 20:
                    WATCH.start()
                async with connect(url, compression=None) as socket:
                    await socket.recv()
                    try:
                        await socket.recv()
                    except ConnectionClosed:
                        pass
            WATCH.stop()
        if work == "idle":
            held = []
            before = memory()
            for number in range(count):
                held.append(asyncio.ensure_future(hold()))
                if number % 50 == 0:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(3)
            each = (memory() - before) / count
            WATCH.start()
            await asyncio.sleep(QUIET)
            WATCH.stop(bytes=each)
        raise AssertionError(work)

    async def hold() -> None:
        async with connect(url, compression=None, open_timeout=120, ping_interval=15, ping_timeout=10) as socket:
            await socket.recv()

    asyncio.run(main())


def websockets_trio(work: str, url: str, count: int) -> None:
    import trio
    from websockets.trio.client import connect

    async def main() -> None:
        async with connect(url, compression=None, max_size=4 << 20) as socket:
            seen = 0
            async for _ in socket:
                if seen == 0:
                    WATCH.start()
                seen += 1
                if seen == count:
                    WATCH.stop()
        raise AssertionError(seen)

    assert work == "receive"
    trio.run(main)


# --- the others --------------------------------------------------------------------------------------------------


def aiohttp(work: str, url: str, count: int) -> None:
    import asyncio

    import aiohttp as package

    compress = 15 if "/deflate/" in url else 0

    async def main() -> None:
        async with package.ClientSession() as session:
            if work == "receive":
                async with session.ws_connect(url, compress=compress, max_msg_size=4 << 20) as socket:
                    seen = 0
                    async for message in socket:
                        assert message.data
                        if seen == 0:
                            WATCH.start()
                        seen += 1
                        if seen == count:
                            WATCH.stop()
            if work == "echo":
                text = "x" * int(url.rsplit("/", 1)[1])
                async with session.ws_connect(url) as socket:
                    for number in range(count + 100):
                        if number == 100:
                            WATCH.start()
                        await socket.send_str(text)
                        await socket.receive()
                    WATCH.stop()
            if work in {"send", "send-batch"}:  # it has no batches
                text = "x" * size_of(url)
                async with session.ws_connect(url) as socket:
                    WATCH.start()
                    for _ in range(count):
                        await socket.send_str(text)
                    await socket.receive()
                    WATCH.stop()
            if work == "drops":
                for number in range(count + 20):
                    if number == 20:
                        WATCH.start()
                    async with session.ws_connect(url) as socket:
                        await socket.receive()
                        await socket.receive()
                WATCH.stop()
        raise AssertionError(work)

    asyncio.run(main())


def picows(work: str, url: str, count: int) -> None:
    import asyncio

    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

    class Listener(WSListener):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seen = 0

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type != WSMsgType.TEXT:
                return
            frame.get_payload_as_utf8_text()
            if work == "echo":
                if self.seen == 100:
                    WATCH.start()
                self.seen += 1
                if self.seen == count + 100:
                    WATCH.stop()
                else:
                    transport.send(WSMsgType.TEXT, self.message)
                return
            if self.seen == 0:
                WATCH.start()
            self.seen += 1
            if self.seen == count:
                WATCH.stop()

    async def main() -> None:
        transport, listener = await ws_connect(Listener, url)
        if work == "echo":
            listener.message = b"x" * int(url.rsplit("/", 1)[1])
            transport.send(WSMsgType.TEXT, listener.message)
        await asyncio.get_running_loop().create_future()

    assert work in {"receive", "echo"}
    asyncio.run(main())


def trio_websocket(work: str, url: str, count: int) -> None:
    import trio
    from trio_websocket import open_websocket_url

    async def main() -> None:
        async with open_websocket_url(url, max_message_size=4 << 20) as socket:
            for seen in range(count):
                await socket.get_message()
                if seen == 0:
                    WATCH.start()
            WATCH.stop()

    assert work == "receive"
    trio.run(main)


def httpx_ws(work: str, url: str, count: int) -> None:
    import asyncio

    import httpx_ws as package

    async def main() -> None:
        if work == "drops":
            for number in range(count + 5):
                if number == 5:
                    WATCH.start()
                try:
                    async with package.aconnect_ws(url) as socket:
                        await socket.receive_text()
                        await socket.receive_text()
                except Exception:
                    pass  # it wraps the drop in its own exception groups
            WATCH.stop()
        raise AssertionError(work)

    asyncio.run(main())


def httpx_sse(work: str, url: str, count: int) -> None:
    import httpx
    from httpx_sse import EventSource

    class Chunks(httpx.SyncByteStream):
        def __init__(self, chunks: list[bytes]) -> None:
            self.chunks = chunks

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.chunks)

    assert work == "parse"
    stream, seen = Chunks(event_stream(url, count)), 0
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream)
    WATCH.start()
    for event in EventSource(response).iter_sse():
        seen += bool(event.data)
    assert seen == count
    WATCH.stop()


def blocking(work: str, url: str, count: int) -> None:
    """A plain blocking socket: the upper limit on this machine."""
    import socket

    port, path = url.removeprefix("ws://127.0.0.1:").split("/", 1)
    request = (
        f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    for number in range(count + 20):
        if number == 20:
            WATCH.start()
        connection = socket.create_connection(("127.0.0.1", int(port)))
        connection.sendall(request)
        data = b""
        while len(data.partition(b"\r\n\r\n")[2]) < 204:
            data += connection.recv(65536)
        try:
            while connection.recv(65536):
                pass
        except OSError:
            pass
        connection.close()
    WATCH.stop()


CONTESTANTS: dict[str, Callable[[str, str, int], None]] = {
    "towline": lambda *arguments: towline("asyncio")(*arguments),
    "towline-uvloop": lambda *arguments: towline("asyncio", use_uvloop=True)(*arguments),
    "towline-trio": lambda *arguments: towline("trio")(*arguments),
    "websockets": websockets_asyncio,
    "websockets-trio": websockets_trio,
    "aiohttp": aiohttp,
    "picows": picows,
    "trio-websocket": trio_websocket,
    "httpx-ws": httpx_ws,
    "httpx-sse": httpx_sse,
    "blocking": blocking,
}


if __name__ == "__main__":
    name, work, url, count = sys.argv[1:]
    CONTESTANTS[name](work, url, int(count))
    raise SystemExit("the workload did not finish")
