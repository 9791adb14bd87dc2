"""A device to install firmware on: `python device.py 8070`. It has two slots, and an image in the other slot is new.

An image that begins with `broken` runs but reports a fault.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Device(ThreadingHTTPServer):
    """`running` is the image that runs, `other` the one in the other slot. `failures` requests fail first.

    For tests: `reached` is set at the first request that changes something, and it is answered once `open` is set.
    """

    def __init__(self, port: int = 0, failures: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.running, self.other = b"old", b""
        self.old = self.running
        self.failures = failures
        self.asked: list[str] = []
        self.reached, self.open = threading.Event(), threading.Event()
        self.open.set()


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Device

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.works():
            self.server.other = body
            self.answer(200)

    def do_POST(self) -> None:
        if self.works():
            # Both may come again after a kill of the client, and then change nothing.
            self.server.running = self.server.other if self.path == "/activate" else self.server.old
            self.answer(200)

    def do_GET(self) -> None:
        if self.path == "/digest":
            self.answer(200, hashlib.sha256(self.server.other).hexdigest().encode())
        else:
            self.answer(200, b"fault" if self.server.running.startswith(b"broken") else b"ok")

    def works(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.reached.set()
        self.server.open.wait()
        if not self.server.failures:
            return True
        self.server.failures -= 1
        self.answer(503)
        return False

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    Device(int(sys.argv[1])).serve_forever()
