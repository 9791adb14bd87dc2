"""Hostile and broken bytes in the long run: only typed errors, the same however they are cut, within the limits."""

from __future__ import annotations

import gc
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from wsproto.utilities import generate_accept_token

from towline import HandshakeRefused, MalformedMessage, MessageTooBig, Progress, ProtocolViolation
from towline._facts import Follow, Message, Numbered, Snapshot
from towline.engine.reader import Reader
from towline.engine.sequence.findings import End, Synced
from towline.engine.sequence.sequencer import Sequencer
from towline.protocols.towline import Towline
from towline.transport import Limits, WebSocketProtocol, open_websocket, request

pytestmark = pytest.mark.timeout(7200)
Load = Callable[[str], ModuleType]
Count = Callable[[int], int]
Tell = Callable[..., None]


def memory() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.promises("P2", "hostile bytes: only typed errors, no hang over 1 s, memory bounded", "1,000,000 in all: 0")
@pytest.mark.parametrize("name", ["handshake", "frames", "http_answer", "events"])
def test_mutated_inputs(name: str, load: Load, count: Count, reached: Tell) -> None:
    hostile = load("transport/test_hostile.py")
    check = hostile.target(name)
    inputs = count(1_000_000) // 4 + 1
    slowest, before = 0.0, 0
    for seed, data in hostile.inputs(name, inputs):
        begun = time.thread_time()
        try:
            check(data)
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, {data!r}") from error
        slowest = max(slowest, time.thread_time() - begun)
        if seed == inputs // 10:
            gc.collect()
            before = memory()  # what is made once has been made
    gc.collect()
    growth = (memory() - before) / 2**20
    reached(f"{inputs:,}: 0 untyped, the slowest took {slowest * 1000:.0f} ms, {growth:+.1f} MiB")
    assert slowest < 1
    assert growth < 5


