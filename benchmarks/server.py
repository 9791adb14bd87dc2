"""The server of the benchmarks: blocking sockets and prepared bytes, so that the result measures the client.

It prints its port, its port with TLS and the file of the authority's certificate, then serves until its standard input
ends. The path selects the workload::

    /bulk/200/100000      100,000 text messages of 200 bytes, as fast as the client reads
    /deflate/200/100000   the same, compressed without context takeover
    /echo/200             the server answers each message with one of the same size
    /sink/200/100000      the client sends 100,000 messages of 200 bytes; the server answers once, after the last
    /drop/rst             one message, then the end by RST (or by FIN: /drop/fin)
    /job/100000           a job's log: started, 99,998 progress messages, complete (job j, sequence checked)
    /idle                 nothing; pings are answered
"""

from __future__ import annotations

import base64
import hashlib
import json
import selectors
import socket
import ssl
import struct
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import trustme

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK = 256 << 10


def frame(payload: bytes, head: int = 0x81) -> bytes:
    if len(payload) < 126:
        return bytes([head, len(payload)]) + payload
    if len(payload) < 1 << 16:
        return bytes([head, 126]) + len(payload).to_bytes(2, "big") + payload
    return bytes([head, 127]) + len(payload).to_bytes(8, "big") + payload


def compressed(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def text(size: int) -> bytes:
    """A text like a progress message, of exactly this size."""
    body = json.dumps({"type": "job_progress", "progress": 0.5, "status": "working", "item": "x" * size}).encode()
    return body[:size]


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = connection.recv(65536)
        if not data:
            raise ConnectionError
        head += data
    return head


def accept(head: bytes, extensions: bytes = b"") -> bytes:
    key = next(
        line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    )
    token = base64.b64encode(hashlib.sha1(key + GUID).digest())
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + token
    )
    return answer + extensions + b"\r\n\r\n"


def blast(connection: socket.socket, message: bytes, count: int) -> None:
    each = max(1, CHUNK // len(message))
    chunk = message * each
    for _ in range(count // each):
        connection.sendall(chunk)
    connection.sendall(message * (count % each) + b"\x88\x02\x03\xe8")
    while connection.recv(65536):
        pass


def echo(connection: socket.socket, size: int) -> None:
    wire = len(frame(b"x" * size)) + 4  # the client's frame also has a mask
    answer = frame(text(size))
    buffer = bytearray()
    while True:
        while len(buffer) < wire:
            data = connection.recv(1 << 20)
            if not data or (not buffer and data[0] == 0x88):
                return
            buffer += data
        del buffer[:wire]
        connection.sendall(answer)


def sink(connection: socket.socket, size: int, count: int) -> None:
    left = (len(frame(b"x" * size)) + 4) * count
    while left > 0:
        data = connection.recv(1 << 20)
        if not data:
            return
        left -= len(data)
    connection.sendall(frame(b"done"))
    while connection.recv(65536):
        pass


def drop(connection: socket.socket, ending: str) -> None:
    connection.sendall(frame(text(200)))
    if ending == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def job_log(count: int) -> bytes:
    def event(seq: int, kind: str, payload: dict[str, object]) -> bytes:
        envelope = {
            "jobId": "j",
            "pipeline": "csv_import",
            "timestamp": 1,
            "version": "1.0.0",
            "seq": seq,
            "epoch": "e",
        }
        return frame(
            json.dumps({"type": kind, **envelope, "payload": {"type": kind, **payload}}, separators=(",", ":")).encode()
        )

    def progress(seq: int) -> bytes:
        return event(seq, "job_progress", {"progress": seq / count, "status": "working", "processedCount": seq})

    result = {"books": [], "errors": [], "successRate": "0/0"}
    return b"".join(
        [
            event(1, "job_started", {"totalCount": count}),
            *(progress(seq) for seq in range(2, count)),
            event(count, "job_complete", result),
        ]
    )


def serve_job(connection: socket.socket, count: int, waits_for_ready: bool) -> None:
    log = job_log(count)
    if waits_for_ready:
        connection.recv(65536)
        connection.sendall(
            frame(json.dumps({"type": "ready_ack", "timestamp": 1, "epoch": "e", "from": 1, "to": count}).encode())
        )
    connection.sendall(log + b"\x88\x02\x03\xe8")
    while connection.recv(65536):
        pass


def serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        head = read_head(connection)
        path = head.split(b" ", 2)[1].decode().partition("?")[0]
        _, work, *arguments = path.split("/")
        if work == "api":
            state = json.dumps({"status": "running", "pipeline": "csv_import", "seq": 0, "epoch": "e"}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(state) + state)
            return
        extensions = b""
        if work == "deflate":
            offer = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            extensions = b"\r\nSec-WebSocket-Extensions: " + offer
        connection.sendall(accept(head, extensions))
        if work == "bulk":
            blast(connection, frame(text(int(arguments[0]))), int(arguments[1]))
        elif work == "deflate":
            blast(connection, frame(compressed(text(int(arguments[0]))), 0xC1), int(arguments[1]))
        elif work == "echo":
            echo(connection, int(arguments[0]))
        elif work == "sink":
            sink(connection, int(arguments[0]), int(arguments[1]))
        elif work == "drop":
            drop(connection, arguments[0])
        elif work == "job":
            serve_job(connection, int(arguments[0]), "plain" not in arguments)
        elif work == "idle":
            IDLE.add(connection)
            return
    except OSError:
        pass  # the client has disconnected, so the workload is done
    connection.close()


class Idle:
    """Idle sockets that only answer pings, all served by one thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        threading.Thread(target=self.run, daemon=True).start()

    def add(self, connection: socket.socket) -> None:
        self.selector.register(connection, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, _ in self.selector.select(0.5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    data = connection.recv(4096)
                    if data[:1] == b"\x89":
                        connection.sendall(b"\x8a\x00")
                    if data and data[:1] != b"\x88":
                        continue  # a ping, or the `ready` of a whole `Connection`
                except OSError:
                    data = b""
                self.selector.unregister(connection)
                connection.close()


IDLE = Idle()


def listen(tls: ssl.SSLContext | None) -> int:
    """Serve on a free port; returns it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)

    def begin(connection: socket.socket) -> None:
        if tls is not None:
            try:
                connection = tls.wrap_socket(connection, server_side=True)
            except OSError:
                return
        serve(connection)

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=begin, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def main() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "authority.pem")
        authority.cert_pem.write_to_path(file)
        print(listen(None), listen(context), file, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
