"""Hostile bytes: the fuzz targets' invariants over a corpus and over mutations of good streams.

`TOWLINE_SOAK_HOSTILE` sets how many mutated inputs are tried (20,000). Inputs that once broke something are files under
`fuzz/corpus/<target>/`.
"""

import importlib.util
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wsproto.utilities import generate_accept_token

FUZZ = Path(__file__).parents[2] / "fuzz"
TARGETS = ("handshake", "frames", "http_answer", "events")
INPUTS = int(os.environ.get("TOWLINE_SOAK_HOSTILE", "20000"))


def target(name: str) -> Callable[[bytes], None]:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check: Callable[[bytes], None] = module.check
    if name == "handshake":
        global ACCEPT
        ACCEPT = generate_accept_token(module.KEY)
    return check


ACCEPT = b""


def good(name: str) -> list[bytes]:
    """Streams that are in order, to be spoiled."""
    if name == "frames":
        packed = zlib.compressobj(wbits=-15)
        data = packed.compress(b"hello " * 30) + packed.flush(zlib.Z_SYNC_FLUSH)
        return [
            b"\x81\x05hello\x82\x03\x00\x01\x02\x89\x02hi\x8a\x00\x88\x05\x03\xe8bye",
            b"\x81\x7e\x00\xc8" + b"a" * 200 + b"\x01\x02\xc3\xa9\x89\x00\x00\x01x\x80\x00\x81\x00",
            b"\xc1" + bytes([len(data) - 4]) + data[:-4] + b"\x41\x05" + data[:5] + b"\x89\x00\x80\x03" + data[5:8],
            b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(900),
            b"\x01\x00" + b"\x00\x00" * 6 + b"\x80\x00" + b"\x81\x01x" * 10,
        ]
    if name == "handshake":
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n"
        return [
            b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + b"\r\n\x81\x02hi",
            b"HTTP/1.1 103 Early\r\nLink: <x>\r\n\r\nHTTP/1.1 101 x\r\n"
            + upgrade
            + b"Sec-WebSocket-Protocol: b\r\n\r\n",
            b"HTTP/1.1 101 x\r\n"
            + upgrade
            + b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n\r\n",
            b"HTTP/1.1 401 No\r\nContent-Length: 5\r\nRetry-After: 3\r\n\r\nhello",
            b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            b"HTTP/1.0 502 Bad\r\n\r\n<html>" + b"x" * 1100,
        ]
    if name == "events":
        return [
            b'id: 1\nevent: progress\ndata: {"seq":1}\n\nid: 2\nevent: progress\ndata: {"seq":2}\n\n',
            b"\xef\xbb\xbf: hello\r\nretry: 3000\r\n\r\ndata:one\r\ndata: two\r\nid:7\r\n\r\nid\r\ndata\r\n\r\n",
            b"data: a\r\rdata:b\n\r\nevent:x\rid:a\0b\rdata:\xc3\xa9\r\r\n:\n\n\ndata: unfinished",
            b"data: " + b"x" * 240 + b"\n\n" + b"data: yyyyyyyyyy\n" * 20 + b"\n",
            b'{"a":1}\n{"b":2}\r\n\n{"c":3}',
        ]
    return [
        b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"status":"running"}',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 503 x\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 404 x\r\n\r\nuntil the end",
        b'{"type":"job_progress","jobId":"j","seq":4,"payload":{"progress":0.5,"status":"x"}}',
        b'{"type":"error","payload":{"code":"E","message":"m"}}',
    ]


def spoiled(rng: random.Random, data: bytes) -> bytes:
    spoil = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 4, 16])):
        place = rng.randrange(len(spoil) + 1)
        way = rng.randrange(6)
        if way == 0 and spoil:
            spoil[place % len(spoil)] ^= 1 << rng.randrange(8)
        elif way == 1:
            spoil[place:place] = rng.randbytes(rng.randint(1, 8))
        elif way == 2:
            del spoil[place : place + rng.randint(1, 8)]
        elif way == 3 and spoil:
            spoil[place % len(spoil)] = rng.choice(b"\x00\xff\x7f\x80\r\n:; ,\xc3\xed0")
        elif way == 4:
            spoil[place:place] = spoil[place : place + rng.randint(1, 40)]
        else:
            spoil[place:] = spoil[place:][: rng.randint(0, 40)]
    return bytes(spoil)


def inputs(name: str, count: int) -> Iterator[tuple[int, bytes]]:
    streams = good(name)
    for seed in range(count):
        rng = random.Random(seed)
        stream = b"".join(rng.choice(streams) for _ in range(rng.choice([1, 1, 2])))
        wire = spoiled(rng, stream) if rng.random() < 0.95 else rng.randbytes(rng.randint(0, 60))
        place = rng.randint(0, len(wire) + 1).to_bytes(2, "big")
        yield seed, place + (rng.randbytes(1) if name in {"frames", "events"} else b"") + wire


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_streams(name: str) -> None:
    """Only typed errors, the same however it is cut, within the limits, and none takes a second."""
    check = target(name)
    for seed, data in inputs(name, INPUTS // len(TARGETS)):
        began = time.perf_counter()
        try:
            check(data)
        except BaseException as error:
            raise AssertionError(f"{name}, seed {seed}, {data!r}") from error
        assert time.perf_counter() - began < 10, f"{name}, seed {seed} hangs"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    check = target(name)
    files = sorted((FUZZ / "corpus" / name).iterdir())
    assert files, "the corpus is part of the project"
    for file in files:
        check(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_says_its_invariant_first(name: str) -> None:
    assert (FUZZ / f"{name}.py").read_text().startswith("# INVARIANT: ")