@pytest.mark.promises("P2", "the short cut through framing means what wsproto means", "500,000 streams: 0 differ")
@pytest.mark.parametrize("part", range(4))
def test_framing_against_wsproto(
    part: int, load: Load, count: Count, reached: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    framing = load("transport/test_framing.py")
    monkeypatch.setattr(framing, "STREAMS", count(500_000))
    framing.test_the_short_cut_means_what_wsproto_means(part)
    reached(f"{count(500_000) // 4:,} streams: 0 differ")


@pytest.mark.promises(
    "P2", "event streams mean what httpx-sse means, as far as it is right", "100,000 streams: 0 differ"
)
def test_events_against_httpx_sse(load: Load, count: Count, reached: Tell) -> None:
    streams = count(100_000)
    seen = load("transport/test_event_stream.py").compare_with_httpx_sse(streams, start=1_000_000)
    assert seen > 2 * streams
    reached(f"{streams:,} streams, {seen:,} events: 0 differ")


# --- P3: the same bytes give the same updates however they are cut -------------------------------------------------


def session(rng: random.Random, framing: ModuleType) -> bytes:
    """What a server might send from the upgrade on: the acknowledgement, a job's events, and now and then a fault."""
    numbered = rng.random() < 0.7
    documents: list[Any] = [{"type": "ready_ack", "timestamp": 1}]
    last = rng.randint(1, 8)
    if numbered and rng.random() < 0.7:
        documents[0] |= {"epoch": "e1", "from": 1, "to": rng.randint(0, last)}
    for seq in range(1, last + 1):
        kind = "job_started" if seq == 1 else rng.choice(["job_progress"] * 8 + ["job_complete", "error", "odd"])
        payload: dict[str, Any] = {"processedCount": seq, "progress": seq / last, "status": "läuft €𝄞"}
        if kind == "error":
            payload = {"code": "E", "message": "m"}
        document = {"type": kind, "jobId": "j1", "pipeline": "csv_import", "timestamp": seq, "payload": payload}
        documents.append(document | ({"seq": seq, "epoch": "e1"} if numbered else {}))
    if rng.random() < 0.3:
        fault = rng.choice(["drop", "twice", "swap"])
        place = rng.randrange(len(documents))
        if fault == "drop":
            del documents[place]
        elif fault == "twice":
            documents.insert(place, documents[place])
        else:
            documents.append(documents.pop(place))
    wire = b""
    for document in documents:
        text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()
        if rng.random() < 0.3:
            place = rng.randint(0, len(text))
            wire += framing.frame(1, text[:place], fin=False) + framing.frame(9, b"hi") + framing.frame(0, text[place:])
        else:
            wire += framing.frame(1, text)
    if rng.random() < 0.2:
        wire = bytearray(wire)
        wire[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)
        wire = bytes(wire)
    return wire + (framing.frame(8, b"\x03\xe8") if rng.random() < 0.5 else b"")


def updates_of(pieces: Iterator[bytes], reader: Reader) -> tuple[list[Any], object]:
    """The updates and findings that the bytes come to, and how the socket ended."""
    protocol, sequencer = WebSocketProtocol(limits=Limits(), entropy=lambda size: bytes(size)), Sequencer("j1")
    sequencer.opened()
    want, state = Follow("websocket"), Snapshot((Progress(fraction=None, processed_count=1),), Numbered(1, "e1"))
    told: list[Any] = []
    begun = False
    for piece in pieces:
        messages = protocol.receive_data(piece)
        while protocol.has_more:
            messages += protocol.receive_data(b"")
        for message in messages:
            try:
                finding = sequencer.follow(reader.read(want, Message(message)))
            except MalformedMessage as error:
                told.append(str(error))
                finding = None
            told += sequencer.take()
            if not begun:  # after the first message the state comes in, wherever the cut is
                begun = True
                told.append(sequencer.state((state,)))
                told += sequencer.take()
                told.append(sequencer.release())
                told += sequencer.take()
            if isinstance(finding, End):
                told += [*finding.before, finding.outcome]
            elif finding is not None and not isinstance(finding, Synced):
                told.append(finding)
    protocol.receive_eof()
    return told, repr(protocol.end)


@pytest.mark.promises("P3", "the same bytes give the same updates, however they are cut", "100,000: 0 differ")
def test_the_same_updates_however_it_is_cut(load: Load, count: Count, reached: Tell) -> None:
    framing = load("transport/test_framing.py")
    reader, updates, differ = Reader(Towline("ws://hub/ws/progress", "j1")), 0, list[int]()
    for seed in range(count(100_000)):
        rng = random.Random(seed)
        wire = session(rng, framing)
        whole = updates_of(iter([wire]), reader)
        updates += len(whole[0])
        if updates_of(framing.random_cuts(rng, wire), reader) != whole:
            differ.append(seed)
    reached(f"{count(100_000):,} sessions, {updates:,} updates: {len(differ)} differ")
    assert not differ
    assert updates > count(100_000), "the sessions say something"


# --- P4: each limit is met at the limit, and refused one past it ----------------------------------------------------


@asynccontextmanager
async def server(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    """A real server on loopback that answers the head of a request with whatever bytes it likes; yields its port."""

    async def handle(stream: SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await stream.send(answer(head))
                while True:
                    await stream.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


def upgrade(head: bytes, *, before: bytes = b"", after: bytes) -> bytes:
    """An answer that opens the WebSocket, and what comes in the same breath."""
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    accept = generate_accept_token(key.partition(b":")[2].strip())
    lines = [b"HTTP/1.1 101 x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + accept]
    return before + b"\r\n".join(lines) + b"\r\n\r\n" + after


async def receives(answer: Callable[[bytes], bytes]) -> int:
    """The length of the first message; -1 where something is past a limit."""
    async with server(answer) as port:
        try:
            async with open_websocket(f"ws://127.0.0.1:{port}/") as line:
                return len((await line.receive_batch())[0])
        except (MessageTooBig, ProtocolViolation):
            return -1


async def rejection(size: int) -> int:
    """How much is kept of a refusal's body."""
    head = b"HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n" % size
    async with server(lambda _: head + b"x" * size) as port:
        with pytest.raises(HandshakeRefused) as refused:
            async with open_websocket(f"ws://127.0.0.1:{port}/"):
                pass
    return len(refused.value.body)


async def state(size: int) -> bool:
    """Whether a state answer of so many bytes is taken."""
    body = b'{"status":"running"}'.ljust(size)
    head = b"HTTP/1.1 200 x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size
    async with server(lambda _: head + body) as port:
        try:
            await request("GET", f"http://127.0.0.1:{port}/", max_body=16 << 20)
        except MessageTooBig:
            return False
    return True


@pytest.mark.promises("P4", "each limit, real sockets", "met at it, refused one past it; both backends")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_limit(backend: str, load: Load, reached: Tell) -> None:
    frame = load("transport/test_framing.py").frame
    limits, most_state = Limits(), 16 << 20

    async def main() -> None:
        for size, length in ((limits.max_message, limits.max_message), (limits.max_message + 1, -1)):
            for opcode in (1, 2):
                message = frame(opcode, b"a" * size)
                assert await receives(lambda head, message=message: upgrade(head, after=message)) == length
        for fragments, length in ((limits.max_fragments, 1), (limits.max_fragments + 1, -1)):
            pieces = frame(1, b"a", fin=False) + frame(0, fin=False) * (fragments - 2) + frame(0)
            assert await receives(lambda head, pieces=pieces: upgrade(head, after=pieces)) == length
        early, hello = b"HTTP/1.1 103 x\r\n\r\n", frame(1, b"hello")
        at_limit = early * limits.max_informational
        assert await receives(lambda head: upgrade(head, before=at_limit, after=hello)) == 5
        assert await receives(lambda head: upgrade(head, before=at_limit + early, after=hello)) == -1
        assert await rejection(limits.max_rejection_body) == limits.max_rejection_body
        assert await rejection(limits.max_rejection_body + 1) == limits.max_rejection_body
        assert await state(most_state)
        assert not await state(most_state + 1)

    with_deadline(main, backend)
    reached("message, fragments, 1xx answers, a refusal's body, a state: met, and refused one past it")


def with_deadline(main: Callable[[], Any], backend: str) -> None:
    async def bounded() -> None:
        with anyio.fail_after(60):
            await main()

    anyio.run(bounded, backend=backend)
