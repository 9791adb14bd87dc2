"""A strict reader of event streams for the tests, and one stream of a hub as a client sees it.

The reader follows the WHATWG rules (https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6) for
what a hub sends: lines end with LF, and a block that the connection cut is dropped.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx


class Reader:
    """Reads the bytes of one stream, in any pieces."""

    def __init__(self) -> None:
        self.ack: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.retries: list[int] = []
        self.comments = 0
        self.last_id: str | None = None
        self._rest = b""

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    def feed(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._read(block.decode())

    def _read(self, block: str) -> None:
        text = name = None
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            if field == "":
                self.comments += 1
                continue
            assert value.startswith(" "), block
            match field:
                case "data":
                    assert text is None, block
                    text = value[1:]
                case "id":
                    name = value[1:]
                case "retry":
                    assert re.fullmatch("[0-9]+", value[1:])
                    self.retries.append(int(value))
                case _:
                    raise AssertionError(block)
        if text is not None:
            self._take(json.loads(text), text, name)

    def _take(self, frame: dict[str, Any], text: str, name: str | None) -> None:
        if frame["type"] == "ready_ack":
            assert (name, self.ack, self.events) == (None, {}, [])
            self.ack = frame
            return
        assert name == f"{frame['epoch']}:{frame['seq']}"
        self.last_id = name
        self.texts.append(text)
        self.events.append(frame)


class Stream(Reader):
    """One stream: what it brought so far, and `whole` once the server has ended it."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        self.response = response
        self.whole = False
        self._pieces = response.iter_raw()

    def read(self, until: Callable[[Stream], bool] = lambda stream: False) -> Stream:
        """Read until this is fulfilled or the stream ends."""
        while not until(self):
            try:
                self.feed(next(self._pieces))
            except StopIteration:
                self.whole = True
                break
            except httpx.RemoteProtocolError:  # it was cut
                break
        return self


@contextlib.contextmanager
def opened(client: Any, after: str | None = None, **headers: str) -> Iterator[Stream]:
    """Open the stream of the client's job, after the event of this id."""
    headers = client.auth | headers | ({} if after is None else {"last-event-id": after})
    with client.http.stream("GET", f"/api/jobs/{client.job}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)


def followed(client: Any, after: str | None = None) -> Stream:
    """Follow the client's job after the event of this id to the end of the stream."""
    with opened(client, after) as stream:
        return stream.read()
